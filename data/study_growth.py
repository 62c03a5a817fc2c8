"""Prints how often laws of growth are told, and their intervals hold the truth.

    python data/study_growth.py [curves [curves behind a transient]]

Curves of 5,000 steps with AR(1) deviations of standard deviation .2: the figures of
`docs/statistics.md`. First with the start known, then chosen by the curve, of laws that hold from
the first step on or from step 150 on, behind another power.
"""

import math
import sys

import numpy as np
from scipy.signal import lfilter

from tracelab.stats.growth import LAWS, criteria, fit, predict
from tracelab.stats.growth_start import evenly, start_of_regime

STEPS = np.arange(1, 5_001)
TRUTH = {"log": (0.3, 1.7), "power": (0.5, 0.4), "saturation": (10.0, 9.0, 800.0)}


def curve(law, begins, rho, seed):
    """Return one curve; before `begins` it is a power of t with another exponent."""
    d = predict(law, np.array(TRUTH[law]), STEPS)
    early = begins > STEPS
    d[early] = d[begins - 1] * (STEPS[early] / begins) ** 1.5
    shocks = np.random.default_rng(seed).standard_normal(STEPS.size) * 0.2
    shocks[1:] *= math.sqrt(1 - rho**2)
    return d + lfilter([1.0], [1.0, -rho], shocks)


def row(law, begins, rho, count, chosen):
    """Print one row of the table."""
    truth = np.array(TRUTH[law])
    inside, right, starts = np.zeros(truth.size), np.zeros(3, int), []
    for seed in range(count):
        d = curve(law, begins, rho, seed)
        first = start_of_regime(STEPS, d) if chosen else begins
        taken = evenly(STEPS, first, math.inf, 100)
        fits = {each: fit(STEPS[taken], d[taken], each) for each in LAWS}
        own = fits[law]
        inside += (own.parameters_low <= truth) & (truth <= own.parameters_high)
        found = criteria(list(fits.values()))
        order = np.argsort(found)
        clear = found[order[1]] - found[order[0]] >= 6
        right[0 if not clear else 1 if LAWS[order[0]] == law else 2] += 1
        starts.append(first)
    held = ", ".join(f"{share:.2f}" for share in inside / count)
    undecided, told, wrong = right / count
    early, late = np.mean(np.array(starts) < begins), np.mean(np.array(starts) > begins)
    print(
        f"| {law} | {begins} | {rho} | {held} | {told:.2f} | {undecided:.2f} | {wrong:.2f} | "
        f"{early:.2f} | {late:.2f} |",
        flush=True,
    )


def main(count=150, chosen=40):
    """Print both tables."""
    head = "| law | begins | memory | held | right | undecided | wrong | start early | late |"
    print(f"{head} {count} and {chosen} curves\n|---|---|---|---|---|---|---|---|---|")
    for rho in (0.0, 0.9, 0.99, 0.998):
        for law in LAWS:
            row(law, 1, rho, count, chosen=False)
    for begins in (1, 150):
        for rho in (0.0, 0.9, 0.99):
            for law in LAWS:
                row(law, begins, rho, chosen, chosen=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
