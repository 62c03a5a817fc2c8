"""Stable laws: accuracy of densities, efficiency and coverage of every fit, times of both.

``python -m benchmarks.stable_accuracy [REPLICAS]``. RMSE / CRB is the root mean square error over
the Cramer-Rao bound of the four-parameter law; for the symmetric fit and the log-moments over that
of the three-parameter one. Times are of one thread.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import scipy.stats

from tracelab.stats import stable

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "stable_pdf_mpmath.json"
BANDS = ((0.8, 1.05), (1.05, 1.2), (1.2, 1.4), (1.4, 1.7), (1.7, 1.99), (1.99, 1.999))
LAWS = 10
N = 1000
ALPHAS = (1.1, 1.5, 1.9, 1.95, 1.99)
FITS = {
    "mle": stable.fit_skewed,
    "ecf": stable.fit_ecf,
    "quantile": stable.fit_quantile,
    "mle, symmetric": stable.fit,
    "log-moments": stable.fit_log_moments,
}
SYMMETRIC = ("mle, symmetric", "log-moments")


def seconds(task: Callable[[], object], rounds: int = 5) -> float:
    task()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return median(times)


def accuracy() -> None:
    rows = json.loads(REFERENCE.read_text())["rows"]
    x, alpha, beta = (np.array([row[key] for row in rows]) for key in ("x", "alpha", "beta"))
    expected = np.array([float(row["pdf"]) for row in rows])
    for name in ("exact", "table"):
        found = stable.pdf(x, alpha, beta, 0, 1, "S0", name)
        error = np.max(np.abs(found / expected - 1))
        print(f"Largest relative error over {len(rows)} 40-digit values, {name}: {error:.0e}.\n")
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-8, 8, 60), np.geomspace(8, 1e6, 20), -np.geomspace(8, 1e6, 20)]
    )
    print(
        "Against the integral, for abs(x) to 1e6 and any skewness; times are for draws of the law, "
        "of which some are integrated.\n"
    )
    print("| alpha | largest relative error of pdf | ns a point |")
    print("|---|---|---|")
    for low, high in BANDS:
        worst, spent = 0.0, []
        for k in range(LAWS):
            law = (rng.uniform(low, high), (-1, 1, 0.9)[k] if k < 3 else rng.uniform(-1, 1))
            exact = stable.logpdf(x, *law, 0, 1, "S0", "exact")
            # Below, the density underflows.
            seen = exact > -700
            table = stable.logpdf(x, *law, 0, 1, "S0")
            worst = max(worst, np.max(np.abs(np.expm1(table[seen] - exact[seen]))))
            many = stable.rvs(*law, size=20_000, rng=rng, parametrization="S0")
            task = partial(stable.pdf, many, *law, 0, 1, "S0")
            spent.append(seconds(task, 1))
        print(f"| {low} to {high} | {worst:.0e} | {1e9 * median(spent) / 20_000:.0f} |")
    many = stable.rvs(1.5, 0.5, size=2000, rng=rng)
    spent = seconds(lambda: stable.pdf(many, 1.5, 0.5, accuracy="exact"), 1) / many.size
    print(f"\nIntegrated (accuracy='exact'): {1e6 * spent:.0f} microseconds a point.")


def draws() -> None:
    n, rng = 200_000, np.random.default_rng(1)
    ours = seconds(lambda: stable.rvs(1.5, 0.5, size=n, rng=rng)) / n
    theirs = seconds(lambda: scipy.stats.levy_stable.rvs(1.5, 0.5, size=n, random_state=rng)) / n
    print(
        f"\nA draw: {1e9 * ours:.0f} ns; SciPy's levy_stable.rvs {1e9 * theirs:.0f} ns "
        f"({theirs / ours:.0f} times)."
    )


def bound(alpha: float, beta: float, symmetric: bool) -> np.ndarray:
    information = stable.information(alpha, beta)
    if symmetric:
        information = np.delete(np.delete(information, 1, 0), 1, 1)
    return np.sqrt(np.diag(np.linalg.inv(information)) / N)


def fits(replicas: int) -> None:
    print(f"\nn = {N:,}, {replicas} samples: RMSE / CRB, then coverage of the 95 % interval.\n")
    print("| fit | alpha | beta | of alpha | of beta | of scale | of location | ms a fit |")
    print("|---|---|---|---|---|---|---|---|")
    for beta in (0.0, 0.5):
        for alpha in ALPHAS:
            x = stable.rvs(
                alpha, beta, 0, 1, (replicas, N), np.random.default_rng(2), parametrization="S0"
            )
            for name, fit in FITS.items():
                symmetric = name in SYMMETRIC
                if symmetric and beta != 0:
                    continue
                options = {} if symmetric else {"parametrization": "S0"}
                fit(x[:2], **options)
                start = time.perf_counter()
                found = fit(x, **options)
                spent = 1e3 * (time.perf_counter() - start) / replicas
                limits = iter(bound(alpha, beta, symmetric))
                cells = []
                truths = {"alpha": alpha, "beta": beta, "scale": 1.0, "loc": 0.0}
                for parameter, truth in truths.items():
                    if symmetric and parameter == "beta":
                        cells.append("")
                        continue
                    error = math.sqrt(np.nanmean((getattr(found, parameter) - truth) ** 2))
                    low, high = (getattr(found, f"{parameter}_{end}") for end in ("low", "high"))
                    covered = np.mean((low <= truth) & (truth <= high))
                    cells.append(f"{error / next(limits):.2f}, {covered:.3f}")
                print(f"| {name} | {alpha} | {beta} | " + " | ".join(cells) + f" | {spent:.2f} |")


def main() -> None:
    replicas = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    accuracy()
    draws()
    fits(replicas)


if __name__ == "__main__":
    main()
