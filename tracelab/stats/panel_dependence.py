"""Dependence of batches on those before them, from all series of a cell together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, special

from tracelab.errors import UsageError
from tracelab.stats.dependence import MIN_SAMPLES, geyer
from tracelab.typing import FloatArray, Status

__all__ = ["PanelDependence", "panel_dependence"]

# Series that are transformed at a time, so that spectra take little memory.
SERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class PanelDependence:
    """How much batches depend on those before them; arrays have the leading shape of the data.

    Parameters
    ----------
    rho, rho_se : ndarray of float64
        Correlation of neighbouring batches, the mean over series, corrected for its bias, and its
        standard error where batches are independent.
    pvalue : ndarray of float64
        Two-sided, of independent batches; series may depend on each other.
    effective : ndarray of float64
        Number of independent batches whose means are known as well as those of these.
    n_batches : int
        Batches.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    rho: FloatArray
    rho_se: FloatArray
    pvalue: FloatArray
    effective: FloatArray
    n_batches: int
    status: npt.NDArray[np.uint8]


def panel_dependence(x: npt.ArrayLike) -> PanelDependence:
    r"""Return how much the batches of a cell depend on those before them.

    With :math:`z_{kj}` the standardised values of series `j`, the sums over series
    :math:`P_k = \sum_j z_{kj} z_{k+1,j} / J` have mean :math:`\rho` and, where batches are
    independent, are uncorrelated with each other however much series depend on each other: their
    scatter is the standard error of :math:`\rho`. The correlations :math:`r_k` averaged over
    series, each plus :math:`(1 + 3 r_k) / n` for its bias, give the effective number by Geyer's
    initial monotone sequence, as `tracelab.stats.dependence.dependence` does by series.

    Parameters
    ----------
    x : array_like, shape (..., batch, series)
        Samples in the order in which they were taken; leading dims are cells.

    Returns
    -------
    PanelDependence
        Series that never vary are left out. Status ``TOO_FEW_SAMPLES`` below 10 batches,
        ``NON_FINITE_INPUT``, ``CONSTANT_INPUT`` where no series varies.

    Raises
    ------
    UsageError
        If `x` has fewer than two dimensions.

    References
    ----------
    Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7, 473-483 (1992), section
    3.3; Kendall, "Note on bias in the estimation of autocorrelation", Biometrika 41 (1954).
    """
    values = np.asarray(x)
    if values.ndim < 2:
        raise UsageError(f"x must have shape (..., batch, series), got shape {values.shape}")
    lead, batches = values.shape[:-2], values.shape[-2]
    numbers = np.full((4, *lead), np.nan)
    status = np.zeros(lead, dtype=np.uint8)
    for cell in np.ndindex(*lead):
        part = values[cell]
        if not np.isfinite(part).all():
            status[cell] = Status.NON_FINITE_INPUT
        elif batches < MIN_SAMPLES:
            status[cell] = Status.TOO_FEW_SAMPLES
        elif not (part != part[:1]).any():
            status[cell] = Status.CONSTANT_INPUT
        else:
            numbers[(slice(None), *cell)] = _of_cell(part)
    rho, error, pvalue, effective = numbers
    return PanelDependence(
        rho=rho,
        rho_se=error,
        pvalue=pvalue,
        effective=effective,
        n_batches=batches,
        status=status,
    )


def _of_cell(values: npt.NDArray[np.generic]) -> tuple[float, float, float, float]:
    """Return rho, its standard error, p-value and effective number of one cell."""
    n = values.shape[0]
    length = fft.next_fast_len(n + n // 2, real=True)
    power, neighbours, count = np.zeros(length // 2 + 1), np.zeros(n - 1), 0
    for begin in range(0, values.shape[1], SERIES_AT_ONCE):
        # Series first: transforms run along batches.
        part = values[:, begin : begin + SERIES_AT_ONCE].T.astype(np.float64, order="C")
        part = part[(part != part[:, :1]).any(axis=1)]
        # Of order one: squares of the largest and smallest numbers are no float64.
        part /= np.abs(part).max(axis=1, keepdims=True)
        part -= part.mean(axis=1, keepdims=True)
        part /= np.sqrt(np.mean(np.square(part), axis=1, keepdims=True))
        neighbours += np.einsum("jk,jk->k", part[:, :-1], part[:, 1:])
        spectrum = fft.rfft(part, length)
        power += np.square(spectrum.real).sum(axis=0) + np.square(spectrum.imag).sum(axis=0)
        count += part.shape[0]
    r = fft.irfft(power, length)[: n // 2 + 1] / (count * n)
    r[1:] += (1 + 3 * r[1:]) / n
    rho = float(np.clip(r[1], -1, 1))
    error = float((neighbours / count).std()) / np.sqrt(n)
    pvalue = float(special.erfc(abs(rho) / error / np.sqrt(2))) if error > 0 else np.nan
    tau, window = np.empty(1), np.empty(1, dtype=np.int64)
    geyer(r[None], tau, window)
    return rho, error, pvalue, n / float(tau[0])
