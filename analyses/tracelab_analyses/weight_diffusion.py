"""Weight diffusion: does the distance from initialization grow like log t or like a power of t?

Hoffer, Hubara, Soudry (2017) find ``||w_t - w_0|| ~ log t`` in the initial high-learning-rate
phase and read it as a random walk in a random potential ("ultra-slow diffusion"). Both laws are
fitted here to the same points and compared on the same scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import optimize, stats

from tracelab.contracts import (
    NETWORK,
    Analysis,
    Finding,
    Input,
    Parameter,
    Reference,
    Variable,
)
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_POINTS = 10
PREFERENCES = ("undecided", "log", "power")
# Twice the log of the evidence ratio above which a preference is called strong.
STRONG = 6.0
FEW_EFFECTIVE = 10

_CELL = ("layer",)


def weight_diffusion(
    distance: FloatArray,
    step: IntArray,
    *,
    start: int = 1,
    points: int = 100,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return both fits and which is better, by layer.

    The fits are least squares in the distance itself,

    .. math:: D_t = a + c \log t, \qquad D_t = k t^\nu,

    each of two parameters, on up to `points` steps evenly spaced in :math:`\log t` so that every
    decade counts alike. Residuals of a trajectory depend on each other: the effective sample size
    :math:`n_\mathrm{eff} = n (1 - \rho) / (1 + \rho)`, with :math:`\rho` the lag-one
    autocorrelation of the better fit's residuals (at least 0), replaces ``n`` in the standard
    errors and in the difference of Akaike's criterion.

    Parameters
    ----------
    distance : ndarray, shape (layer, step)
        Distance from initialization, unit ``weight``.
    step : ndarray of int, shape (step,)
        Optimizer steps.
    start, points, confidence
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    rows = [_layer(row, step, start, points, confidence) for row in distance]
    return {
        variable.name: np.array([row[variable.name] for row in rows])
        for variable in ANALYSIS.outputs
    }


def _layer(
    distance: FloatArray, step: IntArray, start: int, points: int, confidence: float
) -> dict[str, float]:
    row: dict[str, float] = {
        variable.name: np.nan if variable.dtype == "float64" else 0 for variable in ANALYSIS.outputs
    }
    late = np.flatnonzero(step >= max(start, 1))
    if late.size:
        targets = np.geomspace(step[late[0]], step[late[-1]], points)
        nearest = np.searchsorted(step[late], targets).clip(0, late.size - 1)
        late = late[np.unique(nearest)]
    t, d = step[late].astype(np.float64), distance[late]
    row["n_samples"] = t.size
    if not np.isfinite(d).all():
        row["status"] = int(Status.NON_FINITE_INPUT)
        return row
    if t.size < MIN_POINTS:
        row["status"] = int(Status.TOO_FEW_SAMPLES)
        return row
    if np.ptp(d) == 0:
        row["status"] = int(Status.CONSTANT_INPUT)
        return row

    log_design = np.column_stack([np.ones_like(t), np.log(t)])
    coefficients = np.linalg.lstsq(log_design, d, rcond=None)[0]
    slope, log_fit = float(coefficients[1]), log_design @ coefficients
    exponent = _power_exponent(t, d)
    prefactor = np.dot(d, t**exponent) / np.dot(t**exponent, t**exponent)
    power_fit = prefactor * t**exponent
    power_design = np.column_stack([t**exponent, prefactor * t**exponent * np.log(t)])

    rss = {"log": np.sum((d - log_fit) ** 2), "power": np.sum((d - power_fit) ** 2)}
    better = d - (log_fit if rss["log"] < rss["power"] else power_fit)
    rho = np.clip(np.dot(better[1:], better[:-1]) / np.dot(better, better), 0.0, 0.99)
    effective = max(t.size * (1 - rho) / (1 + rho), 3.0)
    quantile = stats.t.ppf(0.5 + confidence / 2, effective - 2)
    total = np.sum((d - d.mean()) ** 2)
    for name, design, residual, value, column in (
        ("log_slope", log_design, rss["log"], slope, 1),
        ("power_exponent", power_design, rss["power"], exponent, 1),
    ):
        # Each point carries effective / n of an independent one.
        covariance = np.linalg.inv(design.T @ design) * residual / (effective - 2)
        error = float(np.sqrt(covariance[column, column]))
        row[name], row[f"{name}_se"] = value, error
        row[f"{name}_low"], row[f"{name}_high"] = value - quantile * error, value + quantile * error
    row["log_intercept"], row["power_prefactor"] = float(coefficients[0]), float(prefactor)
    row["log_r2"], row["power_r2"] = 1 - rss["log"] / total, 1 - rss["power"] / total
    floor = np.finfo(np.float64).tiny
    row["delta_aic"] = effective * np.log(max(rss["power"], floor) / max(rss["log"], floor))
    row["preferred"] = 0 if abs(row["delta_aic"]) < STRONG else 1 if row["delta_aic"] > 0 else 2
    row["n_effective"] = effective
    return row


def _power_exponent(t: FloatArray, d: FloatArray) -> float:
    def residual(nu: float) -> float:
        # Scaled so that large t and nu cannot overflow; the prefactor is profiled out.
        power = (t / t[-1]) ** nu
        return float(np.sum((d - power * np.dot(d, power) / np.dot(power, power)) ** 2))

    grid = np.linspace(-1.0, 3.0, 161)
    best = int(np.argmin([residual(nu) for nu in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)])
    found = optimize.minimize_scalar(
        residual, bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    return float(found.x)


def finding(result: xr.Dataset) -> Finding:
    """Return which law fits the network's distance better, and how clearly."""
    label = NETWORK if NETWORK in result["layer"].values else str(result["layer"].values[-1])
    row = result.sel(layer=label)
    caveat = (
        "A distance that grows like log t is no evidence of a random walk: on separable data with "
        "cross-entropy the norm of the weights grows like log t without any noise (Soudry et al. "
        "2018). Compare with a full-batch run."
    )
    dependent = (
        f"The residuals of the better law depend on each other so much that the "
        f"{int(row['n_samples'])} steps are worth {float(row['n_effective']):.0f} independent "
        "ones: neither law follows the curve closely. Fit a later phase (start=)."
    )
    status = Status(int(row["status"]))
    if status is not Status.OK:
        reason = status.name.lower().replace("_", " ")
        return Finding(f"The distance from initialization could not be fitted: {reason}.")
    preferred = PREFERENCES[int(row["preferred"])]
    verdict = {
        "undecided": "Neither law of the distance from initialization fits clearly better",
        "log": "The distance from initialization is better described by log t",
        "power": "The distance from initialization is better described by a power of t",
    }[preferred]
    exponent, low, high = (float(row[f"power_exponent{end}"]) for end in ("", "_low", "_high"))
    difference = float(row["delta_aic"])
    favoured = "log t" if difference > 0 else "the power"
    log_r2, power_r2 = float(row["log_r2"]), float(row["power_r2"])
    return Finding(
        f"{verdict} (AIC favours {favoured} by {abs(difference):.1f}; R² {log_r2:.4f} for log t, "
        f"{power_r2:.4f} for the power; exponent of t {exponent:.3f}, "
        f"95 % interval {low:.3f} to {high:.3f}).",
        (caveat, dependent) if float(row["n_effective"]) < FEW_EFFECTIVE else (caveat,),
    )


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the exponent of t and the difference of AIC, by layer and trace."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(str(x) for r in results.values() for x in r["layer"].values))
    figure = Figure(figsize=(9, 1.6 + 0.34 * len(layers)), layout="constrained")
    figure.set_label("Exponent of the power law, and which law fits better, by layer.")
    left, right = figure.subplots(1, 2, sharey=True)
    if max(float(np.abs(result["delta_aic"]).max()) for result in results.values()) > 100:
        right.set_xscale("symlog", linthresh=10)
    for index, (label, result) in enumerate(results.items()):
        good = result.isel(layer=np.flatnonzero(result["status"].values == int(Status.OK)))
        offset = (index - (len(results) - 1) / 2) * 0.8 / max(len(results), 4)
        place = np.array([layers.index(str(x)) for x in good["layer"].values]) + offset
        value = good["power_exponent"].values
        error = [
            value - good["power_exponent_low"].values,
            good["power_exponent_high"].values - value,
        ]
        left.errorbar(value, place, xerr=error, fmt="o", ms=4, color=f"C{index}", label=label)
        right.plot(good["delta_aic"].values, place, "o", ms=4, color=f"C{index}")
    left.set_yticks(range(len(layers)), layers, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="exponent ν of t", title="Distance ∝ $t^ν$")
    right.axvline(0, color="0.4", linestyle=":")
    right.set(xlabel="ΔAIC (> 0: log t fits better)", title="log t against $t^ν$")
    figure.legend(
        *left.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper"
    )
    return figure


ANALYSIS = Analysis(
    name="weight_diffusion",
    summary="How do weights leave their start? Distance against log t and a power of t",
    version=1,
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
        ),
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
        Variable("delta_aic", _CELL, description="AIC(power) - AIC(log): > 0 favours log t"),
        Variable(
            "preferred", _CELL, dtype="uint8", description=f"0, 1, 2: {', '.join(PREFERENCES)}"
        ),
        Variable("n_samples", _CELL, dtype="int64", description="steps fitted"),
        Variable("n_effective", _CELL, description="independent steps they are worth"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=weight_diffusion,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("start", 1, "first optimizer step to fit", low=1),
        Parameter("points", 100, "steps fitted, evenly spaced in log t", low=MIN_POINTS, high=1e5),
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
    ),
)
