"""From when on a curve follows a law of growth: chosen by how well it foretells the end."""

from __future__ import annotations

import numpy as np

from tracelab.errors import UsageError
from tracelab.stats.growth import LAWS, MIN_POINTS, fit, predict
from tracelab.typing import FloatArray, IntArray, Status

__all__ = ["candidates", "evenly", "start_of_regime"]

# Of the last step: what comes later is foretold, and a phase must begin that much before it.
HELD_OUT, LATEST = 1 / 3, 1 / 12
CANDIDATES = 8


def evenly(step: IntArray, first: float, last: float, points: int) -> IntArray:
    """Return positions of about so many steps from `first` to `last`, even in their logarithm.

    Parameters
    ----------
    step : ndarray of int, shape (step,)
        Rising steps.
    first, last : float
        Least and largest step wanted, at least 1.
    points : int
        How many, fewer where steps are too few.

    Returns
    -------
    ndarray of int64
        Rising, each once; none where no step lies in the range.
    """
    inside = np.flatnonzero((step >= first) & (step <= last))
    if inside.size == 0:
        return inside
    wanted = np.geomspace(step[inside[0]], step[inside[-1]], points)
    nearest = np.searchsorted(step[inside], wanted).clip(0, inside.size - 1)
    taken: IntArray = inside[np.unique(nearest)]
    return taken


def candidates(step: IntArray) -> FloatArray:
    """Return eight first steps evenly spaced in logarithm, to a twelfth of the last step.

    Only the first where steps do not reach so far.
    """
    first, last = float(step[0]), float(step[-1])
    if last * LATEST <= first:
        return np.array([first])
    return np.geomspace(first, last * LATEST, CANDIDATES)


def start_of_regime(step: IntArray, value: FloatArray, points: int = 100) -> float:
    r"""Return the earliest step from which some law foretells the end of the curve.

    From every candidate on, each law is fitted by least squares to steps of the first third of the
    time, :math:`t \le t_n / 3`, and foretells the same later ones. Of the law that does
    best, squared errors are compared point by point with those of the best start; taken is the
    earliest start that is worse by no more than a standard error of the difference, its points
    worth as many as their correlation leaves (one-standard-error rule).

    Parameters
    ----------
    step : ndarray of int, shape (step,)
        Rising steps, at least 1.
    value : ndarray, shape (step,)
        Finite.
    points : int
        Steps that are fitted, evenly spaced in logarithm.

    Returns
    -------
    float
        A candidate; the first step where steps are too few for a choice.

    Raises
    ------
    UsageError
        If there is no step, steps do not rise from 1 on, or values are not one for each of them
        and finite.

    References
    ----------
    Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees" (1984), section 3.4.3
    (the rule).
    """
    steps, values = np.asarray(step), np.asarray(value)
    if steps.ndim != 1 or not (steps.size and steps[0] >= 1 and (np.diff(steps) > 0).all()):
        raise UsageError(f"steps must be one or more that rise from 1 on, got {step!r}")
    if values.shape != steps.shape or not np.isfinite(values).all():
        raise UsageError(
            f"value must be one finite number for each of {steps.size} steps, got {value!r}"
        )
    starts = candidates(step)
    last = float(step[-1])
    later = evenly(step, last * HELD_OUT, last, max(points // 4, MIN_POINTS))
    errors = []
    tried = []
    for start in starts:
        early = evenly(step, start, last * HELD_OUT, points)
        if early.size >= MIN_POINTS and later.size >= MIN_POINTS:
            errors.append(_squared_errors(step, value, early, later))
            tried.append(float(start))
    if not tried:
        return float(starts[0])
    means = np.array([each.mean() for each in errors])
    # What rounding leaves of an exact law is no reason to wait.
    rounding = (1e-9 * np.abs(value[later]).max()) ** 2
    best = errors[int(means.argmin())]
    for start, each in zip(tried, errors, strict=True):
        worse = each - best
        if worse.mean() <= max(_standard_error(worse), rounding):
            return start
    raise AssertionError("the best start is no worse than itself")


def _squared_errors(
    step: IntArray, value: FloatArray, early: IntArray, later: IntArray
) -> FloatArray:
    best: FloatArray = np.full(later.size, np.inf)
    for law in LAWS:
        found = fit(step[early], value[early], law, correlated=False)
        if found.status != Status.OK or not np.isfinite(found.parameters).all():
            continue
        errors = np.square(value[later] - predict(law, found.parameters, step[later]))
        if errors.mean() < best.mean():
            best = errors
    if not np.isfinite(best).all():
        # A constant beginning foretells itself.
        best = np.square(value[later] - value[early].mean())
    return best


def _standard_error(values: FloatArray) -> float:
    """Return the standard error of the mean of neighbours that are correlated as AR(1)."""
    centred = values - values.mean()
    square = float(np.dot(centred, centred))
    if square == 0:
        return 0.0
    rho = float(np.clip(np.dot(centred[1:], centred[:-1]) / square, 0.0, 0.95))
    return float(np.sqrt(square / values.size**2 * (1 + rho) / (1 - rho)))
