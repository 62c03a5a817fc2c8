"""Noise of updates: what an optimizer makes of gradients and their noise, measured from both.

`tracelab_analyses.momentum` has the formula for known optimizers. Here the same sums are measured
from recorded gradients and weights, of any optimizer, and put beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tracelab.contracts import Analysis, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank
from tracelab.typing import Array, FloatArray, IntArray, Status
from tracelab_analyses.momentum import Momentum, momentum_of, number
from tracelab_analyses.update_figures import APART, finding, plot
from tracelab_analyses.update_response import (
    ESTIMATES,
    FORMULAS,
    LAGGED,
    MEASURED,
    RESPONSE,
    Sums,
    jackknife,
    left_over,
)

COLLECTOR = "Weights(every=1, sketch=S) and Gradients(every=1, sketch=S)"
LAGS = 128
MIN_BLOCKS, MAX_BLOCKS = 8, 20
# Of an estimate, that may change significantly where the last quarter of the memory is left out.
TAIL = 0.05
# Smallest eigenvalue over the largest, below which past gradients cannot be told apart.
SINGULAR = 1e-10
# Drift in half a memory, over the variance of noise: more is no line in the lag.
DRIFT = 0.5
_CELL = ("layer",)


def update_noise(
    weight: FloatArray,
    gradient: FloatArray,
    step: IntArray,
    learning_rate: FloatArray,
    applied: FloatArray | None = None,
    optimizer: Array | None = None,
    resumed: Array | None = None,
    *,
    memory: int | None = None,
) -> dict[str, Array]:
    r"""Return how much of gradients and of their noise is in updates, by layer.

    With :math:`v_t = (w_t - w_{t+1}) / \mathrm{lr}_t` the response :math:`h` is the least-squares
    solution of

    .. math:: v_t = a + \sum_{k < K} h_k\, g_{t-k} + r_t,

    one :math:`h` for all directions, one :math:`a` a block and direction. For SGD with momentum it
    is exact, whatever the gradients do: curvature, drift and epochs do not enter. With halved mean
    squared differences at a lag, :math:`s_v(k) = \langle \|v_t - v_{t-k}\|^2 \rangle / 2`,

    .. math:: \mathrm{gain} = \sum_k h_k, \qquad
       \mathrm{noise} = \sum_k h_k^2 + s_r(K/2) / s_g(K/2):

    what is left, :math:`r`, is noise that is no response. What happened in the run itself is in
    :math:`s_v` and :math:`s_g`. Beyond the memory, from :math:`K/2` on, they are the variance of
    the noise and a drift of the mean, taken for a line in :math:`k`; ``observed`` is the ratio of
    the intercepts. With :math:`\bar s` the mean over these lags,
    :math:`\bar s + 2 \sum_{0 < k < K/2} (\bar s - s(k))` is the variance of long sums for each
    summand; ``sums`` is its ratio.

    Parameters
    ----------
    weight, gradient : ndarray, shape (layer, step, direction)
        Projections by the same signs, units ``weight`` and ``loss/weight``.
    step : ndarray of int, shape (step,)
        Optimizer steps.
    learning_rate : ndarray, shape (step,)
        Of each step, ``weight^2/loss``.
    applied : ndarray, shape (step,), optional
        0 at steps that kept the weights: they are no steps.
    optimizer : array of object, optional
        Name and hyper-parameters of the optimizer, or of several.
    resumed : array of object, optional
        Resumptions of the run. Updates after one are not read as responses to gradients before:
        the optimizer may have lost them.
    memory : int, optional
        Gradients that an update may depend on, ``K``; a tenth of the steps, up to 128, if left out.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``. Standard errors are the jackknife's over blocks of steps no
        shorter than the memory, of which the bias is taken as well (Busing et al. 1999).
    """
    out = blank(ANALYSIS.outputs, {"layer": len(gradient)})
    described = None if optimizer is None else optimizer.tolist()
    rule = _Rule.of(described)
    formula = _formula(momentum_of(described))
    moved = np.ones(step.size, bool) if applied is None else applied != 0
    # Steps that kept the weights are none for the optimizer.
    clock = step - np.cumsum(~moved) + _resumptions(step, resumed)
    for layer in range(len(gradient)):
        # Numbers whose squares overflow become a status.
        with np.errstate(over="ignore", invalid="ignore"):
            found = _layer(
                weight[layer], gradient[layer], step, learning_rate, moved, clock, rule, memory
            )
        if found["status"] == Status.OK:
            for name, value in formula.items():
                found[f"{name}_formula"] = value
                found[f"{name}_apart"] = abs(found[name] - value) / found[f"{name}_se"]
        for name, value in found.items():
            out[name][layer] = value
    return out


def _resumptions(step: IntArray, resumed: Array | None) -> IntArray:
    """Return how often the run was resumed up to each step."""
    every = () if resumed is None else np.ravel(resumed)
    said = [each.get("step") for each in every if isinstance(each, Mapping)]
    starts = np.array([start for start in map(number, said) if not math.isnan(start)])
    return np.asarray((step[:, None] >= starts).sum(axis=1))


@dataclass(frozen=True, slots=True)
class _Rule:
    """What of an update is neither a gradient nor the optimizer's response to it.

    Parameters
    ----------
    sign : float
        -1 of optimizers that climb.
    added, taken : float
        Weight decay that is added to gradients, and that is taken from weights.
    known : bool
        Whether the optimizer's weight decay is.
    """

    sign: float
    added: float
    taken: float
    known: bool

    @classmethod
    def of(cls, optimizer: Any) -> _Rule:
        if not isinstance(optimizer, Mapping):
            several = isinstance(optimizer, list | tuple) and len(optimizer) > 0
            found = {cls.of(each) for each in optimizer} if several else set()
            return found.pop() if len(found) == 1 else cls(1.0, 0.0, 0.0, False)
        sign = -1.0 if optimizer.get("maximize") is True else 1.0
        decay = number(optimizer.get("weight_decay", 0.0))
        name = optimizer.get("name")
        if decay == 0:
            return cls(sign, 0.0, 0.0, True)
        if name not in ("SGD", "Adam", "AdamW") or not math.isfinite(decay):
            return cls(sign, 0.0, 0.0, False)
        if name == "AdamW" or optimizer.get("decoupled_weight_decay") is True:
            return cls(sign, 0.0, decay, True)
        return cls(sign, sign * decay, 0.0, True)


def _formula(momentum: Momentum | None) -> dict[str, float]:
    if momentum is None:
        return {}
    values = (momentum.gain, momentum.noise, momentum.update_noise, momentum.gain**2)
    return dict(zip(FORMULAS, values, strict=True))


def _layer(
    weight: FloatArray,
    gradient: FloatArray,
    step: IntArray,
    rate: FloatArray,
    moved: Array,
    clock: IntArray,
    rule: _Rule,
    memory: int | None,
) -> dict[str, float]:
    finite = np.asarray(np.isfinite(weight).all(axis=1))
    readable = np.asarray(finite & np.isfinite(gradient).all(axis=1))
    known = readable & moved
    known[:-1] &= finite[1:] & (np.diff(step) == 1)
    known[-1:] = False
    # A rate of 0 tells nothing of the update.
    usable = known & np.isfinite(rate) & (rate > 0)
    rows = np.flatnonzero(usable)
    lags = max(4, min(LAGS, rows.size // 10)) if memory is None else memory
    blocks = _blocks(np.split(rows, np.flatnonzero(np.diff(clock[rows]) != 1) + 1), lags)
    used = sum(block.size - lags + 1 for block in blocks)
    found = {
        "weight_decay": rule.added * rule.sign + rule.taken if rule.known else np.nan,
        "memory": lags,
        "n_steps": used,
        "n_blocks": len(blocks),
        "n_missing": max(step.size - 1 - rows.size, 0),
        "status": int(Status.OK),
    }
    if step.size and not readable.any():
        return found | {"status": int(Status.NON_FINITE_INPUT)}
    if len(blocks) < MIN_BLOCKS:
        return found | {"status": int(Status.TOO_FEW_SAMPLES)}

    def read(block: IntArray) -> tuple[FloatArray, FloatArray]:
        now = weight[block]
        slope = gradient[block] + rule.added * now if rule.added else gradient[block]
        update = rule.sign * ((now - weight[block + 1]) / rate[block, None] - rule.taken * now)
        return update, slope

    count = sum(block.size for block in blocks)
    mean = np.sum([[each.sum(axis=0) for each in read(block)] for block in blocks], axis=0) / count
    parts = []
    for block in blocks:
        update, slope = read(block)
        parts.append(Sums.of(update - mean[0], slope - mean[1], lags))
    whole = Sums.total(parts)
    if not whole.finite():
        return found | {"status": int(Status.NON_FINITE_INPUT)}
    if not (whole.update.any() and whole.gram.any()):
        return found | {"status": int(Status.CONSTANT_INPUT)}
    eigenvalue = np.linalg.eigvalsh(whole.gram)
    least = SINGULAR * eigenvalue[-1]
    # Without any one of the blocks as well: a layer may have learned in that one alone.
    if eigenvalue[0] < least or not all(whole.without(part).regular(least) for part in parts):
        return found | {"status": int(Status.NOT_CONVERGED)}
    response = whole.response()
    left = np.array([left_over(*read(block), response) for block in blocks])
    estimate, error = jackknife(parts, whole, left)
    values = dict(zip(ESTIMATES, estimate.tolist(), strict=True))
    errors = dict(zip(ESTIMATES, error.tolist(), strict=True))
    told = (*RESPONSE, "explained")
    if not np.isfinite([(values[name], errors[name]) for name in told]).all():
        return found | {"status": int(Status.NOT_CONVERGED)}
    beyond = {name: abs(values[f"{name}_beyond"]) for name in (*RESPONSE, *LAGGED)}
    if any(
        beyond[name] > max(TAIL * abs(values[name]), APART * errors[f"{name}_beyond"], errors[name])
        for name in RESPONSE
    ):
        return found | {"status": int(Status.NOT_CONVERGED)}
    # At half a memory differences of gradients are their noise and so much drift, by which what
    # is no response is divided.
    strayed = abs(values["gradient_drift"])
    own = left[:, 0].sum() / left[:, 1].sum() * strayed if strayed > DRIFT else 0.0
    hidden = {"noise": own, "update_noise": own / values["gain"] ** 2}
    rounding = lags * np.finfo(np.float64).eps * eigenvalue[-1] / eigenvalue[0]
    for name in MEASURED:
        found[name] = values[name]
        # What a longer memory would change is less than what its last quarter does, if it decays.
        shares = [errors[name], beyond.get(name, 0.0)]
        if name in RESPONSE:
            shares.append(errors[f"{name}_beyond"])
        if name in hidden:
            shares.append(hidden[name])
        found[f"{name}_se"] = float(np.linalg.norm((*shares, rounding * values[name])))
    found["explained"] = min(found["explained"], 1.0)
    sums, error_of_sums = found["gradient_sums"], found["gradient_sums_se"]
    lost: tuple[str, ...] = ()
    still = abs(found["drift"]) <= DRIFT and strayed <= DRIFT
    if not (still and sums > -APART * error_of_sums):
        # The mean moves otherwise than by a line: a variance below 0 says so as well.
        lost = ("observed", "gradient_sums", "sums")
    elif not sums > APART * error_of_sums:
        # Nothing is left of the noise of long sums, to compare that of updates with.
        lost = ("sums",)
    for name in lost:
        found[name] = found[f"{name}_se"] = np.nan
    return found


def _blocks(runs: list[IntArray], lags: int) -> list[IntArray]:
    """Return rows of each block, the first `lags` less one for the history of the others."""
    lengths = [max(run.size - lags + 1, 0) for run in runs]
    length = max(lags, sum(lengths) // MAX_BLOCKS)
    blocks = []
    for run, targets in zip(runs, lengths, strict=True):
        if targets < length:
            continue
        edges = np.linspace(0, targets, targets // length + 1).astype(int)
        blocks += [run[a : b + lags - 1] for a, b in pairwise(edges.tolist())]
    return blocks


def _estimate(name: str, text: str) -> tuple[Variable, ...]:
    compared = (
        Variable(f"{name}_formula", _CELL, description="by the formula for the optimizer"),
        Variable(f"{name}_apart", _CELL, description="standard errors between both"),
    )
    return (
        Variable(name, _CELL, description=text),
        Variable(f"{name}_se", _CELL, description="standard error"),
        *(compared if name in FORMULAS else ()),
    )


_ROWS = ("layer", "step", "direction")
ANALYSIS = Analysis(
    name="update_noise",
    summary="What do updates make of gradient noise? Gain and noise beside their formula",
    version=1,
    inputs=(
        Input(
            Variable("weight", _ROWS, "weight"),
            sources=("weights/projected",),
            network="sum",
            collector=COLLECTOR,
        ),
        Input(
            Variable("gradient", _ROWS, "loss/weight"),
            sources=("gradients/projected",),
            network="sum",
            collector=COLLECTOR,
        ),
        Input(
            Variable("step", ("step",), "step", "int64"),
            sources=("gradients/step",),
            collector=COLLECTOR,
        ),
        Input(
            Variable("learning_rate", ("step",), "weight^2/loss"),
            sources=("steps/learning_rate",),
            collector="tracelab.attach",
        ),
        Input(
            Variable("applied", ("step",)),
            sources=("steps/applied",),
            optional=True,
            collector="tracelab.attach",
        ),
        Input(
            Variable("optimizer", (), dtype="object"),
            ("@optimizers", "@optimizer"),
            optional=True,
            collector="tracelab.attach",
        ),
        Input(Variable("resumed", (), dtype="object"), ("@resumed",), optional=True),
    ),
    outputs=(
        *_estimate("gain", "plain steps that a gradient is worth in the long run"),
        *_estimate("noise", "noise variance of one update, over a gradient's, if independent"),
        *_estimate("update_noise", "noise over squared signal of an update, over plain SGD's"),
        *_estimate("sums", "noise variance of long sums of updates, over that of gradients"),
        *_estimate("observed", "noise variance of one update, over a gradient's, in this run"),
        *_estimate("gradient_sums", "noise variance of long sums of gradients, over independent"),
        *_estimate("drift", "of updates within half a memory, over the variance of their noise"),
        *_estimate("gradient_drift", "of gradients within half a memory, over their noise's"),
        *_estimate("explained", "share of the updates' variance that is a sum of past gradients"),
        Variable("weight_decay", _CELL, description="taken out of updates; NaN if not known"),
        Variable("memory", _CELL, "step", "int64", description="gradients an update may depend on"),
        Variable("n_steps", _CELL, dtype="int64", description="updates: the sample size"),
        Variable("n_blocks", _CELL, dtype="int64", description="blocks of consecutive steps"),
        Variable("n_missing", _CELL, dtype="int64", description="steps left out"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=update_noise,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter(
            "memory", None, "gradients an update may depend on; none: up to 128", low=4, high=1024
        ),
    ),
    references=(
        Reference(
            "Xie, Yuan, Zhu, Sugiyama, Positive-Negative Momentum, ICML 2021",
            "https://arxiv.org/abs/2103.17182",
        ),
        Reference(
            "Busing, Meijer, van der Leeden, Delete-m Jackknife for Unequal m, Statistics and "
            "Computing 9 (1999)"
        ),
        Reference(
            "Kunsch, The Jackknife and the Bootstrap for General Stationary Observations, Annals "
            "of Statistics 17 (1989)"
        ),
    ),
)
