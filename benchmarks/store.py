"""The trace store against plain files and other libraries: writing, and then reading.

Run as ``python -m benchmarks.store``; prints a markdown table of each.
"""

import importlib
import importlib.util
import tempfile
from pathlib import Path


def main() -> None:
    for part in ("writing", "reading"):
        name = f"benchmarks.store_{part}"
        if importlib.util.find_spec(name) is None:
            continue
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            print(f"| {part} | figure |\n|---|---|")
            for label, figure in importlib.import_module(name).rows(Path(folder)):
                print(f"| {label} | {figure} |", flush=True)
            print()


if __name__ == "__main__":
    main()
