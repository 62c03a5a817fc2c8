"""Make ``tracelab/stats/tables/stable_common.npz``: the bias of one alpha for many series.

Run ``python data/make_stable_common_table.py`` (ten minutes). With a location and a scale for
every series of K samples, the common maximum-likelihood alpha converges, as series are added, not
to the true alpha but to ``alpha + b(alpha, K) / K`` (Neyman and Scott's incidental parameters).
The limit is found by fitting very many series at once. The same fit with the true, shared scale
has no such bias and nearly the same noise: it is the control variate.
"""

from pathlib import Path

import numpy as np

from tracelab.stats import _stable_common as common
from tracelab.stats._stable_draws import rvs

ALPHAS = np.concatenate(
    [
        [0.32, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.85, 1.9],
        [1.94, 1.97, 1.985, 1.995, 1.999, 2.0],
    ]
)
SIZES = np.array([320, 100, 40, 20, 12, 8])
VALUES, REPLICAS = 250_000, 8
SEED = 20240613


def bias(alpha, batches, rng):
    """Return K times the bias, and its Monte-Carlo standard error."""
    found = []
    for _ in range(REPLICAS):
        x = rvs(alpha, size=(batches, VALUES // batches), rng=rng)
        each, shared = (common.uncorrected(x, scales) for scales in ("each", "shared"))
        found.append(batches * (each - shared))
    return np.mean(found), np.std(found, ddof=1) / np.sqrt(REPLICAS)


def main():
    """Write the table."""
    found = np.empty((SIZES.size, ALPHAS.size))
    for i, size in enumerate(SIZES):
        for j, alpha in enumerate(ALPHAS):
            found[i, j], error = bias(alpha, size, np.random.default_rng((SEED, i, j)))
            print(f"K {size:4d} alpha {alpha:5.3f}: K bias {found[i, j]:+.4f} +- {error:.4f}")
    path = Path(common.__file__).parent / "tables" / "stable_common.npz"
    np.savez_compressed(path, alpha=ALPHAS, inverse_size=1 / SIZES, bias=found.round(5))


if __name__ == "__main__":
    main()
