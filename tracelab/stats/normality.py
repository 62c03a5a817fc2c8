r"""Batched tests of normality: arrays in, statistic, p-value and status of every row out.

All tests read the same sorted, standardised rows, so several tests of one array share one sort.
A row's numbers do not depend, in any bit, on the rows beside it; kernels run on one thread and
release the interpreter lock, so callers parallelise over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.stats._anderson import anderson_rows
from tracelab.stats._ordered import standardize
from tracelab.stats._shapiro import shapiro_rows
from tracelab.typing import Array, FloatArray, Status

__all__ = ["NormalityResult", "anderson", "battery", "shapiro"]

# Rows are taken in blocks of this many samples, which stay in the second-level cache.
_BLOCK_SAMPLES = 1 << 15


@dataclass(frozen=True, slots=True)
class NormalityResult:
    """What one test says about every row.

    Parameters
    ----------
    statistic, pvalue : ndarray of float64
        NaN where the status is not ``OK``.
    status : ndarray of uint8
        Values of `tracelab.typing.Status`: ``OK``, ``TOO_FEW_SAMPLES``, ``NON_FINITE_INPUT`` or
        ``CONSTANT_INPUT``.
    n_samples : ndarray of int64
        Sample size of each row.
    """

    statistic: FloatArray
    pvalue: FloatArray
    status: npt.NDArray[np.uint8]
    n_samples: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Test:
    """A test: the sample sizes it is valid for, and its kernel on sorted, standardised rows."""

    fill: Callable[[FloatArray, Array, FloatArray, FloatArray], None]
    minimum: int
    maximum: int | None = None


_TESTS = {
    "anderson": _Test(anderson_rows, minimum=8),
    "shapiro": _Test(shapiro_rows, minimum=3, maximum=5000),
}


def shapiro(x: npt.ArrayLike, axis: int = -1) -> NormalityResult:
    r"""Return Shapiro and Wilk's test of normality of every row, for 3 to 5,000 samples.

    .. math:: W = \Big(\sum_i a_i x_{(i)}\Big)^2 \Big/ \sum_i (x_i - \bar x)^2

    with Royston's weights and p-value; the p-value of three samples is exact.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 3 samples all have ``TOO_FEW_SAMPLES``.

    Raises
    ------
    UsageError
        With more than 5,000 samples: the null distribution was fitted up to there, and beyond it
        the nominal 5 % test rejects ever less (2 % at 2e4, 0.2 % at 1e5).

    References
    ----------
    P. Royston, "Remark AS R94: A remark on algorithm AS 181: The W-test for normality", Applied
    Statistics 44, 547-551 (1995); https://doi.org/10.2307/2986146. S. S. Shapiro, M. B. Wilk,
    "An analysis of variance test for normality", Biometrika 52, 591-611 (1965).

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_normal((3, 200))
    >>> normality.shapiro(sample).pvalue.round(3)
    array([0.126, 0.018, 0.057])
    """
    return battery(x, ("shapiro",), axis)["shapiro"]


def anderson(x: npt.ArrayLike, axis: int = -1) -> NormalityResult:
    r"""Return Anderson and Darling's test of normality of every row, for 8 samples or more.

    .. math:: A^2 = -n - \frac1n \sum_i (2i - 1)
        \big[\log \Phi(z_{(i)}) + \log \Phi(-z_{(n+1-i)})\big], \quad z = (x - \bar x) / s

    with mean and variance estimated. Its size holds at every sample size, and outliers of any
    magnitude have a finite statistic, since the upper tail is ``log Phi(-z)``, never
    ``log(1 - Phi(z))``.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 8 samples all have ``TOO_FEW_SAMPLES``.
        p-values below 3.7e-24, where their formula ends, are given as 3.7e-24.

    References
    ----------
    T. W. Anderson, D. A. Darling, "A test of goodness of fit", Journal of the American Statistical
    Association 49, 765-769 (1954); https://doi.org/10.2307/2281537. p-value: R. B. D'Agostino,
    M. A. Stephens (eds.), "Goodness-of-Fit Techniques", Marcel Dekker 1986, table 4.9.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.anderson(sample).pvalue.max() < 1e-6
    np.True_
    """
    return battery(x, ("anderson",), axis)["anderson"]


def battery(
    x: npt.ArrayLike, names: Sequence[str] = ("anderson", "shapiro"), axis: int = -1
) -> dict[str, NormalityResult]:
    """Return several tests of every row by name, from one sort.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`.
    names : sequence of {"anderson", "shapiro"}
        Which tests; each gives bit for bit what its own function gives.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    dict of str to NormalityResult
        In the order of `names`.

    Raises
    ------
    UsageError
        If a name, the dtype or the axis cannot be used, or there are more samples than a test is
        valid for.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> results = normality.battery(np.random.default_rng(0).uniform(size=(4, 500)))
    >>> [bool((result.pvalue < 1e-3).all()) for result in results.values()]
    [True, True]
    """
    rows, shape = _as_rows(x, axis)
    n_rows, n = rows.shape
    for name in names:
        _check(name, n)
    statistic = {name: np.full(n_rows, np.nan) for name in names}
    pvalue = {name: np.full(n_rows, np.nan) for name in names}
    valid = [name for name in names if n >= _TESTS[name].minimum]
    status = np.zeros(n_rows, dtype=np.uint8)
    if valid:
        height = max(1, _BLOCK_SAMPLES // n)
        buffer = np.empty((min(height, n_rows), n))
        for start in range(0, n_rows, height):
            part = slice(start, min(start + height, n_rows))
            z = buffer[: part.stop - part.start]
            standardize(rows[part], z, status[part])
            for name in valid:
                _TESTS[name].fill(z, status[part], statistic[name][part], pvalue[name][part])
    too_few = np.full(n_rows, Status.TOO_FEW_SAMPLES, dtype=np.uint8)
    return {
        name: NormalityResult(
            statistic=statistic[name].reshape(shape),
            pvalue=pvalue[name].reshape(shape),
            status=(status.copy() if name in valid else too_few.copy()).reshape(shape),
            n_samples=np.full(shape, n, dtype=np.int64),
        )
        for name in names
    }


def _as_rows(x: npt.ArrayLike, axis: int) -> tuple[Array, tuple[int, ...]]:
    """Return the samples as (row, n), and the shape of the rows."""
    values = np.asarray(x)
    if values.dtype.kind not in "fiu":
        raise UsageError(
            f"samples must be real numbers, got dtype {values.dtype}; convert them to float64"
        )
    if not -values.ndim <= axis < values.ndim:
        raise UsageError(
            f"axis {axis} is not an axis of samples with shape {values.shape}; "
            f"choose one of its {values.ndim} axes"
        )
    moved = np.moveaxis(values, axis, -1)
    shape = moved.shape[:-1]
    return moved.reshape(int(np.prod(shape)), moved.shape[-1]), shape


def _check(name: str, n: int) -> None:
    if name not in _TESTS:
        raise UsageError(f"there is no test of normality {name!r}; choose from {', '.join(_TESTS)}")
    maximum = _TESTS[name].maximum
    if maximum is not None and n > maximum:
        raise UsageError(
            f"the {name} test is valid up to {maximum} samples, got {n}; "
            f"use anderson, or test a random subsample of at most {maximum}"
        )
