r"""How much a trajectory can tell of its training data, by theories of noise added to it.

Plain SGD, :math:`W_t = W_{t-1} - \eta_t G_t`, is looked at through noise that is added on paper,
:math:`\tilde W_t = W_t + \xi_t`, :math:`\xi_t = \sum_{k \le t} N(0, \sigma_k^2 I)`, whose
variance up to then is :math:`\sigma_{1:t}^2`. With S the training data and
:math:`\tilde W_{<t}` the history,

.. math:: I(\tilde W_T; S) \le \sum_t I(-\eta_t G_t + N(0, \sigma_t^2 I); S \mid \tilde W_{<t})
   \le \sum_t \frac{\eta_t^2}{2 \sigma_t^2} E \|G_t - m(\tilde W_{<t})\|^2

by the chain rule and, for any m of the history alone, by the divergence between normal laws and its
convexity. As a channel with Gaussian noise and a signal of that power (Shannon) it is also at most
:math:`\frac d2 \log(1 + \frac{\eta_t^2}{d \sigma_t^2} E \|G_t - m\|^2)`, which is less. The
gradient of the expected loss *at the noisy weights* is such an m:

.. math:: G_t - g(\tilde W_{t-1}) = [G_t - g(W_{t-1})] + [g(W_{t-1}) - g(\tilde W_{t-1})],

whose parts have the mean squares V (variance) and :math:`\Gamma` (sensitivity):

- ``neu``: :math:`\|a + b\|^2 \le 2\|a\|^2 + 2\|b\|^2` gives
  :math:`\frac c2 \sum \frac{\eta_t^2}{\sigma_t^2} (V_t + \Gamma_t)` with c = 2;
- ``minkowski``: :math:`(\sqrt V + \sqrt\Gamma)^2` is never more, and goes into the logarithm;
- ``wang_mao``, as it is cited: V alone goes into it. That is m = g(W), which the history does not
  hold: given it, W still depends on S. It holds for steps that are linear and expand nothing (then
  the noisy weights before the step tell more than the noise behind it lets through), and is false
  in general: where the loss is :math:`-\kappa |w - z|^2 / 2`, noise added early is
  overtaken by a difference that grows by :math:`1 + \eta \kappa` a step, and the
  information exceeds this sum without limit.

Of all :math:`\sigma_t` with the same :math:`\sigma_{1:T}`,
:math:`\sum \eta_t^2 V_t / \sigma_t^2` is least for
:math:`\sigma_t^2 \propto \eta_t \sqrt{V_t}`, by Cauchy and Schwarz:
:math:`\sum a_t / \sigma_t^2 \cdot \sum \sigma_t^2 \ge (\sum \sqrt{a_t})^2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracelab.stats.trajectory_information import (
    THEORIES,
    Information,
    Steps,
    information,
    least,
)
from tracelab.typing import FloatArray, IntArray

__all__ = ["VIRTUAL", "Chosen", "Path", "best", "spending"]

VIRTUAL = THEORIES
"""Theories of noise that is added on paper."""


@dataclass(frozen=True, slots=True)
class Path:
    r"""What was measured along a run, at every one of its steps.

    Between two rows V, and :math:`\Gamma / \sigma^2` at each :math:`\sigma`, are on a line in the
    step, and before the first row as there. :math:`\Gamma / \sigma^2` is on a line in
    :math:`\log \sigma` between the recorded ones, and beyond them as at the last: it is constant
    where the loss is quadratic.

    Parameters
    ----------
    rate : ndarray, shape (every_step,)
        Learning rates.
    sigma : ndarray, shape (level,)
        Recorded standard deviations, rising.
    variance, variance_se : ndarray, shape (row,)
        V and its standard error.
    sensitivity : ndarray, shape (row, level)
        Estimates of :math:`\Gamma / \sigma^2`.
    sensitivity_covariance : ndarray, shape (row, level, level)
        Of their errors: draws are common to the levels of a row.
    left, right : ndarray of int, shape (every_step,)
        The rows around each step.
    part : ndarray, shape (every_step,)
        How far it is from the left one to the right one.
    """

    rate: FloatArray
    sigma: FloatArray
    variance: FloatArray
    variance_se: FloatArray
    sensitivity: FloatArray
    sensitivity_covariance: FloatArray
    left: IntArray
    right: IntArray
    part: FloatArray

    @classmethod
    def of(
        cls,
        every_step: IntArray,
        rate: FloatArray,
        step: IntArray,
        sigma: FloatArray,
        deviation: FloatArray,
        gradient_change: FloatArray,
    ) -> Path:
        """Return the path that rows of measurements tell of.

        Parameters
        ----------
        every_step, rate : ndarray, shape (every_step,)
            Steps that were taken, and their learning rates.
        step : ndarray of int, shape (row,)
            Steps before which was measured.
        sigma : ndarray, shape (level,)
            Standard deviations of the noise.
        deviation : ndarray, shape (row, batch)
            Estimates of V.
        gradient_change : ndarray, shape (row, level, draw)
            Estimates of the sensitivity.
        """
        left = (np.searchsorted(step, every_step, side="right") - 1).clip(0)
        right = np.minimum(left + 1, len(step) - 1)
        width = np.maximum(step[right] - step[left], 1)
        part = ((every_step - step[left]) / width).clip(0.0, 1.0)
        batches, draws = deviation.shape[-1], gradient_change.shape[-1]
        ratio = gradient_change / sigma[:, None] ** 2
        mean = ratio.mean(axis=-1)
        centred = ratio - mean[..., None]
        return cls(
            rate,
            sigma,
            # Unbiased estimates can be below nothing.
            np.maximum(deviation.mean(axis=-1), 0.0),
            deviation.std(axis=-1, ddof=1) / np.sqrt(batches),
            np.maximum(mean, 0.0),
            centred @ centred.swapaxes(-1, -2) / (draws * (draws - 1)),
            left,
            right,
            part,
        )

    def between(self, rows: FloatArray) -> FloatArray:
        """Return values of rows, shape (row,), at every step."""
        lefts = rows[self.left]
        between: FloatArray = lefts + self.part * (rows[self.right] - lefts)
        return between


def spending(path: Path, schedule: int) -> Steps:
    """Return in which proportion noise is spent over the steps of a path.

    Parameters
    ----------
    path : Path
        One step at least.
    schedule : int
        0 evenly, 1 in proportion to learning rate times the root of V.
    """
    variance = path.between(path.variance)
    share = np.abs(path.rate) * np.sqrt(variance) if schedule == 1 else np.ones(len(variance))
    through = np.cumsum(share)
    before = np.concatenate([[0.0], through])[:-1]
    # Nothing is spent before the first step, and where the rate is nothing.
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(path.rate != 0, path.rate**2 / share, 0.0)
        half = 0.5 * np.log(before)
    return Steps(
        inverse, variance, before, half, through, path.left, path.part, path.sensitivity,
        np.log(path.sigma),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chosen:
    """The noise that makes a theory's bound least, and what it says then.

    Parameters
    ----------
    level, schedule : int
        Which of the recorded standard deviations in total, and how it is spent over the steps: 0
        evenly, 1 in proportion to learning rate times the root of V.
    information, information_se : float
        Its bound of the information in nats, and the standard error of that.
    variance_only, sensitivity_only : float
        The same without the other.
    """

    level: int
    schedule: int
    information: float
    information_se: float
    variance_only: float
    sensitivity_only: float


def _error(path: Path, found: Information) -> float:
    """Return the standard error of the information, to first order in V and the sensitivity.

    Minibatches and draws of different rows are independent; those of a row are common to levels.
    """
    of_variance = np.sum((found.by_variance * path.variance_se) ** 2)
    by = found.by_sensitivity
    of_sensitivity = np.sum(by[:, None] @ path.sensitivity_covariance @ by[..., None])
    return float(np.sqrt(of_variance + of_sensitivity))


def best(
    path: Path,
    ways: Mapping[int, Steps],
    count: int,
    flatness: FloatArray,
    levels: IntArray,
    *,
    n_weights: int,
    scale: float,
    constant: float,
) -> dict[str, Chosen]:
    """Return for each theory the noise that makes the sum of both terms least.

    Parameters
    ----------
    path : Path
        The whole run.
    ways : mapping of int to Steps
        How noise may be spent, by schedule; see `spending`.
    count : int
        How many of its steps led to the weights of which a bound is wanted; one at least.
    flatness : ndarray, shape (level,)
        The other term, by total standard deviation.
    levels : ndarray of int
        Which of these to choose from.
    n_weights : int
        Number of weights that move.
    scale : float
        The trajectory term is the root of it times the information.
    constant : float
        Of ``neu``.

    Returns
    -------
    dict of str to Chosen
        By theory; without those for which no choice is finite.
    """
    places = least(
        tuple(ways.values()), count, path.sigma[levels], flatness[levels],
        n_weights=n_weights, scale=scale, constant=constant,
    )  # fmt: skip
    chosen = {}
    for theory, place in zip(VIRTUAL, places, strict=True):
        if place is None:
            continue
        schedule, level = list(ways)[place[0]], int(levels[place[1]])
        found = information(
            ways[schedule], count, theory, float(path.sigma[level]),
            n_weights=n_weights, constant=constant,
        )  # fmt: skip
        chosen[theory] = Chosen(
            level, schedule, found.nats, _error(path, found),
            found.variance_only, found.sensitivity_only,
        )  # fmt: skip
    return chosen
