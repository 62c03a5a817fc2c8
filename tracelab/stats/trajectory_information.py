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

Sums of 1 + x are kept as products less 1, which are as exact for small x as for large, and cost no
logarithm a step. A search stops adding up what already exceeds the least: it finds the same least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["THEORIES", "Information", "Steps", "information", "least"]

THEORIES = ("neu", "minkowski", "wang_mao")
"""In the order of every array here."""

_NEU, _MINKOWSKI, _WANG_MAO = range(len(THEORIES))
# Products are turned into logarithms before they overflow.
_LARGE = 1e50
# Steps between two looks at whether a sum can still become the least.
_LOOK = 64


class Steps(NamedTuple):
    r"""A path, and in which proportion noise is spent over its steps.

    Parameters
    ----------
    inverse : ndarray, shape (step,)
        Squared learning rate over the step's share of the noise's variance.
    variance : ndarray, shape (step,)
        V, unit ``(loss/weight)^2``.
    before, log_before : ndarray, shape (step,)
        Sum of the shares before the step, and half the logarithm of that.
    through : ndarray, shape (step,)
        The same with the step's own share: noise of a total variance is spent over the first
        n steps in units of it over ``through[n - 1]``.
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
    through: FloatArray
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


def least(
    ways: Sequence[Steps],
    count: int,
    totals: FloatArray,
    extra: FloatArray,
    *,
    n_weights: int,
    scale: float,
    constant: float,
) -> tuple[tuple[int, int] | None, ...]:
    r"""Return for each theory where :math:`\sqrt{s I} + e` is least, I being its sum.

    Parameters
    ----------
    ways : sequence of Steps
        The path with noise spent in several ways.
    count : int
        How many of its first steps to sum over.
    totals : ndarray, shape (total,)
        Standard deviations of all noise of these steps together, positive.
    extra : ndarray, shape (total,)
        e, by total; what is NaN is not the least.
    n_weights : int
        d.
    scale : float
        s.
    constant : float
        c of ``neu``.

    Returns
    -------
    tuple of (int, int) or None
        Way and total by theory, the first of equals; None where nothing is finite.
    """
    best = np.full(len(THEORIES), np.inf)
    chosen = np.full((len(THEORIES), 2), -1)
    for way, steps in enumerate(ways):
        if steps.through[count - 1] > 0:
            _search(steps, count, totals, extra, n_weights, scale, constant, way, best, chosen)
    return tuple(
        (int(way), int(total)) if np.isfinite(value) else None
        for value, (way, total) in zip(best, chosen, strict=True)
    )


def information(
    steps: Steps, count: int, theory: str, total: float, *, n_weights: int, constant: float
) -> Information:
    """Return the sum of one theory at one total of the noise, with its parts and derivatives.

    Parameters
    ----------
    steps, count
        As for `least`, of one way.
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
        steps, count, float(total), THEORIES.index(theory), n_weights, constant,
        by_variance, by_sensitivity,
    )  # fmt: skip
    return Information(*nats, by_variance, by_sensitivity)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _place(
    log_sigma: FloatArray, slopes: FloatArray, value: float, low: int
) -> tuple[int, int, float]:
    """Return the levels around a value, sought from `low` upwards, and how far it is between."""
    last = log_sigma.size - 1
    while low < last - 1 and value >= log_sigma[low + 1]:
        low += 1
    if last == 0 or value <= log_sigma[low]:
        return low, min(low + 1, last), 0.0
    return low, low + 1, min(1.0, (value - log_sigma[low]) * slopes[low])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _between(
    table: FloatArray, row: int, following: int, part: float, low: int, up: int, far: float
) -> float:
    """Return a table's value between two rows and two levels."""
    first, second = table[row, low], table[following, low]
    first += far * (table[row, up] - first)
    second += far * (table[following, up] - second)
    found: float = first + part * (second - first)
    return found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _search(
    steps: Steps,
    count: int,
    totals: FloatArray,
    extra: FloatArray,
    n_weights: int,
    scale: float,
    constant: float,
    way: int,
    best: FloatArray,
    chosen: IntArray,
) -> None:
    inverse, variance, before, log_before, through, left, part, sensitivity, log_sigma = steps
    slopes, rows = 1.0 / np.diff(log_sigma), sensitivity.shape[0] - 1
    per_weight, half = 1.0 / n_weights, n_weights / 2
    found = np.empty(len(best))
    # Sums fall with the noise: where they are what counts, the first to be seen is the least.
    for k in np.argsort(-totals):
        unit = totals[k] ** 2 / through[count - 1]
        per_unit, log_total = 1.0 / unit, 0.5 * math.log(unit)
        linear, both, alone = 0.0, 0.0, 0.0
        log_both, log_alone = 0.0, 0.0
        low, t, lost = 0, 0, False
        while t < count and not lost:
            stop = min(count, t + _LOOK)
            while t < stop:
                low, up, far = _place(log_sigma, slopes, log_before[t] + log_total, low)
                row = left[t]
                change = _between(sensitivity, row, min(row + 1, rows), part[t], low, up, far)
                change *= unit * before[t]
                ratio, v = per_unit * inverse[t], variance[t]
                linear += ratio * (v + change)
                ratio *= per_weight
                x = ratio * (v + change + 2.0 * math.sqrt(v * change))
                both += x + both * x
                x = ratio * v
                alone += x + alone * x
                if both > _LARGE:
                    log_both += math.log1p(both)
                    both = 0.0
                    log_alone += math.log1p(alone)
                    alone = 0.0
                t += 1
            found[_NEU] = constant / 2 * linear
            found[_MINKOWSKI] = half * (log_both + math.log1p(both))
            found[_WANG_MAO] = half * (log_alone + math.log1p(alone))
            lost = True
            for theory in range(found.size):
                lost &= not math.sqrt(scale * found[theory]) + extra[k] <= best[theory]
        if lost:
            continue
        for theory in range(found.size):
            value = math.sqrt(scale * found[theory]) + extra[k]
            equal = value == best[theory] and chosen[theory, 0] == way and k < chosen[theory, 1]
            if value < best[theory] or equal:
                best[theory] = value
                chosen[theory, 0], chosen[theory, 1] = way, k


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _derivatives(
    steps: Steps,
    count: int,
    total: float,
    theory: int,
    n_weights: int,
    constant: float,
    by_variance: FloatArray,
    by_sensitivity: FloatArray,
) -> tuple[float, float, float]:
    inverse, variance, before, log_before, through, left, part, sensitivity, log_sigma = steps
    slopes, rows = 1.0 / np.diff(log_sigma), sensitivity.shape[0] - 1
    unit = total**2 / through[count - 1]
    log_total = 0.5 * math.log(unit)
    # Of both together, the variance, the sensitivity.
    products, sums = np.zeros(3), np.zeros(3)
    low = 0
    for t in range(count):
        low, up, far = _place(log_sigma, slopes, log_before[t] + log_total, low)
        row = left[t]
        following = min(row + 1, rows)
        spent = unit * before[t]
        change = spent * _between(sensitivity, row, following, part[t], low, up, far)
        ratio, v = inverse[t] / unit, variance[t]
        if theory == _NEU:
            slope = slope_of_change = constant / 2 * ratio
            sums[0] += slope * (v + change)
            sums[1] += slope * v
            sums[2] += slope * change
        else:
            if theory == _WANG_MAO:
                change = 0.0
            cross = math.sqrt(v * change)
            for number, power in enumerate((v + change + 2.0 * cross, v, change)):
                x = ratio * power / n_weights
                products[number] += x + products[number] * x
            if products[0] > _LARGE:
                for number in range(3):
                    sums[number] += n_weights / 2 * math.log1p(products[number])
                    products[number] = 0.0
            slope = 0.5 * ratio / (1 + ratio * (v + change + 2.0 * cross) / n_weights)
            slope_of_change = slope if theory == _MINKOWSKI else 0.0
            if cross > 0:
                slope, slope_of_change = slope * (1 + cross / v), slope * (1 + cross / change)
        by_variance[row] += slope * (1 - part[t])
        by_variance[following] += slope * part[t]
        weight = slope_of_change * spent
        for at, share in ((row, 1 - part[t]), (following, part[t])):
            by_sensitivity[at, low] += weight * share * (1 - far)
            by_sensitivity[at, up] += weight * share * far
    for number in range(3):
        sums[number] += n_weights / 2 * math.log1p(products[number])
    return sums[0], sums[1], sums[2]
