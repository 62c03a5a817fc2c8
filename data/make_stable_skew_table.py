r"""Make ``tracelab/stats/tables/stable_skew.npz``, the table of skewed stable densities.

Run ``python data/make_stable_skew_table.py`` (two minutes). ``_stable_skew.py`` says what is in it;
the densities come from Zolotarev's integral, at Chebyshev nodes in alpha, beta and each cell.
"""

from pathlib import Path

import numpy as np
from make_stable_table import DEGREE, cell_points, gaussian_coefficients
from numpy.polynomial import chebyshev

from tracelab.stats import _stable_skew as skew
from tracelab.stats._stable_exact import PDF, exact
from tracelab.stats._stable_parameters import tangent

# (lowest alpha, highest alpha, -log2 x0, nodes in alpha, in beta, part of a row below which an
# order is left out if its coefficients are so everywhere).
PANELS = [
    (0.8, 0.9, 5, 9, 37, 3e-6),
    (0.9, 1.05, 5, 9, 31, 1e-6),
    (1.05, 1.2, 3, 9, 23, 1e-8),
    (1.2, 1.4, 3, 9, 19, 1e-8),
    (1.4, 1.65, 3, 9, 15, 3e-9),
    (1.65, 2.0, 3, 12, 13, 1e-9),
]
# Orders below this part are kept in single precision,
SMALL = 2e-3
# and of these only the bits down to this part of what is left out: the file compresses by more.
ROUNDING = 1 / 30


def excess(z, alpha, beta):
    """Return ``(f - phi) / (2 - alpha)`` at an array of ``z >= 0``."""
    flat = np.ravel(z)
    laws = np.full(flat.size, alpha), np.full(flat.size, beta)
    log_f = np.empty(flat.size)
    exact(PDF, flat, flat + tangent(alpha, beta), *laws, log_f)
    phi = np.exp(-flat * flat / 4) / np.sqrt(4 * np.pi)
    return ((np.exp(log_f) - phi) / (2 - alpha)).reshape(z.shape)


def tail_points(log_x0):
    """Return z at the Chebyshev points of the tail's cells, two an octave."""
    u = (1 - np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))) / 2
    octaves = skew.EDGE * 2.0 ** np.arange(skew.TAIL_ROWS // 2)
    edges = (octaves[:, None] * np.array([1.0, 1.5])).ravel()
    return edges[:, None] + np.repeat(octaves / 2, 2)[:, None] * u - 2.0**-log_x0


def rows_of(law):
    """Return the rows of one law, shape (row, 7)."""
    alpha, beta, log_x0 = law
    to_monomials, z = cell_points(log_x0)
    tail = tail_points(log_x0)
    power = ((tail + 2.0**-log_x0) / skew.EDGE) ** (1 + alpha)
    values = np.concatenate([excess(z, alpha, beta), excess(tail, alpha, beta) * power])
    return values @ to_monomials.T


def rounded(values, part, negligible):
    """Return values with only as many bits as their part of a row deserves."""
    bits = np.ceil(np.log2(part / (ROUNDING * negligible)))
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, int(bits))), exponent - int(bits))


def panel_coefficients(panel):
    """Return Chebyshev orders that count, their coefficients, and the largest part of a row."""
    low, high, log_x0, *sizes, negligible = panel
    u, v = (np.cos(np.pi * (np.arange(n) + 0.5) / n) for n in sizes)
    laws = [((low + high) / 2 + (high - low) / 2 * a, b, log_x0) for a in u for b in v]
    values = np.array([rows_of(law) for law in laws]).reshape(*sizes, -1, DEGREE + 1)
    to_u, to_v = (
        np.linalg.inv(chebyshev.chebvander(t, n - 1)) for t, n in zip((u, v), sizes, strict=True)
    )
    series = np.einsum("ia,jb,abrc->ijrc", to_u, to_v, values)
    print(panel, "last orders:", np.abs(series[-1]).max(), np.abs(series[:, -1]).max())
    size = np.abs(series).sum(axis=3)
    part = (size / size.max(axis=(0, 1))).max(axis=2)
    orders = np.argwhere(part > negligible)
    return [(n, m, series[n, m].ravel(), part[n, m]) for n, m in orders]


def main():
    """Write the table."""
    panels, orders, double, single, gaussian = [], [], [], [], []
    for panel in PANELS:
        kept = panel_coefficients(panel)
        panels.append((*panel[:3], len(orders), len(kept), sum(g.size for g in gaussian)))
        gaussian.append(gaussian_coefficients(panel[2]).ravel())
        for n, m, coefficients, part in kept:
            target = single if part < SMALL else double
            start = sum(c.size for c in target)
            orders.append((n, m, part < SMALL, start))
            if part < SMALL:
                coefficients = rounded(coefficients, part, panel[-1])
            target.append(coefficients)
    table = skew.SkewTable(
        panels=np.array(panels, dtype=np.float64),
        orders=np.array(orders, dtype=np.int64),
        double=np.concatenate(double),
        single=np.concatenate(single).astype(np.float32),
        gaussian=np.concatenate(gaussian),
    )
    path = Path(skew.__file__).parent / "tables" / "stable_skew.npz"
    np.savez_compressed(path, **table._asdict())
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB", panels)


if __name__ == "__main__":
    main()
