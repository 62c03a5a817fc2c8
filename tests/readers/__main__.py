"""``make readers``: a table of readers that we did not write; fails where one reads other bits."""

import itertools
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from readers.comparing import COMPRESSIONS, READERS, STATES, absent, compare, trace
from tracelab.cli.console import table


def main() -> int:
    """Print the table; return the exit code."""
    columns: dict[str, list[object]] = {
        name: []
        for name in (
            *("reader", "version", "reads", "traces", "groups", "arrays", "values"),
            "mismatches",
        )
    }
    wrong = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        traces = [
            stack.enter_context(trace(Path(folder), compression, state))
            for compression, state in itertools.product(COMPRESSIONS, STATES)
        ]
        for reader in READERS:
            missing = absent(reader)
            found = [] if missing else [compare(reader, *each) for each in traces]
            row = {
                "reader": reader.name,
                "version": missing or found[-1].version,
                "reads": "HDF5" if reader.exported else "Zarr",
                "traces": len(found),
                "groups": sum(each.groups for each in found),
                "arrays": sum(each.arrays for each in found),
                "values": sum(each.values for each in found),
                "mismatches": sum(len(each.mismatches) for each in found),
            }
            for name, cell in row.items():
                columns[name].append(cell)
            for (store, _), each in zip(traces, found, strict=False):
                wrong += [f"{reader.name}, {store.stem}: {path}" for path in each.mismatches]
    print(table(columns))
    print(
        "Traces: without compression and with LZ4, each complete and while it is recorded; "
        "every kind of group, every dtype.\nCompared with what was written, as SHA-256 of each "
        "array's bytes. TensorStore knows no texts."
    )
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
