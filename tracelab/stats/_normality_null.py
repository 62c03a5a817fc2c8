"""P-values from simulated null distributions of tests of normality.

``data/make_normality_table.py`` makes the table: upper-tail points of every statistic at dense
levels and sample sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.resources import files

import numpy as np

from tracelab.typing import FloatArray

__all__ = ["pvalues"]


@functools.cache
def _table() -> dict[str, FloatArray]:
    with (
        (files("tracelab.stats") / "tables" / "normality.npz").open("rb") as file,
        np.load(file) as stored,
    ):
        return {name: stored[name].astype(np.float64) for name in stored.files}


@functools.lru_cache(maxsize=256)
def _logit(name: str, n: int) -> tuple[Callable[[FloatArray], FloatArray], float, float]:
    """Return the logit of p by the logarithm of the statistic, and the range of the latter."""
    # Takes half a second that only those who need it should wait for.
    from scipy.interpolate import PchipInterpolator

    stored = _table()
    nodes = stored["shapiro_log_n" if name == "shapiro" else "inverse_root_n"]
    at = np.log(n) if name == "shapiro" else n**-0.5
    # A test that needs more samples than another has no points at the smallest sizes, the last.
    points = np.asarray(PchipInterpolator(nodes[: len(stored[name])], stored[name])(at))
    if name == "lilliefors":
        # What has a limit, and is tabulated, is sqrt(n) D.
        points = points - 0.5 * np.log(n)
    level = stored["level"]
    curve = PchipInterpolator(points, np.log(level) - np.log1p(-level))
    return curve, float(points[0]), float(points[-1])


def pvalues(name: str, n: int, statistic: FloatArray) -> FloatArray:
    """Return the probability, under normality, of a statistic at least as large.

    Monotone cubic interpolation, of the points in 1 / sqrt(n) or log n, and of the logit of the
    probability in the logarithm of the statistic.

    Parameters
    ----------
    name : str
        The test; for ``shapiro`` the statistic is 1 - W.
    n : int
        Sample size, in the range that was simulated.
    statistic : ndarray, shape (row,)
        Not negative.

    Returns
    -------
    ndarray of float64, shape (row,)
        Between the smallest level of the table, an upper bound of what is smaller, and 1, an
        upper bound of what exceeds the largest.
    """
    logit, first, last = _logit(name, n)
    y = np.log(np.maximum(statistic, np.finfo(np.float64).tiny))
    p = 1.0 / (1.0 + np.exp(-logit(np.clip(y, first, last))))
    return np.where(y < first, 1.0, p)
