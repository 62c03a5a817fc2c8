"""Bounds on generalization from the dimension of the last weights of a run.

Simsekli et al. (2020) take the trajectory for that of a Levy-like process, whose dimension is at
most the tail index of its increments; Birdal et al. (2021) read a dimension off the trajectory
itself, by persistent homology. Both put it into the same bound, by covering. What is taken for
granted, and how little of it holds, stands beside every number.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank, shown, subject
from tracelab.series import dense
from tracelab.stats import stable
from tracelab.stats.combination import cauchy_combination
from tracelab.stats.covering import TERMS, covering_bound, finite_bound
from tracelab.stats.dimension import GROUPS, MIN_POINTS, persistent_homology_dimension
from tracelab.stats.mohammadi import mohammadi
from tracelab.stats.panel_dependence import panel_dependence
from tracelab.stats.resampling import gaussian_control
from tracelab.typing import Array, Assumption, BoolArray, FloatArray, IntArray, Status
from tracelab_analyses.dimension_assumptions import ASSUMPTIONS, LEVEL, NEEDS, drift, judged
from tracelab_analyses.dimension_figures import plot
from tracelab_analyses.projection_error import projection_error

THEORIES = tuple(NEEDS)
HALVES = ("even", "odd")
# A matrix of distances between more points is larger than what a cell is given.
MAX_POINTS = 1_400
# More directions say little more of tails, and each takes as long.
MAX_DIRECTIONS = 256
# Tail indices below it make paths of few large steps.
GAUSSIAN = 1.9
_CELL = ("layer",)
_BY_THEORY = ("layer", "theory")
# In the order of THEORIES.
_DIMENSIONS = (
    ("alpha", "Hausdorff dimension (tail index)"),
    ("ph_dimension", "persistent-homology dimension"),
)


def dimension_bound(
    weights: FloatArray,
    step: IntArray,
    seed: IntArray,
    sharing: IntArray,
    gradient_norm: FloatArray | None = None,
    recorded_n_data: Array | None = None,
    *,
    iterates: int = 1_000,
    power: float = 1.0,
    repeats: int = 10,
    lipschitz: float | None = None,
    n_data: int | None = None,
    loss_range: float = 1.0,
    delta: float = 0.05,
    confidence: float = 0.95,
) -> dict[str, Array]:
    """Return dimensions of the last iterates, the bounds they give, and what is assumed, by layer.

    Parameters
    ----------
    weights : ndarray, shape (layer, step, direction)
        Projected weights, unit ``weight``.
    step : ndarray of int, shape (step,)
        Optimizer steps.
    seed : ndarray of uint64, shape (layer,)
        Of random subsets and controls.
    sharing : ndarray of int, shape (layer, direction)
        How many weights each direction adds up, with random signs.
    gradient_norm : ndarray, shape (layer, step), optional
        Of the training gradient, loss/weight; NaN where it is not recorded.
    recorded_n_data : scalar array, optional
        Training examples.
    iterates, power, repeats, lipschitz, n_data, loss_range, delta, confidence
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    sizes = {
        "layer": len(weights), "theory": len(THEORIES), "term": len(TERMS),
        "half": len(HALVES), "assumption": len(ASSUMPTIONS),
    }  # fmt: skip
    out = blank(ANALYSIS.outputs, sizes)
    last = last_run(step, iterates)
    known = np.nan if recorded_n_data is None else float(recorded_n_data)
    examples = known if n_data is None else float(n_data)
    for layer in range(len(weights)):
        path = np.asarray(weights[layer, last], dtype=np.float64)
        status = _status(path)
        found: dict[str, Array | float] = {
            "n_iterates": len(path),
            "n_directions": path.shape[1],
            "n_data": examples,
            "spacing": int(np.diff(step[last])[0]) if len(path) > 1 else 0,
            "status": int(status),
        }
        if status is Status.OK:
            steepness = np.nan if lipschitz is None else lipschitz
            if lipschitz is None and gradient_norm is not None:
                steepness = _largest(gradient_norm[layer, last])
            found |= _dimensions(path, int(seed[layer]), power, repeats, confidence)
            found["projection_error"] = projection_error(np.diff(path, axis=0), sharing[layer])
            found |= _bounds(found, path, examples, steepness, loss_range, delta)
            found["assumption_holds"] = _assumptions(found, path, lipschitz is not None)
            if not np.isfinite(found["ph_dimension"]):
                found["status"] = int(Status.NOT_CONVERGED)
        for name, value in found.items():
            if name in out:
                out[name][layer] = value
    return out


def last_run(step: IntArray, iterates: int) -> slice:
    """Return the last records of equal spacing, at most so many, if there are enough for trees.

    The weights after the last step are recorded whatever the schedule: a run may end before them.
    """
    edges = np.flatnonzero(np.diff(step, n=2)) + 1 if step.size > 2 else np.empty(0, np.int64)
    # Records between two changes of spacing; those at a change belong to both.
    ends = [*edges.tolist(), step.size - 1][::-1]
    begins = [0, *edges.tolist()][::-1]
    for begin, end in zip(begins, ends, strict=True):
        if end - begin + 1 >= MIN_POINTS:
            return slice(max(begin, end + 1 - iterates), end + 1)
    return slice(begins[0], step.size)


def _status(path: FloatArray) -> Status:
    if not np.isfinite(path).all():
        return Status.NON_FINITE_INPUT
    if len(path) < MIN_POINTS:
        return Status.TOO_FEW_SAMPLES
    return Status.OK if _moving(np.diff(path, axis=0)).any() else Status.CONSTANT_INPUT


def _moving(increments: FloatArray) -> BoolArray:
    """Return the directions whose increments differ, and do not mostly repeat a value."""
    moving: BoolArray = (increments != increments[:1]).any(axis=0)
    moving[moving] = dense(increments[:, moving])
    return moving


def _largest(norms: FloatArray) -> float:
    finite = norms[np.isfinite(norms)]
    return float(finite.max()) if finite.size else np.nan


def _dimensions(
    path: FloatArray, seed: int, power: float, repeats: int, confidence: float
) -> dict[str, Array | float]:
    """Return both dimensions, with what speaks for and against them."""
    whole = persistent_homology_dimension(
        path, power=power, repeats=repeats, confidence=confidence, seed=seed
    )
    halves = [
        persistent_homology_dimension(
            part, power=power, repeats=repeats, confidence=None, seed=seed
        ).dimension
        for part in (path[:, ::2], path[:, 1::2])
        if part.shape[1]
    ]
    found: dict[str, Array | float] = {
        "ph_dimension": float(whole.dimension),
        "ph_dimension_se": float(whole.dimension_se),
        "ph_dimension_low": float(whole.dimension_low),
        "ph_dimension_high": float(whole.dimension_high),
        "ph_curvature": float(whole.curvature),
        "ph_curvature_se": float(whole.curvature_se),
        "ph_r2": float(whole.r2),
        "ph_dimension_half": np.array(([float(half) for half in halves] + [np.nan])[:2]),
    }
    return found | _tails(path, np.random.default_rng(seed), confidence)


def _tails(
    path: FloatArray, rng: np.random.Generator, confidence: float
) -> dict[str, Array | float]:
    """Return the tail index of increments, direction by direction and in common."""
    increments = np.diff(path, axis=0)
    moving = np.flatnonzero(_moving(increments))[:MAX_DIRECTIONS]
    increments = increments[:, moving]
    each = stable.fit(increments, axis=0, confidence=None)
    common = stable.fit_common(increments, "each", confidence, start=each)
    control = stable.fit_common(gaussian_control(increments, rng), "each", None)
    alphas = each.alpha[np.isfinite(each.alpha)]
    fitted = stable.goodness_of_fit(increments, each.alpha, each.loc, each.scale, axis=0)
    pvalues = fitted.pvalue[np.isfinite(fitted.pvalue)]
    iterates = path[:, moving] - path[:, moving].mean(axis=0)
    papers = mohammadi(iterates, axis=0).alpha
    neighbours = panel_dependence(increments)
    return {
        "alpha": float(common.alpha),
        "alpha_se": float(common.alpha_se),
        "alpha_low": float(common.alpha_low),
        "alpha_high": float(common.alpha_high),
        "alpha_control": float(control.alpha),
        "alpha_median": float(np.median(alphas)) if alphas.size else np.nan,
        "alpha_max": float(alphas.max()) if alphas.size else np.nan,
        "alpha_mohammadi": float(np.median(mohammadi(increments, axis=0).alpha)),
        "alpha_iterates": float(np.median(papers)),
        "alpha_iterates_max": float(papers.max()),
        "gof_pvalue": float(cauchy_combination(pvalues)) if pvalues.size else np.nan,
        "gof_rejection_rate": float(np.mean(pvalues < LEVEL)) if pvalues.size else np.nan,
        "autocorrelation": float(neighbours.rho),
        "autocorrelation_se": float(neighbours.rho_se),
        "independence_pvalue": float(neighbours.pvalue),
    }


def _bounds(
    found: dict[str, Array | float],
    path: FloatArray,
    examples: float,
    steepness: float,
    loss_range: float,
    delta: float,
) -> dict[str, Array | float]:
    """Return the bound of each theory at its estimate and at the ends of its interval."""
    # The ball around the mean that holds all: its diameter is no less than theirs.
    diameter = 2 * float(np.sqrt(np.square(path - path.mean(axis=0)).sum(axis=1).max()))
    given = {
        "n_data": examples, "lipschitz": steepness, "diameter": diameter,
        "loss_range": loss_range, "delta": delta,
    }  # fmt: skip
    at = {
        end: np.array([found[f"{name}{end}"] for name, _ in _DIMENSIONS])
        for end in ("", "_low", "_high")
    }
    middle = covering_bound(at[""], **given)
    found = {"diameter": diameter, "lipschitz": steepness, "bound": middle.bound}
    found["bound_low"] = covering_bound(at["_low"], **given).bound
    found["bound_high"] = covering_bound(at["_high"], **given).bound
    found["bound_term"] = middle.terms
    found["finite_bound"] = float(
        finite_bound(len(path), n_data=examples, loss_range=loss_range, delta=delta)
    )
    found["vacuous"] = middle.bound >= loss_range
    found["largest_term"] = middle.terms.argmax(axis=-1)
    return found


def _assumptions(found: dict[str, Array | float], path: FloatArray, lipschitz_given: bool) -> Array:
    return np.array(
        judged(
            drift(np.diff(path, axis=0)),
            rho=float(found["autocorrelation"]),
            rho_pvalue=float(found["independence_pvalue"]),
            gof_pvalue=float(found["gof_pvalue"]),
            curvature=float(found["ph_curvature"]),
            curvature_se=float(found["ph_curvature_se"]),
            freedom=GROUPS - 1,
            lipschitz_given=lipschitz_given,
        ),
        dtype=np.uint8,
    )


def finding(result: xr.Dataset) -> Finding:
    """Return both dimensions and bounds of the network, and what of the assumptions fails."""
    row = shown(result)
    status = Status(int(row["status"]))
    if status not in (Status.OK, Status.NOT_CONVERGED):
        reason = status.name.lower().replace("_", " ")
        return Finding(
            f"The last weights of {subject(row)} have no dimension: {reason} "
            f"({int(row['n_iterates'])} records of equal spacing; {MIN_POINTS} are needed)."
        )
    parts = []
    for index, (name, what) in enumerate(_DIMENSIONS):
        value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
        if np.isfinite(value):
            text = f"a {what} of {value:.2f} ({low:.2f} to {high:.2f})"
            parts.append(text + _said(row.isel(theory=index)))
        else:
            parts.append(f"no {what}, for trees grow as fast as their points")
    sentence = (
        f"The last {int(row['n_iterates'])} recorded weights of {subject(row)} have "
        f"{' and '.join(parts)}."
    )
    return Finding(sentence, tuple(_warnings(row)))


def _said(row: xr.Dataset) -> str:
    bound = float(row["bound"])
    if not np.isfinite(bound):
        return ""
    term = TERMS[int(row["largest_term"])]
    vacuous = f", vacuous by its {term} term" if bool(row["vacuous"]) else ""
    return f", which bounds the gap by {bound:.3g} up to a constant{vacuous}"


def _warnings(row: xr.Dataset) -> list[str]:
    found = []
    for theory in THEORIES:
        failed = [
            ASSUMPTIONS[name]
            for name in NEEDS[theory]
            if int(row["assumption_holds"].sel(assumption=name)) == Assumption.FAILS
        ]
        found.append(f"Of what {theory} takes for granted fails: {'; '.join(failed)}.")
    if not np.isfinite(float(row["n_data"])):
        found.append("No bound: the number of training examples is not recorded; give n_data=.")
    elif not np.isfinite(float(row["lipschitz"])):
        found.append(
            "No bound: give lipschitz=, or record Statistics() for the largest gradient norm."
        )
    else:
        found.append(
            f"For {int(row['n_iterates'])} weights that were fixed beforehand Hoeffding's bound is "
            f"{float(row['finite_bound']):.3g} without any dimension."
        )
    error, directions = float(row["projection_error"]), int(row["n_directions"])
    even, odd = row["ph_dimension_half"].values
    if error > 0:
        found.append(
            f"Distances are those of {directions} projections, squares to within "
            f"{100 * error:.2g} %; from half of these each the persistent-homology dimension is "
            f"{even:.2f} and {odd:.2f}. Projections are sums over many weights, which hides their "
            "tails."
        )
    found.append(
        "Both dimensions follow the hyper-parameters of a run, fail to order networks trained from "
        "adversarial initializations, and correlate less with generalization than the norm of the "
        "weights does (Tan et al. 2024)."
    )
    if float(row["alpha_high"]) < GAUSSIAN:
        found.append(
            "Where single steps are as long as the path, as at this tail index, the interval of "
            "the persistent-homology dimension is too short by about half: it sees one path."
        )
    control = float(row["alpha_control"])
    if float(row["alpha_high"]) >= control:
        found.append(
            f"Exactly Gaussian increments read alpha = {control:.2f}: these are no heavier."
        )
    return found


def _by_end(
    name: str, what: str, units: str = "1", dims: tuple[str, ...] = _CELL
) -> tuple[Variable, ...]:
    return (
        Variable(f"{name}_low", dims, units, description=f"{what}: interval, lower end"),
        Variable(f"{name}_high", dims, units, description=f"{what}: interval, upper end"),
    )


_COUNT = "int64"

ANALYSIS = Analysis(
    name="dimension_bound",
    summary="Does the dimension of the last weights bound generalization? Two theories",
    version=2,
    inputs=(
        Input(
            Variable("weights", ("layer", "step", "direction"), "weight"),
            sources=("weights/projected",),
            network="sum",
            collector="Weights(sketch=Project(256), every=1)",
        ),
        Input(
            Variable("step", ("step",), "step", "int64"),
            sources=("weights/step",),
            collector="Weights(sketch=Project(256), every=1)",
        ),
        Input(
            Variable("sharing", ("layer", "direction"), dtype="int64"),
            sources=("weights/sharing",),
            collector="Weights(sketch=Project(256), every=1)",
        ),
        Input(
            Variable("gradient_norm", ("layer", "step"), "loss/weight"),
            sources=("statistics/gradient_norm",),
            network="root_sum_square",
            optional=True,
            collector="Statistics()",
        ),
        Input(
            Variable("recorded_n_data", ()),
            sources=tuple(
                f"{kind}@n_data"
                for kind in (
                    "noise", "examples", "hessian", "sharpness", "basin", "perturbed_loss"
                )
            ),
            optional=True,
        ),
    ),
    outputs=(
        Variable("ph_dimension", _CELL, description="persistent-homology dimension"),
        Variable("ph_dimension_se", _CELL, description="standard error, jackknife over blocks"),
        *_by_end("ph_dimension", "persistent-homology dimension"),
        Variable("ph_curvature", _CELL, description="of log length in log points; 0 of a power"),
        Variable("ph_curvature_se", _CELL, description="standard error"),
        Variable("ph_r2", _CELL, description="R squared of the line of log length in log points"),
        Variable(
            "ph_dimension_half", ("layer", "half"), description="from half of the directions"
        ),
        Variable(
            "projection_error", _CELL,
            description="relative error of squared distances; 0 where every weight is kept",
        ),
        Variable("alpha", _CELL, description="tail index of increments, of up to 256 directions"),
        Variable("alpha_se", _CELL, description="standard error, steps independent"),
        *_by_end("alpha", "tail index"),
        Variable("alpha_control", _CELL, description="of Gaussian increments of this covariance"),
        Variable("alpha_median", _CELL, description="median over single directions"),
        Variable("alpha_max", _CELL, description="largest of single directions, noise and all"),
        Variable("alpha_mohammadi", _CELL, description="Mohammadi's estimate, median"),
        Variable(
            "alpha_iterates", _CELL, description="the same of centred iterates, as the paper's code"
        ),
        Variable("alpha_iterates_max", _CELL, description="the largest of those"),
        Variable("gof_pvalue", _CELL, description="of stable increments, directions together"),
        Variable("gof_rejection_rate", _CELL, description="share of directions rejected at 5 %"),
        Variable("autocorrelation", _CELL, description="of neighbouring increments"),
        Variable("autocorrelation_se", _CELL, description="standard error if independent"),
        Variable("independence_pvalue", _CELL, description="of independent increments"),
        Variable("bound", _BY_THEORY, "loss", description="on the gap, up to a constant"),
        *_by_end("bound", "bound", "loss", _BY_THEORY),
        Variable("bound_term", (*_BY_THEORY, "term"), "loss", description="each term alone"),
        Variable("vacuous", _BY_THEORY, dtype="bool", description="bound above loss_range"),
        Variable("largest_term", _BY_THEORY, dtype="uint8", description=f"of {', '.join(TERMS)}"),
        Variable(
            "finite_bound", _CELL, "loss", description="Hoeffding's, for so many fixed weights"
        ),
        Variable("diameter", _CELL, "weight", description="of a ball that holds the iterates"),
        Variable("lipschitz", _CELL, "loss/weight", description="given, or largest gradient norm"),
        Variable(
            "assumption_holds", ("layer", "assumption"), dtype="uint8",
            description=Assumption.meanings(),
        ),
        Variable("n_data", _CELL, description="training examples"),
        Variable("n_iterates", _CELL, dtype=_COUNT, description="records used"),
        Variable("n_directions", _CELL, dtype=_COUNT, description="projections"),
        Variable("spacing", _CELL, "step", dtype=_COUNT, description="steps between records"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=dimension_bound,
    finding=finding,
    plot=plot,
    coords={
        "theory": THEORIES, "term": TERMS, "half": HALVES, "assumption": tuple(ASSUMPTIONS),
    },
    parameters=(
        Parameter("iterates", 1_000, "last records used", low=MIN_POINTS, high=MAX_POINTS),
        Parameter("power", 1.0, "exponent of edges; no dimension below it is seen", low=0.05),
        Parameter("repeats", 10, "random orders of the points", low=1, high=1_000),
        Parameter("lipschitz", None, "Lipschitz constant of the loss, loss/weight", low=0),
        Parameter("n_data", None, "training examples, where they are not recorded", low=1),
        Parameter("loss_range", 1.0, "largest loss of an example less the smallest", low=1e-300),
        Parameter("delta", 0.05, "probability that the bound may fail", low=1e-300, high=0.999),
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Simsekli, Sener, Deligiannidis, Erdogdu, Hausdorff Dimension, Heavy Tails, and "
            "Generalization in Neural Networks, NeurIPS 2020",
            "https://arxiv.org/abs/2006.09313",
        ),
        Reference(
            "Birdal, Lou, Guibas, Simsekli, Intrinsic Dimension, Persistent Homology and "
            "Generalization in Neural Networks, NeurIPS 2021",
            "https://arxiv.org/abs/2111.13171",
        ),
        Reference(
            "Tan, Garcia-Redondo, Wang, Bronstein, Monod, On the Limitations of Fractal Dimension "
            "as a Measure of Generalization, NeurIPS 2024",
            "https://arxiv.org/abs/2406.02234",
        ),
    ),
)  # fmt: skip
