"""How often the filter of `byzantine` throws out an honest worker, by their number and directions.

``python -m benchmarks byzantine`` (five minutes): 200 jobs of 500 steps of independent Gaussian
noise each, in windows of 20 and 100 steps; and what one layer of 10,000 steps takes.
"""

import time

import numpy as np

from tracelab_analyses.byzantine import Windows, _filtered, byzantine

FACTORS = (1.8, 2.0, 2.5, 3.0)
JOBS, STEPS = 200, 500
# No worker ever leaves: the largest distance then tells for every factor whether one had.
NEVER = 1e9


def largest(workers: int, directions: int) -> np.ndarray:
    """Return of each job the largest distance from the median worker, in its reach."""
    rng = np.random.default_rng([workers, directions])
    windows = Windows((20, 100), (None, None), NEVER, 10, False)
    found = []
    for _ in range(JOBS):
        gradient = rng.standard_normal((STEPS, workers, directions))
        distance, _, _ = _filtered(gradient, np.full(workers, STEPS), windows)
        found.append(NEVER * np.nanmax(distance))
    return np.array(found)


def main() -> None:
    print(f"Share of {JOBS} jobs of {STEPS} steps in which an honest worker is thrown out:\n")
    print(
        "| workers | directions | " + " | ".join(f"factor {f:g}" for f in FACTORS) + " | largest |"
    )
    print("| --- " * (len(FACTORS) + 3) + "|")
    for workers in (4, 8, 16):
        for directions in (4, 16, 32, 64, 128):
            top = largest(workers, directions)
            shares = " | ".join(f"{np.mean(top > factor):.3f}" for factor in FACTORS)
            print(f"| {workers} | {directions} | {shares} | {top.max():.2f} |")
    gradient = np.random.default_rng(0).standard_normal((1, 10_000, 8, 256), dtype=np.float32)
    begin = time.process_time()
    byzantine(gradient, np.arange(10_000))
    print(
        f"\nOne layer of 10,000 steps, 8 workers and 256 directions takes "
        f"{time.process_time() - begin:.1f} s of one core."
    )
