"""What bounds by PAC-Bayes are made of and take for granted, in words and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Finding
from tracelab.outcomes import at_ends, shown, subject
from tracelab.typing import Assumption, FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ASSUMPTIONS", "BOUNDED", "COVERED", "DRAWS", "EMPIRICAL", "FORMS", "INDEPENDENT", "KL",
    "NOT_VACUOUS", "PRICE", "PRIOR", "SHAPES", "TERMS", "THEORIES", "finding", "plot",
]  # fmt: skip

FORMS = ("mcallester", "seeger", "catoni")
SHAPES = ("isotropic", "Hessian-shaped")
THEORIES = tuple(f"{form}, {shape}" for form in FORMS for shape in SHAPES)
PRIOR, INDEPENDENT, BOUNDED, COVERED = ASSUMPTIONS = (
    "prior independent of the data",
    "examples independent and of one law",
    "loss in [0, 1]",
    "noise on all trained weights",
)
NOT_VACUOUS, EMPIRICAL, KL, PRICE, DRAWS = range(5)
TERMS = (
    "none",
    "the training error under noise",
    "the divergence from the prior",
    "the price of confidence and of the prior's variance",
    "the limit that few draws of the noise allow",
)


def finding(result: xr.Dataset) -> Finding:
    """Return the smallest bound with its terms, at the first and last step."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding(
            "No step had errors under noise that are finite and vary, nor losses with a loss_bound."
        )
    sentence = (
        f"Of {subject(good)} with noise on its weights, {'; and '.join(at_ends(good, _say))}."
    )
    return Finding(sentence, tuple(_warnings(good)))


def _best(row: xr.Dataset) -> xr.Dataset:
    return row.isel(theory=int(np.nanargmin(row["bound"].values)))


def _say(row: xr.Dataset) -> str:
    best = _best(row)
    what = "loss over its bound" if bool(best["of_loss"]) else "error"
    risk = f", held-out {float(best['held_out']):.3g}" if np.isfinite(best["held_out"]) else ""
    bound, limit, kl, price = (
        float(best[name]) for name in ("bound", "empirical_high", "kl", "price")
    )
    failing = _failing(row)
    text = (
        f"the {what} {'would be' if failing else 'is'} at most {bound:.3g} "
        f"({best['theory'].values}) at step {int(row['step'])}: "
        f"{float(best['empirical']):.3g} in training{risk}, at most {limit:.3g} by "
        f"{int(best['n_draws'])} draws, {kl:.3g} nats from the prior and {price:.3g} of price over "
        f"{int(best['n_examples'])} examples"
    )
    if failing:
        return f"{text}; this is no bound, for it takes for granted: {', '.join(failing)}"
    if bool(best["vacuous"]):
        return f"{text}; this bound is vacuous by {TERMS[int(best['vacuous_term'])]}"
    return f"{text}; this bound is not vacuous"


def _failing(row: xr.Dataset) -> list[str]:
    """Return what is taken for granted and does not hold."""
    holds = row["assumption_holds"]
    return [name for name in ASSUMPTIONS if int(holds.sel(assumption=name)) == Assumption.FAILS]


def _warnings(good: xr.Dataset) -> list[str]:
    last = good.isel(step=-1)
    best = _best(last)
    found = [
        "The bound is of weights with noise, drawn anew for each prediction, not of the recorded "
        "weights. It takes for granted what no trace tells: that the weights at the start do not "
        "depend on the data, and that examples are independent and of one law."
    ]
    if float(best["bound"] - best["bound_many_draws"]) > 0.05:
        found.append(
            f"Endless draws with the same mean would give {float(best['bound_many_draws']):.3g}: "
            "record more of them (PerturbedLoss(draws=...))."
        )
    if int(last["assumption_holds"].sel(assumption=BOUNDED)) == Assumption.FAILS:
        found.append(
            "Errors outside 0 and 1, or losses outside 0 and loss_bound, were seen, or some that "
            "are no number: no theorem holds of such."
        )
    if int(last["assumption_holds"].sel(assumption=COVERED)) == Assumption.FAILS:
        found.append(
            "Some of what training changes (layers that were left out, running statistics) has no "
            "noise and is not paid for, so that this is no bound; record all layers."
        )
    if bool(last["of_loss"]):
        found.append("That single examples keep to loss_bound is not seen, only that means do.")
    if (best["gap_low"] > best["bound"] - best["empirical"]).item():
        found.append("The gap that was measured is above the bound: an assumption does not hold.")
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return bounds over noise and over training, and the terms of the smallest."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.set_label(
        "PAC-Bayes bounds on the error under weight noise, by its standard deviation at the last "
        "step; the smallest over training, with the errors it is above; the terms of it over the "
        "number of examples."
    )
    left, middle, right = figure.subplots(1, 3)
    for number, (label, result) in enumerate(results.items()):
        rows = shown(result)
        if rows.sizes["step"] == 0:
            continue
        last = rows.isel(step=-1)
        if number == 0:
            for theory in THEORIES:
                values = last["bound_by_level"].sel(theory=theory).values
                if np.isfinite(values).any():
                    left.plot(last["sigma_recorded"], values, ".-", lw=1, label=theory)
        best = [_best(rows.isel(step=place)) for place in range(rows.sizes["step"])]
        color = f"C{number}"

        def line(name: str, best: list[xr.Dataset] = best) -> FloatArray:
            return np.array([float(each[name]) for each in best])

        step, n = rows["step"].values, float(last["n_examples"])
        middle.plot(step, line("bound"), "o-", color=color, ms=4, label=label)
        middle.plot(step, line("held_out"), "--", color=color, lw=1)
        middle.plot(step, line("empirical"), ":", color=color, lw=1)
        right.plot(step, line("kl") / n, "o-", color=color, ms=3, label=label)
        right.plot(step, line("price") / n, "--", color=color, lw=1)
        right.plot(step, line("empirical_high") - line("empirical"), ":", color=color, lw=1)
    middle.plot([], [], "--", color="0.4", lw=1, label="held-out error")
    middle.plot([], [], ":", color="0.4", lw=1, label="training error")
    right.plot([], [], "o-", color="0.4", ms=3, label="divergence / n")
    right.plot([], [], "--", color="0.4", lw=1, label="price / n")
    right.plot([], [], ":", color="0.4", lw=1, label="allowance for draws")
    left.set(xlabel="standard deviation", ylabel="bound", xscale="log", title="By noise, last step")
    middle.set(xlabel="step", ylabel="error", title="Smallest bound over training")
    right.set(xlabel="step", ylabel="term", title="Terms of the smallest")
    left.xaxis.set_minor_formatter(NullFormatter())
    right.set_yscale("symlog", linthresh=1e-3)
    for axis in (left, middle, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, frameon=False)
    for axis in (middle, right):
        axis.set_xscale("symlog", linthresh=10)
    return figure
