"""Laws of growth of a quantity in time, fitted to curves whose deviations depend on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.stats.dependence import dependence
from tracelab.typing import FloatArray, Status

__all__ = ["LAWS", "MIN_POINTS", "PARAMETERS", "Growth", "Law", "criteria", "fit", "predict"]

Law = Literal["log", "power", "saturation"]
LAWS: tuple[Law, ...] = get_args(Law)
PARAMETERS = {
    "log": ("intercept", "slope"),
    "power": ("prefactor", "exponent"),
    "saturation": ("level", "amplitude", "time"),
}
"""Of each law, in this order."""

MIN_POINTS = 10
# Exponents; the edges of the logarithm of the time of saturation are those of the data.
_EXPONENTS = (-1.0, 3.0)
_SHAPES, _TIMES = 41, 12
# Of the shape and of the correlation time: halves of the first grid's spacing.
_ZOOMS = 34
# Level of the test that deviations are as rough as supposed.
_ROUGH = 0.01
# In units of the largest value: what rounding leaves of an exact law.
_ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True, slots=True)
class Growth:
    """A law of growth; arrays have the leading shape of the values.

    Parameters
    ----------
    law : str
        One of `LAWS`.
    parameters, parameters_se, parameters_low, parameters_high : ndarray, shape (..., parameter)
        Estimates, standard errors and intervals, in the order of `PARAMETERS`. NaN of all where the
        law is not told from a simpler one: no time of saturation within ten spans of the data.
    correlation : ndarray
        Time over which deviations are correlated, in steps of the clock: 0 if they are not.
    clock : ndarray of uint8
        0: deviations forget in time; 1: in its logarithm.
    innovation_share : ndarray
        Share of what is new at each point that is independent of what was new before: 1 if
        deviations are as rough as supposed (Ljung and Box's test at 1 %), little where a wrong law
        misses a smooth curve.
    n_effective : ndarray
        Independent points that the mean of deviations is worth, times that share; at least 1.
    deviance : ndarray
        -2 log-likelihood but for a constant, comparable between laws fitted to the same points.
    r2 : ndarray
        R squared of the law alone.
    n_points : int
        Points.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    """

    law: str
    parameters: FloatArray
    parameters_se: FloatArray
    parameters_low: FloatArray
    parameters_high: FloatArray
    correlation: FloatArray
    clock: NDArray[np.uint8]
    innovation_share: FloatArray
    n_effective: FloatArray
    deviance: FloatArray
    r2: FloatArray
    n_points: int
    status: NDArray[np.uint8]


def predict(law: str, parameters: FloatArray, time: ArrayLike) -> FloatArray:
    r"""Return the value of a law of growth.

    :math:`a + c \log t`, :math:`k t^\nu` or :math:`D_\infty - A e^{-t/\tau}`.

    Parameters
    ----------
    law : str
        One of `LAWS`.
    parameters : ndarray, shape (..., parameter)
        In the order of `PARAMETERS`.
    time : array_like, shape (n,)
        Times, above 0.

    Returns
    -------
    ndarray of float64, shape (..., n)
    """
    t = np.asarray(time, dtype=np.float64)
    columns = np.moveaxis(parameters, -1, 0)[..., None]
    if law == "log":
        value: FloatArray = columns[0] + columns[1] * np.log(t)
    elif law == "power":
        value = columns[0] * t ** columns[1]
    else:
        value = columns[0] - columns[1] * np.exp(-t / columns[2])
    return value


def criteria(fits: Sequence[Growth]) -> FloatArray:
    r"""Return Akaike's criterion for small samples of several laws of the same points.

    .. math:: s\, (-2 \log L) + 2 k + \frac{2 k (k + 1)}{n - k - 1},

    with :math:`k` the law's parameters and two of the noise, and :math:`s` the innovation share of
    the likeliest law: points that say the same say it once.

    Parameters
    ----------
    fits : sequence of Growth
        Of the same points.

    Returns
    -------
    ndarray of float64, shape (..., law)

    Raises
    ------
    UsageError
        If they are of different numbers of points.

    References
    ----------
    Hurvich, Tsai, "Regression and time series model selection in small samples", Biometrika 76
    (1989).
    """
    if len({each.n_points for each in fits}) != 1:
        raise UsageError("laws can be compared on the same points only; fit all to the same")
    n = fits[0].n_points
    deviance = np.stack([each.deviance for each in fits], axis=-1)
    shares = np.stack([each.innovation_share for each in fits], axis=-1)
    # Of cells without numbers any will do.
    likeliest = np.where(np.isnan(deviance), np.inf, deviance).argmin(axis=-1)
    share = np.take_along_axis(shares, likeliest[..., None], axis=-1)
    count = np.array([len(PARAMETERS[each.law]) + 2 for each in fits])
    found: FloatArray = share * deviance + 2 * count + 2 * count * (count + 1) / (n - count - 1)
    return found


def fit(
    time: ArrayLike,
    value: ArrayLike,
    law: Law,
    confidence: float = 0.95,
    *,
    correlated: bool = True,
) -> Growth:
    r"""Return one law of growth by maximum likelihood, deviations correlated.

    .. math:: D_t = a + c \log t + e_t, \qquad D_t = k t^\nu + e_t, \qquad
       D_t = D_\infty - A e^{-t/\tau} + e_t,

    with :math:`e` Gaussian of one variance and correlation :math:`e^{-|u_i - u_j|/\theta}`, where
    :math:`u` is time or its logarithm, whichever is likelier: deviations of a trajectory remember,
    and a law that is not the right one deviates smoothly. Linear parameters and the variance are
    profiled out; the rest is searched on a grid that closes in. Standard errors are those of the
    linearised law at the correlation found, larger by the root of what `innovation_share` leaves;
    the interval takes Student's t with the effective
    number of points less that of parameters, at least one. The time's interval is symmetric in its
    logarithm.

    Parameters
    ----------
    time : array_like, shape (n,)
        Times, finite, above 0 and rising.
    value : array_like, shape (..., n)
        What grows; leading dims are cells.
    law : {"log", "power", "saturation"}
        Which.
    confidence : float
        Level of the intervals.
    correlated : bool
        False: deviations are taken as independent, which is ordinary least squares and a twentieth
        of the work.

    Returns
    -------
    Growth
        Status ``TOO_FEW_SAMPLES`` below 10 points, ``NON_FINITE_INPUT``, ``CONSTANT_INPUT``;
        numbers are then NaN.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Golub, Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems
    whose variables separate", SIAM Journal on Numerical Analysis 10 (1973).

    Examples
    --------
    >>> t = np.geomspace(1, 1000, 50)
    >>> fit(t, 2 + 3 * np.log(t), "log").parameters.round(6)
    array([2., 3.])
    """
    if law not in LAWS:
        raise UsageError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
    check_confidence(confidence)
    t = np.asarray(time, dtype=np.float64)
    values = np.asarray(value, dtype=np.float64)
    if t.ndim != 1 or values.shape[-1:] != t.shape:
        raise UsageError(
            f"time must have one value for each of the last axis of value, got shapes {t.shape} "
            f"and {values.shape}"
        )
    if t.size and not (t[0] > 0 and t[-1] < np.inf and (np.diff(t) > 0).all()):
        raise UsageError(
            f"time must be finite, above 0 and rising, got {t[0]:g} first and {t[-1]:g} last"
        )
    lead = values.shape[:-1]
    rows = values.reshape(math.prod(lead), t.size)
    count = len(PARAMETERS[law])
    out = np.full((4, len(rows), count), np.nan)
    others = np.full((5, len(rows)), np.nan)
    clock = np.zeros(len(rows), dtype=np.uint8)
    status = np.full(len(rows), Status.OK, dtype=np.uint8)
    if t.size < MIN_POINTS:
        status[:] = Status.TOO_FEW_SAMPLES
    else:
        status[np.ptp(rows, axis=-1) == 0] = Status.CONSTANT_INPUT
    status[~np.isfinite(rows).all(axis=-1)] = Status.NON_FINITE_INPUT
    for i in np.flatnonzero(status == Status.OK):
        out[:, i], others[:, i], clock[i] = _one(t, rows[i], law, confidence, correlated)
    estimate, error, low, high = (part.reshape(*lead, count) for part in out)
    return Growth(
        law=law,
        parameters=estimate,
        parameters_se=error,
        parameters_low=low,
        parameters_high=high,
        correlation=others[0].reshape(lead),
        clock=clock.reshape(lead),
        innovation_share=others[1].reshape(lead),
        n_effective=others[2].reshape(lead),
        deviance=others[3].reshape(lead),
        r2=others[4].reshape(lead),
        n_points=t.size,
        status=status.reshape(lead),
    )


def _one(
    t: FloatArray, given: FloatArray, law: Law, confidence: float, correlated: bool
) -> tuple[FloatArray, FloatArray, int]:
    # Of order one: squares of the largest and smallest numbers are no float64.
    unit = np.abs(given).max()
    d = given / unit
    kind = LAWS.index(law)
    low, high = {"log": (0.0, 0.0), "power": _EXPONENTS}.get(
        law, (np.log(np.diff(t).min()), np.log(10 * (t[-1] - t[0])))
    )
    shapes = np.linspace(low, high, 1 if law == "log" else _SHAPES)
    clocks = (np.diff(t), np.diff(np.log(t)))
    longest = [np.array([0.0])] * 2
    if correlated:
        longest = [
            np.r_[0.0, np.geomspace(0.5 * each.min(), each.sum(), _TIMES)] for each in clocks
        ]
    coarse = [_coarse(t, d, kind, shapes, *each) for each in zip(clocks, longest, strict=True)]
    chosen = int(coarse[1][0] < coarse[0][0])
    gaps = clocks[chosen]
    score, shape, correlation = _refined(t, d, kind, shapes, gaps, longest[chosen], coarse[chosen])
    phi = _memory(gaps, correlation)
    columns, jacobian = _columns(t, law, shape)
    white = _whitened(np.column_stack([columns, d]), phi)
    linear = np.linalg.lstsq(white[:, :-1], white[:, -1], rcond=None)[0]
    residual = white[:, -1] - white[:, :-1] @ linear
    design = columns
    if jacobian is not None:
        design = np.column_stack([columns, jacobian * linear[-1]])
    count = design.shape[1]
    # From the design's own inverse: its square would lose half of the digits.
    root = np.linalg.pinv(_whitened(design, phi))
    share = _share(residual[1:])
    root *= np.sqrt(np.square(residual).sum() / (t.size - count) / share)
    effective = max(share * (1 + float(np.sum((1 - phi) / (1 + phi)))), 1.0)
    quantile = special.stdtrit(max(effective - count, 1.0), 0.5 + confidence / 2)
    r2 = 1 - np.square(d - columns @ linear).sum() / np.square(d - d.mean()).sum()
    # In the unit of the values, so that laws of other values compare as likelihoods do.
    others = np.array([correlation, share, effective, score + 2 * t.size * np.log(unit), r2])
    numbers = _named(law, t, linear, shape, root, quantile, unit)
    if law == "saturation" and shape > high - (high - low) / _SHAPES:
        numbers[:] = np.nan
    return numbers, others, chosen


def _share(innovations: FloatArray) -> float:
    found = dependence(innovations)
    if not found.pvalue < _ROUGH:
        return 1.0
    return float(np.clip(found.effective / innovations.size, 1 / innovations.size, 1.0))


def _columns(t: FloatArray, law: Law, shape: float) -> tuple[FloatArray, FloatArray | None]:
    """Return the columns of linear parameters, and the derivative of the last by the shape."""
    if law == "log":
        return np.column_stack([np.ones_like(t), np.log(t)]), None
    if law == "power":
        # Of order one at the end: large powers overflow.
        power = (t / t[-1]) ** shape
        return power[:, None], power * np.log(t / t[-1])
    late = (t - t[0]) / np.exp(shape)
    return np.column_stack([np.ones_like(t), np.exp(-late)]), np.exp(-late) * late


def _named(
    law: Law,
    t: FloatArray,
    linear: FloatArray,
    shape: float,
    root: FloatArray,
    quantile: float,
    unit: float,
) -> FloatArray:
    """Return estimates, errors and both ends (4, parameter) as `PARAMETERS` has them.

    `root` times its transpose is the covariance of the columns' coefficients and the shape.
    """
    value, change, logarithmic = linear * unit, np.eye(len(root)) * unit, None
    if law == "power":
        # k = b t_n^-nu, from the coefficient b of (t / t_n)^nu.
        scale = unit * t[-1] ** -shape
        value = np.array([linear[0] * scale, shape])
        change = np.array([[scale, -np.log(t[-1]) * value[0]], [0.0, 1.0]])
    elif law == "saturation":
        # A = -b exp(t_0 / tau), from the coefficient b of exp(-(t - t_0) / tau); shape log tau.
        duration = float(np.exp(shape))
        scale, logarithmic = -unit * float(np.exp(min(t[0] / duration, 700.0))), 2
        value = np.array([linear[0] * unit, linear[1] * scale, duration])
        change[1:] = [[0.0, scale, -value[1] * t[0] / duration], [0.0, 0.0, duration]]
    spread = np.sqrt(np.square(change @ root).sum(axis=1))
    low, high = value - quantile * spread, value + quantile * spread
    if logarithmic is not None:
        half = quantile * spread[logarithmic] / value[logarithmic]
        with np.errstate(over="ignore"):
            ends = value[logarithmic] * np.exp(np.array([-half, half]))
        low[logarithmic], high[logarithmic] = ends
    return np.array([value, spread, low, high])


def _memory(gaps: FloatArray, correlation: float) -> FloatArray:
    return np.exp(-gaps / correlation) if correlation > 0 else np.zeros_like(gaps)


def _whitened(columns: FloatArray, phi: FloatArray) -> FloatArray:
    """Return columns (n, column) as independent deviations of variance one see them."""
    out = columns.copy()
    out[1:] = (columns[1:] - phi[:, None] * columns[:-1]) / np.sqrt(1 - phi[:, None] ** 2)
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill(t: FloatArray, kind: int, shape: float, column: FloatArray) -> None:
    for i in range(t.size):
        if kind == 0:
            column[i] = np.log(t[i])
        elif kind == 1:
            column[i] = (t[i] / t[-1]) ** shape
        else:
            column[i] = np.exp(-(t[i] - t[0]) / np.exp(shape))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _remember(gaps: FloatArray, correlation: float, phi: FloatArray, scale: FloatArray) -> float:
    """Write memory and scale of each point but the first; return the log-determinant."""
    log_det = 0.0
    for i in range(gaps.size):
        phi[i] = np.exp(-gaps[i] / correlation) if correlation > 0.0 else 0.0
        rest = 1.0 - phi[i] * phi[i]
        scale[i] = 1.0 / np.sqrt(rest)
        log_det += np.log(rest)
    return log_det


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _whiten(values: FloatArray, phi: FloatArray, scale: FloatArray, out: FloatArray) -> None:
    out[0] = values[0]
    for i in range(1, values.size):
        out[i] = (values[i] - phi[i - 1] * values[i - 1]) * scale[i - 1]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _without(y: FloatArray, x: FloatArray) -> None:
    """Take off `y` its projection on `x`, in place."""
    square, along = 0.0, 0.0
    for i in range(x.size):
        square += x[i] * x[i]
        along += x[i] * y[i]
    if square > 0.0:
        for i in range(x.size):
            y[i] -= x[i] * (along / square)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scores(
    d: FloatArray,
    columns: FloatArray,
    gaps: FloatArray,
    correlation: float,
    intercept: bool,
    out: FloatArray,
) -> None:
    """Write -2 log-likelihood, but for constants, with linear parameters profiled out, by shape."""
    n = d.size
    phi, scale = np.empty(n - 1), np.empty(n - 1)
    log_det = _remember(gaps, correlation, phi, scale)
    # Rounding is white: it must not look the smaller the longer the memory.
    floor = n * _ROUNDING**2 * np.exp(-log_det / n)
    one, whole, x, y = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    _whiten(np.ones(n), phi, scale, one)
    _whiten(d, phi, scale, whole)
    if intercept:
        _without(whole, one)
    for k in range(columns.shape[0]):
        _whiten(columns[k], phi, scale, x)
        if intercept:
            # Gram and Schmidt: columns that are nearly constant keep their digits.
            _without(x, one)
        y[:] = whole
        _without(y, x)
        rest = 0.0
        for i in range(n):
            rest += y[i] * y[i]
        out[k] = n * np.log(max(rest, floor) / n) + log_det


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _coarse(
    t: FloatArray, d: FloatArray, kind: int, shapes: FloatArray, gaps: FloatArray, times: FloatArray
) -> tuple[float, float, float]:
    """Return the least score on the grid, with its shape and correlation time."""
    columns, scores = np.empty((shapes.size, t.size)), np.empty(shapes.size)
    for i in range(shapes.size):
        _fill(t, kind, shapes[i], columns[i])
    best, shape, correlation = np.inf, shapes[0], 0.0
    for time in times:
        _scores(d, columns, gaps, time, kind != 1, scores)
        k = int(np.argmin(scores))
        if scores[k] < best:
            best, shape, correlation = scores[k], shapes[k], time
    return best, shape, correlation


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _refined(
    t: FloatArray,
    d: FloatArray,
    kind: int,
    shapes: FloatArray,
    gaps: FloatArray,
    times: FloatArray,
    found: tuple[float, float, float],
) -> tuple[float, float, float]:
    """Return the least score around that of the grid, on grids of halved spacing."""
    best, shape, correlation = found
    step = shapes[1] - shapes[0] if shapes.size > 1 else 0.0
    factor = np.log(times[2] / times[1]) if times.size > 1 else 0.0
    sides = np.arange(-2, 3) if shapes.size > 1 else np.zeros(1, np.int64)
    # Where deviations look independent there is no time to refine.
    turns = np.arange(-2, 3) if correlation > 0.0 else np.zeros(1, np.int64)
    columns, scores = np.empty((sides.size, t.size)), np.empty(sides.size)
    trials = np.empty(sides.size)
    for _ in range(_ZOOMS):
        step, factor = 0.5 * step, 0.5 * factor
        for k in range(sides.size):
            trials[k] = min(max(shape + sides[k] * step, shapes[0]), shapes[-1])
            _fill(t, kind, trials[k], columns[k])
        centre = correlation
        for turn in turns:
            time = min(centre * np.exp(turn * factor), times[-1])
            _scores(d, columns, gaps, time, kind != 1, scores)
            k = int(np.argmin(scores))
            if scores[k] < best:
                best, shape, correlation = scores[k], trials[k], time
    return best, shape, correlation
