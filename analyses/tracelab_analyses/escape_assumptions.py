"""What theories of escape take for granted, and checks of it against recorded noise."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from tracelab.stats.combination import cauchy_combination
from tracelab.typing import Assumption, FloatArray

__all__ = [
    "ASSUMPTIONS",
    "FAILS",
    "HOLDS",
    "LEVEL",
    "NEEDS",
    "NOT_NEEDED",
    "UNCHECKED",
    "combined",
    "independent",
]

LEVEL = 0.05
UNCHECKED, HOLDS, FAILS, NOT_NEEDED = Assumption
ASSUMPTIONS = {
    "quadratic": "the loss reaches the barrier within a quarter of where the quadratic does",
    "at_bottom": "the weights are within a quarter of the width of the bottom",
    "settled": "the loss, at the slope it has, falls by less than the barrier before the exit",
    "gaussian": "Gaussian noise is not rejected (Anderson-Darling)",
    "stable": "stable noise is not rejected, and Gaussian noise is (interval of alpha below 2)",
    "independent": "directions do not jump together (ranks of absolute values)",
    "rare": "exits take ten times longer than the return to the bottom",
    "small_steps": "a step returns less than half of the way",
    "short_memory": "gradients are averaged over less than a fifth of the return",
    "fixed_steps": "a minibatch changes the optimizer's steps by less than a fifth",
    "all_curvature": "the directions carry half of what noise meets of the curvature",
    "unclipped": "gradients are not clipped",
    "same_region": "observed replicas left over the same rise of the loss",
}
_CLOSED = (
    "settled",
    "at_bottom",
    "rare",
    "small_steps",
    "short_memory",
    "fixed_steps",
    "all_curvature",
    "unclipped",
)
NEEDS = {
    "kramers": ("quadratic", "gaussian", *_CLOSED),
    "diffusion": ("quadratic", "gaussian", *_CLOSED),
    "levy": ("stable", "independent", *_CLOSED),
    "jump_measure": ("quadratic", "stable", *_CLOSED),
    "simulated_gaussian": ("settled", "quadratic", "gaussian", "fixed_steps", "all_curvature"),
    "simulated_stable": (
        "settled",
        "quadratic",
        "stable",
        "independent",
        "fixed_steps",
        "all_curvature",
    ),
    "simulated_recorded": ("settled", "quadratic", "fixed_steps", "all_curvature"),
    "observed": ("settled", "same_region"),
}


def combined(pvalues: FloatArray) -> float:
    """Return one p-value for all directions; 0 where none could be tested."""
    tested = pvalues[np.isfinite(pvalues)]
    return float(cauchy_combination(tested)) if tested.size else 0.0


def independent(samples: FloatArray) -> bool:
    """Return whether no pair of directions is large or small together, by Spearman's test."""
    n, d = samples.shape
    if d == 1:
        return True
    ranks = np.abs(samples).argsort(axis=0).argsort(axis=0)
    together = np.atleast_2d(np.corrcoef(ranks, rowvar=False))[np.triu_indices(d, 1)]
    quantile = special.ndtri(1 - LEVEL / (2 * together.size))
    return bool(np.abs(together).max() * math.sqrt(n - 1) < quantile)
