"""Make ``tracelab/stats/tables/stable_ratio.npz``: the null of stable against Gaussian.

Run ``python data/make_stable_ratio_table.py`` (half an hour on one core). Of every sample size it
draws standard normal samples, fits a symmetric stable law to each, and keeps, in ``build/`` where a
second run finds them, how often twice the gain in log-likelihood over the Gaussian law is positive,
and its upper-tail points. At alpha = 2, the end of its range, the information about alpha is
infinite: the gain is exactly 0 in most samples and no quantile of it is that of a chi-square law
(DuMouchel 1973).

The points of all sizes are smoothed together: the logarithm of each is a polynomial in log n.
Printed are the largest differences, in Monte-Carlo standard errors of one size.
"""

from pathlib import Path

import numpy as np

from tracelab.stats import _stable_ratio
from tracelab.stats._stable_density import table
from tracelab.stats._stable_fit import fit_sorted

LEVELS = np.concatenate(
    [
        [0.12, 0.1, 0.085, 0.07, 0.06, 0.05, 0.042, 0.035, 0.03, 0.025, 0.02, 0.016, 0.013],
        [0.01, 0.008, 0.0065, 0.005, 0.004, 0.003, 0.0025, 0.002, 0.0015, 0.001, 7e-4, 5e-4],
        [3e-4, 2e-4, 1e-4],
    ]
)
SIZES = (20, 30, 50, 80, 130, 200, 400, 1000, 2500, 6000, 15_000, 40_000, 100_000)
VALUES, MOST = 300_000_000, 300_000
# Fewer samples above a point than this and it is left out of the smoothing.
ABOVE = 20
DEGREE = 5
SEED = 20241129
PARTS = Path(__file__).parents[1] / "build" / "stable_ratio"


def samples(n):
    """Return how many samples of a size are drawn."""
    return min(MOST, VALUES // n)


def simulate(n):
    """Return the share of positive ratios, and the points at LEVELS."""
    rng = np.random.default_rng((SEED, n))
    tabulated, found, left = table(), [], samples(n)
    while left:
        x = np.sort(rng.standard_normal((min(left, max(1, 200_000 // n)), n)), axis=-1)
        out = np.zeros((len(x), 13))
        fit_sorted(x, tabulated, 0.0, out)
        found.append(2 * (out[:, 8] - out[:, 12]))
        left -= len(x)
    ratio = np.concatenate(found)
    return {"positive": np.mean(ratio > 0), "points": np.quantile(ratio, 1 - LEVELS)}


def part(n):
    """Return what `simulate` gave, now or in an earlier run."""
    path = PARTS / f"{n}-{samples(n)}.npz"
    if not path.exists():
        PARTS.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, **simulate(n))
        unfinished.rename(path)
    with np.load(path) as stored:
        return dict(stored)


def smooth(values, weights):
    """Return polynomials in log n through (size, level) values, fitted with these weights."""
    x = np.log(SIZES)
    design = np.polynomial.legendre.legvander(2 * (x - x[0]) / (x[-1] - x[0]) - 1, DEGREE)
    fitted = np.empty_like(values)
    for j in range(values.shape[1]):
        w = weights[:, j, None]
        coefficients = np.linalg.lstsq(design * w, np.where(w, values[:, [j]], 0.0) * w)[0]
        fitted[:, j] = (design @ coefficients)[:, 0]
    return fitted


def main():
    """Simulate what is missing and write the table."""
    counts = np.array([samples(n) for n in SIZES])
    parts = []
    for n in SIZES:
        parts.append(part(n))
        error = np.sqrt(parts[-1]["positive"] * (1 - parts[-1]["positive"]) / samples(n))
        few = {LEVELS[i]: parts[-1]["points"][i].round(4) for i in (1, 5, 13, 22)}
        print(f"n {n}: positive {parts[-1]['positive']:.4f} +- {error:.4f}; {few}", flush=True)
    points = np.log(np.maximum([each["points"] for each in parts], 1e-12))
    # Of a point its variance is p (1 - p) / (samples f^2), with f the density of the logarithm.
    density = np.abs(np.gradient(LEVELS)) / np.gradient(points, axis=1)
    error = np.sqrt(LEVELS * (1 - LEVELS) / counts[:, None]) / density
    usable = counts[:, None] * LEVELS >= ABOVE
    fitted = smooth(points, usable / error)
    deviation = np.where(usable, (points - fitted) / error, 0.0)
    worst = np.unravel_index(np.abs(deviation).argmax(), deviation.shape)
    print(
        f"root mean square deviation {np.sqrt(np.mean(deviation[usable] ** 2)):.2f} standard "
        f"errors, largest {deviation[worst]:.1f} at n = {SIZES[worst[0]]}, p = {LEVELS[worst[1]]}"
    )
    share = np.array([[each["positive"]] for each in parts])
    weight = np.sqrt(counts[:, None] / (share * (1 - share)))
    positive = smooth(share, weight)[:, 0]
    print("positive, less its fit, in standard errors:", ((share[:, 0] - positive) * weight[:, 0]))
    if not (np.diff(fitted) > 0).all():
        raise SystemExit("points do not rise; simulate more samples")
    np.savez_compressed(
        Path(_stable_ratio.__file__).parent / "tables" / "stable_ratio.npz",
        level=LEVELS,
        log_n=np.log(SIZES),
        positive=positive.round(5),
        log_statistic=fitted.round(4).astype(np.float32),
    )


if __name__ == "__main__":
    main()
