r"""Batched tests of multivariate normality: samples of shape (..., n, d), affine invariant.

Every test first brings the sample to mean 0 and covariance the identity; a sample's numbers do not
depend, in any bit, on the others of its batch. Kernels take time of order n^2 d (Mardia's n d^3)
and memory of order n d.

No formula for the null distributions holds its size at every n and d. By default a p-value is the
rank of the statistic among those of seeded Gaussian samples of the same n and d, which are drawn
once and kept: in about a second for 200 samples, in 2 (Mardia) to 30 seconds (Henze-Zirkler) for
1,000.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._battery import NormalityResult, PValue
from tracelab.stats._multivariate import (
    energy_cells,
    kernel_cells,
    kurtosis_cells,
    skewness_cells,
    whiten_cells,
)
from tracelab.typing import FloatArray, Status

__all__ = ["Mardia", "energy", "henze_zirkler", "mardia"]

_Statuses: TypeAlias = npt.NDArray[np.uint8]
_Name: TypeAlias = Literal["skewness", "kurtosis", "henze_zirkler", "energy"]

# Samples are whitened in blocks of this many numbers.
_BLOCK_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class Mardia:
    """Mardia's two tests.

    Parameters
    ----------
    skewness, kurtosis : NormalityResult
        Arrays of the leading shape; the tests reject for large skewness, and for kurtosis far from
        its mean on either side.
    """

    skewness: NormalityResult
    kurtosis: NormalityResult


def mardia(
    x: npt.ArrayLike, pvalue: PValue = "simulated", replicates: int = 4999, seed: int = 0
) -> Mardia:
    r"""Return Mardia's tests of multivariate normality by skewness and by kurtosis.

    .. math:: A = \frac n6 b_{1,d}, \quad b_{1,d} = \frac1{n^2} \sum_{jk} (y_j^T y_k)^3, \qquad
        B = \frac{b_{2,d} - d(d + 2)}{\sqrt{8 d (d + 2) / n}}, \quad
        b_{2,d} = \frac1n \sum_j (y_j^T y_j)^2

    with whitened samples y (covariance of divisor n). The statistics are A and B.

    Parameters
    ----------
    x : array_like, real, shape (..., n, d)
        n samples in d dimensions, n > d, of any location, scale and correlation.
    pvalue : {"simulated", "published"}
        From Gaussian samples; or the chi-square law with d (d + 1) (d + 2) / 6 degrees of freedom
        and Mardia's correction for small n, and the normal law of the kurtosis with its exact mean.
    replicates : int
        Gaussian samples drawn for the p-value, which is at least 1 / (replicates + 1).
    seed : int
        Of these samples.

    Returns
    -------
    Mardia
        Two results of the leading shape. Status ``NON_FINITE_INPUT`` where a sample has NaN or
        inf, ``CONSTANT_INPUT`` where its covariance is singular; with n <= d all have
        ``TOO_FEW_SAMPLES``.

    Raises
    ------
    UsageError
        If the shape, the dtype, `pvalue` or `replicates` cannot be used.

    References
    ----------
    K. V. Mardia, "Measures of multivariate skewness and kurtosis with applications", Biometrika
    57, 519-530 (1970); https://doi.org/10.1093/biomet/57.3.519; "Applications of some measures of
    multivariate skewness and kurtosis in testing normality and robustness studies", Sankhya B 36,
    115-128 (1974), for the correction.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import multivariate
    >>> sample = np.random.default_rng(0).standard_exponential((2, 100, 3))
    >>> bool((multivariate.mardia(sample, "published").skewness.pvalue < 1e-6).all())
    True
    """
    cells, shape = _as_cells(x)
    _check(pvalue, replicates)
    found = _statistics(cells, ("skewness", "kurtosis"))
    n, d = cells.shape[1:]
    results = []
    for name in ("skewness", "kurtosis"):
        statistic, status = found[name]
        p = np.full(statistic.shape, np.nan)
        ok = status == Status.OK
        if ok.any():
            if pvalue == "simulated":
                p[ok] = _ranks(name, statistic[ok], n, d, replicates, seed)
            elif name == "skewness":
                # Mardia (1974): brings the mean of the statistic to that of its limit.
                k = (d + 1) * (n + 1) * (n + 3) / (n * ((n + 1) * (d + 1) - 6.0))
                p[ok] = special.chdtrc(d * (d + 1) * (d + 2) / 6, k * statistic[ok])
            else:
                # The mean of b_2 is d (d + 2) (n - 1) / (n + 1).
                shift = 2.0 * d * (d + 2) / (n + 1) / math.sqrt(8.0 * d * (d + 2) / n)
                p[ok] = 2.0 * special.ndtr(-np.abs(statistic[ok] + shift))
        results.append(_result(statistic, p, status, n, shape))
    return Mardia(*results)


def henze_zirkler(
    x: npt.ArrayLike, pvalue: PValue = "simulated", replicates: int = 4999, seed: int = 0
) -> NormalityResult:
    r"""Return Henze and Zirkler's test of multivariate normality.

    .. math:: T = \frac1n \sum_{jk} e^{-\beta^2 |y_j - y_k|^2 / 2}
        - 2 (1 + \beta^2)^{-d/2} \sum_j e^{-\beta^2 |y_j|^2 / (2 (1 + \beta^2))}
        + n (1 + 2 \beta^2)^{-d/2}

    with whitened samples y (covariance of divisor n) and
    :math:`\beta = ((2 d + 1) n / 4)^{1 / (d + 4)} / \sqrt2`: a weighted distance of the empirical
    characteristic function from the normal one, consistent against every alternative.

    Parameters
    ----------
    x : array_like, real, shape (..., n, d)
        n samples in d dimensions, n > d, of any location, scale and correlation.
    pvalue : {"simulated", "published"}
        From Gaussian samples; or the log-normal law with the limiting mean and variance.
    replicates : int
        Gaussian samples drawn for the p-value, which is at least 1 / (replicates + 1).
    seed : int
        Of these samples.

    Returns
    -------
    NormalityResult
        Of the leading shape. Status ``NON_FINITE_INPUT`` where a sample has NaN or inf,
        ``CONSTANT_INPUT`` where its covariance is singular; with n <= d all have
        ``TOO_FEW_SAMPLES``.

    Raises
    ------
    UsageError
        If the shape, the dtype, `pvalue` or `replicates` cannot be used.

    References
    ----------
    N. Henze, B. Zirkler, "A class of invariant consistent tests for multivariate normality",
    Communications in Statistics: Theory and Methods 19, 3595-3617 (1990);
    https://doi.org/10.1080/03610929008830400.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import multivariate
    >>> sample = np.random.default_rng(0).standard_exponential((2, 100, 3))
    >>> bool((multivariate.henze_zirkler(sample, "published").pvalue < 1e-6).all())
    True
    """
    cells, shape = _as_cells(x)
    _check(pvalue, replicates)
    n, d = cells.shape[1:]
    statistic, status = _statistics(cells, ("henze_zirkler",))["henze_zirkler"]
    p = np.full(statistic.shape, np.nan)
    ok = status == Status.OK
    if ok.any():
        if pvalue == "simulated":
            p[ok] = _ranks("henze_zirkler", statistic[ok], n, d, replicates, seed)
        else:
            mean, variance = _henze_zirkler_moments(n, d)
            log_variance = math.log1p(variance / mean**2)
            log_mean = math.log(mean) - 0.5 * log_variance
            p[ok] = special.ndtr((log_mean - np.log(statistic[ok])) / math.sqrt(log_variance))
    return _result(statistic, p, status, n, shape)


def energy(x: npt.ArrayLike, replicates: int = 4999, seed: int = 0) -> NormalityResult:
    r"""Return Szekely and Rizzo's energy test of multivariate normality.

    .. math:: E = 2 \sum_j \mathrm{E} |y_j - Z| - n \mathrm{E} |Z - Z'|
        - \frac1n \sum_{jk} |y_j - y_k|

    with whitened samples y (covariance of divisor n - 1) and independent standard normal Z, Z':

    .. math:: \mathrm{E} |a - Z| = \sqrt2 \frac{\Gamma((d + 1)/2)}{\Gamma(d/2)}
        {}_1F_1\Big(-\frac12; \frac d2; -\frac{|a|^2}2\Big), \qquad
        \mathrm{E} |Z - Z'| = 2 \frac{\Gamma((d + 1)/2)}{\Gamma(d/2)}.

    Consistent against every alternative. The p-value is the rank of the statistic among those of
    Gaussian samples.

    Parameters
    ----------
    x : array_like, real, shape (..., n, d)
        n samples in d dimensions, n > d, of any location, scale and correlation.
    replicates : int
        Gaussian samples drawn for the p-value, which is at least 1 / (replicates + 1).
    seed : int
        Of these samples.

    Returns
    -------
    NormalityResult
        Of the leading shape. Status ``NON_FINITE_INPUT`` where a sample has NaN or inf,
        ``CONSTANT_INPUT`` where its covariance is singular; with n <= d all have
        ``TOO_FEW_SAMPLES``.

    Raises
    ------
    UsageError
        If the shape, the dtype or `replicates` cannot be used.

    References
    ----------
    G. J. Szekely, M. L. Rizzo, "A new test for multivariate normality", Journal of Multivariate
    Analysis 93, 58-80 (2005); https://doi.org/10.1016/j.jmva.2003.12.002.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import multivariate
    >>> sample = np.random.default_rng(0).standard_exponential((2, 100, 3))
    >>> multivariate.energy(sample, replicates=99).pvalue
    array([0.01, 0.01])
    """
    cells, shape = _as_cells(x)
    _check("simulated", replicates)
    n, d = cells.shape[1:]
    statistic, status = _statistics(cells, ("energy",))["energy"]
    p = np.full(statistic.shape, np.nan)
    ok = status == Status.OK
    if ok.any():
        p[ok] = _ranks("energy", statistic[ok], n, d, replicates, seed)
    return _result(statistic, p, status, n, shape)


def _as_cells(x: npt.ArrayLike) -> tuple[FloatArray, tuple[int, ...]]:
    """Return the samples as (cell, n, d) in float64, and the leading shape."""
    values = np.asarray(x)
    if values.dtype.kind not in "fiu":
        raise UsageError(
            f"samples must be real numbers, got dtype {values.dtype}; convert them to float64"
        )
    if values.ndim < 2 or values.shape[-1] == 0:
        raise UsageError(
            f"samples must have shape (..., n, d) with d >= 1, got {values.shape}; "
            "give one dimension as values[..., None]"
        )
    shape = values.shape[:-2]
    cells = values.reshape(math.prod(shape), *values.shape[-2:])
    return np.ascontiguousarray(cells, dtype=np.float64), shape


def _check(pvalue: str, replicates: int) -> None:
    if pvalue not in get_args(PValue):
        raise UsageError(
            f"pvalue must be one of {', '.join(get_args(PValue))}, got {pvalue!r}; "
            "leave it out for p-values whose size holds at every n and d"
        )
    if replicates < 19:
        raise UsageError(
            f"replicates must be at least 19, got {replicates}; fewer Gaussian samples cannot "
            "give a p-value of .05"
        )


def _result(
    statistic: FloatArray, pvalue: FloatArray, status: _Statuses, n: int, shape: tuple[int, ...]
) -> NormalityResult:
    return NormalityResult(
        statistic=statistic.reshape(shape),
        pvalue=pvalue.reshape(shape),
        status=status.reshape(shape).copy(),
        n_samples=np.full(shape, n, dtype=np.int64),
    )


def _statistics(
    cells: FloatArray, names: tuple[_Name, ...]
) -> dict[str, tuple[FloatArray, _Statuses]]:
    """Return by test its statistic and the status of every cell."""
    n_cells, n, d = cells.shape
    found = {name: np.full(n_cells, np.nan) for name in names}
    status = np.full(n_cells, Status.TOO_FEW_SAMPLES, dtype=np.uint8)
    if n > d:
        height = max(1, _BLOCK_VALUES // (n * d))
        for start in range(0, n_cells, height):
            part = slice(start, start + height)
            y = cells[part].copy()
            whiten_cells(y, status[part])
            for name in names:
                _KERNELS[name](y, status[part], found[name][part])
    return {name: (found[name], status) for name in names}


def _skewness(y: FloatArray, status: _Statuses, out: FloatArray) -> None:
    skewness_cells(y, status, out)
    out *= y.shape[1] / 6.0


def _kurtosis(y: FloatArray, status: _Statuses, out: FloatArray) -> None:
    n, d = y.shape[1:]
    kurtosis_cells(y, status, out)
    out -= d * (d + 2.0)
    out /= math.sqrt(8.0 * d * (d + 2) / n)


def _henze_zirkler(y: FloatArray, status: _Statuses, out: FloatArray) -> None:
    kernel_cells(y, status, _smoothing(*y.shape[1:]), out)


def _smoothing(n: int, d: int) -> float:
    """Return Henze and Zirkler's beta."""
    return float(((2 * d + 1) * n / 4) ** (1 / (d + 4)) / math.sqrt(2.0))


def _henze_zirkler_moments(n: int, d: int) -> tuple[float, float]:
    """Return the limiting mean and variance of T: Henze & Zirkler (1990), theorem 3.1."""
    b2 = _smoothing(n, d) ** 2
    b4, b8 = b2**2, b2**4
    a, w = 1 + 2 * b2, (1 + b2) * (1 + 3 * b2)
    mean = 1 - a ** (-d / 2) * (1 + d * b2 / a + d * (d + 2) * b4 / (2 * a**2))
    variance = (
        2 * (1 + 4 * b2) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * b4 / a**2 + 3 * d * (d + 2) * b8 / (4 * a**4))
        - 4 * w ** (-d / 2) * (1 + 3 * d * b4 / (2 * w) + d * (d + 2) * b8 / (2 * w**2))
    )
    return mean, variance


_KERNELS: dict[_Name, Callable[[FloatArray, _Statuses, FloatArray], None]] = {
    "skewness": _skewness,
    "kurtosis": _kurtosis,
    "henze_zirkler": _henze_zirkler,
    "energy": energy_cells,
}


@functools.lru_cache(maxsize=64)
def _null(name: _Name, n: int, d: int, replicates: int, seed: int) -> FloatArray:
    """Return the statistics of Gaussian samples, rising."""
    rng = np.random.default_rng((seed, n, d))
    height = max(1, _BLOCK_VALUES // (n * d))
    found = []
    for start in range(0, replicates, height):
        x = rng.standard_normal((min(height, replicates - start), n, d))
        found.append(_statistics(x, (name,))[name][0])
    return np.sort(np.concatenate(found))


def _ranks(
    name: _Name, statistic: FloatArray, n: int, d: int, replicates: int, seed: int
) -> FloatArray:
    """Return the share of Gaussian samples, the tested one included, that are as extreme."""
    null = _null(name, n, d, replicates, seed)
    above = 1 + replicates - np.searchsorted(null, statistic, "left")
    if name != "kurtosis":
        return np.asarray(above / (1 + replicates))
    below = 1 + np.searchsorted(null, statistic, "right")
    return np.minimum(1.0, 2.0 * np.minimum(above, below) / (1 + replicates))
