"""Prints the table of faults: ``make faults``."""

import logging
import sys
import tempfile
import time
from pathlib import Path

from faults.scenarios import SCENARIOS


def main():
    # Rows that are set aside are warned of, as they should be.
    logging.getLogger("tracelab").setLevel(logging.ERROR)
    print("| fault | times tried | rows committed | committed rows lost | seconds |")
    print("|---|---|---|---|---|")
    bad = False
    told = {}
    for name, (scenario, trials) in SCENARIOS.items():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                found = scenario(Path(folder), trials, seed=0)
            except PermissionError as error:
                print(f"| {name} | 0: {error} | | | |", flush=True)
                bad = True
                continue
        bad |= found.lost > 0
        told[name] = found.told[-1:]
        row = (name, found.tried, f"{found.committed:,}", found.lost)
        print(f"| {' | '.join(map(str, row))} | {time.perf_counter() - started:.0f} |", flush=True)
    print("\nWhat was said of the last of each:\n")
    for name, sentences in told.items():
        for sentence in sentences:
            print(f"- {name}: {sentence}")
    sys.exit(bad)


if __name__ == "__main__":
    main()
