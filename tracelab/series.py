"""Series of noise of a cell: which can be analysed, and on what scale."""

from __future__ import annotations

import numpy as np

from tracelab.contracts import Input, Parameter, Variable
from tracelab.typing import BoolArray, FloatArray, Status

__all__ = ["NOISE", "PROBE", "SELECTION", "SKETCH", "by_quartiles", "dense", "usable_series"]

PROBE = "NoiseProbe(every=200)"
"""What records noise samples of minibatches."""

NOISE = Input(
    Variable("noise", ("step", "layer", "batch", "series"), "loss/weight"),
    sources=("noise", "examples"),
    collector=PROBE,
)
"""Noise samples, as an analysis reads them: of minibatches, or of single examples."""

SKETCH = Parameter(
    "sketch",
    "auto",
    "which recorded series; auto takes full, then sampled, then projected",
    choices=("auto", "full", "sampled", "projected"),
)
SELECTION = (
    Parameter(
        "group",
        "auto",
        "which group of minibatches or examples; auto: of minibatches if there is one",
    ),
    Parameter(
        "batch_size", None, "synthetic: a multiple of the recorded one; of examples any", low=1
    ),
    Parameter(
        "batches", None, "batches drawn from single examples; none: as many as examples", low=1
    ),
    Parameter("replacement", True, "whether the examples of a batch are drawn with replacement"),
)
"""Which noise an analysis reads: parameters that its kernel receives, applied already."""

# A series that takes few values has no density: its likelihood is unbounded at an atom.
MAX_REPEATS = 0.5


def usable_series(noise: FloatArray, min_batches: int) -> tuple[Status, FloatArray]:
    """Return whether a cell can be analysed, or why not, and its series that vary.

    Parameters
    ----------
    noise : ndarray, shape (batch, series)
        One cell.
    min_batches : int
        Fewer minibatches are too few samples.

    Returns
    -------
    status : Status
        OK, NON_FINITE_INPUT, TOO_FEW_SAMPLES or CONSTANT_INPUT.
    series : ndarray, shape (batch, kept)
        The series that vary; all of them where the status is not OK.
    """
    if not np.isfinite(noise).all():
        return Status.NON_FINITE_INPUT, noise
    if noise.shape[0] < min_batches:
        return Status.TOO_FEW_SAMPLES, noise
    kept = noise[:, np.ptp(noise, axis=0) > 0]
    return (Status.OK if kept.shape[1] else Status.CONSTANT_INPUT), kept


def dense(series: FloatArray) -> BoolArray:
    """Return of which series, (batch, series), no more than half of the values repeat another.

    Dead units leave atoms.
    """
    repeats = np.mean(np.diff(np.sort(series, axis=0), axis=0) == 0, axis=0)
    found: BoolArray = repeats < MAX_REPEATS
    return found


def by_quartiles(series: FloatArray) -> FloatArray:
    """Return series of median 0 and interquartile range 1, without those that have none."""
    low, middle, high = np.quantile(series, [0.25, 0.5, 0.75], axis=0)
    kept = high > low
    scaled: FloatArray = (series[:, kept] - middle[kept]) / (high - low)[kept]
    return scaled
