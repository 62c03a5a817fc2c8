"""Several tests of normality of the same rows: what each reads is made once, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.stats._anderson import anderson_rows
from tracelab.stats._cramer import cramer_rows
from tracelab.stats._epps_pulley import epps_pulley_rows
from tracelab.stats._lilliefors import lilliefors_rows
from tracelab.stats._moments import dagostino_rows, jarque_bera_rows, moment_rows
from tracelab.stats._normality_null import pvalues
from tracelab.stats._ordered import standardize
from tracelab.stats._probability import probability_rows
from tracelab.stats._samples import as_rows
from tracelab.stats._shapiro import ROYSTON_MAXIMUM, shapiro_rows
from tracelab.typing import Array, FloatArray, Status

__all__ = ["TESTS", "NormalityResult", "PValue", "battery", "statistics"]

PValue: TypeAlias = Literal["simulated", "published"]

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
    """A test: what its kernel reads, the sample sizes it is valid for, where its p-value is from.

    The kernel fills statistics and published p-values.
    """

    fill: Callable[[FloatArray, int, Array, FloatArray, FloatArray], None]
    reads: Literal["sorted", "probability", "moments"]
    minimum: int
    maximum: int | None = None
    # The largest sample size of a published p-value; none was published where it is 0.
    published: float = math.inf
    # The largest one at which that has its size; above, a null distribution was simulated.
    sized: float = 0
    rejects: Literal["large", "small"] = "large"


_TESTS = {
    "anderson": _Test(anderson_rows, "sorted", minimum=8, sized=math.inf),
    "shapiro": _Test(
        shapiro_rows,
        "sorted",
        minimum=3,
        maximum=1_000_000,
        published=ROYSTON_MAXIMUM,
        sized=3000,
        rejects="small",
    ),
    "cramer_von_mises": _Test(cramer_rows, "probability", minimum=8, sized=math.inf),
    "lilliefors": _Test(lilliefors_rows, "probability", minimum=5),
    "dagostino": _Test(dagostino_rows, "moments", minimum=8),
    "jarque_bera": _Test(jarque_bera_rows, "moments", minimum=8),
    "epps_pulley": _Test(epps_pulley_rows, "sorted", minimum=8, published=0),
}

# The names that `battery` takes.
TESTS = tuple(_TESTS)


def battery(
    x: npt.ArrayLike,
    names: Sequence[str] = ("anderson", "shapiro"),
    axis: int = -1,
    pvalue: PValue = "simulated",
) -> dict[str, NormalityResult]:
    """Return several tests of every row by name, from one sort.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`.
    names : sequence of str
        Which tests; each gives bit for bit what its own function gives: ``anderson``, ``shapiro``,
        ``cramer_von_mises``, ``lilliefors``, ``dagostino``, ``jarque_bera``, ``epps_pulley``.
    axis : int
        Axis of the samples; the other axes are kept.
    pvalue : {"simulated", "published"}
        Which p-value of the tests that have both, as their own functions say.

    Returns
    -------
    dict of str to NormalityResult
        In the order of `names`.

    Raises
    ------
    UsageError
        If a name, the dtype, the axis or `pvalue` cannot be used, or there are more samples than a
        test is valid for.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> results = normality.battery(np.random.default_rng(0).uniform(size=(4, 500)))
    >>> [bool((result.pvalue < 1e-3).all()) for result in results.values()]
    [True, True]
    """
    if pvalue not in get_args(PValue):
        raise UsageError(
            f"pvalue must be one of {', '.join(get_args(PValue))}, got {pvalue!r}; "
            "leave it out for p-values whose size holds at every sample size"
        )
    rows, shape = as_rows(x, axis)
    n = rows.shape[1]
    for name in names:
        _check(name, n, pvalue)
    valid = [name for name in names if n >= _TESTS[name].minimum]
    statistic, found, status = statistics(rows, valid)
    ok = status == Status.OK
    for name in valid:
        test = _TESTS[name]
        if n > test.sized and (pvalue == "simulated" or not test.published):
            value = statistic[name][ok]
            found[name][ok] = pvalues(name, n, value if test.rejects == "large" else 1.0 - value)
    nothing = np.full(shape, np.nan)
    too_few = np.full(shape, Status.TOO_FEW_SAMPLES, dtype=np.uint8)
    return {
        name: NormalityResult(
            statistic=statistic[name].reshape(shape) if name in valid else nothing.copy(),
            pvalue=found[name].reshape(shape) if name in valid else nothing.copy(),
            status=status.reshape(shape).copy() if name in valid else too_few.copy(),
            n_samples=np.full(shape, n, dtype=np.int64),
        )
        for name in names
    }


def statistics(
    rows: Array, names: Sequence[str]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], npt.NDArray[np.uint8]]:
    """Return statistics and published p-values by test, and the status of every row.

    Parameters
    ----------
    rows : ndarray, shape (row, n), real
        Samples in any order, n within every test's range.
    names : sequence of str
        Which tests.

    Returns
    -------
    tuple of dict of str to ndarray, dict of str to ndarray, ndarray of uint8
        All of shape (row,); the numbers are NaN where the status is not ``OK``, and p-values where
        none was published.
    """
    n_rows, n = rows.shape
    statistic = {name: np.full(n_rows, np.nan) for name in names}
    pvalue = {name: np.full(n_rows, np.nan) for name in names}
    status = np.zeros(n_rows, dtype=np.uint8)
    if not names:
        return statistic, pvalue, status
    reads = {_TESTS[name].reads for name in names}
    height = max(1, min(n_rows, _BLOCK_SAMPLES // n))
    moments = np.empty((height, 2))
    z = np.empty((height, n) if reads - {"moments"} else (0, 0))
    probability = np.empty((height, n) if "probability" in reads else (0, 0))
    for start in range(0, n_rows, height):
        part = slice(start, min(start + height, n_rows))
        block, state, size = rows[part], status[part], part.stop - part.start
        if "moments" in reads:
            moment_rows(np.ascontiguousarray(block, dtype=np.float64), state, moments[:size])
        if z.size:
            standardize(block, z[:size], state)
        if probability.size:
            probability_rows(z[:size], state, probability[:size])
        made = {"sorted": z, "probability": probability, "moments": moments}
        for name in names:
            test = _TESTS[name]
            test.fill(made[test.reads][:size], n, state, statistic[name][part], pvalue[name][part])
    return statistic, pvalue, status


def _check(name: str, n: int, pvalue: PValue) -> None:
    if name not in _TESTS:
        raise UsageError(f"there is no test of normality {name!r}; choose from {', '.join(_TESTS)}")
    test = _TESTS[name]
    if test.maximum is not None and n > test.maximum:
        raise UsageError(
            f"the {name} test is valid up to {test.maximum} samples, got {n}; "
            f"use anderson, or test a random subsample of at most {test.maximum}"
        )
    if pvalue == "published" and 0 < test.published < n:
        raise UsageError(
            f"p-values of the {name} test were published up to {test.published} samples, got {n}; "
            "use pvalue='simulated'"
        )
