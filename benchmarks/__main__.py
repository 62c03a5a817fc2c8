"""Runs benchmarks and writes their tables to benchmarks/RESULTS.md.

``python -m benchmarks [NAME...]``: those named, or all but those of `LONG`; the tables of the
others stay as they were.
"""

import contextlib
import importlib
import io
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
HEAD = "# Benchmarks\n\nWritten by `make bench`: paired ratios in one process, medians."
# They write 40 and 3 GB, and take most of an hour and ten minutes.
LONG = ("larger_than_memory", "whole_trace")


def known() -> list[str]:
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    # Parts of another: `store` runs `store_reading`.
    return [name for name in names if not any(name.startswith(f"{other}_") for other in names)]


def tables() -> dict[str, str]:
    """Return the tables that were written before, by name."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def main() -> None:
    names = sys.argv[1:] or [name for name in known() if name not in LONG]
    # Modules with options of their own read none of these.
    sys.argv[1:] = []
    for name in names:
        print(f"== {name}", flush=True)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            importlib.import_module(f"benchmarks.{name}").main()
        print(text.getvalue(), flush=True)
        when = f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}"
        found = tables() | {
            name: f"{when}, Python {platform.python_version()}\n\n{text.getvalue()}"
        }
        kept = {name: found[name] for name in known() if name in found}
        pages = [f"## {name}\n\n{table.strip()}\n" for name, table in kept.items()]
        RESULTS.write_text("\n".join([f"{HEAD}\n", *pages]))


if __name__ == "__main__":
    main()
