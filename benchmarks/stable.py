"""Symmetric stable fits: time, efficiency, and SciPy's fit of a small sample.

Times are medians over rounds, one thread, of a fit with its intervals. RMSE / CRB is the root mean
square error of alpha over the Cramer-Rao bound of the three-parameter law.
"""

import math
import multiprocessing
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.stats

from benchmarks import stable_accuracy, stable_bins
from tracelab.stats import stable
from tracelab.stats._stable_climb import fisher
from tracelab.stats._stable_density import table

SIZES = ((1000, 200), (10_000, 20), (100_000, 3))
ALPHAS = (1.1, 1.5, 1.9, 2.0)
ROUNDS = 5
REPLICAS = 2000
CELL = (500, 256)
PEER_SIZE = 50
PEER_SECONDS = 60.0


def seconds(task: Callable[[], object]) -> float:
    task()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return median(times)


def cramer_rao(alpha: float, n: int) -> float:
    vv, vu, uu, _ = fisher(table().information, math.log(2 - alpha))
    return (2 - alpha) * math.sqrt(uu / (vv * uu - vu * vu) / n)


def fit_times() -> None:
    print("| alpha | " + " | ".join(f"n = {n:,}: ms a fit" for n, _ in SIZES) + " | / np.sort |")
    print("|---" * (len(SIZES) + 2) + "|")
    for alpha in ALPHAS:
        cells, ratio = [], 0.0
        for n, rows in SIZES:
            x = stable.rvs(alpha, size=(rows, n), rng=np.random.default_rng(0))
            fit = seconds(lambda x=x: stable.fit(x)) / rows
            ratio = fit / (seconds(lambda x=x: np.sort(x, axis=-1)) / rows)
            cells.append(f"{1e3 * fit:.3f}")
        print(f"| {alpha} | " + " | ".join(cells) + f" | {ratio:.1f} |")


def common_times() -> None:
    print(f"\n| alpha | {CELL[0]} x {CELL[1]}, own scales: ms a cell | shared scale: ms a cell |")
    print("|---|---|---|")
    for alpha in ALPHAS:
        x = stable.rvs(alpha, size=CELL, rng=np.random.default_rng(1))
        each = seconds(lambda x=x: stable.fit_common(x, "each"))
        shared = seconds(lambda x=x: stable.fit_common(x, "shared"))
        print(f"| {alpha} | {1e3 * each:.1f} | {1e3 * shared:.1f} |")


def efficiency() -> None:
    print(f"\n| alpha | RMSE / CRB, n = 1,000 ({REPLICAS} samples) | 95 % interval covers |")
    print("|---|---|---|")
    for alpha in (1.1, 1.5, 1.9):
        x = stable.rvs(alpha, size=(REPLICAS, 1000), rng=np.random.default_rng(2))
        found = stable.fit(x)
        error = math.sqrt(np.mean((found.alpha - alpha) ** 2)) / cramer_rao(alpha, 1000)
        covered = np.mean((found.alpha_low <= alpha) & (alpha <= found.alpha_high))
        print(f"| {alpha} | {error:.2f} | {covered:.3f} |")
    found = stable.fit(stable.rvs(2.0, size=(REPLICAS, 1000), rng=np.random.default_rng(3)))
    print(
        f"\nAt alpha = 2 the fit returns exactly 2 in {np.mean(found.alpha == 2):.2f} of samples."
    )


def peer_fit(x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        scipy.stats.levy_stable.fit(x)


def peer() -> None:
    x = stable.rvs(1.5, size=PEER_SIZE, rng=np.random.default_rng(4))
    ours = seconds(lambda: stable.fit(x))
    process = multiprocessing.get_context("spawn").Process(target=peer_fit, args=(x,))
    start = time.perf_counter()
    process.start()
    process.join(PEER_SECONDS)
    bound = "at least " if process.is_alive() else ""
    process.kill()
    process.join()
    theirs = time.perf_counter() - start
    print(
        f"\nn = {PEER_SIZE}: SciPy's levy_stable.fit (four parameters) takes {bound}"
        f"{theirs:.0f} s, {bound}{theirs / ours:,.0f} times ours ({1e3 * ours:.2f} ms)."
    )


def main() -> None:
    fit_times()
    common_times()
    efficiency()
    peer()
    print()
    stable_accuracy.main()
    print()
    stable_bins.main()


if __name__ == "__main__":
    main()
