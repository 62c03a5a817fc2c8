"""Runs a loop with recording and without, and compares what was recorded with autograd."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracelab
from proofs.networks import INPUTS, TARGETS, loss_of
from proofs.states import bits, seed_all, state_of
from proofs.training import Counts, Loop, Row
from tracelab.errors import IncompleteTraceWarning
from tracelab_collectors import Gradients
from tracelab_collectors.attach import attach

SEED = 3
DATA = torch.utils.data.TensorDataset(INPUTS, TARGETS)


def run(
    loop: Loop, steps: int, path: Path | None = None, collectors: Sequence[Any] = (), **options: Any
) -> list[bytes]:
    """Train, and return all that training leaves behind; record if there is a path."""
    seed_all(SEED)
    torch._dynamo.reset()
    training = loop.build()
    with told(loop.warned if path else ""):
        session = path and attach(
            training.model, training.optimizers, path, collectors=collectors, **options
        )
        for t in range(steps):
            loop.step(training, t)
            if session:
                session.log(loss=training.losses[-1])
        if session:
            session.detach()
    return [*state_of(training.model, training.optimizers), *bits(training.losses)]


@contextmanager
def told(words: str) -> Iterator[None]:
    """Check that the block gives one warning about recording that says so; or none, if empty."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IncompleteTraceWarning)
        # Of forked DataLoader workers, by Python.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        # Of a machine that has one core for us, by PyTorch.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield
    said = [str(each.message) for each in caught if each.category is IncompleteTraceWarning]
    assert len(said) == bool(words), said
    assert not words or words in said[0], said
    for each in caught:
        if each.category is not IncompleteTraceWarning:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def probed() -> dict[str, Any]:
    """Return what probes need, for networks of `proofs.networks`."""
    return {"loss": loss_of, "data": DATA}


@dataclass(frozen=True)
class Comparison:
    """What was recorded beside what autograd says.

    Parameters
    ----------
    rows : int
        Rows of the trace.
    equal : bool
        Whether every number has the same bits.
    difference : float
        Largest difference, relative to the largest gradient of the layer at the step.
    """

    rows: int
    equal: bool
    difference: float


def compare(loop: Loop, steps: int, path: Path) -> Comparison:
    """Record full gradients of a loop and compare each with autograd's."""
    seed_all(SEED)
    torch._dynamo.reset()
    training = loop.build()
    wanted: list[Row | None] = []
    counts: list[Counts] = []
    collectors = [Gradients(sketch=tracelab.Full())]
    with (
        told(loop.warned),
        attach(training.model, training.optimizers, path, collectors=collectors),
    ):
        for t in range(steps):
            wanted += loop.expected(training, t)
            counts += loop.counts(t)
            loop.step(training, t)
    trace = tracelab.open(path)
    assert trace.state == ("incomplete" if loop.warned else "complete")
    rows = trace.steps.load()
    assert rows["step"].values.tolist() == list(range(len(counts)))
    found = zip(*(rows[n].values for n in ("micro_batches", "skipped", "applied")), strict=True)
    assert [*found] == counts
    full, layers = trace.gradients["full"].values, trace.layers.load()
    return difference(full, layers, wanted)


def difference(full: np.ndarray, layers: Any, wanted: Sequence[Row | None]) -> Comparison:
    """Compare recorded rows with gradients by layer; raises where they are not the same rows."""
    assert len(full) == len(wanted), (len(full), len(wanted))
    worst, equal = 0.0, True
    for recorded, row in zip(full, wanted, strict=True):
        if row is None:
            continue
        parts = zip(layers["layer"].values, layers["offset"].values, layers["numel"], strict=True)
        for name, offset, numel in parts:
            found = recorded[int(offset) : int(offset) + int(numel)]
            gradient = row.get(str(name))
            if gradient is None:
                assert np.isnan(found).all(), f"{name}: recorded where there is no gradient"
                continue
            exact = gradient.detach().to_dense().reshape(-1).float().numpy()
            equal &= bool(np.array_equal(found, exact))
            # NaN stays NaN, and no comparison with it holds.
            gap = np.abs(found.astype(np.float64) - exact).max()
            worst = max(worst, float(gap / max(np.abs(exact).max(), 1e-30)))
            assert np.isfinite(gap), f"{name}: missing or not finite"
    return Comparison(len(full), equal, worst)
