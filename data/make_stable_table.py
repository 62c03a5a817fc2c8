r"""Make ``tracelab/stats/tables/stable.npz``, the table behind ``tracelab.stats.stable``.

Run ``python data/make_stable_table.py`` (half a minute). Three parts:

* G of ``tracelab/stats/_stable_density.py`` at Chebyshev nodes in alpha and in each cell, from

  .. math:: G(z; \alpha) = \frac{1}{\pi s} \Re \int_0^\infty
     e^{izt} \left(e^{-t^\alpha} - e^{-t^2}\right) dt

  along the ray ``t = e^{v + i \theta}``, where both factors decay, by the trapezoidal rule in `v`:
  it converges geometrically, as the integrand is analytic in a strip. Against 40-digit mpmath
  the density is right to 4e-14 (``tests/tracelab/stats/test_stable_density.py``).
* The Fisher information per sample, by Gauss-Legendre quadrature.
* McCulloch's quantile ratio, for the starting point of the fit.
"""

from pathlib import Path

import numpy as np
from numpy.polynomial import chebyshev
from scipy.optimize import brentq
from scipy.special import gamma

from tracelab.stats import _stable_density as stable

# (lowest alpha, highest alpha, -log2 x0): the density gets sharper at 0 as alpha falls.
PANELS = [
    (0.3, 0.4, 14),
    (0.4, 0.55, 11),
    (0.55, 0.8, 8),
    (0.8, 1.2, 5),
    (1.2, 1.6, 3),
    (1.6, 2.0, 3),
]
DEGREE = 6
STEP = 0.03


def excess(z, alpha):
    """Return G at an array of ``z >= 0``, shape as `z`."""
    s = 2.0 - alpha
    # From 1.4 on e^{-t^alpha} - e^{-t^2} is taken as one, without cancellation at alpha = 2.
    joint = alpha >= 1.4
    theta = np.pi / 8 if joint else min(np.pi / (4 * alpha), 0.45 * np.pi)
    decay = min(np.cos(alpha * theta), np.cos(2 * theta)) if joint else np.cos(alpha * theta)
    log_t = np.arange(-42.0, np.log(42 / decay) / alpha + STEP, STEP) + 1j * theta
    t = np.exp(log_t)
    if not joint:
        kernel = np.exp(-np.exp(alpha * log_t))
    elif s == 0:
        kernel = t * t * log_t * np.exp(-t * t)
    else:
        kernel = np.exp(-t * t) * np.expm1(-t * t * np.expm1(-s * log_t)) / s
    weights = kernel * t * (STEP / np.pi)
    flat = np.ravel(z)
    values = np.empty_like(flat)
    for start in range(0, flat.size, 64):
        part = slice(start, start + 64)
        values[part] = (np.exp(1j * np.multiply.outer(flat[part], t)) @ weights).real
    if not joint:
        values = (values - np.exp(-flat * flat / 4) / np.sqrt(4 * np.pi)) / s
    return values.reshape(np.shape(z))


def tail_coefficients(alpha):
    """Return the fourteen ``b_k`` as two rows of seven."""
    s = 2.0 - alpha
    k = np.arange(1, 15)
    # k / 2 * sinc is sin(pi k s / 2) / (pi s), also at s = 0; k! as gamma(k + 1).
    sine = k / 2 * np.sinc(k * s / 2)
    b = gamma(k * alpha + 1) / gamma(k + 1) * sine * stable.EDGE ** (-k * alpha)
    return b.reshape(2, 7)


def cell_points(log_x0):
    """Return the map from values to monomials, and z at the Chebyshev points of the cells."""
    u = (1 - np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))) / 2
    to_monomials = np.linalg.inv(np.vander(u, DEGREE + 1, increasing=True))
    x0 = 2.0**-log_x0
    octaves = x0 * 2.0 ** np.arange(log_x0 + 6)
    edges = (octaves[:, None] * (1 + np.arange(8) / 8)).ravel()
    widths = np.repeat(octaves / 8, 8)
    return to_monomials, edges[:, None] + widths[:, None] * u - x0


def panel_coefficients(low, high, log_x0):
    """Return the Chebyshev coefficients of one panel, shape (order, row, 7)."""
    to_monomials, z = cell_points(log_x0)
    nodes = np.cos(np.pi * (np.arange(stable.NODES) + 0.5) / stable.NODES)
    alphas = (low + high) / 2 + (high - low) / 2 * nodes
    values = np.array(
        [np.vstack([excess(z, a) @ to_monomials.T, tail_coefficients(a)]) for a in alphas]
    )
    to_series = np.linalg.inv(chebyshev.chebvander(nodes, stable.NODES - 1))
    return np.tensordot(to_series, values, 1)


def gaussian_coefficients(log_x0):
    """Return phi as polynomials in the cells below BODY, shape (cell, 7)."""
    to_monomials, z = cell_points(log_x0)
    z = z[: 8 * (log_x0 + 2)]
    return (np.exp(-z * z / 4) / np.sqrt(4 * np.pi)) @ to_monomials.T


def density_on_nodes(tabulated, alpha):
    """Return quadrature nodes, weights (both for z > 0) and density, df/dz, df/dalpha there."""
    law = stable.new_law()
    x0 = stable.collapse(tabulated, alpha, 1, law)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = x0 * 2.0 ** (np.arange(int(-np.log2(x0)) * 8 + 49) / 8) - x0
    half = np.diff(edges)[:, None] / 2
    inner = (edges[:-1, None] + half * (1 + nodes)).ravel()
    inner_weights = (half * weights).ravel()
    # Beyond the table: r = (z / edge)^(-alpha / 4) in (0, 1] makes the integrands smooth.
    r = (1 + nodes) / 2
    outer = edges[-1] * r ** (-4 / alpha)
    outer_weights = weights / 2 * (4 / alpha) * outer / r
    z = np.concatenate([inner, outer])
    f = np.array([stable.density(law, x0, alpha, point) for point in z])
    return z, np.concatenate([inner_weights, outer_weights]), *f.T


def information(tabulated):
    """Return the table of Fisher information over a uniform grid in log s."""
    rows = []
    for log_s in np.linspace(np.log(1e-9), np.log(2 - stable.ALPHA_MIN), 448):
        s = np.exp(log_s)
        z, w, f, fz, fa = density_on_nodes(tabulated, 2 - s)
        score_v, score_u, score_l = -s * fa / f, -(1 + z * fz / f), -fz / f
        w = 2 * w * f
        rows.append(
            [
                log_s,
                (w @ score_v**2) / s,
                (w @ (score_v * score_u)) / s,
                w @ score_u**2,
                w @ score_l**2,
            ]
        )
    return np.array(rows)


def quantiles(tabulated):
    """Return McCulloch's ratio, alpha and the upper quartile, by falling alpha."""
    rows = []
    for alpha in np.linspace(2, stable.ALPHA_MIN, 171):
        law = stable.new_law()
        x0 = stable.collapse(tabulated, alpha, 0, law)
        stable.cumulate(law, x0, alpha)

        def excess_tail(log_z, p, law=law, x0=x0, alpha=alpha):
            return stable.survival(law, x0, alpha, np.exp(log_z)) - p

        q75, q95 = (np.exp(brentq(excess_tail, -20, 20, args=(p,))) for p in (0.25, 0.05))
        rows.append([np.log(q95 / q75), alpha, q75])
    return np.array(rows)


def main():
    """Write the table."""
    parts = [panel_coefficients(*panel) for panel in PANELS]
    bodies = [gaussian_coefficients(panel[2]) for panel in PANELS]
    offsets = [np.cumsum([0] + [part.size for part in arrays[:-1]]) for arrays in (parts, bodies)]
    nothing = np.empty((0, 0))
    tabulated = stable.Table(
        panels=np.column_stack([PANELS, *offsets]),
        coefficients=np.concatenate([part.ravel() for part in parts]),
        gaussian=np.concatenate([body.ravel() for body in bodies]),
        information=nothing,
        quantiles=nothing,
    )
    tabulated = tabulated._replace(
        information=information(tabulated), quantiles=quantiles(tabulated)
    )
    path = Path(stable.__file__).parent / "tables" / "stable.npz"
    np.savez_compressed(path, **tabulated._asdict())
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
