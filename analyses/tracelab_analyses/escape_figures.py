"""What the table of escape times says, in a sentence and in a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Finding
from tracelab.outcomes import shown
from tracelab.typing import Status
from tracelab_analyses.escape_assumptions import ASSUMPTIONS, FAILS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["finding", "plot"]

_WORDS = {
    "observed": "replicas of the optimizer itself take",
    "simulated_recorded": "its recursion with the recorded noise takes",
    "simulated_gaussian": "with Gaussian noise of the same covariance",
    "simulated_stable": "with independent stable noise",
    "diffusion": "diffusion theory says",
    "kramers": "Kramers' formula",
    "levy": "the theory of single jumps says",
    "jump_measure": "the measure of jumps that lead out",
}


def _span(row: xr.Dataset) -> str:
    """Return a time with its interval."""
    time, low, high = (float(row[f"escape_time{end}"]) for end in ("", "_low", "_high"))
    if np.isfinite(time):
        return f"{time:,.4g} ({low:,.4g} to {high:,.4g})"
    if np.isfinite(low):
        return f"more than {low:,.4g}"
    return "longer than any number" if np.isinf(time) else ""


def finding(result: xr.Dataset) -> Finding:
    """Return the exit times at the last step, and which theories rest on what fails."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No step had enough finite, varying noise along directions that curve up.")
    last = good.isel(step=-1)
    parts = []
    for theory, words in _WORDS.items():
        text = _span(last.sel(theory=theory))
        if text:
            parts.append(f"{words} {text}")
    exits, replicas = int(last["n_exits"]), int(last["n_replicas"])
    seen = f" ({exits} of {replicas} observed replicas left)" if replicas else ""
    return Finding(
        f"From step {int(last['step'])} a rise of the loss by {float(last['barrier']):.3g} is "
        f"reached after a mean number of steps{seen}: {'; '.join(parts)}.",
        tuple(_warnings(last)),
    )


def _warnings(row: xr.Dataset) -> list[str]:
    """Return what does not hold, with the theories that rest on it."""
    found = []
    for name, words in ASSUMPTIONS.items():
        fails = row["assumption_holds"].sel(assumption=name).values == FAILS
        theories = row["theory"].values[fails]
        if theories.size:
            found.append(f"It does not hold that {words}: {', '.join(map(str, theories))}.")
    silent = row["theory"].values[row["theory_status"].values == int(Status.FAILED)]
    for theories, why in (
        (("levy", "jump_measure"), "noise whose tail index is 2 has no jumps"),
        (("diffusion",), "a direction of curvature above 2 is left without any noise"),
    ):
        without = [each for each in theories if each in silent]
        if without:
            found.append(f"No answer from {', '.join(without)}: {why}.")
    censored = int(row["n_replicas"]) - int(row["n_exits"])
    if censored:
        found.append(
            f"{censored} observed replicas had not left when they were stopped: the mean takes "
            "exits to come at a constant rate."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return times by theory with intervals, and tail indices by direction, of the last step."""
    from matplotlib.figure import Figure

    theories = list(_WORDS)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.set_label(
        "Mean exit times by theory, simulation and observation, at the last step; hollow where an "
        "assumption fails. Right: tail index of the noise along each eigenvector."
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.set_xscale("log")
    for index, (label, result) in enumerate(results.items()):
        good = shown(result)
        if not good.sizes["step"]:
            continue
        last = good.isel(step=-1)
        color, shift = f"C{index}", 0.25 * (index - 0.5 * (len(results) - 1))
        for place, theory in enumerate(theories):
            row = last.sel(theory=theory)
            time, low, high = (float(row[f"escape_time{end}"]) for end in ("", "_low", "_high"))
            y = len(theories) - 1 - place - shift
            if np.isfinite([time, low, high]).all():
                left.plot([low, high], [y, y], "-", color=color, lw=1.5)
                fails = bool((row["assumption_holds"] == FAILS).any())
                left.plot(time, y, "o", color=color, ms=5, mfc="white" if fails else color)
            elif np.isfinite(low):
                left.plot(low, y, ">", color=color, ms=6, mfc="white")
        left.plot([], [], "o-", color=color, ms=5, label=label)
        alpha = last["alpha"].values
        where = np.arange(1, alpha.size + 1) + shift
        known = np.isfinite(alpha)
        right.vlines(
            where[known], last["alpha_low"].values[known], last["alpha_high"].values[known],
            color=color, lw=1.5,
        )  # fmt: skip
        right.plot(where[known], alpha[known], "o", color=color, ms=4)
    left.set_yticks(range(len(theories)), [each.replace("_", " ") for each in reversed(theories)])
    left.set(xlabel="steps", title="Mean time to leave the basin")
    right.axhline(2, color="0.6", lw=0.8, ls=":")
    right.set(xlabel="eigenvector, by curvature", ylabel="alpha", title="Tail index of the noise")
    left.legend(fontsize=8, frameon=False)
    return figure
