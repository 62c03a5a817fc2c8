"""First exits of Levy-driven equations: from jump to jump beside a compiled Euler grid.

Run as ``python -m benchmarks levy``. Both are measured against exact means. The grid has the step
with which it would be as wrong as events may be: events' bias and two standard errors of it. A
grid sees no crossing between its points, so that its bias goes as ``step^(1/alpha)``; its size is
measured with a coarser step, and its time with the step that follows. One thread.
"""

import math
import time
from typing import Any

import numba
import numpy as np

from tracelab.stats import levy

REPLICAS = 500_000
# Of the grid, in one run.
STEPS = 4e7
# Means from 0 out of (-1, 1), by alpha, scale and curvature: without a well Getoor's, in one of
# curvature 1 the solution of the equation by Galerkin's method, `in_a_well` of
# tests/tracelab/stats/test_levy_events.py with 200 to 800 functions (at alpha 1.2 and scale .1 to
# .1 %, else to 1e-5).
EXACT = {
    (1.2, 0.3): 6.4323,
    (1.2, 0.1): 27.18,
    (1.5, 0.3): 11.2058,
    (1.5, 0.1): 75.126,
    (1.8, 0.3): 25.9608,
    (1.8, 0.1): 326.233,
}


@numba.njit(error_model="numpy", fastmath=True)
def _euler(
    alpha: float, scale: float, curvature: float, step: float, out: np.ndarray, rng: Any
) -> None:
    """Fill `out` with exit times from (-1, 1), with draws by Chambers, Mallows and Stuck."""
    kick = scale * step ** (1 / alpha)
    for r in range(out.size):
        x, k = 0.0, 0
        while abs(x) < 1.0:
            if alpha == 2.0:
                z = math.sqrt(2.0) * rng.standard_normal()
            else:
                u = math.pi * (rng.random() - 0.5)
                w = rng.standard_exponential()
                z = math.sin(alpha * u) / math.cos(u) ** (1 / alpha)
                z *= (math.cos(u - alpha * u) / w) ** ((1 - alpha) / alpha)
            x += kick * z - step * curvature * x
            k += 1
        out[r] = k * step


def grid(
    alpha: float, scale: float, curvature: float, step: float, true: float
) -> tuple[float, float, float]:
    """Return seconds an exit, relative bias and its standard error."""
    out = np.empty(int(min(200_000, max(100, STEPS * step / true))))
    started = time.perf_counter()
    _euler(alpha, scale, curvature, step, out, np.random.default_rng(1))
    spent = (time.perf_counter() - started) / out.size
    return spent, out.mean() / true - 1, float(out.std()) / math.sqrt(out.size) / true


def main() -> None:
    """Print the table."""
    _euler(1.5, 1.0, 0.0, 0.1, np.empty(2), np.random.default_rng(0))
    levy.exit_times(1.5, replicas=10, refine=False)
    levy.exit_times(1.5, replicas=10, potential=levy.Quadratic(1.0), refine=False)
    print(
        "| alpha | equation | events: us, bias in % | grid for its size | of equal bias | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for alpha in (1.2, 1.5, 1.8):
        for scale, curvature in ((1.0, 0.0), (0.3, 1.0), (0.1, 1.0)):
            true = EXACT[alpha, scale] if curvature else float(levy.mean_exit_time(alpha))
            potential = levy.Quadratic(curvature) if curvature else None
            started = time.perf_counter()
            found = levy.exit_times(alpha, 1.0, REPLICAS, 0, potential, scale=scale, refine=False)
            ours = (time.perf_counter() - started) / REPLICAS
            bias, error = found.mean / true - 1, found.mean_se / true
            tolerance = abs(bias) + 2 * error
            # In a deep well steps near the relaxation time are right by chance: start below.
            step, much = 0.4 if curvature else 0.1 * true, math.inf
            while much > 0.04:
                step /= 2
                _, much, much_error = grid(alpha, scale, curvature, step, true)
            equal = step * (tolerance / much) ** alpha
            theirs, fine, fine_error = grid(alpha, scale, curvature, equal, true)
            equation = "free" if not curvature else f"well, scale {scale}"
            print(
                f"| {alpha} | {equation} | {ours * 1e6:.2f}, {100 * bias:+.2f} ± {100 * error:.2f} "
                f"| {step:.2g}: {100 * much:+.1f} ± {100 * much_error:.1f} "
                f"| {equal:.2g}: {theirs * 1e6:.0f} us, {100 * fine:+.1f} ± {100 * fine_error:.1f} "
                f"| {theirs / ours:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
