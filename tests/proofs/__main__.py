"""Prints the proof tables: ``make proofs``; words on the command line choose among the rows."""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import tracelab
from proofs.collectors import every_collector
from proofs.loops import LOOPS
from proofs.matrix import MATRIX
from proofs.processes import data_parallel, launch, sharded
from proofs.running import compare, probed, run
from proofs.training import Loop

STEPS = 200
FEW = 20
DDP = "DDP, {} processes"
FSDP = "FSDP2, 2 processes"


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        yield Path(made)


def unchanged(loop: Loop, *, probes: bool, live: bool = False) -> bool:
    """Return whether training leaves the same bits with every collector on."""
    with folder() as place:
        given = probed() if probes else {}
        collectors = every_collector(probes=probes, live=live)
        return run(loop, STEPS, place / "run.zarr", collectors, **given) == run(loop, STEPS)


def ranks_unchanged(function: Callable, world: int, *given: object) -> bool:
    with folder() as place:
        recorded, bare = (
            [each["state"] for each in launch(function, world, place, *given[:-1], how)]
            for how in (given[-1], None)
        )
        return recorded == bare


def shards_unchanged() -> bool:
    with folder() as place:
        recorded, bare = (
            [each["state"] for each in launch(sharded, 2, place, 0, STEPS, how, {})]
            for how in ("everything", None)
        )
        return recorded == bare


def autograd_of_ranks(world: int) -> float:
    """Return how far the average that rank 0 records is from that of the ranks' gradients."""
    with folder() as place:
        results = launch(data_parallel, world, place, FEW, "by rank 0")
        mean = np.mean([each["both"].astype(np.float64) for each in results], axis=0)
        return relative(tracelab.open(place / "run.zarr").gradients["full"].values, mean)


def autograd_of_passes(world: int) -> float:
    with folder() as place:
        results = launch(data_parallel, world, place, FEW, "by every rank")
        traces = [
            tracelab.open(place / f"run.zarr/workers/rank-{rank:03}") for rank in range(world)
        ]
        return max(
            relative(trace.groups["micro_batches"]["full"].values[:, 0], each["first"])
            for trace, each in zip(traces, results, strict=True)
        )


def autograd_of_shards() -> float:
    with folder() as place:
        results = launch(sharded, 2, place, 0, FEW, "sketches", {})
        traces = [tracelab.open(place / f"run.zarr/workers/rank-{rank:03}") for rank in range(2)]
        return max(
            relative(trace.groups["full"]["sampled"].values, each["local"])
            for trace, each in zip(traces, results, strict=True)
        )


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def harmless() -> dict[str, Callable[[], bool]]:
    rows: dict[str, Callable[[], bool]] = {}
    for name, loop in MATRIX.items():
        live = name.startswith("MLP") and name.endswith("plain")
        rows[name] = lambda loop=loop, live=live: unchanged(loop, probes=True, live=live)
    for name, loop in LOOPS.items():
        rows[name] = lambda loop=loop: unchanged(loop, probes=False)
    for world in (2, 4):
        rows[DDP.format(world)] = lambda world=world: ranks_unchanged(
            data_parallel, world, STEPS, "everything"
        )
    rows[FSDP] = shards_unchanged
    return rows


def right() -> dict[str, Callable[[], float]]:
    rows: dict[str, Callable[[], float]] = {}

    def compared(loop: Loop) -> float:
        with folder() as place:
            return compare(loop, FEW, place / "run.zarr").difference

    for name, loop in LOOPS.items():
        rows[name] = lambda loop=loop: compared(loop)
    for world in (2, 4):
        rows[f"{DDP.format(world)}: average"] = lambda world=world: autograd_of_ranks(world)
        rows[f"{DDP.format(world)}: each rank's own"] = lambda world=world: autograd_of_passes(
            world
        )
    rows[FSDP] = autograd_of_shards
    return rows


def main(words: list[str]) -> int:
    warnings.simplefilter("ignore")
    bad = False
    print("| loop | steps | weights, losses, generators bitwise equal |\n|---|---|---|")
    for name, check in chosen(harmless(), words):
        said = attempt(lambda check=check: "yes" if check() else "NO")
        bad |= said != "yes"
        print(f"| {name} | {STEPS} | {said} |", flush=True)
    print(
        "\n| loop | steps | recorded beside autograd, largest relative difference |\n|---|---|---|"
    )
    for name, measure in chosen(right(), words):
        said = attempt(lambda measure=measure: f"{measure():.1e}")
        bad |= not said[0].isdigit() or float(said) > 1e-6
        said = "0, every bit" if said == "0.0e+00" else said
        print(f"| {name} | {FEW} | {said} |", flush=True)
    return int(bad)


def attempt(check: Callable[[], str]) -> str:
    """Return what a check says, or the failure that it met; the other rows are still printed."""
    try:
        return check()
    except Exception as error:
        return f"NO: {type(error).__name__}: {error}".replace("\n", " ")


def chosen(rows: dict[str, Callable], words: list[str]) -> list[tuple[str, Callable]]:
    return [(n, row) for n, row in rows.items() if not words or any(w in n for w in words)]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
