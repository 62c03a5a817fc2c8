"""PAC-Bayes bounds on the risk of the recorded network with Gaussian noise on its weights.

Every bound stands with the terms it is made of, with the assumptions that no trace can check, and
with the term that makes it vacuous where it is.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy import stats

from tracelab.contracts import Analysis, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank
from tracelab.stats.pac_bayes import (
    catoni,
    catoni_price,
    draws_limit,
    mcallester,
    priced_prior,
    seeger,
    seeger_price,
)
from tracelab.typing import Array, Assumption, FloatArray, IntArray, Status
from tracelab_analyses.pac_bayes_figures import (
    ASSUMPTIONS,
    DRAWS,
    EMPIRICAL,
    FORMS,
    KL,
    NOT_VACUOUS,
    PRICE,
    TERMS,
    THEORIES,
    finding,
    plot,
)

MIN_DRAWS = 2
# By so much, in parts, can a mean by pieces exceed the largest of its values.
_ROUNDING = 1e-12
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
    error_low: FloatArray | None = None,
    error_high: FloatArray | None = None,
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
    error_low, error_high : ndarray, shape (step,), optional
        Smallest and largest error of an example; NaN where only means of batches are known.
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
    good, kept = [], []
    for step in range(steps):
        losses, bounded, of_loss = _losses(noise_error[step], noise_loss[step], loss_bound)
        if not of_loss and error_low is not None and error_high is not None:
            bounded = _by_example(bounded, error_low[step], error_high[step])
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
        for name, value in found.items():
            out[name][step] = value
        if status is Status.OK:
            good.append(step)
            kept.append(losses)
    if good:
        bounds = _bounds(
            np.stack(kept), sigma[good], distance[good], noise_variance[good], noise_log_det[good],
            (n, d, held), confidence, (largest_prior_variance, prior_precision), vacuous_from,
        )  # fmt: skip
        for name, values in bounds.items():
            out[name][good] = values[:, None]
    return out


def _losses(
    error: FloatArray, loss: FloatArray, loss_bound: float | None
) -> tuple[FloatArray, Assumption, bool]:
    """Return what is bounded, (set, shape, level, draw): the mean of both directions of a draw."""
    missing = bool(np.isnan(error[0]).all())
    taken = loss / loss_bound if missing and loss_bound is not None else error
    # By rounding, a mean of pieces can exceed 1.
    outside = (taken < 0) | (taken > 1 + _ROUNDING)
    # A set and shape without any number was not recorded.
    lacking = np.isnan(taken)
    spoiled = lacking & ~lacking.all(axis=(-3, -2, -1), keepdims=True)
    bounded = Assumption.FAILS if (outside | spoiled).any() else Assumption.UNCHECKED
    # Noise under which it is out of bounds once has no bound.
    lost = (outside | lacking).any(axis=(-2, -1), keepdims=True)
    pairs = np.where(lost, np.nan, np.minimum(taken, 1.0))
    return pairs.mean(axis=-2), bounded, missing and loss_bound is not None


def _by_example(means: Assumption, low: float, high: float) -> Assumption:
    """Return whether errors of single examples are in [0, 1], of which the means say little."""
    if low < 0 or high > 1 + _ROUNDING:
        return Assumption.FAILS
    inside = means is not Assumption.FAILS and bool(np.isfinite(low) and np.isfinite(high))
    return Assumption.HOLDS if inside else means


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
    distance: FloatArray,
    variance: FloatArray,
    log_det: FloatArray,
    sizes: tuple[int, int, int],
    confidence: float,
    grid: tuple[float, int],
    vacuous_from: float,
) -> dict[str, Array]:
    """Return the bounds of some steps with their terms, by step and theory.

    Losses have the shape (step, set, shape, level, draw).
    """
    n, d, held = sizes
    delta = 1.0 - confidence
    draws = losses.shape[-1]
    train, level = losses[:, 0].mean(axis=-1), sigma[:, None]
    error = losses[:, 0].std(axis=-1, ddof=1) / np.sqrt(draws)
    # Also those that lost their bound by what was drawn: which remain is not known beforehand.
    shapes = np.isfinite(train).any(axis=-1).sum(axis=-1)
    each = (0.5 * delta / (shapes * sigma.shape[-1]))[:, None, None]
    prior = priced_prior(
        distance[:, None, None] ** 2, level**2 * d * variance[..., None],
        2 * d * np.log(level) + log_det[..., None], d, largest=grid[0], precision=grid[1],
    )  # fmt: skip
    high = draws_limit(train, draws, each)
    # Of each noise: what draws leave open of its training error, and the error by itself.
    low_end, high_end = (
        draws_limit(np.clip(train + sign * error, 0.0, 1.0), draws, each) for sign in (-1, 1)
    )
    found: dict[str, list[Array]] = defaultdict(list)
    for form in FORMS:
        fixed = catoni_price(delta / 4) if form == "catoni" else seeger_price(n, delta / 4)
        price = prior.price + fixed
        nats = prior.kl + price
        bound, beta = _form(form, high, nats, n)
        known: Array = np.asarray(np.isfinite(bound).any(axis=-1, keepdims=True))
        best = np.where(np.isfinite(bound), bound, np.inf).argmin(axis=-1, keepdims=True)

        def at(values: FloatArray, known: Array = known, best: Array = best) -> FloatArray:
            chosen = np.take_along_axis(np.broadcast_to(values, train.shape), best, axis=-1)
            return np.where(known, chosen, np.nan)[..., 0]

        no_price, no_draws = (_form(form, train, each, n)[0] for each in (prior.kl, nats))
        spread = _form(form, high_end, nats, n)[0] - _form(form, low_end, nats, n)[0]
        parts = np.stack([at(each) for each in (train, no_price, no_draws, bound)])
        pairs = np.take_along_axis(losses, best[:, None, :, :, None], axis=-2)[..., 0, :]
        row = {
            "bound": at(bound),
            "bound_se": at(spread) / 2,
            "bound_by_level": bound,
            "bound_many_draws": at(no_draws),
            "empirical": at(train),
            "empirical_se": at(error),
            "empirical_high": at(high),
            "kl": at(prior.kl),
            "price": at(price),
            "penalty": at(bound - high),
            "sigma": at(level),
            "prior_deviation": np.sqrt(at(prior.variance)),
            "beta": at(beta),
            "vacuous": parts[-1] >= vacuous_from,
            "vacuous_term": _culprit(parts, vacuous_from),
            **_gap(np.where(known[:, None], pairs, np.nan), held, confidence),
        }
        for name, values in row.items():
            found[name].append(values)
    # By form and shape, as theories are named.
    return {name: np.concatenate(values, axis=1) for name, values in found.items()}


def _form(form: str, empirical: FloatArray, nats: FloatArray, n: int) -> tuple[FloatArray, Array]:
    """Return the bound, and Catoni's beta or NaN."""
    if form == "catoni":
        return catoni(empirical, nats, n)
    bound = (mcallester if form == "mcallester" else seeger)(empirical, nats, n)
    return bound, np.full(np.shape(bound), np.nan)


def _culprit(parts: FloatArray, vacuous_from: float) -> IntArray:
    """Return the term with which the bound, its terms added one by one, first says nothing."""
    terms = np.array([EMPIRICAL, KL, PRICE, DRAWS])
    above = parts >= vacuous_from
    return np.where(above.any(axis=0), terms[above.argmax(axis=0)], NOT_VACUOUS)


def _gap(losses: FloatArray, held: int, confidence: float) -> dict[str, FloatArray]:
    """Return the held-out risk of noises and what it exceeds the training risk by.

    Its error is that of draws, common to both, and of held-out examples: a mean p of losses in
    [0, 1] has a variance of p (1 - p) over their number at most. Of shape (step, set, shape, draw).
    """
    train, test = losses[:, 0], losses[:, 1] if held else np.full_like(losses[:, 0], np.nan)
    risk, gap = test.mean(axis=-1), (test - train).mean(axis=-1)
    draws = train.shape[-1]
    variance = (test - train).var(axis=-1, ddof=1) / draws + risk * (1 - risk) / max(held, 1)
    reach = stats.t.ppf(0.5 + confidence / 2, draws - 1) * np.sqrt(variance)
    return {
        "held_out": risk,
        "gap": gap,
        "gap_se": np.sqrt(variance),
        "gap_low": gap - reach,
        "gap_high": gap + reach,
    }


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
    version=2,
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
        _input("/error_low", ("step",), optional=True),
        _input("/error_high", ("step",), optional=True),
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
        Parameter("prior_precision", 100, "variances of the grid to a factor of e", low=1,
                  high=10**12),
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
