"""Stable fits of large samples and of histograms, fits with skewness, and draws.

Ratios are of times taken in turn in one process, medians over rounds, one thread.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.stats

from tracelab.histogram import Histogram
from tracelab.stats import stable

ROUNDS = 7
LARGE = 1_000_000
HISTOGRAM = Histogram(mantissa_bits=7)
NAMES = ("alpha", "scale", "loc")


def paired(tasks: list[Callable[[], object]]) -> list[list[float]]:
    """Return the seconds of each task in each round; tasks take turns."""
    for task in tasks:
        task()
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(ROUNDS):
        for each, task in zip(times, tasks, strict=True):
            start = time.perf_counter()
            task()
            each.append(time.perf_counter() - start)
    return times


def ratio(times: list[float], base: list[float]) -> float:
    return median(a / b for a, b in zip(times, base, strict=True))


def large_samples() -> None:
    print(
        f"| alpha | fit of {LARGE:,} values: ms | / np.sort | with skewness: / np.sort "
        "| fit of their counts: ms |"
    )
    print("|---|---|---|---|---|")
    for alpha in (1.1, 1.5, 1.9, 2.0):
        x = stable.rvs(alpha, size=LARGE, rng=np.random.default_rng(0))
        counts = HISTOGRAM.count(x)
        sort, fit, skewed, binned = paired(
            [
                lambda x=x: np.sort(x),
                lambda x=x: stable.fit(x),
                lambda x=x: stable.fit_skewed(x),
                lambda counts=counts: stable.fit_histogram(counts, HISTOGRAM),
            ]
        )
        print(
            f"| {alpha} | {1e3 * median(fit):.1f} | {ratio(fit, sort):.2f} "
            f"| {ratio(skewed, sort):.2f} | {1e3 * median(binned):.2f} |"
        )


def losses() -> None:
    print(
        "\n| n | samples | location in scales | mean shift of alpha, scale, location "
        "in standard errors | loss of standard deviation |"
    )
    print("|---|---|---|---|---|")
    for n, samples in ((1000, 2000), (10_000, 400), (100_000, 60), (1_000_000, 12)):
        for loc in (0, 5):
            shifts = []
            for alpha in (1.1, 1.5, 1.9):
                rng = np.random.default_rng((n, loc))
                x = stable.rvs(alpha, loc=loc, size=(samples, n), rng=rng)
                counts = np.stack([HISTOGRAM.count(row) for row in x])
                whole, binned = stable.fit(x), stable.fit_histogram(counts, HISTOGRAM)
                shifts.append(
                    [
                        (getattr(binned, name) - getattr(whole, name))
                        / getattr(whole, f"{name}_se")
                        for name in NAMES
                    ]
                )
            each = np.array(shifts)
            means = np.abs(each.mean(axis=-1)).max(axis=0)
            loss = np.sqrt(1 + each.var(axis=-1)).max()
            print(
                f"| {n:,} | 3 x {samples} | {loc} | {', '.join(f'{m:.4f}' for m in means)} "
                f"| {loss:.5f} |"
            )


def skewness() -> None:
    print("\n| alpha | beta | fit with skewness / symmetric: n = 1,000 | n = 10,000 |")
    print("|---|---|---|---|")
    for alpha, beta in ((1.1, 0.5), (1.5, 0.0), (1.5, 0.5), (1.9, 0.0), (1.9, 0.5), (2.0, 0.0)):
        ratios = []
        for n, rows in ((1000, 100), (10_000, 10)):
            rng = np.random.default_rng(1)
            x = stable.rvs(alpha, beta, size=(rows, n), rng=rng, parametrization="S0")
            symmetric, skewed = paired(
                [lambda x=x: stable.fit(x), lambda x=x: stable.fit_skewed(x)]
            )
            ratios.append(f"{ratio(skewed, symmetric):.1f}")
        print(f"| {alpha} | {beta} | {' | '.join(ratios)} |")


def draws() -> None:
    print("\n| alpha | beta | ns a draw, of 1,000,000 | SciPy / ours |")
    print("|---|---|---|---|")
    for alpha, beta in ((1.1, 0.0), (1.5, 0.0), (1.5, 0.5), (1.9, 0.0), (1.2, 1.0)):
        ours, scipys = paired(
            [
                lambda law=(alpha, beta): stable.rvs(
                    *law, size=LARGE, rng=np.random.default_rng(2)
                ),
                lambda law=(alpha, beta): scipy.stats.levy_stable.rvs(
                    *law, size=LARGE, random_state=np.random.default_rng(2)
                ),
            ]
        )
        nanoseconds = 1e9 * median(ours) / LARGE
        print(f"| {alpha} | {beta} | {nanoseconds:.1f} | {ratio(scipys, ours):.0f} |")


def main() -> None:
    large_samples()
    losses()
    skewness()
    draws()


if __name__ == "__main__":
    main()
