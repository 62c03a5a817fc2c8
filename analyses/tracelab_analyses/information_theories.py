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

from dataclasses import dataclass

import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["VIRTUAL", "Chosen", "Path", "Scales", "Spending", "best"]

VIRTUAL = ("neu", "minkowski", "wang_mao")
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
    sensitivity : ndarray, shape (row, level, draw)
        Estimates of :math:`\Gamma / \sigma^2`.
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
        batches = deviation.shape[-1]
        return cls(
            rate,
            sigma,
            # Unbiased estimates can be below nothing.
            np.maximum(deviation.mean(axis=-1), 0.0),
            deviation.std(axis=-1, ddof=1) / np.sqrt(batches),
            gradient_change / sigma[:, None] ** 2,
            left,
            right,
            part,
        )

    def until(self, count: int) -> Path:
        """Return the same of the first steps."""
        cut = slice(count)
        return Path(
            self.rate[cut], self.sigma, self.variance, self.variance_se, self.sensitivity,
            self.left[cut], self.right[cut], self.part[cut],
        )  # fmt: skip

    def between(self, rows: FloatArray) -> FloatArray:
        """Return values of rows, shape (row,), at every step."""
        lefts = rows[self.left]
        between: FloatArray = lefts + self.part * (rows[self.right] - lefts)
        return between

    def summed(self, weights: FloatArray) -> FloatArray:
        """Return what each row's value counts in a weighted sum over steps, shape (row,)."""
        rows = len(self.variance)
        counted = np.bincount(self.left, weights * (1 - self.part), rows)
        return np.asarray(counted + np.bincount(self.right, weights * self.part, rows), np.float64)


@dataclass(frozen=True, slots=True)
class Scales:
    """Noise that is added on paper, at every step of a path.

    Parameters
    ----------
    inverse : ndarray, shape (step,)
        Squared learning rate over the variance added at the step.
    variance : ndarray, shape (step,)
        V.
    sensitivity : ndarray, shape (step,)
        The gradient's sensitivity to the noise added before.
    before : ndarray, shape (step,)
        Variance of that noise.
    place : ndarray, shape (step,)
        Where its standard deviation is among the levels.
    """

    inverse: FloatArray
    variance: FloatArray
    sensitivity: FloatArray
    before: FloatArray
    place: FloatArray


@dataclass(frozen=True, slots=True)
class Spending:
    """How noise of a total variance of 1 is spent over the steps of a path.

    Parameters
    ----------
    variance : ndarray, shape (step,)
        V.
    inverse : ndarray, shape (step,)
        Squared learning rate over what is spent at the step.
    before, log_before : ndarray, shape (step,)
        What was spent before it, and half the logarithm of that.
    sensitivity : ndarray, shape (row, level)
        Sensitivity over sigma^2, estimated.
    """

    variance: FloatArray
    inverse: FloatArray
    before: FloatArray
    log_before: FloatArray
    sensitivity: FloatArray

    @classmethod
    def of(cls, path: Path, schedule: int) -> Spending:
        """Return what is spent evenly (0), or in proportion to rate times root of V (1)."""
        variance = path.between(path.variance)
        share = np.full(len(variance), 1.0 / len(variance))
        weights = path.rate * np.sqrt(variance)
        if schedule == 1 and weights.sum() > 0:
            share = weights / weights.sum()
        before = np.maximum(np.cumsum(share) - share, 0.0)
        # Nothing is spent before the first step, and where the rate is nothing.
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(path.rate > 0, path.rate**2 / share, 0.0)
            half = 0.5 * np.log(before)
        # Unbiased estimates can be below nothing.
        mean = np.maximum(path.sensitivity.mean(axis=-1), 0.0)
        return cls(variance, inverse, before, half, mean)

    def scales(self, path: Path, total: float) -> Scales:
        """Return the noise of a total standard deviation."""
        levels = np.arange(len(path.sigma))
        place = np.interp(self.log_before + np.log(total), np.log(path.sigma), levels)
        left, right = (_at(self.sensitivity, rows, place) for rows in (path.left, path.right))
        before = total**2 * self.before
        return Scales(
            self.inverse / total**2,
            self.variance,
            before * (left + path.part * (right - left)),
            before,
            place,
        )


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


def _at(table: FloatArray, rows: IntArray, place: FloatArray) -> FloatArray:
    """Return values of a table, shape (row, level, ...), between its levels."""
    last = table.shape[1] - 1
    flat = table.reshape(-1, *table.shape[2:])
    low = place.astype(np.int64)
    first = rows * (last + 1)
    below = flat.take(first + low, axis=0)
    above = flat.take(first + np.minimum(low + 1, last), axis=0)
    part = (place - low).reshape(-1, *(1,) * (table.ndim - 2))
    between: FloatArray = below + part * (above - below)
    return between


def information(
    theory: str, noise: Scales, n_weights: int, constant: float, parts: str = "both"
) -> float:
    """Return the bound of the information in nats; `parts` leaves the variance or the other."""
    variance = noise.variance if parts != "sensitivity" else np.zeros_like(noise.variance)
    sensitivity = noise.sensitivity if parts != "variance" else np.zeros_like(noise.variance)
    with np.errstate(invalid="ignore"):
        if theory == "neu":
            return float(constant / 2 * np.sum(noise.inverse * (variance + sensitivity)))
        power = variance
        if theory == "minkowski":
            power = (np.sqrt(variance) + np.sqrt(sensitivity)) ** 2
        return float(n_weights / 2 * np.sum(np.log1p(noise.inverse * power / n_weights)))


def _slopes(
    theory: str, noise: Scales, n_weights: int, constant: float
) -> tuple[FloatArray, FloatArray]:
    """Return the derivatives of the information by each step's variance and sensitivity."""
    variance, sensitivity = noise.variance, noise.sensitivity
    if theory == "neu":
        half = constant / 2 * noise.inverse
        return half, half
    if theory == "wang_mao":
        return 0.5 * noise.inverse / (1 + noise.inverse * variance / n_weights), 0 * variance
    power = (np.sqrt(variance) + np.sqrt(sensitivity)) ** 2
    outer = 0.5 * noise.inverse / (1 + noise.inverse * power / n_weights)
    # Where one is nothing, it has no error that is known to first order.
    both = (variance > 0) & (sensitivity > 0)
    ratio = np.sqrt(sensitivity / np.where(both, variance, np.inf))
    inverse = np.sqrt(variance / np.where(both, sensitivity, np.inf))
    return outer * (1 + ratio), outer * (1 + inverse)


def _error(theory: str, path: Path, noise: Scales, n_weights: int, constant: float) -> float:
    """Return the standard error of the information, to first order in V and the sensitivity.

    Minibatches and draws of different rows are independent; those of a row are common to levels.
    """
    by_variance, by_sensitivity = _slopes(theory, noise, n_weights, constant)
    squares = np.sum((path.summed(by_variance) * path.variance_se) ** 2)
    if theory != "wang_mao":
        draws = path.sensitivity.shape[-1]
        weights = by_sensitivity * noise.before
        sums = np.zeros((len(path.variance), draws))
        for rows, part in ((path.left, 1 - path.part), (path.right, path.part)):
            values = _at(path.sensitivity, rows, noise.place)
            for draw in range(draws):
                counted = weights * part * values[:, draw]
                sums[:, draw] += np.bincount(rows, counted, len(sums))
        squares += np.sum(sums.var(axis=-1, ddof=1)) / draws
    return float(np.sqrt(squares))


def best(
    path: Path,
    flatness: FloatArray,
    levels: IntArray,
    schedules: tuple[int, ...],
    *,
    n_weights: int,
    scale: float,
    constant: float,
) -> dict[str, Chosen]:
    """Return for each theory the noise that makes the sum of both terms least.

    Parameters
    ----------
    path : Path
        Up to the step of which weights a bound is wanted; one step at least.
    flatness : ndarray, shape (level,)
        The other term, by total standard deviation.
    levels : ndarray of int
        Which of these to choose from.
    schedules : tuple of int
        How to spend them, likewise.
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
    least = dict.fromkeys(VIRTUAL, np.inf)
    choice: dict[str, tuple[int, int]] = {}
    spendings = {schedule: Spending.of(path, schedule) for schedule in schedules}
    for schedule, spending in spendings.items():
        for level in levels.tolist():
            noise = spending.scales(path, float(path.sigma[level]))
            for theory in VIRTUAL:
                found = information(theory, noise, n_weights, constant)
                total = np.sqrt(scale * found) + flatness[level]
                if total < least[theory]:
                    least[theory], choice[theory] = total, (level, schedule)
    chosen = {}
    for theory, (level, schedule) in choice.items():
        noise = spendings[schedule].scales(path, float(path.sigma[level]))
        chosen[theory] = Chosen(
            level,
            schedule,
            information(theory, noise, n_weights, constant),
            _error(theory, path, noise, n_weights, constant),
            information(theory, noise, n_weights, constant, "variance"),
            information(theory, noise, n_weights, constant, "sensitivity"),
        )
    return chosen
