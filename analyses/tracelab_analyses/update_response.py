"""The response of updates to gradients, and the noise of both, from sums over blocks of steps.

`tracelab_analyses.update_noise` says what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from tracelab.typing import Array, FloatArray

FORMULAS = ("gain", "noise", "update_noise", "sums")
MEASURED = (*FORMULAS, "observed", "gradient_sums", "drift", "gradient_drift", "explained")
RESPONSE = ("gain", "noise", "update_noise")
LAGGED = ("sums", "observed", "gradient_sums", "drift", "gradient_drift")
# What is estimated, and how much the last quarter of the memory changes of it.
ESTIMATES = (*MEASURED, *(f"{name}_beyond" for name in (*RESPONSE, *LAGGED)))


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the steps of a block and over directions, which add up over blocks.

    Parameters
    ----------
    count : int
        Steps.
    gram, cross : ndarray, shape (lag, lag), (lag,)
        Inner products of lagged gradients with each other and with updates, each less its mean
        over the block.
    gradient, update : ndarray, shape (lag,)
        Halved squared differences at each lag.
    """

    count: int
    gram: FloatArray
    cross: FloatArray
    gradient: FloatArray
    update: FloatArray

    @classmethod
    def of(cls, update: FloatArray, gradient: FloatArray, lags: int) -> Sums:
        """Return them for consecutive rows, of which the first ``lags - 1`` are history.

        Both are taken for less their mean, so that the squared norms of steps and of those a lag
        before are the same on average; each block taking its own would have ends that cancel in
        the sum over blocks, and not without one of them.
        """
        rows, past = len(gradient), lags - 1
        count, lag = rows - past, np.arange(lags)
        late = np.arange(rows)[:, None] >= past
        # No lag reaches before the first row, so that cyclic sums are sums.
        waves, moves = fft.rfft(gradient, axis=0), fft.rfft(update, axis=0)

        def products(one: Array, other: Array) -> FloatArray:
            spectrum = np.einsum("fd,fd->f", one, other.conj())
            found: FloatArray = fft.irfft(spectrum, rows)[:lags]
            return found

        late_moves = fft.rfft(update * late, axis=0)
        moved_products = products(late_moves, moves)
        first = products(fft.rfft(gradient * late, axis=0), waves)
        gram = np.empty((lags, lags))
        gram[0] = gram[:, 0] = first
        head, tail = gradient[:past][::-1], gradient[::-1][:past]
        shift = head @ head.T - tail @ tail.T
        for row in range(past):
            gram[row + 1, 1:] = gram[row, :-1] + shift[row]
        total = np.concatenate([np.zeros((1, gradient.shape[1])), gradient.cumsum(axis=0)])
        mean = (total[rows - lag] - total[past - lag]) / count
        moved = update[past:].mean(axis=0)
        return cls(
            count,
            gram - count * (mean @ mean.T),
            products(late_moves, waves) - count * (mean @ moved),
            first[0] - first,
            moved_products[0] - moved_products,
        )

    @classmethod
    def total(cls, parts: list[Sums]) -> Sums:
        """Return those of all blocks."""
        return cls(
            sum(each.count for each in parts),
            np.sum([each.gram for each in parts], axis=0),
            np.sum([each.cross for each in parts], axis=0),
            np.sum([each.gradient for each in parts], axis=0),
            np.sum([each.update for each in parts], axis=0),
        )

    def without(self, part: Sums) -> Sums:
        """Return those of all blocks but one."""
        return Sums(
            self.count - part.count,
            self.gram - part.gram,
            self.cross - part.cross,
            self.gradient - part.gradient,
            self.update - part.update,
        )

    def finite(self) -> bool:
        """Return whether no sum has overflown."""
        sums = (self.gram, self.cross, self.gradient, self.update)
        return all(bool(np.isfinite(each).all()) for each in sums)

    def regular(self, least: float) -> bool:
        """Return whether all eigenvalues of the Gram matrix exceed a number."""
        try:
            np.linalg.cholesky(self.gram - least * np.eye(len(self.gram)))
        except np.linalg.LinAlgError:
            return False
        return True

    def response(self, lags: int | None = None) -> FloatArray:
        """Return the response over all or so many lags."""
        return np.asarray(np.linalg.solve(self.gram[:lags, :lags], self.cross[:lags]))

    def estimates(self, left: FloatArray) -> FloatArray:
        """Return `ESTIMATES`, from `left_over` as well."""
        response = self.response()
        fewer = response.size - response.size // 4
        direct = _lagged(self.update, self.gradient)
        residual, lagged, moved = left
        with np.errstate(divide="ignore", invalid="ignore"):
            own = residual / lagged
            whole = _gain_and_noise(response, own)
            short = _gain_and_noise(self.response(fewer), own)
            return np.array(
                [
                    *whole,
                    *direct,
                    1 - residual / moved,
                    *(whole - short),
                    *(direct - _lagged(self.update[:fewer], self.gradient[:fewer])),
                ]
            )


def _gain_and_noise(response: FloatArray, own: float) -> FloatArray:
    gain, noise = response.sum(), response @ response + own
    return np.array([gain, noise, noise / gain**2])


def left_over(update: FloatArray, gradient: FloatArray, response: FloatArray) -> FloatArray:
    """Return summed halved squares of differences at half the memory.

    Of updates less the response, of gradients, and of updates.
    """
    rows, past, lag = len(update), response.size - 1, response.size // 2
    waves = fft.rfft(gradient, axis=0) * fft.rfft(response, rows)[:, None]
    residual = update - fft.irfft(waves, rows, axis=0)
    apart = (each[past + lag :] - each[past : rows - lag] for each in (residual, gradient, update))
    return np.array([np.square(each).sum() / 2 for each in apart])


def _lagged(update: FloatArray, gradient: FloatArray) -> FloatArray:
    """Return `LAGGED`, from summed differences."""
    noise, long, moved_mean = _levels(gradient)
    moved, moved_long, drift = _levels(update)
    with np.errstate(divide="ignore", invalid="ignore"):
        drifts = (drift / moved, moved_mean / noise)
        return np.array([moved_long / long, moved / noise, long / noise, *drifts])


def _levels(differences: FloatArray) -> tuple[float, float, float]:
    """Return the variance of noise, that of long sums by summand, and drift in half a memory."""
    half = differences.size // 2
    slope, level = np.polyfit(np.arange(half, differences.size), differences[half:], 1)
    mean = differences[half:].mean()
    long = mean + 2 * (mean - differences[1:half]).sum()
    return float(level), float(long), float(slope * half)


def jackknife(parts: list[Sums], whole: Sums, left: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return estimates and their standard errors, blocks of unequal lengths weighed."""
    rest = left.sum(axis=0)
    plain = whole.estimates(rest)
    without = np.stack(
        [whole.without(part).estimates(rest - own) for part, own in zip(parts, left, strict=True)]
    )
    share = np.array([part.count for part in parts])[:, None] / whole.count
    estimate = len(parts) * plain - np.sum((1 - share) * without, axis=0)
    pseudo = plain / share - (1 / share - 1) * without
    variance = np.mean(np.square(pseudo - estimate) / (1 / share - 1), axis=0)
    return np.asarray(estimate), np.sqrt(variance)
