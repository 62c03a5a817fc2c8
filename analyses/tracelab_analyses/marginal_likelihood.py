"""How probable the training labels are before learning, and the PAC-Bayes bound that gives.

Networks at random are taken for a Gaussian process of the recorded kernel. The bound is of a
classifier drawn from it given the labels: it says nothing of the path that training took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.errors import UsageError
from tracelab.outcomes import at_ends, blank, shown
from tracelab.stats.gaussian_process import Evidence, expectation_propagation, laplace
from tracelab.stats.pac_bayes import realizable, realizable_published
from tracelab.typing import Array, Assumption, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_GROUPS = 2
# Of outputs, over examples: more than this is not Gaussian, less is taken for it.
EXCESS = 0.5
MEAN_SHARE = 0.1
UPPER = "upper half"
METHODS: dict[str, Callable[[FloatArray, FloatArray], Evidence]] = {
    "expectation propagation": expectation_propagation,
    "Laplace": laplace,
}
BOUNDS = {"proved": realizable, "published": realizable_published}
CHOSEN, INDEPENDENT, GAUSSIAN, EXACT = ASSUMPTIONS = (
    "network and initialization chosen without the data",
    "examples independent and of one law",
    "outputs of networks at random are Gaussian",
    "approximation of the evidence is exact",
)
TERMS = ("none", "the evidence", "the price of confidence")
_CELL = ("step", "layer")
_EVIDENCE = (*_CELL, "approximation")
_BOUND = (*_EVIDENCE, "theory")


def marginal_likelihood(
    kernel: FloatArray,
    mean: FloatArray,
    fourth: FloatArray,
    label: IntArray,
    n_networks: Array,
    n_units: Array,
    seed: Array,
    *,
    positive: str = UPPER,
    confidence: float = 0.95,
    vacuous_from: float = 0.5,
) -> dict[str, Array]:
    r"""Return the evidence of the labels under networks at random, and the bounds of it.

    .. math:: R(Q) \le 1 - \exp\left(-\frac{\log\frac{1}{P(U)} + \log\frac{1}{\delta}}{n}\right)

    P is a Gaussian process with the recorded kernel, U its functions with the signs of the n
    labels, Q is P given U. P(U) is approximated by expectation propagation. Laplace's method has
    the logistic link: there a classifier is the sign of f plus logistic noise of its own at every
    point, to which the same theorem applies. Unlike signs of f these depend on the kernel's scale.

    The recorded kernel, a mean over networks that know no data, is itself the covariance of a
    Gaussian process: the bound is of that one. Standard errors are those of the wide network's
    kernel, by the jackknife over groups of networks.

    Parameters
    ----------
    kernel : ndarray, shape (step, group, example, example2)
        Mean products of outputs, over the networks of a group.
    mean, fourth : ndarray, shape (step, group, example)
        Their mean, and that of their fourth power.
    label : ndarray of int, shape (step, example)
        Classes.
    n_networks, n_units : ndarray, shape ()
        Networks of all groups, and output units of each.
    seed : ndarray, shape (step, layer)
        Its shape says how many rows there are: all say the same.
    positive : str
        Classes that are one of the two of the task, such as "5,6,7"; "upper half": the larger
        half of the recorded classes, the smaller part of an odd number.
    confidence : float
        1 - delta.
    vacuous_from : float
        A bound from here on says nothing: that of a coin.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.

    Raises
    ------
    UsageError
        If `positive` is no list of classes.
    """
    steps, layers = seed.shape
    sizes = {"step": steps, "layer": layers, "approximation": len(METHODS), "theory": len(BOUNDS),
             "assumption": len(ASSUMPTIONS)}  # fmt: skip
    out = blank(ANALYSIS.outputs, sizes)
    for step in range(steps):
        signs = np.where(_positive(label[step], positive), 1.0, -1.0)
        found = _row(kernel[step], mean[step], fourth[step], signs, confidence, vacuous_from)
        found |= {
            "n_examples": signs.size,
            "n_positive": int((signs > 0).sum()),
            "n_classes": np.unique(label[step]).size,
            "n_networks": int(n_networks),
            "n_outputs": int(n_networks) * int(n_units),
            "n_groups": kernel.shape[1],
        }
        for name, value in found.items():
            out[name][step] = value
    return out


def _positive(label: IntArray, positive: str) -> Array:
    classes = np.unique(label)
    if positive == UPPER:
        return np.isin(label, classes[(classes.size + 1) // 2 :])
    try:
        chosen = [int(each) for each in positive.split(",")]
    except ValueError:
        raise UsageError(
            f"parameter 'positive' must be '{UPPER}' or classes such as '5,6,7', got {positive!r}"
        ) from None
    return np.isin(label, chosen)


def _row(
    kernel: FloatArray,
    mean: FloatArray,
    fourth: FloatArray,
    signs: FloatArray,
    confidence: float,
    vacuous_from: float,
) -> dict[str, Array | float | int]:
    """Return one step's evidence, bounds and tests."""
    groups, n = kernel.shape[0], signs.size
    gaussian = Assumption.UNCHECKED
    found: dict[str, Array | float | int] = {}
    if groups < MIN_GROUPS:
        status = Status.TOO_FEW_SAMPLES
    else:
        shape = {name: np.full(len(METHODS), np.nan)
                 for name in ("log_evidence", "log_evidence_se", "log_evidence_bias")}  # fmt: skip
        states = []
        for place, method in enumerate(METHODS.values()):
            evidence = method(kernel.mean(axis=0), signs)
            states.append(evidence.status)
            shape["log_evidence"][place] = evidence.log_evidence
            if evidence.status is Status.OK:
                others = [method(each, signs).log_evidence for each in _without(kernel)]
                se, bias = _jackknife(evidence.log_evidence, np.array(others))
                shape["log_evidence_se"][place] = se
                shape["log_evidence_bias"][place] = bias
        status = states[0]
        if status is Status.OK:
            found |= shape
            found |= _bounds(shape, n, 1.0 - confidence, vacuous_from)
            shapes, gaussian = _gaussian(kernel, mean, fourth)
            found |= shapes
    found["assumption_holds"] = np.array(
        [Assumption.UNCHECKED, Assumption.UNCHECKED, gaussian, Assumption.UNCHECKED]
    )
    found["status"] = int(status)
    return found


def _bounds(
    evidence: Mapping[str, FloatArray], n: int, delta: float, vacuous_from: float
) -> dict[str, Array | float | int]:
    """Return bounds and their terms, (approximation, theory)."""
    log_z = evidence["log_evidence"]
    bound = np.stack([of(log_z, n, delta) for of in BOUNDS.values()], axis=-1)
    from_evidence = -np.expm1(log_z / n)
    vacuous = bound >= vacuous_from
    term = np.where(from_evidence[:, None] >= vacuous_from, 1, 2)
    total = -np.log1p(-bound)
    return {
        "bound": bound,
        "bound_se": (1.0 - bound) * evidence["log_evidence_se"][:, None] / n,
        "evidence_term": -log_z / n,
        "price_term": total + log_z[:, None] / n,
        "vacuous": vacuous,
        "vacuous_term": np.where(vacuous, term, 0),
    }


def _without(values: FloatArray) -> FloatArray:
    """Return means over all groups but one."""
    groups = len(values)
    return np.asarray((values.sum(axis=0) - values) / (groups - 1))


def _jackknife(whole: float, others: FloatArray) -> tuple[float, float]:
    """Return standard error and bias of what was computed of all groups and of all but one."""
    groups, middle = others.size, others.mean()
    error = np.sqrt((groups - 1) / groups * ((others - middle) ** 2).sum())
    return float(error), float((groups - 1) * (middle - whole))


def _gaussian(
    kernel: FloatArray, mean: FloatArray, fourth: FloatArray
) -> tuple[dict[str, Array | float | int], Assumption]:
    """Return excess kurtosis and the mean's share of the second moment, with standard errors."""
    diagonal = np.einsum("gii->gi", kernel)
    groups = len(diagonal)
    everything = np.arange(groups)

    def measures(kept: IntArray) -> FloatArray:
        second = diagonal[kept].mean(axis=0)
        high = fourth[kept].mean(axis=0)
        # Where it left the range of numbers nothing is known.
        known = np.isfinite(high) & (high > 0)
        excess = np.where(known, high / second / second, np.nan) - 3.0
        # Products of different groups alone, whose errors are independent.
        total = mean[kept].sum(axis=0)
        pairs = kept.size * (kept.size - 1) or np.nan
        share = (total**2 - (mean[kept] ** 2).sum(axis=0)) / pairs / second
        return np.array([excess.mean(), share.mean()])

    values = measures(everything)
    others = np.array([measures(np.delete(everything, each)) for each in everything])
    errors = [_jackknife(float(values[k]), others[:, k])[0] for k in range(2)]
    low = np.maximum(np.abs(values) - 2 * np.array(errors), 0)
    high = np.abs(values) + 2 * np.array(errors)
    limits = np.array([EXCESS, MEAN_SHARE])
    state = Assumption.UNCHECKED
    if (low > limits).any():
        state = Assumption.FAILS
    elif (high < limits).all():
        state = Assumption.HOLDS
    names = ("excess_kurtosis", "mean_share")
    shown_values = dict(zip(names, values, strict=True))
    shown_errors = dict(zip((f"{name}_se" for name in names), errors, strict=True))
    return {**shown_values, **shown_errors}, state


def finding(result: xr.Dataset) -> Finding:
    """Return the evidence and the bound, at the first and last step they were recorded at."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding(
            "No step had a kernel of several groups of networks under which the evidence converged."
        )
    sentence = f"Under networks at random, {'; and '.join(at_ends(good, _say))}."
    return Finding(sentence, tuple(_warnings(good)))


def _say(row: xr.Dataset) -> str:
    first = row.isel(approximation=0)
    bound = first["bound"].sel(theory="proved")
    text = (
        f"labels of {int(row['n_examples'])} examples in two classes have a log probability of "
        f"{float(first['log_evidence']):.4g} (standard error "
        f"{float(first['log_evidence_se']):.2g}), and those with these labels err on at most "
        f"{float(bound):.3g} of new examples: {float(first['evidence_term']):.3g} of the evidence "
        f"and {float(first['price_term'].sel(theory='proved')):.2g} of price, at step "
        f"{int(row['step'])}"
    )
    code = int(first["vacuous_term"].sel(theory="proved"))
    return f"{text}; this bound is " + (f"vacuous by {TERMS[code]}" if code else "not vacuous")


def _warnings(good: xr.Dataset) -> list[str]:
    last = good.isel(step=-1)
    found = [
        "The bound is of a network drawn at random given the labels, not of the one that was "
        "trained, and by an approximation of their probability that is not a bound of it. It takes "
        "for granted that examples are independent and of one law, and that the network was not "
        "chosen by these data."
    ]
    outputs, n = int(last["n_outputs"]), int(last["n_examples"])
    classes, positive = int(last["n_classes"]), int(last["n_positive"])
    if classes > 2:
        given = good.attrs.get("parameters", {}).get("positive", UPPER)
        found.append(
            f"The {classes} classes of the labels are made two by positive={given!r}, {positive} "
            f"of {n} examples against the others: the bound is of that task, and none on telling "
            f"{classes} classes apart."
        )
    lacking = [str(each["approximation"].values) for each in
               (last.isel(approximation=place) for place in range(len(METHODS)))
               if not np.isfinite(each["log_evidence"])]  # fmt: skip
    if lacking:
        found.append(f"{' and '.join(lacking)} did not converge: there is no bound by it.")
    if not np.isfinite(last["log_evidence_se"][0]):
        found.append(
            "The standard error is not known: without some group of networks the labels have no "
            "evidence that converges."
        )
    if positive in (0, n):
        found.append(
            f"All {n} examples are of one of the two classes that positive= makes: the bound is of "
            "a task with one answer."
        )
    bias, error = (float(last[f"log_evidence_{name}"][0]) for name in ("bias", "se"))
    if outputs < 10 * n or not np.hypot(bias, error) < 0.1 * abs(float(last["log_evidence"][0])):
        found.append(
            f"The kernel is of {outputs} outputs for {n} examples, which shifts the log "
            f"probability by about {bias:.2g}: it is that of these networks, not of endlessly "
            "many (record more, by PriorKernel(networks=...))."
        )
    if int(last["assumption_holds"].sel(assumption=GAUSSIAN)) == Assumption.FAILS:
        found.append(
            "Outputs of networks at random are not Gaussian about zero (excess kurtosis "
            f"{float(last['excess_kurtosis']):.2g}, mean {100 * float(last['mean_share']):.0f} % "
            "of their second moment): the bound is of a Gaussian process of the same kernel."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the bounds of each trace by approximation, and their terms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.set_label(
        "PAC-Bayes bounds by the probability of the labels under networks at random, by how it is "
        "approximated, at the last step recorded, with two standard errors of the kernel; the "
        "terms of the proved bound, in nats an example."
    )
    left, right = figure.subplots(1, 2)
    places = np.arange(len(METHODS))
    for number, (label, result) in enumerate(results.items()):
        rows = shown(result)
        if rows.sizes["step"] == 0:
            continue
        last = rows.isel(step=-1)
        color, shift = f"C{number}", 0.1 * number
        for theory, style in (("proved", "o"), ("published", "s")):
            each = last.sel(theory=theory)
            left.errorbar(places + shift, each["bound"], 2 * each["bound_se"], fmt=style,
                          color=color, ms=5, mfc=color if style == "o" else "none",
                          label=f"{label}, {theory}")  # fmt: skip
        price = last["price_term"].sel(theory="proved")
        right.bar(places + shift, last["evidence_term"], 0.08, color=color, label=label)
        right.bar(places + shift, price, 0.08, bottom=last["evidence_term"], color=color, alpha=0.4)
    left.axhline(0.5, color="0.6", lw=1, ls=":")
    left.set(ylabel="bound on the error", title="Bound", ylim=(0, 1))
    right.set(ylabel="nats an example", title="Evidence; price in light colour")
    for axis in (left, right):
        axis.set_xticks(places, list(METHODS))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, frameon=False)
    return figure


def _input(source: str, dims: tuple[str, ...] = (), dtype: str = "float64") -> Input:
    return Input(
        Variable(source[1:], dims, "1", dtype),
        (f"prior_kernel{source}",),
        collector="PriorKernel()",
    )


ANALYSIS = Analysis(
    name="marginal_likelihood",
    summary="How probable are the labels under networks at random? The bound of it",
    version=2,
    inputs=(
        _input("/kernel", ("step", "group", "example", "example2")),
        _input("/mean", ("step", "group", "example")),
        _input("/fourth", ("step", "group", "example")),
        _input("/label", ("step", "example"), "int64"),
        _input("@n_networks", dtype="int64"),
        _input("@n_units", dtype="int64"),
    ),
    outputs=(
        Variable("bound", _BOUND, description="on the risk of the prior given the labels"),
        Variable("bound_se", _BOUND, description="standard error, of the kernel's networks alone"),
        Variable("log_evidence", _EVIDENCE, description="log probability of the labels, in nats"),
        Variable("log_evidence_se", _EVIDENCE,
                 description="standard error over groups of networks, by the jackknife"),
        Variable("log_evidence_bias", _EVIDENCE,
                 description="what few networks add to it, by the jackknife"),
        Variable("evidence_term", _EVIDENCE, description="minus log evidence, an example"),
        Variable("price_term", _BOUND, description="what the bound has beside it, an example"),
        Variable("vacuous", _BOUND, dtype="uint8", description="1 where the bound says nothing"),
        Variable("vacuous_term", _BOUND, dtype="uint8",
                 description="what makes it so: " + ", ".join(
                     f"{code} {text}" for code, text in enumerate(TERMS))),
        Variable("excess_kurtosis", _CELL,
                 description="of outputs over initializations, mean of examples; 0 of Gaussians"),
        Variable("excess_kurtosis_se", _CELL, description="standard error, by the jackknife"),
        Variable("mean_share", _CELL,
                 description="share of the second moment that is the mean's square"),
        Variable("mean_share_se", _CELL, description="standard error, by the jackknife"),
        Variable("assumption_holds", (*_CELL, "assumption"), dtype="uint8",
                 description=Assumption.meanings()),
        Variable("n_examples", _CELL, dtype="int64", description="labels"),
        Variable("n_positive", _CELL, dtype="int64", description="of the second class"),
        Variable("n_classes", _CELL, dtype="int64", description="classes that labels have"),
        Variable("n_networks", _CELL, dtype="int64", description="initializations"),
        Variable("n_outputs", _CELL, dtype="int64", description="of all of them: the sample size"),
        Variable("n_groups", _CELL, dtype="int64", description="groups of networks"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={
        "approximation": tuple(METHODS),
        "theory": tuple(BOUNDS),
        "assumption": ASSUMPTIONS,
    },
    cell=_CELL,
    kernel=marginal_likelihood,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("positive", UPPER, "classes of one side, such as '5,6,7'"),
        Parameter("confidence", 0.95, "with which a bound holds", low=0.5, high=0.9999),
        Parameter("vacuous_from", 0.5, "from where a bound says nothing", low=0.0, high=1.0),
    ),
    references=(
        Reference(
            "Valle-Perez, Louis, Generalization Bounds for Deep Learning, 2020",
            "https://arxiv.org/abs/2012.04115",
        ),
        Reference(
            "Mingard, Valle-Perez, Skalse, Louis, Is SGD a Bayesian Sampler? Well, Almost, JMLR "
            "2021",
            "https://arxiv.org/abs/2006.15191",
        ),
        Reference("McAllester, Some PAC-Bayesian Theorems, Machine Learning 1999"),
        Reference(
            "Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, sections 3.4, 3.6",
            "https://gaussianprocess.org/gpml/",
        ),
    ),
)  # fmt: skip
