"""Runs every benchmark and writes the tables to benchmarks/RESULTS.md."""

import contextlib
import importlib
import io
import platform
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run each module of this folder that has a ``main`` and gather what it prints."""
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    pages = [
        "# Benchmarks\n\nWritten by `make bench`: paired ratios in one process, medians.\n",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}\n",
    ]
    for name in names:
        # Parts of another: `store` runs `store_reading`.
        if any(name.startswith(f"{other}_") for other in names):
            continue
        print(f"== {name}", flush=True)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            importlib.import_module(f"benchmarks.{name}").main()
        print(text.getvalue(), flush=True)
        pages.append(f"## {name}\n\n{text.getvalue().strip()}\n")
    (HERE / "RESULTS.md").write_text("\n".join(pages))


if __name__ == "__main__":
    main()
