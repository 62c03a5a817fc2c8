"""PAC-Bayes bounds on the risk of the recorded network with Gaussian noise on its weights.

Every bound stands with the terms it is made of, with the assumptions that no trace can check, and
with the term that makes it vacuous where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import at_ends, blank, shown, subject
from tracelab.stats.pac_bayes import (
    catoni,
    catoni_price,
    draws_limit,
    mcallester,
    priced_prior,
    seeger,
    seeger_price,
)
from tracelab.typing import Array, Assumption, FloatArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_DRAWS = 2
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
_CELL = ("step", "layer")
_BOUND = (*_CELL, "theory")
_LEVEL = (*_BOUND, "level")


def pac_bayes(
    sigma: FloatArray,
    distance: FloatArray,
    noise_error: FloatArray,
    noise_loss: FloatArray,
    noise_variance: FloatArray,
    noise_log_det: FloatArray,
    n_weights: Array,
    n_examples: Array,
    n_held_out: Array,
    seed: Array,
    all_layers: FloatArray | None = None,
    *,
    confidence: float = 0.95,
    largest_prior_variance: float = 1.0,
    prior_precision: int = 100,
    loss_bound: float | None = None,
    vacuous_from: float = 0.99,
) -> dict[str, Array]:
    r"""Return bounds on the risk of weights :math:`N(w, \sigma^2 S)`, of all layers together.

    The prior is :math:`N(w_0, \lambda I)` about the weights at the start. With

    .. math:: KL = \tfrac12\left[\frac{\|w - w_0\|^2 + \sigma^2 \mathrm{tr}\,S}{\lambda}
       - \log\det \sigma^2 S + d \log\lambda - d\right]

    the three forms are those of `tracelab.stats.pac_bayes`; each is least over the recorded
    :math:`\sigma`, which are free since the bounds hold of all posteriors at once, and over
    :math:`\lambda = c\,e^{-j/b}`, which cost :math:`2\log(b\log(c/\lambda)) + \log(\pi^2/6)`.
    S, which is found with the same data, is part of the posterior and free as well.

    Of 1 - `confidence` one half goes to the training error under noise, of which draws give an
    upper limit, shared equally by the recorded noises; a quarter to the theorem of Seeger, from
    which McAllester's form follows, and a quarter to that of Catoni. So the six bounds of a step
    hold together.

    Parameters
    ----------
    sigma : ndarray, shape (step, level)
        Standard deviations of noise.
    distance : ndarray, shape (step,)
        ``||w - w_0||``.
    noise_error, noise_loss : ndarray, shape (step, set, shape, level, sign, draw)
        Under noise, in both directions; set 0 is training data, 1 held-out data.
    noise_variance, noise_log_det : ndarray, shape (step, shape)
        tr(S) / d, and log det S.
    n_weights, n_examples, n_held_out : ndarray, shape ()
        Weights that move; training and held-out examples evaluated.
    seed : ndarray, shape (step, layer)
        Its shape says how many rows there are: all say the same.
    all_layers : ndarray, shape (), optional
        1 where all trained layers move.
    confidence : float
        With which the bounds of a step hold together; also of the interval of the gap.
    largest_prior_variance, prior_precision : float, int
        c and b of the grid.
    loss_bound : float, optional
        Where no error is recorded: the loss is taken to be in [0, loss_bound], and divided by it.
    vacuous_from : float
        A bound from here on says nothing.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    steps, layers = seed.shape
    sizes = {"step": steps, "layer": layers, "theory": len(THEORIES),
             "level": sigma.shape[-1], "assumption": len(ASSUMPTIONS)}  # fmt: skip
    out = blank(ANALYSIS.outputs, sizes)
    n, d, held = int(n_examples), int(n_weights), int(n_held_out)
    covered = Assumption.UNCHECKED
    if all_layers is not None:
        covered = Assumption.HOLDS if all_layers == 1 else Assumption.FAILS
    for step in range(steps):
        losses, bounded, of_loss = _losses(noise_error[step], noise_loss[step], loss_bound)
        status = _status(min(n, d), losses, noise_loss[step], distance[step])
        found: dict[str, Array | float | int] = {
            "sigma_recorded": sigma[step],
            "of_loss": of_loss,
            "n_draws": losses.shape[-1],
            "n_weights": d,
            "n_examples": n,
            "n_held_out": held,
            "assumption_holds": np.array(
                [Assumption.UNCHECKED, Assumption.UNCHECKED, bounded, covered]
            ),
            "status": status,
        }
        if status is Status.OK:
            found |= _bounds(
                losses, sigma[step], distance[step], noise_variance[step], noise_log_det[step],
                (n, d, held), confidence, (largest_prior_variance, prior_precision), vacuous_from,
            )  # fmt: skip
        for name, value in found.items():
            out[name][step] = value
    return out


def _losses(
    error: FloatArray, loss: FloatArray, loss_bound: float | None
) -> tuple[FloatArray, Assumption, bool]:
    """Return what is bounded, (set, shape, level, draw): the mean of both directions of a draw."""
    missing = bool(np.isnan(error[0]).all())
    taken = loss / loss_bound if missing and loss_bound is not None else error
    # By rounding, a mean of pieces can exceed 1.
    outside = (taken < 0) | (taken > 1 + 1e-12)
    bounded = Assumption.UNCHECKED if missing else Assumption.HOLDS
    if outside.any():
        bounded = Assumption.FAILS
    # Noise under which it is out of bounds once has no bound.
    lost = (outside | np.isnan(taken)).any(axis=(-2, -1), keepdims=True)
    pairs = np.where(lost, np.nan, np.minimum(taken, 1.0))
    return pairs.mean(axis=-2), bounded, missing and loss_bound is not None


def _status(size: int, losses: FloatArray, noise_loss: FloatArray, distance: float) -> Status:
    if size < 1 or losses.shape[-1] < MIN_DRAWS:
        return Status.TOO_FEW_SAMPLES
    if not np.isfinite(distance) or np.isnan(losses[0]).all():
        return Status.NON_FINITE_INPUT
    first = noise_loss[0, 0]
    if (first == first.flat[0]).all():
        return Status.CONSTANT_INPUT
    return Status.OK


def _bounds(
    losses: FloatArray,
    sigma: FloatArray,
    distance: float,
    variance: FloatArray,
    log_det: FloatArray,
    sizes: tuple[int, int, int],
    confidence: float,
    grid: tuple[float, int],
    vacuous_from: float,
) -> dict[str, Array | float | int]:
    """Return the bounds of one step with their terms, by theory."""
    n, d, held = sizes
    delta = 1.0 - confidence
    draws = losses.shape[-1]
    mean = losses.mean(axis=-1)
    error = losses.std(axis=-1, ddof=1) / np.sqrt(draws)
    # Also those that lost their bound by what was drawn: which remain is not known beforehand.
    each = 0.5 * delta / (np.isfinite(mean[0]).any(axis=-1).sum() * sigma.size)
    prior = priced_prior(
        distance**2, sigma**2 * d * variance[:, None],
        2 * d * np.log(sigma) + log_det[:, None], d,
        largest=grid[0], precision=grid[1],
    )  # fmt: skip
    high = draws_limit(mean[0], draws, each)
    # Of each noise: what draws leave open of its training error, and the error by itself.
    around = np.clip(mean[0] + np.array([-1.0, 1.0])[:, None, None] * error[0], 0.0, 1.0)
    ends = draws_limit(around, draws, each)
    rows: list[dict[str, Array | float | int]] = []
    for form in FORMS:
        fixed = catoni_price(delta / 4) if form == "catoni" else seeger_price(n, delta / 4)
        price = prior.price + fixed
        nats = prior.kl + price
        bound, beta = _form(form, high, nats, n)
        low_end, high_end = _form(form, ends, nats, n)[0]
        no_price, no_draws = _form(form, mean[0], np.stack([prior.kl, nats]), n)[0]
        for s in range(len(SHAPES)):
            row: dict[str, Array | float | int] = {"bound_by_level": bound[s]}
            rows.append(row)
            if not np.isfinite(bound[s]).any():
                continue
            at = (s, int(np.nanargmin(bound[s])))
            parts = [mean[0][at], no_price[at], no_draws[at], bound[at]]
            row |= {
                "bound": bound[at],
                "bound_se": (high_end[at] - low_end[at]) / 2,
                "bound_many_draws": no_draws[at],
                "empirical": mean[0][at],
                "empirical_se": error[0][at],
                "empirical_high": high[at],
                "kl": prior.kl[at],
                "price": price[at],
                "penalty": bound[at] - high[at],
                "sigma": sigma[at[1]],
                "prior_deviation": np.sqrt(prior.variance[at]),
                "beta": beta[at],
                "vacuous": bound[at] >= vacuous_from,
                "vacuous_term": _culprit(parts, vacuous_from),
                **_gap(losses[(slice(None), *at)], held, confidence),
            }
    names = dict.fromkeys(name for row in rows for name in row)
    found = {
        name: np.array([
            row.get(name, 0 if name.startswith("vacuous") else np.nan) for row in rows
        ])
        for name in names
    }  # fmt: skip
    return dict(found)


def _form(form: str, empirical: FloatArray, nats: FloatArray, n: int) -> tuple[FloatArray, Array]:
    """Return the bound, and Catoni's beta or NaN."""
    if form == "catoni":
        return catoni(empirical, nats, n)
    bound = (mcallester if form == "mcallester" else seeger)(empirical, nats, n)
    return bound, np.full(np.shape(bound), np.nan)


def _culprit(parts: list[float], vacuous_from: float) -> int:
    """Return the term with which the bound, its terms added one by one, first says nothing."""
    for term, value in zip((EMPIRICAL, KL, PRICE, DRAWS), parts, strict=True):
        if value >= vacuous_from:
            return term
    return NOT_VACUOUS


def _gap(losses: FloatArray, held: int, confidence: float) -> dict[str, float]:
    """Return the held-out risk of one noise and what it exceeds the training risk by.

    Its error is that of draws, common to both, and of held-out examples: a mean p of losses in
    [0, 1] has a variance of p (1 - p) over their number at most.
    """
    train, test = losses
    if held < 1 or not np.isfinite(test).all():
        return dict.fromkeys(("held_out", "gap", "gap_se", "gap_low", "gap_high"), np.nan)
    risk, gap = float(test.mean()), float((test - train).mean())
    variance = (test - train).var(ddof=1) / train.size + risk * (1 - risk) / held
    reach = stats.t.ppf(0.5 + confidence / 2, train.size - 1) * np.sqrt(variance)
    return {
        "held_out": risk,
        "gap": gap,
        "gap_se": float(np.sqrt(variance)),
        "gap_low": float(gap - reach),
        "gap_high": float(gap + reach),
    }


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
    text = (
        f"the {what} is at most {bound:.3g} ({best['theory'].values}) at step {int(row['step'])}: "
        f"{float(best['empirical']):.3g} in training{risk}, at most {limit:.3g} by "
        f"{int(best['n_draws'])} draws, {kl:.3g} nats from the prior and {price:.3g} of price over "
        f"{int(best['n_examples'])} examples"
    )
    if bool(best["vacuous"]):
        return f"{text}; this bound is vacuous by {TERMS[int(best['vacuous_term'])]}"
    return f"{text}; this bound is not vacuous"


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
        found.append("Losses beyond loss_bound, or errors beyond 1, were seen: no theorem holds.")
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


def _input(
    source: str, dims: tuple[str, ...] = (), units: str = "1", dtype: str = "float64",
    *, optional: bool = False,
) -> Input:  # fmt: skip
    name = source[1:]
    return Input(
        Variable(name, dims, units, dtype), (f"perturbed_loss{source}",), optional=optional,
        collector="PerturbedLoss(held_out=..., error=misclassified)",
    )  # fmt: skip


_NOISE = ("step", "set", "shape", "level", "sign", "draw")
ANALYSIS = Analysis(
    name="pac_bayes",
    summary="What bounds the error of the network with noise on its weights? PAC-Bayes",
    version=1,
    inputs=(
        _input("/sigma", ("step", "level"), "weight"),
        _input("/distance", ("step",), "weight"),
        _input("/noise_error", _NOISE),
        _input("/noise_loss", _NOISE, "loss"),
        _input("/noise_variance", ("step", "shape")),
        _input("/noise_log_det", ("step", "shape")),
        _input("@n_weights", dtype="int64"),
        _input("@n_examples", dtype="int64"),
        _input("@n_held_out", dtype="int64"),
        _input("@all_layers", optional=True),
    ),
    outputs=(
        Variable("bound", _BOUND, description="on the risk under noise, the least over its sizes"),
        Variable("bound_se", _BOUND, description="what another sample of draws changes of it"),
        Variable("bound_many_draws", _BOUND, description="with no allowance for draws; no bound"),
        Variable("bound_by_level", _LEVEL, description="by standard deviation of noise"),
        Variable("empirical", _BOUND, description="training error under noise, mean of draws"),
        Variable("empirical_se", _BOUND, description="standard error, over draws"),
        Variable("empirical_high", _BOUND, description="upper confidence limit of it"),
        Variable("kl", _BOUND, description="divergence of posterior from prior, in nats"),
        Variable("price", _BOUND,
                 description="of the confidence and the prior's variance, in nats"),
        Variable("penalty", _BOUND, description="bound less the limit of the training error"),
        Variable("sigma", _BOUND, "weight", description="standard deviation of the noise"),
        Variable("prior_deviation", _BOUND, "weight",
                 description="standard deviation of the prior"),
        Variable("beta", _BOUND, description="slope of Catoni's form, NaN of the others"),
        Variable("held_out", _BOUND, description="held-out error under noise"),
        Variable("gap", _BOUND, description="held-out less training error under noise"),
        Variable("gap_se", _BOUND, description="standard error, over draws and held-out examples"),
        Variable("gap_low", _BOUND, description="interval, lower end"),
        Variable("gap_high", _BOUND, description="interval, upper end"),
        Variable("vacuous", _BOUND, dtype="uint8", description="1 where the bound says nothing"),
        Variable("vacuous_term", _BOUND, dtype="uint8",
                 description="what makes it so: " + ", ".join(
                     f"{code} {text}" for code, text in enumerate(TERMS))),
        Variable("assumption_holds", (*_CELL, "assumption"), dtype="uint8",
                 description=Assumption.meanings()),
        Variable("sigma_recorded", (*_CELL, "level"), "weight",
                 description="standard deviations of noise"),
        Variable("of_loss", _CELL, dtype="uint8",
                 description="1 where it is of the loss over loss_bound, 0 of the error"),
        Variable("n_draws", _CELL, dtype="int64", description="draws of the noise"),
        Variable("n_weights", _CELL, dtype="int64", description="weights with noise"),
        Variable("n_examples", _CELL, dtype="int64", description="training examples"),
        Variable("n_held_out", _CELL, dtype="int64", description="held-out examples"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={"theory": THEORIES, "assumption": ASSUMPTIONS},
    cell=_CELL,
    kernel=pac_bayes,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("confidence", 0.95, "with which the bounds of a step hold", low=0.5, high=0.9999),
        Parameter("largest_prior_variance", 1.0, "widest prior of the grid", low=1e-12),
        Parameter("prior_precision", 100, "variances of the grid to a factor of e", low=1),
        Parameter("loss_bound", None, "largest loss there can be, where no error is recorded",
                  low=1e-12),
        Parameter("vacuous_from", 0.99, "from where a bound says nothing", low=0.0, high=1.0),
    ),
    references=(
        Reference(
            "Dziugaite, Roy, Computing Nonvacuous Generalization Bounds for Deep (Stochastic) "
            "Neural Networks with Many More Parameters than Training Data, UAI 2017",
            "https://arxiv.org/abs/1703.11008",
        ),
        Reference(
            "Maurer, A Note on the PAC Bayesian Theorem, 2004",
            "https://arxiv.org/abs/cs/0411099",
        ),
        Reference("Langford, Seeger, Bounds for Averaging Classifiers, 2001"),
        Reference(
            "Catoni, PAC-Bayesian Supervised Classification: The Thermodynamics of Statistical "
            "Learning, 2007, theorem 1.2.6",
            "https://arxiv.org/abs/0712.0248",
        ),
    ),
)  # fmt: skip
