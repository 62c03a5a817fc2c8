"""What Mohammadi's estimator and maximum likelihood read as alpha where no law is stable.

``python -m benchmarks mohammadi_bias``: means over samples of 10,000 values, standard errors of
these means beside.
"""

import numpy as np

from tracelab.stats import stable
from tracelab.stats.mohammadi import mohammadi

SAMPLES, N = 200, 10_000
BLOCKS = (2, 10, 100)
SEED = 20241129


def autoregressive(rng: np.random.Generator, rho: float) -> np.ndarray:
    """Return stationary series of first order with unit innovations."""
    x = rng.standard_normal((N, SAMPLES))
    x[0] /= np.sqrt(1 - rho**2)
    for i in range(1, N):
        x[i] += rho * x[i - 1]
    return x.T


def kinds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return samples of every kind, (sample, value)."""
    shape = (SAMPLES, N)

    def normal() -> np.ndarray:
        return rng.standard_normal(shape)

    found = {f"symmetric stable {a}": stable.rvs(a, size=shape, rng=rng) for a in (1.2, 1.5, 1.8)}
    return found | {
        "Gaussian": normal(),
        "Laplace": rng.laplace(size=shape),
        "Student t, 5 degrees of freedom": rng.standard_t(5, shape),
        "Student t, 3 degrees of freedom": rng.standard_t(3, shape),
        "Gaussian times log-normal, s = 1": normal() * np.exp(normal()),
        "Gaussian times log-normal, s = 2": normal() * np.exp(2 * normal()),
        "0.9 N(0, 0.01^2) + 0.1 N(0, 1)": normal()
        * np.where(rng.uniform(size=shape) < 0.9, 0.01, 1),
        "autoregressive, rho = 0.9": autoregressive(rng, 0.9),
        "autoregressive, rho = -0.5": autoregressive(rng, -0.5),
        "Gaussian of mean 0.1": normal() + 0.1,
    }


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(SEED)
    heads = [f"m = {m}" for m in BLOCKS] + ["m = 100, shuffled", "maximum likelihood"]
    print(f"{SAMPLES} samples of {N:,} values: 1 / mean(1 / alpha), its standard error.\n")
    print(f"| values | {' | '.join(heads)} |")
    print("| --- " * (len(heads) + 1) + "|")
    for kind, x in kinds(rng).items():
        columns = [*mohammadi(x, m=BLOCKS).profile.T]
        columns.append(mohammadi(rng.permuted(x, axis=1), m=100).alpha)
        columns.append(stable.fit(x[:50]).alpha)
        cells = []
        for values in columns:
            # The estimator is the inverse of a mean: it is 1 / alpha that has one of its own.
            inverse, error = np.mean(1 / values), np.std(1 / values, ddof=1) / np.sqrt(values.size)
            # Where block sums are hardly larger than values 1 / alpha is about 0.
            known = abs(inverse) > 10 * error
            cells.append(f"{1 / inverse:.2f} ± {error / inverse**2:.3f}" if known else "none")
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
