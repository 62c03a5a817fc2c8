"""Prints what the persistent-homology dimension reads on sets whose dimension is known.

    python data/study_dimension.py [sets [points]]

Mean and standard deviation over sets, the root mean square of the standard error that one set
reports, and the share of intervals of 95 % that hold the mean: the table of `docs/statistics.md`.
"""

import math
import sys

import numpy as np

from tracelab.stats import levy
from tracelab.stats.dimension import default_sizes, persistent_homology_dimension


def torus(d):
    """Return what draws points of a product of circles."""

    def points(rng, n):
        angle = rng.uniform(0, 2 * np.pi, (n, d))
        return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)

    return points


def cantor(copies):
    """Return what draws points of a product of Cantor's sets."""

    def points(rng, n):
        digits = rng.integers(0, 2, (n, copies, 34))
        return (2 * digits * 3.0 ** -np.arange(1, 35)).sum(axis=-1)

    return points


def path(alpha, d):
    """Return what draws a path of stable steps."""
    return lambda rng, n: levy.draws(alpha, d, (n,), "isotropic", rng).cumsum(axis=0)


def cube(d):
    """Return what draws uniform points."""
    return lambda rng, n: rng.random((n, d))


CANTOR = math.log(2) / math.log(3)
# Name, points, dimension, power.
SETS = (
    ("uniform on an interval", cube(1), 1.0, 1.0),
    ("uniform in a square", cube(2), 2.0, 1.0),
    ("uniform in a cube", cube(3), 3.0, 1.0),
    ("uniform in 10 dimensions", cube(10), 10.0, 1.0),
    ("flat torus of 2 dimensions", torus(2), 2.0, 1.0),
    ("Cantor's set", cantor(1), CANTOR, 0.3),
    ("Cantor's set, power 1", cantor(1), CANTOR, 1.0),
    ("product of two Cantor sets", cantor(2), 2 * CANTOR, 1.0),
    ("Brownian path in 3 dimensions", path(2.0, 3), 2.0, 1.0),
    ("Brownian path in 100", path(2.0, 100), 2.0, 1.0),
    ("stable path, alpha 1.8, in 10", path(1.8, 10), 1.8, 1.0),
    ("stable path, alpha 1.5, in 10", path(1.5, 10), 1.5, 1.0),
    ("stable path, alpha 1.2, in 10", path(1.2, 10), 1.2, 1.0),
)


def main(count=40, n=1_000):
    """Print the table."""
    wide = tuple(int(size) for size in np.linspace(0.2 * n, 0.9 * n, 8))
    print(f"{count} sets of {n} points; sizes {default_sizes(n)}, in the last column {wide}")
    print("| set | dimension | mean | sd | standard error | holds the mean | mean, wide sizes |")
    print("|---|---|---|---|---|---|---|")
    for name, points, truth, power in SETS:
        found, others = [], []
        for seed in range(count):
            drawn = points(np.random.default_rng(seed), n)
            found.append(persistent_homology_dimension(drawn, power=power, seed=seed))
            others.append(
                persistent_homology_dimension(
                    drawn, power=power, sizes=wide, repeats=3, confidence=None, seed=seed
                )
            )
        value, error, low, high = (
            np.array([getattr(each, f"dimension{end}") for each in found])
            for end in ("", "_se", "_low", "_high")
        )
        mean = np.nanmean(value)
        held = np.mean((low <= mean) & (mean <= high))
        numbers = (truth, mean, np.nanstd(value, ddof=1), math.sqrt(np.nanmean(error**2)), held)
        columns = " | ".join(f"{number:.3f}" for number in numbers)
        print(
            f"| {name} | {columns} | {np.nanmean([each.dimension for each in others]):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
