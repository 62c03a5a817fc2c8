"""How much memory there is, and how much of it the cells of a plan take."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tracelab.cutting import Block
from tracelab.errors import UsageError
from tracelab.planning import Plan

__all__ = ["available", "fitting", "heaviest", "needed", "resident"]

# Of a cell's input as float64, what loading and the kernel hold at their peak, the input included.
# Measured as resident memory on cells of 500 x 4,096: tail_index 8.0 to 9.1, gaussianity 5.2 to
# 7.0 by mode. A law test holds every analysis to it.
PEAK = 10
# What reading holds besides: chunks that are decoded, pieces of a sum over layers.
READING_BYTES = 2**24
# Of what is free, what is taken without being told: others want memory too.
SHARE = 0.6
# Input that a task takes at a time; less only where memory is short.
LEAST_PIECE_BYTES = 2**20

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def resident() -> int:
    """Return the resident memory of this process in bytes; 0 where the system does not say."""
    try:
        pages = int((_PROC / "self" / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """Return the bytes of memory that this process may still take.

    What the system has available, or less if a control group (a container, a batch job) allows
    less. Half of all memory where the system does not tell.
    """
    bounds = [
        int(line.split()[1]) * 1024
        for line in _lines(_PROC / "meminfo")
        if line.startswith("MemAvailable:")
    ]
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            bounds += _free(_CGROUPS, group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            bounds += _free(
                _CGROUPS / "memory",
                group,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
    if bounds:
        return max(min(bounds), 0)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free(root: Path, group: str, limit: str, usage: str, cache: str) -> list[int]:
    """Return what a control group and each of those around it leave free."""
    found = []
    path = Path(group.strip().lstrip("/"))
    # Inside a container the path is the host's; its own group is then the root.
    for place in (path, *path.parents):
        bound = "".join(_lines(root / place / limit)).strip()
        used = "".join(_lines(root / place / usage)).strip()
        if bound.isdigit() and used.isdigit():
            # Pages of files that were read count as used, and are given back when asked for.
            pages = [
                int(line.split()[1])
                for line in _lines(root / place / "memory.stat")
                if line.startswith(f"{cache} ")
            ]
            found.append(int(bound) - int(used) + sum(pages))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def needed(plan: Plan, block: Block) -> int:
    """Return the bytes that a block takes at its peak, its cells computed piece by piece."""
    cells = plan.grain.cell_bytes[block.left : block.right]
    heaviest = float(cells.max())
    rows = block.last - block.first if plan.by_step else 1
    together = max(heaviest, min(plan.piece_bytes, float(cells.sum()) * rows))
    by_cell = any(read.kind == "noise" for read in plan.reads.values())
    # Noise is computed cell by cell: of the others of a piece only what was read is there.
    peak = together + PEAK * heaviest if by_cell else PEAK * together
    return int(peak) + READING_BYTES


def heaviest(plan: Plan) -> Block:
    """Return the block that takes most."""
    return max(plan.blocks, key=lambda block: needed(plan, block))


def fitting(plan: Plan, allowed: int, tasks: int, bound: str) -> Plan:
    """Return the plan with pieces small enough for `tasks` at a time in `allowed` bytes.

    Parameters
    ----------
    plan : Plan
        The plan.
    allowed : int
        Bytes for all tasks that run together.
    tasks : int
        How many run together, if they fit; fewer where a cell needs more.
    bound : str
        Where `allowed` comes from, in words.

    Raises
    ------
    UsageError
        If a single cell needs more.
    """
    share = max(allowed, 0) / tasks / (2 * PEAK)
    piece = int(min(plan.piece_bytes, max(share, LEAST_PIECE_BYTES)))
    fitted = replace(plan, piece_bytes=piece)
    worst = heaviest(fitted)
    need = needed(fitted, worst)
    if need > allowed:
        raise UsageError(_refusal(fitted, worst, need, allowed, bound))
    return fitted


def _refusal(plan: Plan, block: Block, need: int, allowed: int, bound: str) -> str:
    cells = plan.grain.cell_bytes[block.left : block.right]
    column = block.left + int(cells.argmax())
    size = plan.grain.cell_bytes[column]
    what = "a cell" if plan.by_step else "the cell"
    others = ""
    if any(read.kind == "noise" for read in plan.reads.values()):
        others = ", leave the layer out, or analyse another sketch (sketch=projected)"
        if next(read for read in plan.reads.values() if read.kind == "noise").array == "projected":
            others = ", or leave the layer out"
    return (
        f"analysis {plan.analysis.name!r}: {what} of {plan.labels[column]!r} has {_text(size)} of "
        f"input and needs about {_text(need)} of memory, and {bound} leaves {_text(allowed)}; "
        f"allow more memory{others}"
    )


def _text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{max(size, 0):.0f} bytes"
