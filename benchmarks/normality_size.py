"""Size and power of the tests of normality at the nominal 5 % level.

``python -m benchmarks.normality_size [--samples 1e9]`` (some minutes): 1e5 null series at each
sample size, or as many as that number of samples makes. Binomial standard errors stand beside.
"""

import argparse
import math

import numpy as np

from tracelab.stats import normality, stable

SIZES = (20, 100, 1000, 5000, 100_000, 1_000_000)
SERIES = 100_000
POWER_SIZES = (100, 1000)
POWER_SERIES = 4000
LEVEL = 0.05
SEED = 20240615


def laplace(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.laplace(size=shape)


def t5(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(5, shape)


def t3(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(3, shape)


def stable19(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return stable.rvs(1.9, size=shape, rng=rng)


def mixture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    scale = np.where(rng.uniform(size=shape) < 0.1, 3.0, 1.0)
    return scale * rng.standard_normal(shape)


ALTERNATIVES = {
    "Laplace": laplace,
    "Student t, 5": t5,
    "Student t, 3": t3,
    "symmetric stable, alpha 1.9": stable19,
    "0.9 N(0, 1) + 0.1 N(0, 9)": mixture,
}


def gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape)


def shares(draw, n: int, series: int, rng: np.random.Generator, pvalue: str) -> dict[str, float]:
    """Return by test the share of series that it rejects."""
    rejected = dict.fromkeys(normality.TESTS, 0)
    height = max(1, 1_000_000 // n)
    for start in range(0, series, height):
        x = draw(rng, (min(height, series - start), n))
        for name, found in normality.battery(x, normality.TESTS, pvalue=pvalue).items():
            rejected[name] += int(np.count_nonzero(found.pvalue < LEVEL))
    return {name: count / series for name, count in rejected.items()}


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n")
    print(f"| | {' | '.join(columns)} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=float, default=1e9)
    samples = parser.parse_args().samples
    columns = list(normality.TESTS)
    rows = []
    for i, n in enumerate(SIZES):
        series = min(SERIES, math.ceil(samples / n))
        error = math.sqrt(LEVEL * (1 - LEVEL) / series)
        for pvalue in ("simulated", "published"):
            if pvalue == "published" and n > 5000:
                continue
            found = shares(gaussian, n, series, np.random.default_rng((SEED, i)), pvalue)
            cells = [f"{found[name]:.4f}" for name in columns]
            rows.append([f"n = {n:,}, {series:,} series, +- {error:.4f}, {pvalue}", *cells])
    show("Size: share of Gaussian series rejected at 5 %.", columns, rows)
    rows = []
    for j, (label, draw) in enumerate(ALTERNATIVES.items()):
        for n in POWER_SIZES:
            rng = np.random.default_rng((SEED, 100 + j, n))
            found = shares(draw, n, POWER_SERIES, rng, "simulated")
            rows.append([f"{label}, n = {n:,}", *(f"{found[name]:.3f}" for name in columns)])
    error = 0.5 / math.sqrt(POWER_SERIES)
    show(f"Power at 5 %, {POWER_SERIES:,} series, +- {error:.3f} at most.", columns, rows)


if __name__ == "__main__":
    main()
