r"""Make ``tracelab/stats/tables/stable_quantiles.npz``: what McCulloch's fit inverts.

Run ``python data/make_stable_quantile_table.py`` (half a minute). The quantiles of standard S0 laws
come from Zolotarev's integral, at Chebyshev nodes in :math:`1/\alpha` (0.5 to 2) and
:math:`\beta`; the table holds the Chebyshev coefficients of the functions listed in
``tracelab/stats/_stable_quantile.py``.
"""

from pathlib import Path

import numpy as np
from numpy.polynomial import chebyshev

from tracelab.stats import _stable_quantile as fit
from tracelab.stats import stable

SIZE = (24, 31)


def functions(alpha, beta):
    """Return the tabulated functions of one law."""
    q = stable.ppf(fit.LEVELS, alpha, beta, 0, 1, "S0", "exact")
    wide, narrow = q[4] - q[0], q[3] - q[1]
    skewness = (q[4] + q[0] - 2 * q[2]) / wide / (2 - alpha)
    logs = stable.logpdf(q, alpha, beta, 0, 1, "S0", "exact")
    return [np.log(wide / narrow), skewness, np.log(narrow), q[2], *logs]


def coefficients():
    """Return the Chebyshev coefficients, shape (function, 1/alpha, beta)."""
    u, v = (np.cos(np.pi * (np.arange(n) + 0.5) / n) for n in SIZE)
    values = np.array([[functions(1 / (1.25 + 0.75 * a), b) for b in v] for a in u])
    to_u, to_v = (
        np.linalg.inv(chebyshev.chebvander(t, n - 1)) for t, n in zip((u, v), SIZE, strict=True)
    )
    return np.einsum("ia,jb,abf->fij", to_u, to_v, values)


if __name__ == "__main__":
    table = coefficients()
    path = Path(fit.__file__).parent / "tables" / "stable_quantiles.npz"
    np.savez_compressed(path, coefficients=table)
    last = np.abs(table[:, -2:]).max(axis=(1, 2)), np.abs(table[:, :, -2:]).max(axis=(1, 2))
    print("last coefficients in alpha, beta:", *last)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
