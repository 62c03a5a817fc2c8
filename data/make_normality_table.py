"""Make ``tracelab/stats/tables/normality.npz``: null distributions of tests of normality.

Run ``python data/make_normality_table.py`` (half an hour on one core). Of every sample size it
draws standard normal series, keeps upper-tail points of every statistic in ``build/``, where a
second run finds them, and prints the size of the tests whose p-values are published. From the
points of all sizes it makes the table:

- The logarithm of each point is a polynomial in 1 / sqrt(n) from 20 samples on, fitted to all
  sizes; its limit is known but for Lilliefors'. Below 20 samples, where every size was simulated,
  points are taken as they are.
- log(1 - W) of Shapiro and Wilk from 1,000 samples on is mean + sd * point, each smooth in log n.

The Monte-Carlo error of a probability p of R series is sqrt(p (1 - p) / R); the fit pools sizes,
which makes it smaller still. It prints the largest differences between points and fit, in such
standard errors of the one size.
"""

from pathlib import Path

import numpy as np

from tracelab.stats import _battery, _normality_null, _shapiro
from tracelab.stats._epps_pulley import gauss_hermite
from tracelab.stats._ordered import standardize

LEVELS = np.concatenate(
    [
        [0.999, 0.995, 0.99, 0.98, 0.96, 0.94, 0.92, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55],
        [0.5, 0.45, 0.4, 0.35, 0.3, 0.26, 0.22, 0.19, 0.16, 0.14, 0.12, 0.1, 0.085, 0.07, 0.06],
        [0.05, 0.042, 0.035, 0.03, 0.025, 0.02, 0.016, 0.013, 0.01, 0.008, 0.0065, 0.005, 0.004],
        [0.003, 0.0025, 0.002, 0.0015, 0.0012, 0.001, 8e-4, 6e-4, 5e-4, 4e-4, 3e-4, 2.5e-4, 2e-4],
        [1.5e-4, 1e-4],
    ]
)
SERIES = dict.fromkeys(range(5, 21), 2_000_000)
SERIES |= {
    n: min(2_000_000, 400_000_000 // n)
    for n in (22, 24, 27, 30, 35, 40, 50, 60, 75, 90, 110, 135, 165, 200, 250, 320, 400, 500)
}
SERIES |= {n: 400_000_000 // n for n in (650, 800, 1000, 1400, 2000, 3000, 5000, 10_000)}
SERIES |= {20_000: 50_000, 50_000: 20_000, 100_000: 15_000}
SERIES |= {200_000: 8_000, 500_000: 5_000, 1_000_000: 4_000}
# Above, only what is still on its way to its limit is simulated.
NEAR_LIMIT = 10_000
# Below, where every size is simulated, points are taken as they are.
FITTED_FROM = 20
DEGREE = {"dagostino": 6, "jarque_bera": 7, "epps_pulley": 4, "lilliefors": 3}
# What is not near its limit at 10,000 samples.
SLOW = ("dagostino", "jarque_bera")
TESTS = ("anderson", "cramer_von_mises", "dagostino", "epps_pulley", "jarque_bera", "lilliefors")
PUBLISHED = ("anderson", "cramer_von_mises", "dagostino", "jarque_bera", "lilliefors")
SHAPIRO_FROM = 1000
SEED = 20240614
PARTS = Path(__file__).parents[1] / "build" / "normality_null"


def simulate(n):
    """Return by test the points at LEVELS; ``log_complement``; ``size_`` of published tests."""
    rng = np.random.default_rng((SEED, n))
    names = [
        name for name in (TESTS if n <= NEAR_LIMIT else SLOW) if n >= _battery._TESTS[name].minimum
    ]
    found = {name: [] for name in (*names, "shapiro")}
    rejected = {name: 0 for name in names if name in PUBLISHED}
    height = max(1, (1 << 18) // n)
    done = 0
    while done < SERIES[n]:
        x = rng.standard_normal((min(height, SERIES[n] - done), n))
        statistic, pvalue, status = _battery.statistics(x, names)
        for name in names:
            found[name].append(statistic[name])
            if name in rejected:
                rejected[name] += np.count_nonzero(pvalue[name] < 0.05)
        complement = np.empty(len(x))
        standardize(x, x, status)
        _shapiro.complement_rows(x, status, _shapiro.shapiro_weights(n), complement)
        found["shapiro"].append(complement)
        done += len(x)
    made = {
        name: np.log(np.quantile(np.concatenate(found[name]), 1 - LEVELS))
        for name in (*names, "shapiro")
    }
    if "lilliefors" in made:
        made["lilliefors"] += 0.5 * np.log(n)
    y = np.log(np.concatenate(found["shapiro"]))
    made["moments"] = np.array([y.mean(), y.std()])
    return made | {f"size_{name}": count / done for name, count in rejected.items()}


def part(n):
    """Return what `simulate` gave, now or in an earlier run."""
    path = PARTS / f"{n}-{SERIES[n]}.npz"
    if not path.exists():
        PARTS.mkdir(parents=True, exist_ok=True)
        made = simulate(n)
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, **made)
        unfinished.rename(path)
    with np.load(path) as stored:
        return dict(stored)


def chi_square_limit():
    """Return the logarithms of the points of the chi-square law with two degrees of freedom."""
    return np.log(-2 * np.log(LEVELS))


def epps_pulley_limit():
    """Return the logarithms of the points of Epps and Pulley's limit: 4e6 draws.

    It is a sum of chi-square variables weighted with the eigenvalues of the covariance of the
    limiting process (Baringhaus & Henze 1988, theorem 2.1), here at the 24 nodes.
    """
    half, half_weight = gauss_hermite()
    t = np.concatenate([-half, half])
    root = np.sqrt(np.tile(half_weight, 2) / 2)
    product = np.multiply.outer(t, t)
    normal = np.exp(-0.5 * np.add.outer(t**2, t**2))
    kernel = np.exp(-0.5 * np.subtract.outer(t, t) ** 2) - (1 + product + product**2 / 2) * normal
    eigenvalues = np.linalg.eigvalsh(root[:, None] * kernel * root)
    eigenvalues = eigenvalues[eigenvalues > 1e-9]
    rng = np.random.default_rng(SEED)
    drawn = [rng.chisquare(1, (250_000, eigenvalues.size)) @ eigenvalues for _ in range(16)]
    return np.log(np.quantile(np.concatenate(drawn), 1 - LEVELS))


LIMITS = {
    "dagostino": chi_square_limit,
    "jarque_bera": chi_square_limit,
    "epps_pulley": epps_pulley_limit,
}


def density(points):
    """Return the density of a logarithm at its `points`, by the levels on both sides."""
    return np.abs(np.gradient(LEVELS, axis=0)) / np.gradient(points, axis=-1)


def smooth(name, parts):
    """Return points by size, falling, with the limit first; prints how well they fit."""
    sizes = np.array([n for n in sorted(parts, reverse=True) if name in parts[n]])
    large = sizes[sizes >= FITTED_FROM]
    small = sizes[sizes < FITTED_FROM]
    target = np.array([parts[n][name] for n in large])
    weight = np.sqrt([SERIES[n] for n in large])[:, None]
    known = LIMITS[name]() if name in LIMITS else 0.0

    def design(n):
        powers = np.vander((FITTED_FROM / n) ** 0.5, DEGREE[name] + 1)
        # Without the constant the polynomial starts at zero, from the limit.
        return powers[:, :-1] if name in LIMITS else powers

    coefficients = np.linalg.lstsq(design(large) * weight, (target - known) * weight)[0]
    fitted = known + design(large) @ coefficients
    deviation = (target - fitted) * density(fitted) / np.sqrt(LEVELS * (1 - LEVELS)) * weight
    worst = np.unravel_index(np.abs(deviation).argmax(), deviation.shape)
    print(
        f"{name}: root mean square deviation {np.sqrt(np.mean(deviation**2)):.2f} standard errors,"
        f" largest {deviation[worst]:.1f} at n = {large[worst[0]]}, p = {LEVELS[worst[1]]}"
    )
    everywhere = np.array([n for n in sorted(SERIES, reverse=True) if n >= FITTED_FROM])
    rows = known + design(np.append(np.inf, everywhere)) @ coefficients
    return np.vstack([rows, *(parts[n][name] for n in small)])


def smooth_shapiro(parts):
    """Return log n, rising, and points of log(1 - W) there."""
    sizes = np.array([n for n in sorted(parts) if n >= SHAPIRO_FROM])
    x = np.log(sizes)
    weight = np.sqrt([SERIES[n] for n in sizes])
    mean, sd = np.array([parts[n]["moments"] for n in sizes]).T
    shape = (np.array([parts[n]["shapiro"] for n in sizes]) - mean[:, None]) / sd[:, None]

    def fit(values, degree):
        design = np.vander(x - x.mean(), degree + 1)
        values = values.reshape(x.size, -1)
        scaled = np.linalg.lstsq(design * weight[:, None], values * weight[:, None])[0]
        return design @ scaled

    fitted_mean, fitted_sd, fitted_shape = fit(mean, 5), fit(sd, 3), fit(shape, 2)
    for n, m, fm, s, fs, w in zip(
        sizes, mean, fitted_mean[:, 0], sd, fitted_sd[:, 0], weight, strict=True
    ):
        print(
            f"shapiro {n}: mean {m:.4f} (fit {(fm - m) / s * w:+.1f} standard errors), "
            f"sd {s:.4f} (fit {(fs - s) / s * w * np.sqrt(2):+.1f})"
        )
    return x, fitted_mean + fitted_sd * fitted_shape


def main():
    """Simulate what is missing and write the table."""
    parts = {}
    for n in sorted(SERIES):
        parts[n] = part(n)
        sizes = ", ".join(
            f"{key[5:]} {share:.4f}" for key, share in parts[n].items() if key.startswith("size_")
        )
        error = np.sqrt(0.05 * 0.95 / SERIES[n])
        print(f"n {n}: size of published 5 % tests {sizes}, +- {error:.4f}", flush=True)
    table = {name: smooth(name, parts) for name in DEGREE}
    log_n, shapiro = smooth_shapiro(parts)
    for name, points in (*table.items(), ("shapiro", shapiro)):
        if not (np.diff(points) > 0).all():
            raise SystemExit(f"points of {name} do not rise; simulate more series")
    sizes = np.array(sorted(SERIES, reverse=True))
    np.savez_compressed(
        Path(_normality_null.__file__).parent / "tables" / "normality.npz",
        level=LEVELS,
        inverse_root_n=np.append(0.0, sizes**-0.5),
        shapiro_log_n=log_n,
        # Four digits are beyond the noise of the simulation.
        shapiro=shapiro.round(4).astype(np.float32),
        **{name: points.round(4).astype(np.float32) for name, points in table.items()},
    )


if __name__ == "__main__":
    main()
