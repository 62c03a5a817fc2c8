"""Tests of normality against np.sort of the same float64 rows, and against SciPy and statsmodels.

Each figure is the median, over rounds that alternate the two, of time / time of np.sort.
"""

import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.stats
from statsmodels.stats.diagnostic import lilliefors, normal_ad

from tracelab.stats import normality

SHAPES = ((2000, 100), (1000, 1000), (400, 5000), (20, 100_000))
ROUNDS = 15
PEER_ROUNDS = 3


def ratio(task: Callable[[], object], base: Callable[[], object], rounds: int) -> float:
    task()
    base()
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        base()
        middle = time.perf_counter()
        task()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return median(ratios)


def scipy_anderson(x: np.ndarray) -> None:
    for row in x:
        scipy.stats.anderson(row, method="interpolate")


def scipy_shapiro(x: np.ndarray) -> None:
    for row in x:
        scipy.stats.shapiro(row)


def statsmodels_lilliefors(x: np.ndarray) -> None:
    for row in x:
        lilliefors(row)


def rows() -> list[dict[str, object]]:
    table = []
    for n_rows, n in SHAPES:
        x = np.random.default_rng(0).standard_normal((n_rows, n))
        single = x.astype(np.float32)
        ours: dict[str, Callable[[], object]] = {
            name: lambda x=x, name=name: normality.battery(x, (name,)) for name in normality.TESTS
        }
        ours["anderson, float32"] = lambda x=single: normality.anderson(x)
        ours["dagostino and jarque_bera"] = lambda x=x: normality.battery(
            x, ("dagostino", "jarque_bera")
        )
        ours["anderson and shapiro, one sort"] = lambda x=x: normality.battery(x)
        ours["all seven, one sort"] = lambda x=x: normality.battery(x, normality.TESTS)
        peers: dict[str, Callable[[], object]] = {
            "statsmodels normal_ad, axis=": lambda x=x: normal_ad(x, axis=1),
            "scipy anderson, loop": lambda x=x: scipy_anderson(x),
            "statsmodels lilliefors, loop": lambda x=x: statsmodels_lilliefors(x),
            "scipy normaltest, axis=": lambda x=x: scipy.stats.normaltest(x, axis=1),
            "scipy jarque_bera, axis=": lambda x=x: scipy.stats.jarque_bera(x, axis=1),
        }
        if n <= 5000:
            peers["scipy shapiro, axis="] = lambda x=x: scipy.stats.shapiro(x, axis=1)
            peers["scipy shapiro, loop"] = lambda x=x: scipy_shapiro(x)
        for tasks, rounds in ((ours, ROUNDS), (peers, PEER_ROUNDS)):
            for name, task in tasks.items():
                cost = ratio(task, lambda x=x: np.sort(x, axis=-1), rounds)
                table.append({"shape": f"{n_rows} x {n}", "test": name, "sorts": cost})
    return table


def main() -> None:
    with warnings.catch_warnings():
        # The logarithm of a distribution function that rounded to one.
        warnings.simplefilter("ignore", RuntimeWarning)
        table = rows()
    shapes = list(dict.fromkeys(row["shape"] for row in table))
    cost = {(row["test"], row["shape"]): f"{row['sorts']:.3g}" for row in table}
    print("Tests of normality: cost in multiples of np.sort of the same rows, one thread.\n")
    print(f"| test | {' | '.join(map(str, shapes))} |")
    print(f"| --- |{' --- |' * len(shapes)}")
    for name in dict.fromkeys(row["test"] for row in table):
        cells = [cost.get((name, shape), "") for shape in shapes]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
