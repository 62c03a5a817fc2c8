r"""Sums over the steps of a path that bound what its end tells of the data, at any noise on paper.

A step of rate :math:`\eta_t` behind noise of variance :math:`\sigma_t^2`, on :math:`d` weights,
lets through at most, with :math:`a_t = \eta_t^2 / \sigma_t^2`, the gradient's variance
:math:`V_t` and its sensitivity :math:`\Gamma_t` to the noise that was added before,

- ``neu``: :math:`\frac c2 a_t (V_t + \Gamma_t)`;
- ``minkowski``: :math:`\frac d2 \log(1 + a_t (\sqrt{V_t} + \sqrt{\Gamma_t})^2 / d)`;
- ``wang_mao``: :math:`\frac d2 \log(1 + a_t V_t / d)`,

which `tracelab_analyses.information_theories` derives. :math:`\Gamma_t` comes from a table: on a
line in the step between two rows, and over :math:`\sigma^2` on a line in :math:`\log \sigma`
between two of the levels at which it was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["THEORIES", "Information", "Steps", "information", "least_information"]

THEORIES = ("neu", "minkowski", "wang_mao")
"""In the order of every array here."""

_NEU, _MINKOWSKI, _ = range(len(THEORIES))
# Products are turned into logarithms before they overflow.
_LARGE = 1e50


class Steps(NamedTuple):
    r"""A path, and how noise of a total variance of 1 is spent over its steps.

    Parameters
    ----------
    inverse : ndarray, shape (step,)
        Squared learning rate over what is spent at the step.
    variance : ndarray, shape (step,)
        V, unit ``(loss/weight)^2``.
    before, log_before : ndarray, shape (step,)
        What was spent before the step, never falling, and half the logarithm of that.
    left : ndarray of int, shape (step,)
        The row at or before each step.
    part : ndarray, shape (step,)
        How far the step is from that row to the next.
    sensitivity : ndarray, shape (row, level)
        :math:`\Gamma / \sigma^2`, unit ``(loss/weight^2)^2``.
    log_sigma : ndarray, shape (level,)
        Logarithms of the levels, rising.
    """

    inverse: FloatArray
    variance: FloatArray
    before: FloatArray
    log_before: FloatArray
    left: IntArray
    part: FloatArray
    sensitivity: FloatArray
    log_sigma: FloatArray


@dataclass(frozen=True, slots=True)
class Information:
    """A sum, and how it changes with what was measured.

    Parameters
    ----------
    nats : float
        The sum.
    variance_only, sensitivity_only : float
        The same without the other.
    by_variance : ndarray, shape (row,)
        Derivative by each row's variance, where those of steps are on lines between rows.
    by_sensitivity : ndarray, shape (row, level)
        Derivative by each entry of the table of sensitivities.
    """

    nats: float
    variance_only: float
    sensitivity_only: float
    by_variance: FloatArray
    by_sensitivity: FloatArray


def least_information(
    steps: Steps, totals: FloatArray, *, n_weights: int, constant: float
) -> FloatArray:
    """Return the sums at several totals of the noise.

    Parameters
    ----------
    steps : Steps
        The path.
    totals : ndarray, shape (total,)
        Standard deviations of all noise together, positive.
    n_weights : int
        d.
    constant : float
        c of ``neu``.

    Returns
    -------
    ndarray, shape (theory, total)
        In nats; NaN where nothing is spent on a step that tells something.
    """
    found = np.empty((len(THEORIES), len(totals)))
    _sums(steps, np.asarray(totals, np.float64), n_weights, constant, found)
    return found


def information(
    steps: Steps, theory: str, total: float, *, n_weights: int, constant: float
) -> Information:
    """Return the sum of one theory at one total of the noise, with its parts and derivatives.

    Parameters
    ----------
    steps : Steps
        The path.
    theory : {"neu", "minkowski", "wang_mao"}
        Which sum.
    total : float
        Standard deviation of all noise together, positive.
    n_weights : int
        d.
    constant : float
        c of ``neu``.

    Returns
    -------
    Information
        To first order nothing is known of the derivative by a variance or sensitivity of 0 where
        the other is not: ``minkowski`` takes it as if that were absent.
    """
    by_variance = np.zeros(len(steps.sensitivity))
    by_sensitivity = np.zeros(steps.sensitivity.shape)
    nats = _derivatives(
        steps, float(total), THEORIES.index(theory), n_weights, constant,
        by_variance, by_sensitivity,
    )  # fmt: skip
    return Information(*nats, by_variance, by_sensitivity)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _place(log_sigma: FloatArray, value: float, low: int) -> tuple[int, float]:
    """Return the level at or below a value, sought from `low` upwards, and how far it is on."""
    last = log_sigma.size - 1
    while low < last - 1 and value >= log_sigma[low + 1]:
        low += 1
    if last == 0 or value <= log_sigma[low]:
        return low, 0.0
    if value >= log_sigma[low + 1]:
        return low, 1.0
    return low, (value - log_sigma[low]) / (log_sigma[low + 1] - log_sigma[low])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sums(
    steps: Steps,
    totals: FloatArray,
    n_weights: int,
    constant: float,
    found: FloatArray,
) -> None:
    inverse, variance, before, log_before, left, part, sensitivity, log_sigma = steps
    rows, high = sensitivity.shape[0] - 1, sensitivity.shape[1] - 1
    root = np.sqrt(variance)
    for k in range(totals.size):
        square, log_total = totals[k] ** 2, math.log(totals[k])
        linear = 0.0
        # Of 1 + x a product less 1, which is as exact for small x as for large.
        both, alone = 0.0, 0.0
        log_both, log_alone = 0.0, 0.0
        low = 0
        for t in range(inverse.size):
            low, far = _place(log_sigma, log_before[t] + log_total, low)
            up = min(low + 1, high)
            row = left[t]
            following = min(row + 1, rows)
            first = sensitivity[row, low]
            first += far * (sensitivity[row, up] - first)
            second = sensitivity[following, low]
            second += far * (sensitivity[following, up] - second)
            change = square * before[t] * (first + part[t] * (second - first))
            ratio = inverse[t] / square
            linear += ratio * (variance[t] + change)
            x = ratio * (root[t] + math.sqrt(change)) ** 2 / n_weights
            both += x + both * x
            if both > _LARGE:
                log_both += math.log1p(both)
                both = 0.0
            x = ratio * variance[t] / n_weights
            alone += x + alone * x
            if alone > _LARGE:
                log_alone += math.log1p(alone)
                alone = 0.0
        found[0, k] = constant / 2 * linear
        found[1, k] = n_weights / 2 * (log_both + math.log1p(both))
        found[2, k] = n_weights / 2 * (log_alone + math.log1p(alone))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _derivatives(
    steps: Steps,
    total: float,
    theory: int,
    n_weights: int,
    constant: float,
    by_variance: FloatArray,
    by_sensitivity: FloatArray,
) -> tuple[float, float, float]:
    inverse, variance, before, log_before, left, part, sensitivity, log_sigma = steps
    rows, high = sensitivity.shape[0] - 1, sensitivity.shape[1] - 1
    square, log_total = total**2, math.log(total)
    nats, of_variance, of_sensitivity = 0.0, 0.0, 0.0
    low = 0
    for t in range(inverse.size):
        low, far = _place(log_sigma, log_before[t] + log_total, low)
        up = min(low + 1, high)
        row = left[t]
        following = min(row + 1, rows)
        spent = square * before[t]
        first = sensitivity[row, low]
        first += far * (sensitivity[row, up] - first)
        second = sensitivity[following, low]
        second += far * (sensitivity[following, up] - second)
        change = spent * (first + part[t] * (second - first))
        ratio, v = inverse[t] / square, variance[t]
        if theory == _NEU:
            slope = slope_of_change = constant / 2 * ratio
            nats += slope * (v + change)
            of_variance += slope * v
            of_sensitivity += slope * change
        else:
            power = v
            if theory == _MINKOWSKI:
                power = (math.sqrt(v) + math.sqrt(change)) ** 2
                of_sensitivity += n_weights / 2 * math.log1p(ratio * change / n_weights)
            nats += n_weights / 2 * math.log1p(ratio * power / n_weights)
            of_variance += n_weights / 2 * math.log1p(ratio * v / n_weights)
            slope = 0.5 * ratio / (1 + ratio * power / n_weights)
            slope_of_change = slope if theory == _MINKOWSKI else 0.0
            if theory == _MINKOWSKI and v > 0 and change > 0:
                root = math.sqrt(change / v)
                slope, slope_of_change = slope * (1 + root), slope * (1 + 1 / root)
        by_variance[row] += slope * (1 - part[t])
        by_variance[following] += slope * part[t]
        weight = slope_of_change * spent
        for at, share in ((row, 1 - part[t]), (following, part[t])):
            by_sensitivity[at, low] += weight * share * (1 - far)
            by_sensitivity[at, up] += weight * share * far
    return nats, of_variance, of_sensitivity
