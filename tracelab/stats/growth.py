"""Laws of growth of a quantity in time, fitted to curves whose deviations depend on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.stats._growth_search import coarse, refined
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
# Level of the test that deviations are as rough as supposed.
_ROUGH = 0.01


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


def predict(law: Law, parameters: ArrayLike, time: ArrayLike) -> FloatArray:
    r"""Return the value of a law of growth.

    :math:`a + c \log t`, :math:`k t^\nu` or :math:`D_\infty - A e^{-t/\tau}`.

    Parameters
    ----------
    law : str
        One of `LAWS`.
    parameters : array_like, shape (..., parameter)
        In the order of `PARAMETERS`.
    time : array_like, shape (n,)
        Times, finite and above 0.

    Returns
    -------
    ndarray of float64, shape (..., n)
        NaN where a parameter is.

    Raises
    ------
    UsageError
        If there is no such law, it has another number of parameters, or a time is not above 0.
    """
    _check_law(law)
    t, given = _numbers("time", time), _numbers("parameters", parameters)
    names = PARAMETERS[law]
    if given.shape[-1:] != (len(names),):
        raise UsageError(
            f"parameters of the law {law!r} must be {', '.join(names)} along the last axis, "
            f"got the shape {given.shape}"
        )
    if t.ndim != 1 or not ((t > 0) & (t < np.inf)).all():
        raise UsageError(f"time must be a row of finite numbers above 0, got {time!r}")
    columns = np.moveaxis(given, -1, 0)[..., None]
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
        If there is none, or they are of different numbers of points or of different cells.

    References
    ----------
    Hurvich, Tsai, "Regression and time series model selection in small samples", Biometrika 76
    (1989).
    """
    if not fits:
        raise UsageError("criteria compares fits of laws, got none; give one of each law")
    forms = {(each.n_points, each.deviance.shape) for each in fits}
    if len(forms) != 1:
        told = ", ".join(f"{points} points of shape {shape}" for points, shape in sorted(forms))
        raise UsageError(
            f"laws can be compared on the same points only, got {told}; fit all to the same"
        )
    n = fits[0].n_points
    deviance = np.stack([each.deviance for each in fits], axis=-1)
    shares = np.stack([each.innovation_share for each in fits], axis=-1)
    # Of cells without numbers any will do.
    likeliest = np.where(np.isnan(deviance), np.inf, deviance).argmin(axis=-1)
    share = np.take_along_axis(shares, likeliest[..., None], axis=-1)
    count = np.array([len(PARAMETERS[each.law]) + 2 for each in fits])
    # Of fewer points there is no deviance.
    few = 2 * count * (count + 1) / np.maximum(n - count - 1, 1)
    found: FloatArray = share * deviance + 2 * count + few
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
    _check_law(law)
    check_confidence(confidence)
    if not isinstance(correlated, (bool, np.bool_)):
        raise UsageError(f"correlated must be True or False, got {correlated!r}")
    t, values = _numbers("time", time), _numbers("value", value)
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


def _check_law(law: str) -> None:
    if not (isinstance(law, str) and law in LAWS):
        raise UsageError(f"law must be one of {', '.join(LAWS)}, got {law!r}")


def _numbers(name: str, values: ArrayLike) -> FloatArray:
    try:
        found = np.asarray(values)
        if found.dtype.kind in "biuf":
            return found.astype(np.float64)
    except ValueError:
        pass
    raise UsageError(f"{name} must be an array of real numbers, got {values!r}")


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
    rough = [coarse(t, d, kind, shapes, *each) for each in zip(clocks, longest, strict=True)]
    chosen = int(rough[1][0] < rough[0][0])
    gaps = clocks[chosen]
    score, shape, correlation = refined(t, d, kind, shapes, gaps, longest[chosen], rough[chosen])
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
