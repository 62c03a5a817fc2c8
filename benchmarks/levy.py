"""First exits of Levy-driven equations: from jump to jump beside a compiled Euler grid.

Run as ``python -m benchmarks levy``. The grid's step is chosen by its known bias: halved until its
mean is within the tolerance of the exact one, or of the events' own. One thread.
"""

import math
import time
from typing import Any

import numba
import numpy as np

from tracelab.stats import levy

# What the grid may be wrong by: events are, by less than this.
TOLERANCE = 0.02
REPLICAS = 20_000


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


def main() -> None:
    """Print the table."""
    _euler(1.5, 1.0, 0.0, 0.1, np.empty(2), np.random.default_rng(0))
    levy.exit_times(1.5, replicas=10, refine=False)
    levy.exit_times(1.5, replicas=10, potential=levy.Quadratic(1.0), refine=False)
    print("| alpha | equation | events | grid of equal bias (step) | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for alpha in (1.2, 1.5, 1.8):
        for scale, curvature in ((1.0, 0.0), (0.1, 1.0)):
            potential = levy.Quadratic(curvature) if curvature else None
            started = time.perf_counter()
            found = levy.exit_times(alpha, 1.0, REPLICAS, 0, potential, scale=scale, refine=False)
            ours = (time.perf_counter() - started) / REPLICAS
            true = float(levy.mean_exit_time(alpha)) if not curvature else found.mean
            step, mean, theirs = 0.2 * true if not curvature else 0.2, math.inf, 0.0
            while abs(mean / true - 1) > TOLERANCE:
                step /= 2
                # The mean of so many is known to a percent; slow grids would take hours more.
                out = np.empty(REPLICAS if step * 2e6 > true else REPLICAS // 10)
                started = time.perf_counter()
                _euler(alpha, scale, curvature, step, out, np.random.default_rng(1))
                theirs, mean = (time.perf_counter() - started) / out.size, out.mean()
            equation = "free" if not curvature else f"quadratic basin, scale {scale}"
            print(
                f"| {alpha} | {equation} | {ours * 1e6:.2f} us, mean {found.mean:.4g} "
                f"± {found.mean_se:.2g} | {theirs * 1e6:.1f} us, mean {mean:.4g} ({step:.2g}) "
                f"| {theirs / ours:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
