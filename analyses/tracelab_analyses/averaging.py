"""Averaging: is the average of a run's iterates lower, and flatter, than the last of them?

The last iterate of SGD keeps away from the minimum of the loss smoothed by its noise by what the
noise moves it; the average loses most of that (Nitanda et al. 2024). Both are compared at recorded
windows by the loss, by the loss smoothed by the noise of a step, and by what the noise adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank, shown, subject
from tracelab.typing import Array, FloatArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_DRAWS = 5
VERDICTS = ("undecided", "average", "last")
_CELL = ("step", "layer")
_WINDOW = (*_CELL, "window")


def averaging(
    distance: FloatArray,
    spread: FloatArray,
    window_start: FloatArray,
    n_iterates: FloatArray,
    learning_rate: FloatArray,
    set_loss: FloatArray,
    loss_difference: FloatArray,
    loss_difference_se: FloatArray,
    loss_units: FloatArray,
    error_difference: FloatArray,
    error_difference_se: FloatArray,
    error_units: FloatArray,
    moved_loss: FloatArray,
    position: FloatArray,
    line_loss: FloatArray,
    *,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return differences between average and last weights, average less last, by window.

    Of draws of minibatch noise :math:`\omega_k` at each point v, the same minibatches at both, are

    .. math:: F(v) \approx \frac{1}{K} \sum_k f(v - \eta \omega_k), \qquad
       P(v) = \frac{1}{K} \sum_k \frac{f(v + \eta \omega_k) + f(v - \eta \omega_k)}{2} - f(v)
       \approx \frac{\eta^2}{2} \mathrm{tr}(\nabla^2 f(v)\, \Sigma(v)),

    the smoothed loss and the penalty on sharpness, from which all odd orders cancel. Intervals are
    Student's, in pairs: over draws, and of losses on sets over examples or over the pieces of which
    a loss gave the mean.

    Parameters
    ----------
    distance, spread : ndarray, shape (step, layer, window)
        Of the average from the last weights, and of the weights from the average.
    window_start, n_iterates : ndarray, shape (step, window)
        First step, and number of weights.
    learning_rate : ndarray, shape (step,)
        Of noise steps.
    set_loss : ndarray, shape (step, window, set, point)
        Mean losses; point 0: the last weights, 1: the average; set 0: the data.
    loss_difference, error_difference : ndarray, shape (step, window, set)
        Average less last; their standard errors (``_se``), and how many values those are from
        (``_units``).
    moved_loss : ndarray, shape (step, window, point, draw, sign)
        Losses one noise step away.
    position, line_loss : ndarray, shape (step, place), (step, window, place)
        Losses on the line from the last weights, 0, to the average, 1.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    steps, layers, windows = distance.shape
    sizes = {"step": steps, "layer": layers, "window": windows, "set": set_loss.shape[2]}
    out = blank(ANALYSIS.outputs, sizes)
    for step in range(steps):
        used = np.isfinite(window_start[step])
        measured = {
            "set_loss": set_loss[step, used],
            "loss_difference": loss_difference[step, used],
            "moved_loss": moved_loss[step, used],
            "line_loss": line_loss[step, used],
        }
        alone = all(np.isnan(each).all() for each in measured.values())
        out["status"][step] = [
            _status(distance[step, layer, used], spread[step, layer, used],
                    n_iterates[step, used], measured, alone)
            for layer in range(layers)
        ]  # fmt: skip
        out["n_draws"][step] = 0 if alone else moved_loss.shape[3]
        good = out["status"][step] == Status.OK
        for layer in np.flatnonzero(good):
            length, around = distance[step, layer, used], spread[step, layer, used]
            found = {"distance": length, "spread": around}
            with np.errstate(divide="ignore", invalid="ignore"):
                found["relative_distance"] = length / around
            for name, value in found.items():
                out[name][step, layer, used] = value
        if good.any():
            out["window_start"][step, good] = window_start[step]
            out["n_iterates"][step, good] = n_iterates[step]
        if alone or not good.any():
            continue
        for window in np.flatnonzero(used):
            row: dict[str, Array | float | int] = {}
            for name, value, error, units in (
                ("loss", loss_difference, loss_difference_se, loss_units),
                ("error", error_difference, error_difference_se, error_units),
            ):
                quantile = stats.t.ppf(0.5 + confidence / 2, units[step, window] - 1)
                row |= _interval(
                    f"{name}_difference", value[step, window], error[step, window], quantile
                )
            row |= _noise(
                moved_loss[step, window], set_loss[step, window, 0], learning_rate[step], confidence
            )
            row |= _line(position[step], line_loss[step, window])
            row["lower"] = _verdict(row["loss_difference_low"], row["loss_difference_high"])[0]
            for verdict, name in (("smoother", "smoothed"), ("flatter", "penalty")):
                ends = (row[f"{name}_difference_{end}"] for end in ("low", "high"))
                row[verdict] = _verdict(*ends)
            for name, value in row.items():
                out[name][step, good, window] = value
    return out


def _status(
    distance: FloatArray,
    spread: FloatArray,
    n_iterates: FloatArray,
    measured: Mapping[str, FloatArray],
    alone: bool,
) -> Status:
    finite = np.isfinite(distance).all() and np.isfinite(spread).all() and distance.size
    if not finite or not (alone or all(np.isfinite(each).all() for each in measured.values())):
        return Status.NON_FINITE_INPUT
    if (n_iterates < 2).any() or not (alone or measured["moved_loss"].shape[2] >= MIN_DRAWS):
        return Status.TOO_FEW_SAMPLES
    return Status.CONSTANT_INPUT if (spread == 0).all() else Status.OK


def _interval(
    name: str, value: FloatArray | float, error: FloatArray | float, quantile: FloatArray | float
) -> dict[str, Array | float | int]:
    return {
        name: value,
        f"{name}_low": value - quantile * error,
        f"{name}_high": value + quantile * error,
    }


def _noise(
    moved: FloatArray, loss: FloatArray, rate: float, confidence: float
) -> dict[str, Array | float | int]:
    """Return smoothed loss, penalty and their differences, from (point, draw, sign)."""
    draws = moved.shape[1]
    quantile = float(stats.t.ppf(0.5 + confidence / 2, draws - 1))
    found: dict[str, Array | float | int] = {}
    for name, by_draw in (
        ("smoothed", moved[..., 0]),
        ("penalty", moved.mean(axis=-1) - loss[:, None]),
    ):
        difference = by_draw[1] - by_draw[0]
        for place, values in (("last", by_draw[0]), ("average", by_draw[1])):
            found[f"{name}_{place}"] = values.mean()
            found[f"{name}_{place}_se"] = values.std(ddof=1) / np.sqrt(draws)
        error = difference.std(ddof=1) / np.sqrt(draws)
        found |= _interval(f"{name}_difference", difference.mean(), error, quantile)
    with np.errstate(divide="ignore", invalid="ignore"):
        for place in ("last", "average"):
            # tr(H Sigma), by the second order of the penalty.
            found[f"sharpness_{place}"] = np.divide(2 * found[f"penalty_{place}"], rate**2)
    return found


def _line(position: FloatArray, losses: FloatArray) -> dict[str, Array | float | int]:
    """Return the rise between both ends over the higher one, and where the line is lowest."""
    between = (position >= 0) & (position <= 1)
    ends = [losses[position == end] for end in (0, 1)]
    known = all(each.size for each in ends)
    return {
        "barrier": losses[between].max() - max(each[0] for each in ends) if known else np.nan,
        "lowest_at": position[losses.argmin()],
    }


def _verdict(low: Array | float | int, high: Array | float | int) -> Array:
    """Return which is less: 1 the average, 2 the last weights, 0 where the interval holds 0."""
    return np.where(np.less(high, 0), 1, np.where(np.greater(low, 0), 2, 0))


def finding(result: xr.Dataset) -> Finding:
    """Return what each window's average is at the last step."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No step had averages of finite, varying weights.")
    row, parts = good.isel(step=-1), []
    for window in range(row.sizes["window"]):
        each = row.isel(window=window)
        if not np.isfinite(each["distance"]):
            continue
        number = {str(name): each[name].values for name in each.data_vars}
        text = (
            f"from step {number['window_start']:.0f} ({number['n_iterates']:.0f} weights) lies "
            f"{number['distance']:.3g} away, {number['relative_distance']:.2g} times the spread"
        )
        if np.isfinite(number["loss_difference"][0]):
            text += (
                f", with a loss {_more(number, 'loss_difference', 0)}, a smoothed loss "
                f"{_more(number, 'smoothed_difference')} and a penalty on sharpness "
                f"{_more(number, 'penalty_difference')}"
            )
        parts.append(text)
    return Finding(
        f"At step {int(row['step'])} the average of {subject(good)} {'; that '.join(parts)}.",
        tuple(_warnings(good)),
    )


def _more(number: Mapping[str, Array], name: str, place: int | tuple[()] = ()) -> str:
    value, low, high = (float(number[f"{name}{end}"][place]) for end in ("", "_low", "_high"))
    which = "less" if value < 0 else "more"
    interval = f"{low:.3g} to {high:.3g}" if np.isfinite(low) else "no interval"
    return f"{abs(value):.3g} {which} ({interval})"


def _warnings(good: xr.Dataset) -> list[str]:
    found = [
        "The average is taken of weights that were stored: sparse ones average as well only while "
        "they are independent. Where the iterates still move, the average lags behind them.",
    ]
    if not np.isfinite(good["loss_difference"].values).any():
        found.append("Losses were not measured: give measure_averages a model, its loss and data.")
        return found
    found.append(
        "Intervals of losses are over examples and those of the smoothed loss over minibatches: "
        "another run's average can differ by more. The penalty is that of noise at each point, so "
        "a point of less noise counts as flatter; sharpness is not invariant (Dinh et al. 2017)."
    )
    known, low = (good[f"loss_difference{end}"].values for end in ("", "_low"))
    if (np.isfinite(known) & ~np.isfinite(low)).any():
        found.append(
            "The loss gave one number for all of a set, which has no standard error: lower "
            "data_batch_size=, or let it return one value an example."
        )
    if (good["barrier"].values > 0).any():
        found.append(
            "On the line between both the loss exceeds that of either at some window: they do not "
            "lie in one convex valley, and smoothing says little there."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return differences by window at the last step, and distances over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.set_label(
        "Loss on the data, smoothed loss and penalty on sharpness at the average less those at the "
        "last weights, with intervals, by window at the last step; distance of the average from "
        "the last weights over the spread of the window."
    )
    left, middle, right = figure.subplots(1, 3)
    for index, (label, result) in enumerate(results.items()):
        good, color = shown(result), f"C{index}"
        if good.sizes["step"] == 0:
            continue
        row = good.isel(step=-1)
        start = row["window_start"].values
        for axis, name in ((left, "loss"), (left, "smoothed"), (middle, "penalty")):
            mid, low, high = (
                row[f"{name}_difference{end}"].values for end in ("", "_low", "_high")
            )
            if name == "loss":
                mid, low, high = mid[:, 0], low[:, 0], high[:, 0]
            axis.errorbar(
                start, mid, [mid - low, high - mid], color=color, ms=4, label=label,
                fmt="s--" if name == "smoothed" else "o-",
            )  # fmt: skip
        for window in range(good.sizes["window"]):
            right.plot(good["step"], good["relative_distance"][:, window], "o-", color=color, ms=4)
    left.set(xlabel="first step of the window", ylabel="loss (o), smoothed loss (s), difference")
    middle.set(xlabel="first step of the window", ylabel="penalty, difference")
    right.set(xlabel="last step of the window", ylabel="distance / spread")
    for axis in (left, middle):
        axis.axhline(0, color="0.4", linestyle=":")
    middle.legend(fontsize=8, frameon=False)
    return figure


def _input(name: str, dims: tuple[str, ...], units: str = "loss", layered: bool = False) -> Input:
    return Input(
        Variable(name, dims, units),
        (f"averages/{name}",),
        network="root_sum_square" if layered else None,
        collector="tracelab_collectors.measure_averages(trace, out)",
    )


def _with_ends(
    name: str, dims: tuple[str, ...], units: str, text: str
) -> tuple[Variable, Variable, Variable]:
    return (
        Variable(name, dims, units, description=text),
        Variable(f"{name}_low", dims, units, description="interval, lower end"),
        Variable(f"{name}_high", dims, units, description="interval, upper end"),
    )


_PAIR = ("step", "window", "set")
_WHICH = "0, 1, 2: " + ", ".join(VERDICTS)
ANALYSIS = Analysis(
    name="averaging",
    summary="Is the average of the iterates lower and flatter than the last one?",
    version=2,
    inputs=(
        _input("distance", _WINDOW, "weight", layered=True),
        _input("spread", _WINDOW, "weight", layered=True),
        _input("window_start", ("step", "window"), "step"),
        _input("n_iterates", ("step", "window"), "1"),
        _input("learning_rate", ("step",), "weight^2/loss"),
        _input("set_loss", (*_PAIR, "point")),
        _input("loss_difference", _PAIR),
        _input("loss_difference_se", _PAIR),
        _input("loss_units", _PAIR, "1"),
        _input("error_difference", _PAIR, "1"),
        _input("error_difference_se", _PAIR, "1"),
        _input("error_units", _PAIR, "1"),
        _input("moved_loss", ("step", "window", "point", "draw", "sign")),
        _input("position", ("step", "place"), "1"),
        _input("line_loss", ("step", "window", "place")),
    ),
    outputs=(
        Variable("window_start", _WINDOW, "step", description="first step of the window"),
        Variable("n_iterates", _WINDOW, description="weights in the window"),
        Variable("distance", _WINDOW, "weight", description="of average from last weights"),
        Variable("spread", _WINDOW, "weight",
                 description="root mean squared distance of weights from their average"),
        Variable("relative_distance", _WINDOW, description="distance over spread"),
        *_with_ends("loss_difference", (*_WINDOW, "set"), "loss",
                    "loss at the average less that at the last weights; set 0: the data"),
        *_with_ends("error_difference", (*_WINDOW, "set"), "1",
                    "error at the average less that at the last weights"),
        *(
            Variable(f"{name}_{place}{end}", _WINDOW, "loss", description=f"{text}, {at}{error}")
            for name, text in (
                ("smoothed", "loss smoothed by a step's noise"),
                ("penalty", "what noise of either sign adds to the loss"),
            )
            for place, at in (("last", "at the last weights"), ("average", "at the average"))
            for end, error in (("", ""), ("_se", ": standard error"))
        ),
        *_with_ends("smoothed_difference", _WINDOW, "loss", "smoothed loss, average less last"),
        *_with_ends("penalty_difference", _WINDOW, "loss", "penalty, average less last"),
        *(
            Variable(f"sharpness_{place}", _WINDOW, "loss^3/weight^4",
                     description=f"2 penalty / rate^2, tr(H Sigma) to second order, {place}")
            for place in ("last", "average")
        ),
        Variable("barrier", _WINDOW, "loss",
                 description="largest loss between both over the larger of theirs"),
        Variable("lowest_at", _WINDOW, description="where the recorded line is lowest; 1: average"),
        Variable("lower", _WINDOW, dtype="uint8", description=f"of less loss; {_WHICH}"),
        Variable("smoother", _WINDOW, dtype="uint8", description=f"less smoothed; {_WHICH}"),
        Variable("flatter", _WINDOW, dtype="uint8", description=f"of less penalty; {_WHICH}"),
        Variable("n_draws", _CELL, dtype="int64", description="minibatches"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=averaging,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Nitanda, Kikuchi, Maeda, Wu, Why is Parameter Averaging Beneficial in SGD? An "
            "Objective Smoothing Perspective, AISTATS 2024",
            "https://arxiv.org/abs/2302.09376",
        ),
        Reference(
            "Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, Averaging Weights Leads to Wider "
            "Optima and Better Generalization, UAI 2018",
            "https://arxiv.org/abs/1803.05407",
        ),
    ),
)  # fmt: skip
