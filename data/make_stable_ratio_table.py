"""Make ``tracelab/stats/tables/stable_ratio.npz``: the null of stable against Gaussian.

Run ``python data/make_stable_ratio_table.py`` (half an hour on one core). Of every sample size it
draws standard normal samples, fits a symmetric stable law to each, and keeps, in ``build/`` where a
second run finds them, how often twice the gain in log-likelihood over the Gaussian law is positive,
and upper-tail points of those that are. At alpha = 2, the end of its range, the information about
alpha is infinite: the gain is exactly 0 in most samples, and the others have no chi-square law
(DuMouchel 1973).

Share and points of all sizes are smoothed together: in their logarithms they are polynomials in
log n, the points also in their level. Printed are the largest differences, in Monte-Carlo standard
errors of one size.
"""

from pathlib import Path

import numpy as np

from tracelab.stats import _stable_ratio, stable

# Among the positive.
LEVELS = np.concatenate(
    [
        [0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4],
        [0.35, 0.3, 0.26, 0.22, 0.19, 0.16, 0.14, 0.12, 0.1, 0.08, 0.065, 0.05, 0.04, 0.03],
        [0.024, 0.018, 0.014, 0.01, 0.007, 0.005, 0.0035, 0.0025, 0.0015, 0.001, 7e-4],
    ]
)
SIZES = (20, 30, 50, 80, 130, 200, 400, 1000, 2500, 6000, 15_000, 40_000, 100_000, 300_000)
SIZES += (1_000_000,)
VALUES, MOST = 2_000_000_000, 400_000
# A level with fewer samples above than this, or below, is left out of the smoothing.
FEW = 15
# In log n; in log n and in log(-log(level)).
SHARE_DEGREE, POINT_DEGREES = 6, (4, 8)
SEED = 20241129
PARTS = Path(__file__).parents[1] / "build" / "stable_ratio"


def samples(n):
    """Return how many samples of a size are drawn."""
    return min(MOST, VALUES // n)


def simulate(n):
    """Return the number of positive ratios, and their points at LEVELS."""
    rng = np.random.default_rng((SEED, n))
    found, left = [], samples(n)
    while left:
        x = rng.standard_normal((min(left, max(1, 200_000 // n)), n))
        fitted = stable.fit(x, confidence=None)
        ratio = 2 * (fitted.loglik - fitted.loglik_gaussian)
        found.append(ratio[ratio > 0])
        left -= len(x)
    ratio = np.concatenate(found)
    return {"positive": ratio.size, "points": np.quantile(ratio, 1 - LEVELS)}


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


def _unit(x):
    return 2 * (x - x.min()) / (x.max() - x.min()) - 1


def smooth_share(values, error):
    """Return a polynomial in log n through values, (size,), with these standard errors."""
    design = np.polynomial.legendre.legvander(_unit(np.log(SIZES)), SHARE_DEGREE)
    w = 1 / error
    return design @ np.linalg.lstsq(design * w[:, None], values * w)[0]


def smooth_points(values, error):
    """Return a polynomial in size and level through values, (size, level)."""
    n, level = np.meshgrid(_unit(np.log(SIZES)), _unit(np.log(-np.log(LEVELS))), indexing="ij")
    design = np.polynomial.legendre.legvander2d(n.ravel(), level.ravel(), POINT_DEGREES)
    w = 1 / error.ravel()
    coefficients = np.linalg.lstsq(design * w[:, None], values.ravel() * w)[0]
    return (design @ coefficients).reshape(values.shape)


def report(name, values, fitted, error):
    """Print how far values are from their fit."""
    deviation = (values - fitted) / error
    worst = np.unravel_index(np.abs(deviation).argmax(), deviation.shape)
    print(
        f"{name}: root mean square deviation {np.sqrt(np.mean(deviation**2)):.2f} standard errors, "
        f"largest {deviation[worst]:.1f} at n = {SIZES[worst[0]]}, level {worst[1:]}"
    )


def main():
    """Simulate what is missing and write the table."""
    parts = []
    for n in SIZES:
        parts.append(part(n))
        print(n, f"positive {parts[-1]['positive'] / samples(n):.4f}", flush=True)
    drawn = np.array([[samples(n)] for n in SIZES])
    counts = np.array([[int(each["positive"])] for each in parts])
    share = (counts / drawn)[:, 0]
    # Of log share its variance is (1 - share) / count.
    share_error = np.sqrt((1 - share) / counts[:, 0])
    log_share = smooth_share(np.log(share), share_error)
    report("positive", np.log(share), log_share, share_error)
    points = np.log([each["points"] for each in parts])
    # Of a point it is q (1 - q) / (count f^2), with f the density of the logarithm.
    density = np.abs(np.gradient(LEVELS)) / np.gradient(points, axis=1)
    error = np.sqrt(LEVELS * (1 - LEVELS) / counts) / density
    error[counts * np.minimum(LEVELS, 1 - LEVELS) < FEW] = 1e6
    fitted = smooth_points(points, error)
    report("points", points, fitted, error)
    if not (np.diff(fitted) > 0).all():
        where = np.argwhere(np.diff(fitted) <= 0)
        raise SystemExit(f"points do not rise at {where.tolist()}; simulate more samples")
    np.savez_compressed(
        Path(_stable_ratio.__file__).parent / "tables" / "stable_ratio.npz",
        level=LEVELS,
        log_n=np.log(SIZES),
        positive=np.exp(log_share).round(5),
        log_statistic=fitted.round(4).astype(np.float32),
    )


if __name__ == "__main__":
    main()
