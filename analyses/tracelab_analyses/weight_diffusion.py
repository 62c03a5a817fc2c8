"""Weight diffusion: how does the distance from initialization grow, and from when on?

Hoffer, Hubara, Soudry (2017) find ``||w_t - w_0|| ~ log t`` in the initial high-learning-rate
phase and read it as a random walk in a random potential ("ultra-slow diffusion"). That law, a power
of t and exponential saturation are fitted here to the same points and compared on the same scale,
from the step on that the curve itself chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import (
    NETWORK,
    Analysis,
    Finding,
    Input,
    Parameter,
    Reference,
    Variable,
)
from tracelab.outcomes import at_layers, blank, layer_names
from tracelab.stats import growth
from tracelab.stats.growth_start import evenly, start_of_regime
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFERENCES = ("undecided", *growth.LAWS)
# Twice the log of the evidence ratio above which a preference is called strong.
STRONG = 6.0
FEW_EFFECTIVE = 10
# Batches of so much of the data make nearly full-batch steps.
NEARLY_FULL = 0.5

_CELL = ("layer",)
_NAMES = ("log t", "a power of t", "saturation")
# Outputs that are parameters of a law: law, position, output.
_FITTED: tuple[tuple[growth.Law, int, str], ...] = (
    ("log", 1, "log_slope"),
    ("power", 1, "power_exponent"),
    ("saturation", 0, "saturation_level"),
    ("saturation", 2, "saturation_time"),
)


def weight_diffusion(
    distance: FloatArray,
    step: IntArray,
    batch_size: Array | None = None,
    n_data: Array | None = None,
    *,
    start: int | None = None,
    points: int = 100,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return three fits and which is better, by layer.

    .. math:: D_t = a + c \log t, \qquad D_t = k t^\nu, \qquad D_t = D_\infty - A e^{-t/\tau},

    by maximum likelihood with deviations whose correlation is estimated too
    (`tracelab.stats.growth.fit`), on up to `points` steps evenly spaced in :math:`\log t` so that
    every decade counts alike. They are compared by Akaike's criterion for small samples. Without
    `start` the first step is the earliest from which a law, fitted to the first third of the time,
    foretells the rest as well as from the best (`tracelab.stats.growth_start`); intervals take it
    as given.

    Parameters
    ----------
    distance : ndarray, shape (layer, step)
        Distance from initialization, unit ``weight``.
    step : ndarray of int, shape (step,)
        Optimizer steps.
    batch_size, n_data : scalar arrays, optional
        Examples of a recorded minibatch and in all.
    start, points, confidence
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    out = blank(ANALYSIS.outputs, {"layer": len(distance), "law": len(growth.LAWS)})
    if batch_size is not None and n_data is not None:
        out["noise_batch_share"][:] = float(batch_size) / float(n_data)
    for layer, row in enumerate(distance):
        for name, value in _layer(row, step, start, points, confidence).items():
            out[name][layer] = value
    return out


def _layer(
    distance: FloatArray, step: IntArray, start: int | None, points: int, confidence: float
) -> dict[str, Array | float]:
    late = np.flatnonzero(step >= (start or 1))
    t, d = step[late], np.asarray(distance[late], dtype=np.float64)
    if not np.isfinite(d).all():
        return {"n_samples": t.size, "status": int(Status.NON_FINITE_INPUT)}
    first = start_of_regime(t, d, points) if start is None and t.size else 1.0
    taken = evenly(t, first, np.inf, points)
    t, d = t[taken], d[taken]
    row: dict[str, Array | float] = {"n_samples": t.size}
    fits = {law: growth.fit(t, d, law, confidence) for law in growth.LAWS}
    status = Status(int(fits["log"].status))
    row["status"] = int(status)
    if status is not Status.OK:
        return row
    for law, place, name in _FITTED:
        found = fits[law]
        row[name] = float(found.parameters[place])
        row[f"{name}_se"] = float(found.parameters_se[place])
        row[f"{name}_low"] = float(found.parameters_low[place])
        row[f"{name}_high"] = float(found.parameters_high[place])
    row["log_intercept"] = float(fits["log"].parameters[0])
    row["power_prefactor"] = float(fits["power"].parameters[0])
    row["saturation_amplitude"] = float(fits["saturation"].parameters[1])
    for law in growth.LAWS:
        row[f"{law}_r2"] = float(fits[law].r2)
    criterion = growth.criteria([fits[law] for law in growth.LAWS])
    row["delta_aic"] = criterion[1] - criterion[0]
    evidence = np.exp(-0.5 * (criterion - criterion.min()))
    row["akaike_weight"] = evidence / evidence.sum()
    order = np.argsort(criterion, kind="stable")
    clear = criterion[order[1]] - criterion[order[0]] >= STRONG
    row["preferred"] = 1 + int(order[0]) if clear else 0
    best = fits[growth.LAWS[order[0]]]
    row["n_effective"] = float(best.n_effective)
    row["innovation_share"] = float(best.innovation_share)
    row["start"] = int(t[0])
    return row


def finding(result: xr.Dataset) -> Finding:
    """Return which law fits the network's distance better, and how clearly."""
    label = NETWORK if NETWORK in result["layer"].values else str(result["layer"].values[-1])
    row = result.sel(layer=label)
    status = Status(int(row["status"]))
    if status is not Status.OK:
        reason = status.name.lower().replace("_", " ")
        return Finding(f"The distance from initialization could not be fitted: {reason}.")
    preferred = PREFERENCES[int(row["preferred"])]
    verdict = {
        "undecided": "No law of the distance from initialization fits clearly best",
        "log": "The distance from initialization is best described by log t",
        "power": "The distance from initialization is best described by a power of t",
        "saturation": "The distance from initialization is best described by saturation",
    }[preferred]
    weights = ", ".join(
        f"{float(weight):.2f} for {name}"
        for weight, name in zip(row["akaike_weight"].values, _NAMES, strict=True)
    )
    exponent, low, high = (float(row[f"power_exponent{end}"]) for end in ("", "_low", "_high"))
    time, soon, late = (float(row[f"saturation_time{end}"]) for end in ("", "_low", "_high"))
    saturating = "no time of saturation to be seen"
    if np.isfinite(time):
        saturating = f"time of saturation {time:.4g}, {soon:.4g} to {late:.4g}"
    level = 100 * float(result.attrs.get("parameters", {}).get("confidence", 0.95))
    return Finding(
        f"{verdict} from step {int(row['start'])} on (Akaike weights {weights}; exponent of t "
        f"{exponent:.3f}, {level:g} % interval {low:.3f} to {high:.3f}; {saturating}).",
        tuple(_warnings(row, result.attrs.get("parameters", {}))),
    )


def _warnings(row: xr.Dataset, parameters: Mapping[str, object]) -> list[str]:
    found = [
        "A distance that grows like log t is no evidence of a random walk: on separable data with "
        "cross-entropy the norm of the weights grows like log t without any noise (Soudry et al. "
        "2018). Compare with a full-batch run."
    ]
    share = float(row["noise_batch_share"])
    if share >= NEARLY_FULL:
        found.append(
            f"Recorded minibatches hold {100 * share:.0f} % of the data: if the run was trained on "
            "such, its steps are nearly those of full batches, and no walk is random."
        )
    if parameters.get("start") is None:
        found.append(
            "The first step was chosen by the curve: intervals take it as given, and are too short "
            "where it is a close choice. Compare with start=."
        )
    if float(row["n_effective"]) < FEW_EFFECTIVE:
        found.append(
            f"Deviations from the best law depend on each other so much that the "
            f"{int(row['n_samples'])} steps are worth {float(row['n_effective']):.0f} independent "
            "ones: no law follows the curve closely."
        )
    if float(row["innovation_share"]) < 1:
        found.append(
            "Deviations from the best law are smoother than noise: the law itself is not quite "
            f"right. Evidence counts {100 * float(row['innovation_share']):.0f} % of its points, "
            "and intervals are wider for it."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the exponent of t and the weight of each law, by layer and trace."""
    from matplotlib.figure import Figure

    layers = layer_names(results)
    figure = Figure(figsize=(9, 1.6 + 0.34 * len(layers)), layout="constrained")
    figure.set_label(
        "Exponent of the power law, and Akaike weight of log t (circles), the power of t (squares) "
        "and saturation (triangles), by layer."
    )
    left, right = figure.subplots(1, 2, sharey=True)
    for label, good, place, color in at_layers(results):
        value = good["power_exponent"].values
        error = [
            value - good["power_exponent_low"].values,
            good["power_exponent_high"].values - value,
        ]
        left.errorbar(value, place, xerr=error, fmt="o", ms=4, color=color, label=label)
        for law, mark in enumerate("os^"):
            weight = good["akaike_weight"].values[:, law]
            right.plot(weight, place, mark, ms=4, color=color)
    left.set_yticks(range(len(layers)), layers, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="exponent ν of t", title="Distance ∝ $t^ν$")
    right.set(xlabel="Akaike weight", title="log t (o), $t^ν$ (□), saturation (△)")
    figure.legend(
        *left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure


ANALYSIS = Analysis(
    name="weight_diffusion",
    summary="How do weights leave their start? log t, a power of t or saturation",
    version=2,
    inputs=(
        Input(
            Variable("distance", ("layer", "step"), "weight"),
            sources=("statistics/distance", "weights/distance"),
            network="root_sum_square",
            collector="Statistics() or Weights()",
        ),
        Input(
            Variable("step", ("step",), "step", "int64"),
            sources=("statistics/step", "weights/step"),
            collector="Statistics() or Weights()",
        ),
        Input(Variable("batch_size", ()), ("noise@batch_size",), optional=True),
        Input(Variable("n_data", ()), ("noise@n_data",), optional=True),
    ),
    outputs=(
        Variable("log_slope", _CELL, "weight", description="c of D = a + c log t"),
        Variable("log_slope_se", _CELL, "weight", description="standard error"),
        Variable("log_slope_low", _CELL, "weight", description="interval, lower end"),
        Variable("log_slope_high", _CELL, "weight", description="interval, upper end"),
        Variable("log_intercept", _CELL, "weight", description="a of D = a + c log t"),
        Variable("log_r2", _CELL, description="R squared of the log law"),
        Variable("power_exponent", _CELL, description="nu of D = k t^nu"),
        Variable("power_exponent_se", _CELL, description="standard error"),
        Variable("power_exponent_low", _CELL, description="interval, lower end"),
        Variable("power_exponent_high", _CELL, description="interval, upper end"),
        Variable("power_prefactor", _CELL, "weight", description="k of D = k t^nu"),
        Variable("power_r2", _CELL, description="R squared of the power law"),
        Variable("saturation_level", _CELL, "weight", description="D_inf of D_inf - A exp(-t/tau)"),
        Variable("saturation_level_se", _CELL, "weight", description="standard error"),
        Variable("saturation_level_low", _CELL, "weight", description="interval, lower end"),
        Variable("saturation_level_high", _CELL, "weight", description="interval, upper end"),
        Variable("saturation_amplitude", _CELL, "weight", description="A of D_inf - A exp(-t/tau)"),
        Variable("saturation_time", _CELL, "step", description="tau; NaN where it is not seen"),
        Variable("saturation_time_se", _CELL, "step", description="standard error"),
        Variable("saturation_time_low", _CELL, "step", description="interval, lower end"),
        Variable("saturation_time_high", _CELL, "step", description="interval, upper end"),
        Variable("saturation_r2", _CELL, description="R squared of saturation"),
        Variable("delta_aic", _CELL, description="AICc(power) - AICc(log): > 0 favours log t"),
        Variable("akaike_weight", ("layer", "law"), description="of each law, by AICc"),
        Variable(
            "preferred", _CELL, dtype="uint8", description=f"0 to 3: {', '.join(PREFERENCES)}"
        ),
        Variable("start", _CELL, "step", dtype="int64", description="first step fitted"),
        Variable(
            "noise_batch_share", _CELL, description="of the data in a recorded minibatch of noise"
        ),
        Variable(
            "innovation_share",
            _CELL,
            description="of the best law: below 1 where it misses smoothly",
        ),
        Variable("n_samples", _CELL, dtype="int64", description="steps fitted"),
        Variable("n_effective", _CELL, description="independent steps they are worth"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=weight_diffusion,
    finding=finding,
    plot=plot,
    coords={"law": growth.LAWS},
    parameters=(
        Parameter("start", None, "first step to fit; none: chosen by the curve", low=1),
        Parameter(
            "points", 100, "steps fitted, evenly spaced in log t", low=growth.MIN_POINTS, high=1e4
        ),
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Hoffer, Hubara, Soudry, Train Longer, Generalize Better, NeurIPS 2017, section 3",
            "https://arxiv.org/abs/1705.08741",
        ),
        Reference(
            "Soudry, Hoffer, Nacson, Gunasekar, Srebro, The Implicit Bias of Gradient Descent on "
            "Separable Data, Journal of Machine Learning Research 19 (2018)",
            "https://arxiv.org/abs/1710.10345",
        ),
        Reference(
            "Burnham, Anderson, Model Selection and Multimodel Inference, 2nd edition (2002), "
            "section 2.9 (Akaike weights)"
        ),
    ),
)
