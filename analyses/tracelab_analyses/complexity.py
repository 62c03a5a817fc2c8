"""Complexity: norms, path length, margins, local Lipschitz constants, changes between inputs.

None of these is generalization, and most are no property of the function: scaling the layers of a
ReLU network changes norms at will (Dinh et al. 2017). They compare networks trained alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import xarray as xr
from scipy import stats

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import at_ends, blank, shown, subject
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_EXAMPLES = 10
QUANTILES = {"margin_tenth": 0.1, "margin_median": 0.5}
_CELL = ("step", "layer")


def complexity(
    step: IntArray,
    norm: FloatArray,
    distance: FloatArray,
    log_spectral_norm: FloatArray,
    log_norm: FloatArray,
    stable_rank: FloatArray,
    margin: FloatArray,
    input_gradient_norm: FloatArray,
    class_changes: FloatArray,
    unit_changes: FloatArray,
    slope: FloatArray,
    path_norm: FloatArray,
    past_step: IntArray,
    past_distance: FloatArray,
    update_step: FloatArray | None = None,
    update_norm: FloatArray | None = None,
    *,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return measures of complexity, by layer where they are of weights.

    Products over layers are over those that are matrices. With :math:`\gamma` the tenth percentile
    of the margins, where it is positive, the ratios are (Jiang et al. 2020)

    .. math:: \ln \frac{\prod_l \sigma_l^2}{\gamma^2}, \quad
       \ln \frac{\prod_l \sigma_l^2 \sum_l \|W_l\|_F^2 / \sigma_l^2}{\gamma^2}, \quad
       \ln \frac{\prod_l \|W_l\|_F^2}{\gamma^2}, \quad
       \ln \frac{\sum_c f_c(1; w^2)}{\gamma^2} .

    The path length :math:`\sum_t \|w_{t+1} - w_t\|` is the sum of recorded norms of updates where
    every step's was, and otherwise a lower bound: the larger of the sum of those recorded, and of
    the variation of the recorded distance from the start.

    Parameters
    ----------
    step : ndarray of int, shape (step,)
        Steps of the rows.
    norm, distance, log_spectral_norm, log_norm, stable_rank : ndarray, shape (step, layer)
        Of the weights; of the network root sum of squares, sums of logarithms, sum of ranks.
    margin, input_gradient_norm : ndarray, shape (step, example)
        Of examples.
    class_changes, unit_changes, slope : ndarray, shape (step, pair)
        Along segments.
    path_norm : ndarray, shape (step,)
        Sum over paths of products of squared weights.
    past_step, past_distance : ndarray, shape (past,), (layer, past)
        Steps of all rows, and distances from the start.
    update_step, update_norm : ndarray, shape (every_step,), (layer, every_step), optional
        Recorded norms of updates.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``. ``NON_FINITE_INPUT`` where something that was measured is not
        finite, but for logarithms of 0: -inf where a matrix is zero, and with it the product. NaN
        are measures that the network does not have, such as gradients by words.
    """
    steps, layers = norm.shape
    out = blank(ANALYSIS.outputs, {"step": steps, "layer": layers})
    for place in range(steps):
        of_layers = (norm, distance, log_spectral_norm, log_norm, stable_rank)
        of_function = (input_gradient_norm, class_changes, unit_changes, path_norm)
        status = _status(
            margin[place],
            [each[place] for each in of_layers],
            [np.atleast_1d(each[place]) for each in of_function],
        )
        found: dict[str, Array | float | int] = {
            "n_examples": margin.shape[1],
            "n_pairs": class_changes.shape[1],
            "status": status,
        }
        good = status == Status.OK
        if good.any():
            found |= _of_examples(
                margin[place], input_gradient_norm[place], slope[place], confidence
            )
            for name, changes in (("class_changes", class_changes), ("unit_changes", unit_changes)):
                found |= _mean(name, changes[place])
            found |= _of_weights(
                norm[place], distance[place], log_spectral_norm[place], log_norm[place],
                stable_rank[place], path_norm[place], float(np.quantile(margin[place], 0.1)),
            )  # fmt: skip
            found["path_length"], found["path_complete"] = _path(
                int(step[place]), past_step, past_distance, update_step, update_norm
            )
        for name, value in found.items():
            everywhere = np.broadcast_to(value, layers)
            if out[name].dtype.kind == "f":
                everywhere = np.where(good, everywhere, np.nan)
            out[name][place] = everywhere
    return out


def _of_examples(
    margin: FloatArray, gradients: FloatArray, slope: FloatArray, confidence: float
) -> dict[str, Array | float | int]:
    return {
        **_margins(margin, confidence),
        **_mean("lipschitz", gradients),
        "lipschitz_median": float(np.median(gradients)),
        "lipschitz_max": float(gradients.max()),
        # A pair of equal inputs has no slope.
        "steepest": float(np.fmax.reduce(slope)),
    }


def _of_weights(
    norm: FloatArray,
    distance: FloatArray,
    log_spectral_norm: FloatArray,
    log_norm: FloatArray,
    stable_rank: FloatArray,
    path_norm: float,
    gamma: float,
) -> dict[str, Array | float | int]:
    """Return measures of the weights, and their ratios to the tenth percentile of the margins."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 2 * np.log(gamma) if gamma > 0 else np.nan
        spectral = 2 * log_spectral_norm - scale
        return {
            "norm": norm,
            "distance": distance,
            "log_spectral_product": log_spectral_norm,
            "stable_rank": stable_rank,
            "path_norm": path_norm,
            "log_spectral_ratio": spectral,
            "log_stable_ratio": spectral + np.log(np.where(stable_rank > 0, stable_rank, np.nan)),
            "log_norm_ratio": 2 * log_norm - scale,
            "log_path_ratio": np.log(path_norm) - scale,
        }


def _mean(name: str, values: FloatArray) -> dict[str, Array | float | int]:
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return {name: float(values.mean()), f"{name}_se": error}


def _margins(margin: FloatArray, confidence: float) -> dict[str, Array | float | int]:
    """Return mean and quantiles; the intervals of these are order statistics, for any law."""
    found = _mean("margin", margin)
    ordered, count = np.sort(margin), margin.size
    for name, share in QUANTILES.items():
        found[name] = float(np.quantile(margin, share))
        below, above = (
            float(stats.binom.ppf(0.5 + side * confidence / 2, count, share)) for side in (-1, 1)
        )
        found[f"{name}_low"] = ordered[int(below) - 1] if below >= 1 else np.nan
        found[f"{name}_high"] = ordered[int(above)] if above < count else np.nan
    return found


def _path(
    step: int,
    past_step: IntArray,
    past_distance: FloatArray,
    update_step: FloatArray | None,
    update_norm: FloatArray | None,
) -> tuple[FloatArray, Array]:
    """Return the path's length by layer up to a step, and whether it is exact."""
    passed = past_distance[:, (past_step <= step)]
    # Of a row that is not finite nothing is known: the variation over the others is a bound too.
    last = np.where(np.isfinite(passed), np.arange(passed.shape[1]), -1)
    last = np.maximum.accumulate(last, axis=1)
    known = np.take_along_axis(passed, np.maximum(last, 0), axis=1)
    # The path begins at the start, at a distance of 0.
    known = np.where(last >= 0, known, 0.0)
    length = np.abs(np.diff(known, axis=1, prepend=0.0)).sum(axis=1)
    complete = np.full(len(length), step == 0)
    if update_step is not None and update_norm is not None:
        norms = update_norm[:, update_step < step]
        finite = np.isfinite(norms)
        recorded = np.where(finite, norms, 0.0).sum(axis=1)
        complete |= finite.sum(axis=1) == step
        # A norm of float32 is rounded: where all are there they are the length, not a bound.
        length = np.where(complete, recorded, np.fmax(length, recorded))
    return length, complete


def _status(
    margin: FloatArray, of_layers: Sequence[FloatArray], of_function: Sequence[FloatArray]
) -> IntArray:
    """Return the status of each layer's cell.

    Parameters
    ----------
    margin : ndarray, shape (example,)
        Margins.
    of_layers : sequence of ndarray, shape (layer,)
        What is measured of each layer; the logarithm of 0 is a number.
    of_function : sequence of ndarray
        What is measured of the whole network, all NaN where there is no such thing.
    """
    known = [np.isfinite(each) | np.isneginf(each) for each in of_layers]
    status = np.where(np.logical_and.reduce(known), Status.OK, Status.NON_FINITE_INPUT)
    measured = (each for each in of_function if not np.isnan(each).all())
    if not (np.isfinite(margin).all() and all(np.isfinite(each).all() for each in measured)):
        return np.full(status.shape, Status.NON_FINITE_INPUT)
    if margin.size < MIN_EXAMPLES:
        return np.full(status.shape, Status.TOO_FEW_SAMPLES)
    if np.ptp(margin) == 0:
        return np.full(status.shape, Status.CONSTANT_INPUT)
    return status


def finding(result: xr.Dataset) -> Finding:
    """Return norms, path and margins at the first and the last step."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No step had finite, varying margins.")

    def describe(row: xr.Dataset) -> str:
        number = {name: float(row[name]) for name in row.data_vars}
        least = "" if bool(row["path_complete"]) else "at least "
        return (
            f"at step {int(row['step'])} norm {number['norm']:.3g}, distance from the start "
            f"{number['distance']:.3g} on a path of {least}{number['path_length']:.3g}, product of "
            f"spectral norms {np.exp(number['log_spectral_product']):.3g}, a tenth of the margins "
            f"below {number['margin_tenth']:.3g}, {number['class_changes']:.2g} "
            f"(+/- {number['class_changes_se']:.2g}) changes of class between two inputs"
        )

    return Finding(
        f"Of {subject(good)}: {'; '.join(at_ends(good, describe))}.", tuple(_warnings(good))
    )


def _warnings(good: xr.Dataset) -> list[str]:
    found = [
        "Norms and their products are no property of the function: scaling the layers of a ReLU "
        "network changes them at will. They compare networks of one kind at equal loss, and none "
        "is known to predict generalization everywhere (Jiang et al. 2020, Dziugaite et al. 2020).",
        "Spectral norms of convolutions are those of the filters as a matrix, which the norm of "
        "the convolution can exceed. Changes are counted at the recorded points: lower bounds.",
    ]
    if not good["path_complete"].all():
        found.append(
            "Path lengths are lower bounds, by recorded updates or by the variation of the "
            "distance from the start: record Statistics(quantities=('update', ...)) at every step."
        )
    if (good["margin_tenth"] <= 0).any():
        found.append(
            "Where a tenth of the examples or more are classified wrongly, ratios to the margin "
            "have no value."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return norms, margins and changes between inputs over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.set_label(
        "Distance from the start (solid) and length of the path (dashed); median of the margins "
        "with its interval, and their tenth percentile (dotted); changes of class along segments "
        "between inputs, with one standard error."
    )
    left, middle, right = figure.subplots(1, 3)
    for index, (label, result) in enumerate(results.items()):
        row = shown(result)
        color, step = f"C{index}", row["step"].values
        left.plot(step, row["distance"], "o-", color=color, ms=4, label=label)
        left.plot(step, row["path_length"], "--", color=color, lw=1)
        low, mid, high = (row[f"margin_median{end}"].values for end in ("_low", "", "_high"))
        middle.errorbar(step, mid, [mid - low, high - mid], fmt="o-", color=color, ms=4)
        middle.plot(step, row["margin_tenth"], ":", color=color)
        right.errorbar(
            step, row["class_changes"], row["class_changes_se"], fmt="o-", color=color, ms=4
        )
    for axis, name in ((left, "distance"), (middle, "margin"), (right, "changes of class")):
        axis.set_xscale("symlog", linthresh=10)
        axis.set(xlabel="step", ylabel=name)
    left.legend(fontsize=8, frameon=False)
    return figure


_Combined: TypeAlias = Literal["sum", "root_sum_square"] | None


def _input(name: str, dims: tuple[str, ...], units: str = "1", network: _Combined = None) -> Input:
    return Input(
        Variable(name, dims, units),
        (f"complexity/{name}",),
        network=network,
        collector="Complexity()",
    )


_SQUARES: _Combined = "root_sum_square"
_RATIO = "logarithm of the product over layers of "
ANALYSIS = Analysis(
    name="complexity",
    summary="How large are the weights, how complex is the function, by what margin?",
    version=2,
    inputs=(
        Input(Variable("step", ("step",), "step", "int64"), ("complexity/step",),
              collector="Complexity()"),
        _input("norm", _CELL, "weight", _SQUARES),
        _input("distance", _CELL, "weight", _SQUARES),
        _input("log_spectral_norm", _CELL, "1", "sum"),
        _input("log_norm", _CELL, "1", "sum"),
        _input("stable_rank", _CELL, "1", "sum"),
        _input("margin", ("step", "example")),
        _input("input_gradient_norm", ("step", "example")),
        _input("class_changes", ("step", "pair")),
        _input("unit_changes", ("step", "pair")),
        _input("slope", ("step", "pair")),
        _input("path_norm", ("step",)),
        Input(Variable("past_step", ("past",), "step", "int64"), ("complexity/step",),
              whole=True, collector="Complexity()"),
        Input(Variable("past_distance", ("layer", "past"), "weight"), ("complexity/distance",),
              network=_SQUARES, whole=True, collector="Complexity()"),
        Input(Variable("update_step", ("every_step",), "step"), ("statistics/step",),
              optional=True, whole=True, collector="Statistics(quantities=('update',))"),
        Input(Variable("update_norm", ("layer", "every_step"), "weight"),
              ("statistics/update_norm",), network=_SQUARES, optional=True, whole=True,
              collector="Statistics(quantities=('update',))"),
    ),
    outputs=(
        Variable("norm", _CELL, "weight", description="Euclidean norm of the weights"),
        Variable("distance", _CELL, "weight", description="distance from the start"),
        Variable("path_length", _CELL, "weight", description="length of the path from the start"),
        Variable("path_complete", _CELL, dtype="bool",
                 description="every update was recorded; else the length is a lower bound"),
        Variable("log_spectral_product", _CELL,
                 description="logarithm of the product of spectral norms; -inf if it is 0"),
        Variable("stable_rank", _CELL,
                 description="sum of ||W||_F^2 / spectral norm^2; 0 of vectors and zeros"),
        Variable("path_norm", _CELL, description="sum over paths of squared weights' products"),
        Variable("margin", _CELL, description="mean margin"),
        Variable("margin_se", _CELL, description="standard error"),
        *(
            Variable(f"{name}{end}", _CELL, description=f"{share:.0%} quantile of margins{text}")
            for name, share in QUANTILES.items()
            for end, text in (
                ("", ""), ("_low", ", interval, lower end"), ("_high", ", interval, upper end")
            )
        ),
        Variable("log_spectral_ratio", _CELL, description=_RATIO + "sigma^2 / margin^2"),
        Variable("log_stable_ratio", _CELL,
                 description=_RATIO + "sigma^2, times the stable rank, / margin^2; NaN where that "
                 "is 0"),
        Variable("log_norm_ratio", _CELL, description=_RATIO + "||W||_F^2 / margin^2"),
        Variable("log_path_ratio", _CELL, description="logarithm of path norm / margin^2"),
        Variable("lipschitz", _CELL, description="mean norm of the margin's input gradient"),
        Variable("lipschitz_se", _CELL, description="standard error"),
        Variable("lipschitz_median", _CELL, description="median over examples"),
        Variable("lipschitz_max", _CELL, description="largest of the examples"),
        Variable("steepest", _CELL, description="steepest change of scores along a segment"),
        Variable("class_changes", _CELL, description="mean changes of class along a segment"),
        Variable("class_changes_se", _CELL, description="standard error"),
        Variable("unit_changes", _CELL, description="mean changes of ReLU units along a segment"),
        Variable("unit_changes_se", _CELL, description="standard error"),
        Variable("n_examples", _CELL, dtype="int64", description="examples"),
        Variable("n_pairs", _CELL, dtype="int64", description="segments"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=complexity,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Liu, Papailiopoulos, Achlioptas, Bad Global Minima Exist and SGD Can Reach Them, "
            "NeurIPS 2020",
            "https://arxiv.org/abs/1906.02613",
        ),
        Reference(
            "Jiang, Neyshabur, Mobahi, Krishnan, Bengio, Fantastic Generalization Measures and "
            "Where to Find Them, ICLR 2020",
            "https://arxiv.org/abs/1912.02178",
        ),
        Reference(
            "Dziugaite, Drouin, Neal, Rajkumar, Caballero, Wang, Mitliagkas, Roy, In Search of "
            "Robust Measures of Generalization, NeurIPS 2020",
            "https://arxiv.org/abs/2010.11924",
        ),
    ),
)  # fmt: skip
