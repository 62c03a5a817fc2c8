"""How much weights can overfit, by how little a noisy trajectory tells of its training data.

Every bound says what it takes for granted, whether that holds, and whether it says anything: it
does not where it exceeds the range of what it bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from tracelab.contracts import Analysis, Input, Parameter, Reference, Variable
from tracelab.errors import UsageError
from tracelab.outcomes import blank
from tracelab.stats.trajectory_information import Steps
from tracelab.typing import Array, Assumption, FloatArray, IntArray, Status
from tracelab_analyses.information_assumptions import ASSUMPTIONS, THEORIES, assumed
from tracelab_analyses.information_figures import finding, plot
from tracelab_analyses.information_theories import VIRTUAL, Chosen, Path, best, spending

MIN_BATCHES, MIN_DRAWS = 8, 2
# By so much, in parts, can a mean by pieces exceed the largest of its values.
_ROUNDING = 1e-12
_CELL = ("layer",)
_ROW = (*_CELL, "step")
_BOUND = (*_ROW, "theory")


def information_bound(
    step: IntArray,
    sigma: FloatArray,
    loss: FloatArray,
    error: FloatArray,
    loss_se: FloatArray,
    error_se: FloatArray,
    max_loss: FloatArray,
    noise_loss: FloatArray,
    noise_error: FloatArray,
    gradient_change: FloatArray,
    deviation: FloatArray,
    example_variance: FloatArray,
    max_gradient_norm: FloatArray,
    n_weights: int,
    n_data: int,
    n_examples: int,
    n_held_out: int,
    batch_size: int,
    replacement: bool,
    plain_sgd: bool,
    all_layers: bool,
    every_step: IntArray,
    learning_rate: FloatArray,
    injected_noise: FloatArray | None = None,
    plain_steps: FloatArray | None = None,
    error_low: FloatArray | None = None,
    error_high: FloatArray | None = None,
    example_variance_se: FloatArray | None = None,
    *,
    constant: float = 2.0,
    loss_bound: float | None = None,
    sigma_total: float | None = None,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return bounds on the gap between expected and training loss, at every recorded row.

    What is bounded is the error, within 0 and 1, if it was recorded, else the loss, within 0 and
    `loss_bound`. A variable of range r is r/2-sub-Gaussian, and with n examples (Xu and Raginsky)

    .. math:: |E\, \mathrm{gap}(\tilde W_T)| \le \sqrt{\frac{2 R^2}{n} I(\tilde W_T; S)}, \quad
       R = \frac r2, \qquad |E\, \mathrm{gap}(W_T)| \le |E\, \mathrm{gap}(\tilde W_T)|
       + |E[\Delta(W_T, S') - \Delta(W_T, S)]|,

    :math:`\Delta(w, s) = L(w, s) - E L(w + \xi_T, s)`: the trajectory term, with the information
    bounded as in `tracelab_analyses.information_theories`, and the flatness term, on held-out data
    S' and training data S. The scale of the noise and how it is spent over the steps are chosen
    among the recorded ones for the least sum; fixed by `sigma_total` it is spent evenly.

    Of runs that add noise of standard deviation :math:`s_t` to the weights at every step there are
    two bounds without noise on paper. ``pensia``: m = 0 above and gradients of at most L give
    :math:`\sqrt{\frac{R^2}{n} \sum \eta_t^2 L^2 / s_t^2}`. ``negrea``: with all data but one
    example j known, steps along the others' gradient are the reference, whose mean differs by
    :math:`\zeta_j / n`, :math:`\zeta_j = g_j - \bar g_{-j}`, and one example is left to bound with,
    so :math:`\frac r2 \sqrt{\sum \eta_t^2 E\|\zeta_j\|^2 / (n^2 s_t^2)}`; as
    :math:`\zeta_j = \frac n{n-1} (g_j - \bar g)`, the mean over j of its square is
    :math:`\frac n{n-1}` times the trace of the gradients' unbiased covariance.

    Standard errors are over minibatches and draws of the noise, at the scale chosen; the held-out
    and training data are taken as given. V and the sensitivity are of noise in one run. That of
    ``negrea`` is of the trace of the covariance, to first order, rows being independent. ``pensia``
    has none: its L is the largest norm that was seen, which is no estimate of the largest there is.

    Parameters
    ----------
    step : ndarray of int, shape (step,)
        Steps before which was measured.
    sigma : ndarray, shape (step, level)
        Standard deviations of the noise, positive and rising, the same in every row.
    loss, error, loss_se, error_se : ndarray, shape (step, set)
        Means and standard errors; set 0 are training data, 1 held-out data.
    max_loss : ndarray, shape (step,)
        Largest mean loss of some examples.
    noise_loss, noise_error : ndarray, shape (step, set, shape, level, sign, draw)
        Under noise; of shape 0 is made use.
    gradient_change : ndarray, shape (step, level, gradient_draw)
        Estimates of the sensitivity, unit ``(loss/weight)^2``.
    deviation : ndarray, shape (step, batch)
        Estimates of V, unit ``(loss/weight)^2``.
    example_variance : ndarray, shape (step,)
        Trace of the covariance of one example's gradient.
    max_gradient_norm : ndarray, shape (step,)
        Largest norm of a minibatch's gradient.
    plain_steps : ndarray, shape (every_step,), optional
        1 where a step was plain SGD by the optimizers' settings of that step, else 0; NaN unknown.
    error_low, error_high : ndarray, shape (step,), optional
        Smallest and largest error of an example; NaN where only means of batches are known.
    example_variance_se : ndarray, shape (step,), optional
        Standard error of `example_variance`.
    n_weights, n_data, n_examples, n_held_out, batch_size : int
        Weights that move; training examples, those of them that were evaluated, held-out ones;
        examples of a minibatch.
    replacement, plain_sgd, all_layers : bool
        As recorded; `plain_sgd` of the optimizers as recording began.
    every_step, learning_rate, injected_noise : ndarray, shape (every_step,)
        Steps that were taken, their learning rates, and the noise that they added to the weights.
    constant, loss_bound, sigma_total, confidence
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.

    Raises
    ------
    UsageError
        If standard deviations of the noise do not rise or differ between rows.
    """
    by_error = not np.isnan(error[:, 0]).all()
    measure, noisy, measure_se = (
        (error, noise_error, error_se) if by_error else (loss, noise_loss, loss_se)
    )
    span = 1.0 if by_error else np.nan if loss_bound is None else float(loss_bound)
    noisy = noisy[:, :, 0]
    sizes = {
        "layer": 1, "step": len(step), "theory": len(THEORIES), "assumption": len(ASSUMPTIONS)
    }  # fmt: skip
    out = blank(ANALYSIS.outputs, sizes)
    counts = np.searchsorted(every_step, step)
    out["n_data"][0], out["n_held_out"][0] = n_data, n_held_out
    out["n_batches"][0], out["n_draws"][0] = deviation.shape[-1], noisy.shape[-1]
    out["n_steps"][0], out["range"][0], out["measure"][0] = counts[-1], span, by_error
    rates = learning_rate[: counts[-1]]
    needed = (measure[:, 0], noisy[:, 0], deviation, gradient_change, rates, sigma)
    status = _status(needed, counts, step, span, n_held_out, measure, noisy)
    if status == Status.OK and (n_data < 2 or n_weights < 1):
        status = Status.TOO_FEW_SAMPLES
    out["status"][0] = int(status)
    if status != Status.OK:
        return out
    if not ((sigma[0] > 0).all() and (np.diff(sigma[0]) > 0).all() and (sigma == sigma[0]).all()):
        raise UsageError(
            "standard deviations of the noise (perturbed_loss/sigma) must be positive, rise, and "
            f"be the same in every row, got {np.unique(sigma, axis=0).tolist()[:4]}; record "
            f"them with {_RECORDER}"
        )
    path = Path.of(every_step, learning_rate, step, sigma[0], deviation, gradient_change)
    gap = measure[:, 1] - measure[:, 0]
    # Of the training data a part may have been evaluated; all of it has no error left.
    left = measure_se[:, 0] ** 2 * (1 - n_examples / n_data) if n_examples < n_data else 0.0
    gap_se = np.sqrt(measure_se[:, 1] ** 2 + left)
    reach = stats.norm.ppf(0.5 + confidence / 2) * gap_se
    out |= {"gap": gap[None], "gap_se": gap_se[None]}
    out |= {"gap_low": (gap - reach)[None], "gap_high": (gap + reach)[None]}
    changes = measure[:, :, None, None] - noisy.mean(axis=-2)
    changes = changes[:, 1] - changes[:, 0]
    flatness = np.abs(changes.mean(axis=-1))
    flatness_se = changes.std(axis=-1, ddof=1) / np.sqrt(noisy.shape[-1])
    levels = np.arange(sigma.shape[1])
    schedules: tuple[int, ...] = (0, 1)
    if sigma_total is not None:
        levels, schedules = np.abs(sigma[0] - sigma_total).argmin(keepdims=True), (0,)
    ways = {schedule: spending(path, schedule) for schedule in schedules}
    for row, count in enumerate(counts):
        found = _virtual(
            path, ways, count, flatness[row], flatness_se[row], levels,
            n_weights=n_weights, scale=span**2 / 2 / n_data, constant=constant,
        )  # fmt: skip
        if injected_noise is not None:
            found |= _injected(
                learning_rate[:count], injected_noise[:count], max_gradient_norm[: row + 1].max(),
                path, example_variance, example_variance_se, span, n_data,
            )  # fmt: skip
        for theory, values in found.items():
            for name, value in values.items():
                out[name][0, row, THEORIES.index(theory)] = value
    out["bound"] = out["trajectory_term"] + out["flatness_term"]
    out["bound_se"] = np.hypot(out["trajectory_term_se"], out["flatness_term_se"])
    out["vacuous"] = (out["bound"] > span).astype(np.uint8)
    trajectory, flat = (out[f"{name}_term"] > span for name in ("trajectory", "flatness"))
    out["vacuous_term"] = np.where(trajectory | flat, trajectory + 2 * flat, 4 * out["vacuous"])
    out["vacuous_term"] = out["vacuous_term"].astype(np.uint8)
    facts = {
        "plain_sgd": _plain(bool(plain_sgd), plain_steps, counts[-1]),
        "all_layers": bool(all_layers),
        "bounded": _bounded(by_error, span, measure, noisy, max_loss, (error_low, error_high)),
        "held_out": bool(n_held_out > 0),
        "scale_fixed": sigma_total is not None,
        "full_batch": bool(batch_size >= n_data and not replacement),
        "proof": False,
    }
    out["assumption_holds"][0] = assumed(facts)
    return out


def _status(
    needed: tuple[FloatArray, ...],
    counts: IntArray,
    step: IntArray,
    span: float,
    n_held_out: int,
    measure: FloatArray,
    noisy: FloatArray,
) -> Status:
    _, _, deviation, change, _, _ = needed
    few = (
        deviation.shape[-1] < MIN_BATCHES
        or min(noisy.shape[-1], change.shape[-1]) < MIN_DRAWS
        or n_held_out < 1
        or (counts != step).any()
    )
    if not np.isfinite(span) or not all(np.isfinite(each).all() for each in needed):
        return Status.NON_FINITE_INPUT
    if few:
        return Status.TOO_FEW_SAMPLES
    if not (np.isfinite(measure[:, 1]).all() and np.isfinite(noisy[:, 1]).all()):
        return Status.NON_FINITE_INPUT
    if not deviation.any() and not change.any():
        return Status.CONSTANT_INPUT
    return Status.OK


def _plain(as_it_began: bool, steps: FloatArray | None, count: int) -> bool | None:
    """Return whether all steps were plain SGD; None where those behind the first are unknown."""
    taken = np.full(1, np.nan) if steps is None else steps[:count]
    if not as_it_began or (taken == 0).any():
        return False
    return True if (taken == 1).all() else None


def _bounded(
    by_error: bool,
    span: float,
    measure: FloatArray,
    noisy: FloatArray,
    max_loss: FloatArray,
    extremes: tuple[FloatArray | None, FloatArray | None],
) -> bool | None:
    """Return whether the range holds of examples; None where nothing seen speaks against it."""
    known = [np.full(1, np.nan) if each is None else each for each in extremes]
    seen = [measure.ravel(), noisy.ravel()] + (known if by_error else [max_loss])
    if any((each < 0).any() or (each > span * (1 + _ROUNDING)).any() for each in seen):
        return False
    return True if by_error and np.isfinite(known).all() else None


def _virtual(
    path: Path,
    ways: Mapping[int, Steps],
    count: int,
    flatness: FloatArray,
    flatness_se: FloatArray,
    levels: IntArray,
    *,
    n_weights: int,
    scale: float,
    constant: float,
) -> dict[str, dict[str, float]]:
    """Return what theories of noise on paper say of the weights behind some steps."""
    if not count:
        # Weights at the start know nothing of the data.
        terms = ("trajectory_term", "trajectory_term_se", "flatness_term", "flatness_term_se")
        return {theory: dict.fromkeys((*terms, "sigma"), 0.0) for theory in VIRTUAL}
    chosen = best(
        path, ways, count, flatness, levels, n_weights=n_weights, scale=scale, constant=constant
    )
    found = {}
    for theory, each in chosen.items():
        term = np.sqrt(scale * each.information)
        known = each.information > 0
        found[theory] = {
            "trajectory_term": term,
            "trajectory_term_se": _root_error(term, each),
            "flatness_term": flatness[each.level],
            "flatness_term_se": flatness_se[each.level],
            "variance_part": each.variance_only / each.information if known else np.nan,
            "sensitivity_part": each.sensitivity_only / each.information if known else np.nan,
            "sigma": path.sigma[each.level],
            "schedule": each.schedule,
        }
    return found


def _root_error(term: float, chosen: Chosen) -> float:
    """Return the standard error of a term: NaN of one that is 0 because estimates fell below."""
    if chosen.information > 0:
        return term * chosen.information_se / 2 / chosen.information
    return math.nan if chosen.information_se > 0 else 0.0


def _injected(
    rate: FloatArray,
    noise: FloatArray,
    largest: float,
    path: Path,
    variance: FloatArray,
    variance_se: FloatArray | None,
    span: float,
    n: int,
) -> dict[str, dict[str, float]]:
    """Return what theories of noise that was added say of the weights behind some steps."""
    # A step of no rate tells nothing, also without noise.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((rate == 0) & np.isfinite(noise), 0.0, (rate / noise) ** 2)
        # E||zeta_j||^2 = n / (n - 1) tr Sigma, Sigma the unbiased covariance.
        share = ratio / n / (n - 1)
        count = len(rate)
        total = np.sum(share * path.between(variance)[:count])
        pensia = span / 2 * np.sqrt(np.sum(ratio * largest**2) / n)
        negrea = span / 2 * np.sqrt(total)
        error = np.nan
        if variance_se is not None and total > 0:
            part, rows = path.part[:count], len(variance)
            counted = np.bincount(path.left[:count], share * (1 - part), rows)
            counted += np.bincount(path.right[:count], share * part, rows)
            # Rows, whose minibatches are their own, are independent.
            of_total = np.sqrt(np.sum((counted * variance_se) ** 2))
            error = float(negrea * of_total / 2 / total)
    return {
        "pensia": {"trajectory_term": float(pensia), "flatness_term": 0.0},
        "negrea": {
            "trajectory_term": float(negrea), "trajectory_term_se": error,
            "flatness_term": 0.0, "flatness_term_se": 0.0,
        },
    }  # fmt: skip


_RECORDER = "PerturbedLoss(held_out=..., error=misclassified)"


def _input(
    name: str, dims: tuple[str, ...], units: str = "loss", dtype: str = "float64",
    *, optional: bool = False,
) -> Input:  # fmt: skip
    variable = Variable(name, ("step", *dims), units, dtype)
    source = f"perturbed_loss/{name}"
    return Input(variable, (source,), collector=_RECORDER, optional=optional)


def _attribute(name: str, dtype: str = "int64") -> Input:
    source = f"perturbed_loss@{name}"
    return Input(Variable(name, (), dtype=dtype), (source,), collector=_RECORDER)


def _whole(name: str, source: str, units: str, **options: Any) -> Input:
    dtype = "int64" if source == "steps/step" else "float64"
    variable = Variable(name, ("every_step",), units, dtype)
    return Input(variable, (source,), whole=True, **options)


_NOISE = ("set", "shape", "level", "sign", "draw")
_SQUARED = "(loss/weight)^2"

ANALYSIS = Analysis(
    name="information_bound",
    summary="How much can weights overfit, by what their trajectory tells of the data?",
    version=2,
    inputs=(
        _input("step", (), "step", "int64"),
        _input("sigma", ("level",), "weight"),
        _input("loss", ("set",)),
        _input("error", ("set",), "1"),
        _input("loss_se", ("set",)),
        _input("error_se", ("set",), "1"),
        _input("max_loss", ()),
        _input("noise_loss", _NOISE),
        _input("noise_error", _NOISE, "1"),
        _input("gradient_change", ("level", "gradient_draw"), _SQUARED),
        _input("deviation", ("batch",), _SQUARED),
        _input("example_variance", (), _SQUARED),
        _input("max_gradient_norm", (), "loss/weight"),
        _attribute("n_weights"),
        _attribute("n_data"),
        _attribute("n_examples"),
        _attribute("n_held_out"),
        _attribute("batch_size"),
        _attribute("replacement", "bool"),
        _attribute("plain_sgd", "bool"),
        _attribute("all_layers", "bool"),
        _whole("every_step", "steps/step", "step"),
        _whole("learning_rate", "steps/learning_rate", "weight^2/loss"),
        _whole("injected_noise", "steps/injected_noise", "1", optional=True,
               collector="session.log(injected_noise=std)"),
        _whole("plain_steps", "steps/plain_sgd", "1", optional=True),
        _input("error_low", (), "1", optional=True),
        _input("error_high", (), "1", optional=True),
        _input("example_variance_se", (), _SQUARED, optional=True),
    ),
    outputs=(
        Variable("bound", _BOUND, description="bound on the gap: the sum of both terms"),
        Variable("bound_se", _BOUND,
                 description="Monte Carlo standard error; NaN of pensia, by a largest norm seen"),
        Variable("trajectory_term", _BOUND, description="by what the trajectory tells of the data"),
        Variable("trajectory_term_se", _BOUND, description="its Monte Carlo standard error"),
        Variable("flatness_term", _BOUND, description="by what noise changes on new data alone"),
        Variable("flatness_term_se", _BOUND, description="its Monte Carlo standard error"),
        Variable("variance_part", _BOUND,
                 description="information without sensitivity of the gradient, over all of it"),
        Variable("sensitivity_part", _BOUND,
                 description="information without variance of the gradient, over all of it"),
        Variable("sigma", _BOUND, "weight", description="standard deviation of noise in total"),
        Variable("schedule", _BOUND, dtype="uint8",
                 description="how it is spent; 0: evenly, 1: by learning rate times root of V"),
        Variable("vacuous", _BOUND, dtype="uint8",
                 description="the bound exceeds the range; 0 as well where there is none"),
        Variable("vacuous_term", _BOUND, dtype="uint8",
                 description="what exceeds it; 1: trajectory, 2: flatness, 3: each, 4: their sum"),
        Variable("gap", _ROW, description="held-out less training error, or loss"),
        Variable("gap_se", _ROW, description="standard error, over examples"),
        Variable("gap_low", _ROW, description="interval, lower end"),
        Variable("gap_high", _ROW, description="interval, upper end"),
        Variable("measure", _CELL, dtype="uint8",
                 description="what is bounded; 0: the loss, 1: the error"),
        Variable("range", _CELL, description="of what is bounded: 1 of the error, or loss_bound"),
        Variable("assumption_holds", (*_CELL, "theory", "assumption"), dtype="uint8",
                 description=Assumption.meanings()),
        Variable("n_data", _CELL, dtype="int64", description="training examples"),
        Variable("n_held_out", _CELL, dtype="int64", description="held-out examples"),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches of the variance"),
        Variable("n_draws", _CELL, dtype="int64", description="draws of the flatness term"),
        Variable("n_steps", _CELL, dtype="int64", description="steps on record, to the last row"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={"theory": THEORIES, "assumption": tuple(ASSUMPTIONS)},
    cell=_CELL,
    kernel=information_bound,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("constant", 2.0, "of neu: 2 as derived, or 4", low=2.0),
        Parameter("loss_bound", None, "what the loss of an example cannot exceed", low=0.0),
        Parameter("sigma_total", None, "noise fixed in advance: the recorded one next to it",
                  low=0.0),
        Parameter("confidence", 0.95, "level of the gap's interval", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Neu, Dziugaite, Haghifam, Roy, Information-Theoretic Generalization Bounds for "
            "Stochastic Gradient Descent, COLT 2021",
            "https://arxiv.org/abs/2102.00931",
        ),
        Reference(
            "Wang, Mao, On the Generalization of Models Trained with SGD: Information-Theoretic "
            "Bounds and Implications, ICLR 2022",
            "https://arxiv.org/abs/2110.03128",
        ),
        Reference(
            "Pensia, Jog, Loh, Generalization Error Bounds for Noisy, Iterative Algorithms, ISIT "
            "2018",
            "https://arxiv.org/abs/1801.04295",
        ),
        Reference(
            "Negrea, Haghifam, Dziugaite, Khisti, Roy, Information-Theoretic Generalization Bounds "
            "for SGLD via Data-Dependent Estimates, NeurIPS 2019",
            "https://arxiv.org/abs/1911.02151",
        ),
        Reference(
            "Xu, Raginsky, Information-Theoretic Analysis of Generalization Capability of Learning "
            "Algorithms, NeurIPS 2017",
            "https://arxiv.org/abs/1705.07809",
        ),
    ),
)  # fmt: skip
