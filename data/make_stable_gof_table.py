"""Make ``tracelab/stats/tables/stable_gof.npz``: the null of the stable goodness-of-fit test.

Run ``python data/make_stable_gof_table.py`` (some minutes). For each alpha
and n it draws standard symmetric stable samples, fits alpha, scale and location to each by
maximum likelihood, and keeps upper-tail points of the Anderson-Darling statistic.
"""

from pathlib import Path

import numpy as np

from tracelab.stats import _stable_gof as gof
from tracelab.stats._stable_density import table
from tracelab.stats._stable_draws import rvs
from tracelab.stats._stable_fit import fit_sorted

ALPHAS = np.array([0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.2, 1.4, 1.6, 1.75, 1.85, 1.93, 1.97, 1.99, 2.0])
SIZES = np.array([500, 100, 20])
LEVELS = np.concatenate(
    [
        [0.99, 0.975, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1],
        [0.075, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001],
    ]
)
REPLICAS = 20_000
SEED = 20240612


def null(alpha, n, rng):
    """Return the upper-tail points of A^2 at LEVELS."""
    tabulated = table()
    found = []
    for _ in range(REPLICAS // 1000):
        x = np.sort(rvs(alpha, size=(1000, n), rng=rng), axis=-1)
        out = np.zeros((1000, 13))
        fit_sorted(x.copy(), tabulated, 0.0, out)
        z = (x - out[:, 2:3]) / out[:, 1:2]
        statistic = np.empty(1000)
        gof.anderson_rows(z, out[:, 0], tabulated, statistic)
        found.append(statistic)
    return np.quantile(np.concatenate(found), 1 - LEVELS)


def main():
    """Write the table."""
    points = np.empty((ALPHAS.size, SIZES.size, LEVELS.size))
    for i, alpha in enumerate(ALPHAS):
        for j, n in enumerate(SIZES):
            points[i, j] = null(alpha, n, np.random.default_rng((SEED, i, j)))
            print(alpha, n, dict(zip(LEVELS[[7, 15, 17]], points[i, j, [7, 15, 17]], strict=True)))
    path = Path(gof.__file__).parent / "tables" / "stable_gof.npz"
    # Six digits are beyond the noise of the simulation.
    np.savez_compressed(
        path,
        alpha=ALPHAS,
        inverse_n=1 / SIZES,
        level=LEVELS,
        log_statistic=np.log(points).round(6),
    )


if __name__ == "__main__":
    main()
