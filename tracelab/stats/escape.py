r"""Mean times in which noise leaves a basin, by theory: diffusion, stable jumps, truncated jumps.

All are of ``dx = -grad U dt + noise``, from the minimum. What a theory takes for granted is in its
docstring; `tracelab.stats.levy` simulates the same equations without these approximations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.typing import FloatArray, IntArray

__all__ = [
    "TruncatedOrder",
    "ellipsoid_exit_time",
    "jump_exit_time",
    "log_descent_exit_time",
    "log_diffusion_exit_time",
    "tail_constant",
    "truncated_order",
]

# Where the series takes over from the asymptotic expansion, whose error is e^-z there.
_LARGE = 40.0
_TERMS = 400
# By how many standard deviations of a step a boundary recedes when only whole steps are looked at:
# -zeta(1/2) / sqrt(2 pi).
_OVERSHOOT = 0.5825971579390106
# A step that returns all of the way leaves no memory, and this theory no time.
_LEAST_MEMORY = 0.05


def _positive(name: str, value: npt.ArrayLike) -> FloatArray:
    found = np.asarray(value, dtype=np.float64)
    if (found <= 0).any():
        raise UsageError(f"{name} must be positive, got {value!r}")
    return found


def _index(alpha: npt.ArrayLike, top: str = "2)") -> FloatArray:
    found = np.asarray(alpha, dtype=np.float64)
    high = found <= 2 if top == "2]" else found < 2
    if not ((found > 0) & high | np.isnan(found)).all():
        raise UsageError(f"alpha must be in (0, {top}, got {alpha!r}")
    return found


def log_diffusion_exit_time(
    curvature: npt.ArrayLike, diffusion: npt.ArrayLike, half_width: npt.ArrayLike
) -> FloatArray:
    r"""Return the log of the exact mean time in which a Brownian particle leaves an interval.

    Of :math:`dx = -h x\, dt + \sqrt{2D}\, dB` from 0 to :math:`\pm a`,

    .. math:: E \tau = \frac{a^2}{2D}\, {}_2F_2\!\left(1, 1; \tfrac32, 2; \frac{h a^2}{2D}\right).

    Far above the barrier, :math:`z = h a^2 / 2D \gg 1`, this is
    :math:`\sqrt{\pi} e^z / (2 h \sqrt z)`: exponential in the height over the temperature.

    Parameters
    ----------
    curvature : array_like
        h, at least 0.
    diffusion : array_like
        D: for SGD of rate :math:`\eta` and noise variance c in time :math:`k\eta`,
        :math:`D = \eta c / 2`.
    half_width : array_like
        a.

    Returns
    -------
    ndarray of float64
        Natural logarithm: times themselves overflow.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Gardiner, Stochastic Methods, 4th edition, 2009, equation 5.5.21.

    Examples
    --------
    >>> round(float(np.exp(log_diffusion_exit_time(0.0, 1.0, 1.0))), 6)
    0.5
    """
    d, a = _positive("diffusion", diffusion), _positive("half_width", half_width)
    h = np.asarray(curvature, dtype=np.float64)
    if (h < 0).any():
        raise UsageError(f"curvature must not be negative, got {curvature!r}")
    h, d, a = np.broadcast_arrays(h, d, a)
    with np.errstate(invalid="ignore"):
        z = h * a * a / (2 * d)
    series, term = np.ones_like(z), np.ones_like(z)
    small = np.where(z < _LARGE, z, 0.0)
    for k in range(_TERMS):
        term = term * small * (k + 1) / ((k + 1.5) * (k + 2))
        series = series + term
        if not (term > 1e-17 * series).any():
            break
    # Asymptotic: sum of (2k - 1)!! / (2z)^k, until terms rise.
    tail, term = np.ones_like(z), np.ones_like(z)
    for k in range(1, int(_LARGE)):
        term = term * (2 * k - 1) / (2 * np.maximum(z, _LARGE))
        tail = tail + term
    with np.errstate(divide="ignore"):
        large = z + 0.5 * np.log(np.pi) - np.log(2 * h) - 0.5 * np.log(z) + np.log(tail)
        near = 2 * np.log(a) - np.log(2 * d) + np.log(series)
    found: FloatArray = np.where(z < _LARGE, near, large)
    return np.where(np.isnan(z), np.nan, found)


def log_descent_exit_time(
    curvature: npt.ArrayLike, variance: npt.ArrayLike, half_width: npt.ArrayLike
) -> FloatArray:
    r"""Return the log of the mean number of steps in which noisy descent leaves an interval.

    Of :math:`x_{t+1} = (1 - h) x_t - \zeta_t` with Gaussian noise of variance c, from 0 to beyond
    :math:`\pm a`: the diffusion that is the same at whole steps (its rate is
    :math:`-\log |1 - h|`, and its stationary variance :math:`c / (1 - (1 - h)^2)`), with the
    boundary moved out by .5826 standard deviations of the noise within a step, because between
    steps nobody looks.

    Parameters
    ----------
    curvature : array_like
        h, between 0 and 2, both excluded.
    variance : array_like
        c.
    half_width : array_like
        a.

    Returns
    -------
    ndarray of float64
        Natural logarithm. Within .5 % of the exact mean time for h up to .01, 3 % up to .1, 13 % at
        .3 and a factor of 2 at .8, at heights of up to 8 of the barrier over the temperature.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Siegmund, Sequential Analysis, 1985, chapter X (the correction); Broadie, Glasserman, Kou, "A
    continuity correction for discrete barrier options", Mathematical Finance 7, 1997.
    """
    h = np.asarray(curvature, dtype=np.float64)
    if not ((h > 0) & (h < 2)).all():
        raise UsageError(f"curvature must be between 0 and 2, got {curvature!r}")
    kept = np.maximum(np.abs(1 - h), _LEAST_MEMORY)
    rate = -np.log(kept)
    diffusion = rate * _positive("variance", variance) / (1 - kept**2)
    wide = _positive("half_width", half_width) + _OVERSHOOT * np.sqrt(2 * diffusion)
    return log_diffusion_exit_time(rate, diffusion, wide)


def tail_constant(alpha: npt.ArrayLike, dim: int = 1) -> FloatArray:
    r"""Return C of isotropic stable noise: :math:`C r^{-\alpha}` jumps above r by unit of time.

    .. math:: C = \frac{2^\alpha\, \Gamma((d + \alpha) / 2)}
       {\Gamma(d / 2)\, \Gamma(1 - \alpha / 2)}

    for the characteristic function :math:`e^{-t|u|^\alpha}`; in one dimension
    :math:`2\, \Gamma(\alpha) \sin(\pi\alpha/2) / \pi`.

    Parameters
    ----------
    alpha : array_like
        Tail index in (0, 2]; at 2 there are no jumps.
    dim : int
        Dimensions, d.

    Returns
    -------
    ndarray of float64

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Sato, Levy Processes and Infinitely Divisible Distributions, 1999, theorem 14.14 and exercise
    18.9.
    """
    a = _index(alpha, "2]")
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
        raise UsageError(f"dim must be an integer of at least 1, got {dim!r}")
    found: FloatArray = np.asarray(
        2**a * special.gamma((dim + a) / 2) / special.gamma(dim / 2) * special.rgamma(1 - a / 2)
    )
    return found


def jump_exit_time(
    alpha: npt.ArrayLike,
    scale: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    axis: int = -1,
) -> FloatArray:
    r"""Return the mean time in which one large jump leaves a box, to leading order in the noise.

    .. math:: \frac{1}{E \tau} = \sum_i \frac{C_{\alpha_i}}{2} \sigma_i^{\alpha_i}
       \left[(a_i^-)^{-\alpha_i} + (a_i^+)^{-\alpha_i}\right]

    for independent coordinates. The depth of the basin does not matter. It takes a basin that pulls
    back faster than it is left, and noise that is small beside its width.

    Parameters
    ----------
    alpha, scale : array_like
        Tail index in (0, 2) and scale of the noise, by coordinate along `axis`.
    low, high : array_like
        Distances of the sides from the minimum, positive; infinite where there is none.
    axis : int
        Axis of the coordinates, after broadcasting.

    Returns
    -------
    ndarray of float64

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Imkeller, Pavlyukevich, "First exit times of SDEs driven by stable Levy processes", Stochastic
    Processes and their Applications 116, 2006, theorem 1; Zhou et al., "Towards theoretically
    understanding why SGD generalizes better than Adam", NeurIPS 2020 (sums over coordinates: jumps
    of independent components lie on the axes).

    Examples
    --------
    >>> light, heavy = (jump_exit_time([alpha], [0.1], [1.0], [1.0]) for alpha in (1.5, 1.2))
    >>> bool(light > heavy)
    True
    """
    a = _index(alpha)
    s, below, above = (
        _positive(name, value) for name, value in (("scale", scale), ("low", low), ("high", high))
    )
    rate = 0.5 * tail_constant(a) * s**a * (below**-a + above**-a)
    found: FloatArray = 1 / np.sum(rate, axis=axis)
    return found


def ellipsoid_exit_time(
    alpha: float, directions: npt.ArrayLike, curvature: npt.ArrayLike, barrier: npt.ArrayLike
) -> FloatArray:
    r"""Return the mean time in which one large jump lifts the loss over a barrier.

    .. math:: \frac{1}{E \tau} = C\, E_y\bigl[r(y)^{-\alpha}\bigr], \qquad
       r(y) = \sqrt{2 \Delta / y' H y},

    with jumps of d-dimensional isotropic noise, more than r times a unit vector at the rate
    :math:`C r^{-\alpha}` of `tail_constant`. What turns and scales them (the scale of the noise in
    each direction, a preconditioner) is in `directions`: images of unit vectors of uniform
    direction.

    Parameters
    ----------
    alpha : float
        Tail index in (0, 2).
    directions : array_like, shape (sample, d)
        What jumps are multiples of, in the basis of eigenvectors of H.
    curvature : array_like, shape (d,)
        Eigenvalues of H; directions without positive curvature never lift the loss by themselves.
    barrier : array_like
        Height of the barrier, :math:`\Delta`.

    Returns
    -------
    ndarray of float64, shape of `barrier`
        Infinite where no direction leads over it.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Zhou, Feng, Ma, Xiong, Hoi, E, "Towards theoretically understanding why SGD generalizes better
    than Adam in deep learning", NeurIPS 2020, theorem 1 (the Radon measure of the escape set).
    """
    a = float(_index(alpha))
    height = _positive("barrier", barrier)
    y = np.asarray(directions, dtype=np.float64)
    h = np.asarray(curvature, dtype=np.float64)
    if y.ndim != 2 or h.shape != y.shape[1:]:
        raise UsageError(
            f"directions must be of shape (sample, d) and curvature of shape (d,), got {y.shape} "
            f"and {h.shape}"
        )
    lift = np.maximum(0.5 * (y * y) @ h, 0.0)
    with np.errstate(divide="ignore"):
        rate = float(tail_constant(a, y.shape[1])) * np.mean(lift ** (a / 2)) * height ** (-a / 2)
        found: FloatArray = np.asarray(1 / rate)
    return found


@dataclass(frozen=True, slots=True)
class TruncatedOrder:
    """How exits of clipped heavy-tailed SGD scale with the learning rate.

    Parameters
    ----------
    jumps : ndarray of int64
        Least number of clipped steps that lead out, l*.
    exponent : ndarray of float64
        Steps until the exit grow like ``rate ** -exponent``, up to slowly varying factors.
    """

    jumps: IntArray
    exponent: FloatArray


def truncated_order(
    alpha: npt.ArrayLike, width: npt.ArrayLike, clip: npt.ArrayLike
) -> TruncatedOrder:
    r"""Return how many clipped steps leave a basin, and the order of its exit time.

    .. math:: l^* = \lceil r / b \rceil, \qquad
       E[\mathrm{steps}] \sim \eta^{-[1 + (\alpha - 1) l^*]}

    Parameters
    ----------
    alpha : array_like
        Tail index of the noise in (1, 2): with an infinite mean there is no drift to compare with.
    width : array_like
        Distance r from the minimum to the nearer side.
    clip : array_like
        Longest step b; infinite without clipping.

    Returns
    -------
    TruncatedOrder

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Wang, Oh, Rhee, "Eliminating sharp minima from SGD with truncated heavy-tailed noise", ICLR
    2022, theorem 1.

    Examples
    --------
    >>> found = truncated_order(1.4, 1.0, [1.5, 0.7, 0.45])
    >>> found.jumps.tolist(), found.exponent.round(2).tolist()
    ([1, 2, 3], [1.4, 1.8, 2.2])
    """
    a = np.asarray(alpha, dtype=np.float64)
    if not ((a > 1) & (a < 2)).all():
        raise UsageError(f"alpha must be in (1, 2), got {alpha!r}")
    r, b = _positive("width", width), _positive("clip", clip)
    if not np.isfinite(r).all():
        raise UsageError(f"width must be finite, got {width!r}")
    # A width of exactly so many steps takes one more, of which rounding must not make two.
    jumps = np.maximum(np.ceil(r / b * (1 - 4 * math.ulp(1.0))), 1).astype(np.int64)
    return TruncatedOrder(jumps, np.asarray(1 + (a - 1) * jumps))
