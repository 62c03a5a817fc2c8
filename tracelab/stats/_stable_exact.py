r"""Stable density and distribution by Zolotarev's integral, relatively accurate everywhere.

With :math:`y = z + \zeta`, :math:`\zeta = \beta \tan(\pi\alpha/2)`, z in Nolan's S0, and
:math:`\varphi = \pi/2 - \theta` measured from the far end of Nolan's :math:`\theta`,

.. math:: f = \frac{\alpha}{\pi |\alpha - 1| y} \int_0^{\varphi_1} g e^{-g} d\varphi, \qquad
   \log g = \frac{\alpha \log y + \log\cos a
     + \alpha \log\{\sin\varphi / \sin(\eta + \alpha\varphi)\}}{\alpha - 1}
     + \log \frac{\sin(\eta + (\alpha - 1)\varphi)}{\sin\varphi},

:math:`a = \arctan\zeta`, :math:`\eta = \pi(2 - \alpha)/2 - a`,
:math:`\varphi_1 = (\pi - \eta)/\alpha`; tails are integrals of :math:`e^{-g}` and
:math:`1 - e^{-g}`. Nothing is subtracted: all angles are kept as distances from both ends, and the
integral is over the logit of :math:`\varphi/\varphi_1`, in which g is a power at either end.
Adaptive Gauss-Legendre panels do the rest. Only :math:`y < 0` is reflected.

At ``alpha = 1`` the formula is a limit; the S0 law is smooth there, and within `NEAR_ONE` of 1 its
logarithm is interpolated between six laws beside it.

References
----------
Nolan, "Numerical calculation of stable densities and distribution functions", 1997, theorem 1;
Zolotarev, "One-dimensional Stable Distributions", 1986, section 2.2.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["CDF", "PDF", "SF", "exact", "exact_quantiles", "log_exact", "skew_tangent"]

Float64 = NDArray[np.float64]

PDF, CDF, SF = 0, 1, 2
"""What `log_exact` returns the logarithm of."""

NEAR_ONE = 3e-3
"""Within this distance of ``alpha = 1`` the formula loses digits and is interpolated."""

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANEL = 2.0
_TOLERANCE = 1e-13
# e^-45 of the largest integrand is nothing, and so is all that lies further out.
_CUT = 45.0
_W_MAX = 690.0
_MAX_PANELS = 4000
# So deep in a light tail the logarithm is that of the largest e^-g alone, to all but log g / g.
_DEEP = 1e10
# Below, every law is at its value at y = 0.
_Y_MIN = 1e-250


@numba.njit(nogil=True, cache=True, error_model="numpy")
def skew_tangent(alpha: float, beta: float) -> float:
    """Return ``beta tan(pi alpha / 2)``, accurate near ``alpha = 2``."""
    if alpha > 1.0:
        return -beta * math.tan(0.5 * math.pi * (2.0 - alpha))
    return beta * math.tan(0.5 * math.pi * alpha)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _angles(alpha: float, beta: float) -> tuple[float, float, float, float]:
    """Return log cos a, eta, pi - phi_1 and phi_1; no cancellation for ``beta`` near -1 or 1."""
    t = math.tan(0.5 * math.pi * (2.0 - alpha)) if alpha > 1.0 else math.tan(0.5 * math.pi * alpha)
    log_cos = -0.5 * math.log1p((beta * t) ** 2)
    if alpha > 1.0:
        eta = math.atan2((1.0 + beta) * t, 1.0 - beta * t * t)
        rest = ((alpha - 1.0) * math.pi + eta) / alpha
    else:
        eta = math.atan2((1.0 + beta) * t, beta * t * t - 1.0)
        rest = math.atan2((1.0 - beta) * t, 1.0 + beta * t * t) / alpha
    return log_cos, eta, rest, max(math.pi - eta, 0.0) / alpha


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _log_g(
    w: float, log_y: float, alpha: float, angles: tuple[float, float, float, float]
) -> tuple[float, float]:
    """Return log g and ``log(phi psi / phi_1)`` at ``w = log(phi / psi)``, psi = phi_1 - phi."""
    log_cos, eta, rest, last = angles
    e = math.exp(-abs(w))
    near, far = last * e / (1.0 + e), last / (1.0 + e)
    phi, psi = (near, far) if w < 0.0 else (far, near)
    sin_phi = math.sin(phi) if phi < 0.5 * math.pi else math.sin(rest + psi)
    first = eta + alpha * phi
    sin_first = math.sin(first) if first < 0.5 * math.pi else math.sin(alpha * psi)
    supplement = alpha * psi + phi
    if supplement < 0.5 * math.pi:
        sin_second = math.sin(supplement)
    elif alpha > 1.0:
        sin_second = math.sin(eta + (alpha - 1.0) * phi)
    else:
        sin_second = math.sin(rest + (1.0 - alpha) * psi)
    power = (alpha * (log_y + math.log(sin_phi / sin_first)) + log_cos) / (alpha - 1.0)
    jacobian = math.log(last) - abs(w) - 2.0 * math.log1p(e)
    return power + math.log(sin_second / sin_phi), jacobian


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _crossing(
    target: float, log_y: float, alpha: float, angles: tuple[float, float, float, float]
) -> float:
    """Return where log g reaches `target`; at an end if nowhere."""
    low, high = -_W_MAX, _W_MAX
    while high - low > 1e-5:
        middle = 0.5 * (low + high)
        if (_log_g(middle, log_y, alpha, angles)[0] > target) == (alpha > 1.0):
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _log_integrand(
    w: float,
    what: int,
    log_y: float,
    alpha: float,
    angles: tuple[float, float, float, float],
) -> float:
    u, jacobian = _log_g(w, log_y, alpha, angles)
    if what == PDF:
        return u - math.exp(u) + jacobian if u < 700.0 else -np.inf
    # e^-g, which is the upper tail for alpha > 1 and the lower one else; or the complement.
    if (what == SF) == (alpha > 1.0):
        return jacobian - math.exp(u) if u < 700.0 else -np.inf
    if u < -36.0:
        return u + jacobian
    return math.log(-math.expm1(-math.exp(u))) + jacobian if u < 6.6 else jacobian


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _panel(
    low: float,
    high: float,
    shift: float,
    what: int,
    log_y: float,
    alpha: float,
    angles: tuple[float, float, float, float],
) -> float:
    half, middle = 0.5 * (high - low), 0.5 * (high + low)
    total = 0.0
    for i in range(_POINTS.size):
        term = _log_integrand(middle + half * _POINTS[i], what, log_y, alpha, angles) - shift
        if term > -2.0 * _CUT:
            total += _WEIGHTS[i] * math.exp(term)
    return total * half


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _edges(
    low: float,
    high: float,
    peak: float,
    log_y: float,
    alpha: float,
    angles: tuple[float, float, float, float],
) -> tuple[Float64, int]:
    """Return panel edges, fine around `peak` where g is steep, and the number of panels."""
    step = 1e-4
    rise = _log_g(peak + step, log_y, alpha, angles)[0] - _log_g(peak, log_y, alpha, angles)[0]
    finest = min(max(2.0 * step / abs(rise), 1e-5), _PANEL)
    edges = np.empty(2000)
    # Downwards from the peak, turned round, then upwards.
    n = 0
    at, width = peak, finest
    while at > low:
        at = max(at - width, low)
        edges[n] = at
        n += 1
        width = min(2.0 * width, _PANEL)
    edges[:n] = edges[:n][::-1].copy()
    edges[n] = peak
    at, width = peak, finest
    while at < high:
        at = min(at + width, high)
        n += 1
        edges[n] = at
        width = min(2.0 * width, _PANEL)
    return edges, n


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _log_integral(
    what: int, log_y: float, alpha: float, angles: tuple[float, float, float, float]
) -> float:
    """Return the logarithm of the integral of one kind over all phi."""
    upward = alpha > 1.0
    # The largest g that counts: it matters how far it is above the smallest.
    least = math.exp(min(_log_g(-_W_MAX if upward else _W_MAX, log_y, alpha, angles)[0], 700.0))
    falling = what == PDF or (what == SF) == upward
    if falling and least > _DEEP:
        return -least
    one = _crossing(0.0, log_y, alpha, angles)
    if least > 1.0:
        one = 0.0 if what != PDF else -0.5 * math.log(least) * (1.0 if upward else -1.0)
    stop = _crossing(math.log(least + 800.0), log_y, alpha, angles)
    # Tails fall off from where g = 1 or from the middle of the range, whichever is further.
    low, high = min(one, 0.0) - _CUT, max(one, 0.0) + _CUT
    if what == PDF:
        low, high = one - _CUT, one + _CUT
    if falling:
        low, high = (low, min(stop, high)) if upward else (max(stop, low), high)
    low, high = max(low, -_W_MAX), min(high, _W_MAX)
    edges, count = _edges(low, high, min(max(one, low), high), log_y, alpha, angles)
    shift = -np.inf
    for i in range(count):
        for j in range(4):
            w = edges[i] + 0.25 * j * (edges[i + 1] - edges[i])
            shift = max(shift, _log_integrand(w, what, log_y, alpha, angles))
    if shift == -np.inf:
        return -np.inf
    stack = np.empty((200, 3))
    total = 0.0
    parts = np.empty(count)
    for i in range(count):
        parts[i] = _panel(edges[i], edges[i + 1], shift, what, log_y, alpha, angles)
        total += parts[i]
    allowed = _TOLERANCE * total
    result = 0.0
    used = 0
    for i in range(count):
        if parts[i] <= 1e-3 * allowed:
            result += parts[i]
            continue
        stack[0] = edges[i], edges[i + 1], parts[i]
        depth = 1
        while depth > 0:
            depth -= 1
            left, right, whole = stack[depth]
            middle = 0.5 * (left + right)
            first = _panel(left, middle, shift, what, log_y, alpha, angles)
            second = _panel(middle, right, shift, what, log_y, alpha, angles)
            used += 1
            settled = abs(first + second - whole) <= allowed
            if settled or depth > 190 or used > _MAX_PANELS or right - left < 1e-9:
                result += first + second
            else:
                stack[depth] = left, middle, first
                stack[depth + 1] = middle, right, second
                depth += 2
    return math.log(result) + shift


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _log_direct(what: int, y: float, alpha: float, beta: float) -> float:
    """Return log of density or tail at ``y = z + zeta``, alpha not (nearly) 1."""
    if y < 0.0:
        y, beta = -y, -beta
        if what == CDF:
            what = SF
        elif what == SF:
            what = CDF
    angles = _angles(alpha, beta)
    _, _, rest, last = angles
    if y < _Y_MIN:
        if what == PDF:
            log_gamma = math.lgamma(1.0 + 1.0 / alpha)
            zeta = skew_tangent(alpha, beta)
            # cos theta_0 = sin phi_1; none is left where the support ends.
            sine = math.sin(last) if last < 0.5 * math.pi else math.sin(rest)
            return log_gamma + math.log(sine / math.pi) - 0.5 / alpha * math.log1p(zeta * zeta)
        return math.log((rest if what == CDF else last) / math.pi)
    if y == np.inf:
        return 0.0 if what == CDF else -np.inf
    if last == 0.0:
        return 0.0 if what == CDF else -np.inf
    log_y = math.log(y)
    value = _log_integral(what, log_y, alpha, angles)
    if what == PDF:
        return value + math.log(alpha / (math.pi * abs(alpha - 1.0))) - log_y
    if what == SF:
        return value - math.log(math.pi)
    return math.log((rest + math.exp(value)) / math.pi)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def log_exact(what: int, z: float, y: float, alpha: float, beta: float) -> float:
    """Return the logarithm of density, distribution or survival of the standard law.

    Parameters
    ----------
    what : int
        `PDF`, `CDF` or `SF`.
    z, y : float
        Where, in S0 and (``y = z + zeta``) in S1; `y` counts unless alpha is nearly 1.
    alpha, beta : float
        In (0, 2] and [-1, 1].
    """
    if math.isnan(y):
        return np.nan
    if abs(alpha - 1.0) > NEAR_ONE:
        value = _log_direct(what, y, alpha, beta)
        return value if what == PDF else min(value, 0.0)
    # Lagrange through alpha = 1 -3h .. 3h without 1; exact to h^6 even for log z = 14.
    h = NEAR_ONE / 3.0
    t = (alpha - 1.0) / h
    total = 0.0
    for i in range(-3, 4):
        if i == 0:
            continue
        weight = 1.0
        for j in range(-3, 4):
            if j not in (0, i):
                weight *= (t - j) / (i - j)
        node = 1.0 + i * h
        value = _log_direct(what, z + skew_tangent(node, beta), node, beta)
        if value == -np.inf:
            return -np.inf
        total += weight * value
    return total if what == PDF else min(total, 0.0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def exact(what: int, z: Float64, y: Float64, alpha: Float64, beta: Float64, out: Float64) -> None:
    """Write `log_exact` at every point of five arrays of one length."""
    for i in range(z.size):
        out[i] = log_exact(what, z[i], y[i], alpha[i], beta[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _quantile(q: float, alpha: float, beta: float) -> float:
    """Return the quantile of ``0 < q < 1``, in S1, or in S0 if alpha is nearly 1."""
    near = abs(alpha - 1.0) <= NEAR_ONE
    zeta = 0.0 if near else skew_tangent(alpha, beta)
    below = log_exact(CDF, -zeta, 0.0, alpha, beta)
    sign = 1.0 if math.log(q) > below else -1.0
    # Solve log P(on this tail) = target for log |z|: the tail falls as that grows.
    lower = q < 0.5
    what = CDF if lower else SF
    target = math.log(q) if lower else math.log1p(-q)
    falling = (sign > 0.0) != lower
    low, high = -745.0, 709.0
    t = 0.0
    for _ in range(300):
        z = sign * math.exp(t)
        tail = log_exact(what, z - zeta, z, alpha, beta)
        if (tail > target) == falling:
            low = t
        else:
            high = t
        log_f = log_exact(PDF, z - zeta, z, alpha, beta)
        rate = math.exp(min(log_f + t - tail, 700.0)) * (-1.0 if falling else 1.0)
        step = (target - tail) / rate if rate != 0.0 else np.inf
        new = t + min(max(step, -4.0), 4.0)
        if not low < new < high:
            new = 0.5 * (max(low, t - 8.0) + min(high, t + 8.0))
        if abs(new - t) < 1e-13 * max(1.0, abs(t)) or high - low < 1e-15:
            return sign * math.exp(new)
        t = new
    return sign * math.exp(t)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def exact_quantiles(q: Float64, alpha: Float64, beta: Float64, s1: bool, out: Float64) -> None:
    """Write the quantiles of standard laws, in S1 if `s1`, else in S0; arrays of one length.

    Quantiles are NaN outside [0, 1] and at 0 and 1 the ends of the support.
    """
    for i in range(q.size):
        if not 0.0 <= q[i] <= 1.0:
            out[i] = np.nan
            continue
        zeta = 0.0 if alpha[i] == 1.0 else skew_tangent(alpha[i], beta[i])
        near = abs(alpha[i] - 1.0) <= NEAR_ONE
        if q[i] in (0.0, 1.0):
            end = 1.0 if q[i] == 0.0 else -1.0
            if alpha[i] < 1.0 and beta[i] == end:
                out[i] = 0.0 if s1 else -zeta
            else:
                out[i] = -end * np.inf
            continue
        z = _quantile(q[i], alpha[i], beta[i])
        if s1 and near:
            z += zeta
        elif not s1 and not near:
            z -= zeta
        out[i] = z
