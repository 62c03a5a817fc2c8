"""How long the optimizer stays in a basin: by each theory, by simulation, and as it was seen.

Theories differ in what they take the noise for. Each is asked about the same recorded basin, in the
coordinates of `tracelab_collectors.Basin`, so that SGD and Adam are compared in the number of steps
to the same rise of the loss; and what each takes for granted is checked against the recorded data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracelab.contracts import Analysis, Input, Parameter, Reference, Variable
from tracelab.errors import UsageError
from tracelab.outcomes import blank
from tracelab.stats import escape, normality, stable
from tracelab.typing import Array, Assumption, FloatArray, IntArray, Status
from tracelab_analyses.escape_assumptions import (
    ASSUMPTIONS,
    FAILS,
    HOLDS,
    LEVEL,
    NEEDS,
    NOT_NEEDED,
    UNCHECKED,
    combined,
    independent,
)
from tracelab_analyses.escape_figures import finding, plot
from tracelab_analyses.escape_theories import (
    THEORIES,
    Basin,
    Law,
    Prediction,
    Redrawn,
    Settings,
    observed,
    widths,
)

MIN_BATCHES = 20
_CELL = ("step", "layer")
_THEORY = (*_CELL, "theory")
_PAIR = (*_CELL, "eigenpair")
_ROOT = "loss^(1/2)"
# Codes of `ExitTimes`: over the barrier, or gone.
_OVER = (2, 4)


def escape_times(
    eigenvalue: FloatArray,
    noise_along: FloatArray,
    quadratic_rise: FloatArray,
    profile_loss: FloatArray,
    loss: FloatArray,
    gradient_squared_norm: FloatArray,
    memory: FloatArray,
    median_step: FloatArray,
    seed: IntArray,
    noise_form: FloatArray | None = None,
    kept: FloatArray | None = None,
    exit_time: FloatArray | None = None,
    exit_censored: FloatArray | None = None,
    exit_criterion: FloatArray | None = None,
    exit_barrier: FloatArray | None = None,
    *,
    barrier: float | None = None,
    clip: float | None = None,
    replicas: int = 200,
    max_steps: int = 20_000,
    draws: int = 100,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return mean exit times over a rise of the loss, by theory, with what they assume.

    In coordinates in which descent has the rate 1, from the minibatch gradients along the
    eigenvectors u of the Hessian there: their mean is the slope at the weights, their variance the
    noise's, and stable laws are fitted to each direction and one tail index to all.

    Parameters
    ----------
    eigenvalue : ndarray, shape (step, eigenpair)
        Curvature along u.
    noise_along : ndarray, shape (step, batch, eigenpair)
        Minibatch gradients along u.
    quadratic_rise : ndarray, shape (step, height)
        Rises of the quadratic at the places of `profile_loss`.
    profile_loss : ndarray, shape (step, eigenpair, height, side)
        Loss along u.
    loss, gradient_squared_norm, memory, median_step : ndarray, shape (step,)
        Loss at the weights, what a step of descent gains there, steps over which gradients are
        averaged, median step of a weight.
    seed : ndarray of uint64, shape (step, layer)
        Of bootstrap and simulation.
    noise_form : ndarray, shape (step, formed), optional
        Forms of the noise with the Hessian.
    kept : ndarray, shape (step, batch), optional
        Part of a minibatch's squared norm left by the steps that it changes.
    exit_time, exit_censored, exit_criterion : ndarray, shape (step, replica), optional
        Of the recorded replicas of the optimizer itself.
    exit_barrier : ndarray, shape (step,), optional
        Rise of the loss over which they left.
    barrier, clip, replicas, max_steps, draws, confidence
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.

    Raises
    ------
    UsageError
        If there is no barrier: neither given nor recorded.
    """
    steps, pairs = eigenvalue.shape
    sizes = {
        "step": steps, "layer": seed.shape[1], "theory": len(NEEDS), "eigenpair": pairs,
        "assumption": len(ASSUMPTIONS), "side": 2,
    }  # fmt: skip
    out = blank(ANALYSIS.outputs, sizes)
    out["theory_status"][...] = int(Status.FAILED)
    for step, layer in np.ndindex(*seed.shape):
        recorded = math.nan if exit_barrier is None else float(exit_barrier[step])
        rise = recorded if barrier is None else barrier
        if not rise > 0:
            raise UsageError(
                "escape_times needs a rise of the loss that counts as leaving: give barrier=, or "
                "record ExitTimes(barrier=...) at the same step"
            )
        exits = None
        if exit_time is not None and exit_censored is not None and exit_criterion is not None:
            exits = _Exits(
                exit_time[step], exit_censored[step], exit_criterion[step], recorded == rise
            )
        settings = Settings(replicas, max_steps, draws, confidence, int(seed[step, layer]))
        found = _one(
            eigenvalue[step],
            noise_along[step],
            float(gradient_squared_norm[step]),
            quadratic_rise[step],
            profile_loss[step] - loss[step],
            float(memory[step]),
            math.inf if clip is None else clip * math.sqrt(float(median_step[step])),
            None if noise_form is None else noise_form[step],
            None if kept is None else kept[step],
            exits,
            rise,
            settings,
        )
        for name, value in found.items():
            out[name][step, layer] = value
    return out


@dataclass(frozen=True, slots=True)
class _Exits:
    """Recorded replicas of one step; `same` if they left over the same rise of the loss."""

    time: FloatArray
    censored: FloatArray
    criterion: FloatArray
    same: bool


def _one(
    curvature: FloatArray,
    along: FloatArray,
    gain: float,
    height: FloatArray,
    rise: FloatArray,
    memory: float,
    clip: float,
    forms: FloatArray | None,
    kept: FloatArray | None,
    exits: _Exits | None,
    barrier: float,
    settings: Settings,
) -> dict[str, Array | float | int]:
    """Return everything of one step."""
    batches = len(along)
    found: dict[str, Array | float | int] = {
        "barrier": barrier,
        "memory": memory,
        "curvature": curvature,
        "n_batches": batches,
    }
    seen, replicas, exited, same = _observed(exits, settings.confidence)
    found |= {"n_replicas": replicas, "n_exits": exited}
    held = dict.fromkeys(ASSUMPTIONS, UNCHECKED) | {"same_region": same}
    # A memory below one step is none.
    finite = np.isfinite(curvature).all() and np.isfinite(along).all() and 1 <= memory < math.inf
    spread = along.std(axis=0) > 0 if finite else np.zeros(curvature.size, dtype=np.bool_)
    usable = spread & (curvature > 0)
    predictions: dict[str, Prediction] = {}
    status = Status.OK
    if not finite:
        status = Status.NON_FINITE_INPUT
    elif batches < MIN_BATCHES:
        status = Status.TOO_FEW_SAMPLES
    elif not usable.any():
        status = Status.CONSTANT_INPUT
    else:
        basin, law, more, checked = _measured(
            curvature[usable], along[:, usable], height, rise[usable], memory, clip, barrier
        )
        held |= checked
        for name, value in more.items():
            full = np.full((curvature.size, *np.shape(value)[1:]), np.nan)
            full[usable] = value
            found[name] = full
        found |= {"alpha_common": law.common, "n_directions": int(usable.sum())}
        if forms is not None and np.isfinite(forms).all() and forms.size:
            met = float(np.sum(basin.curvature * np.diag(law.covariance)))
            found["curvature_share"] = share = met / float(forms.mean())
            held["all_curvature"] = HOLDS if share >= 0.5 else FAILS
        if kept is not None and np.isfinite(kept).all():
            # Larger gradients matter more, and change more.
            weight = np.sum(along**2, axis=1)
            found["kept_share"] = share = float(np.average(kept, weights=weight))
            held["fixed_steps"] = HOLDS if share >= 0.8 else FAILS
        again = Redrawn.of(law, settings)
        predictions = {
            name: predict(basin, law, again, settings) for name, predict in THEORIES.items()
        }
        found |= _truncated(law, basin)
    found["status"] = int(status)
    predictions["observed"] = seen
    relaxation = 1 / float(curvature[usable].min()) if usable.any() else math.nan
    patience = barrier / gain if gain > 0 else math.inf
    return found | _table(predictions, held, relaxation, patience)


def _measured(
    curvature: FloatArray,
    along: FloatArray,
    height: FloatArray,
    rise: FloatArray,
    memory: float,
    clip: float,
    barrier: float,
) -> tuple[Basin, Law, dict[str, FloatArray], dict[str, int]]:
    """Return basin and law of the usable directions, what is reported of each, and checks."""
    slope = along.mean(axis=0)
    samples = along - slope
    bottom = -slope / curvature
    half = np.sqrt(slope**2 + 2 * curvature * barrier) / curvature
    # Of the sides, from the weights: behind and before.
    quadratic = np.stack([half - bottom, half + bottom], axis=1)
    distance = np.sqrt(2 * height[None, :, None] / curvature[:, None, None])
    sides = widths(np.broadcast_to(distance, rise.shape), rise, barrier, quadratic)
    fits = stable.fit(samples, axis=0)
    common = stable.fit_common(samples, "each")
    basin = Basin(
        curvature, slope, np.maximum(sides[:, 0] + bottom, 1e-3 * half),
        np.maximum(sides[:, 1] - bottom, 1e-3 * half), barrier, memory, clip,
    )  # fmt: skip
    law = Law(samples, fits.alpha, fits.scale, float(common.alpha))
    fitted = stable.goodness_of_fit(samples, fits.alpha, fits.loc, fits.scale, axis=0)
    gaussian = np.asarray(normality.anderson(samples, axis=0).pvalue)
    stable_p = np.asarray(fitted.pvalue)
    reached = np.isfinite(rise).all(axis=(1, 2)) & (rise.max(axis=1) >= barrier).all(axis=1)
    near = np.abs(np.log(sides / quadratic)) < math.log(1.25)
    product = curvature.max()
    jumping = float(common.alpha_high) < 2
    checked = {
        "quadratic": bool((near & reached[:, None]).all()),
        "at_bottom": bool((np.abs(bottom) < 0.25 * half).all()),
        "gaussian": combined(gaussian) >= LEVEL,
        "stable": jumping and combined(stable_p) >= LEVEL,
        "independent": independent(samples),
        "small_steps": bool(product < 0.5),
        "short_memory": memory == 1 or bool(memory * product < 0.2),
        "unclipped": math.isinf(clip),
    }
    more = {
        "alpha": fits.alpha,
        "alpha_low": fits.alpha_low,
        "alpha_high": fits.alpha_high,
        "scale": fits.scale,
        "variance": np.diag(law.covariance),
        "gaussian_pvalue": gaussian,
        "stable_pvalue": stable_p,
        "width": sides,
    }
    return basin, law, more, {name: HOLDS if yes else FAILS for name, yes in checked.items()}


def _truncated(law: Law, basin: Basin) -> dict[str, float]:
    """Return how many clipped steps lead out and the order of the exit time, where clipped."""
    if math.isinf(basin.clip) or not 1 < law.common < 2:
        return {}
    width = float(min(basin.below.min(), basin.above.min()))
    order = escape.truncated_order(law.common, width, basin.clip)
    return {
        "truncated_jumps": float(order.jumps),
        "truncated_exponent": float(order.exponent),
    }


def _observed(exits: _Exits | None, confidence: float) -> tuple[Prediction, int, int, int]:
    """Return the recorded replicas' mean, how many there are, how many left, and the check."""
    if exits is None or not np.isfinite(exits.time).any():
        return Prediction(), 0, 0, UNCHECKED
    there = np.isfinite(exits.time)
    censored = exits.censored[there] > 0
    over = np.isin(exits.criterion[there], _OVER) | censored
    same = HOLDS if exits.same and bool(over.all()) else FAILS
    found = observed(exits.time[there], censored, confidence)
    return found, int(there.sum()), int((~censored).sum()), same


def _table(
    predictions: Mapping[str, Prediction],
    held: Mapping[str, int],
    relaxation: float,
    patience: float,
) -> dict[str, Array]:
    """Return times and checks by theory.

    Exits are rare if they take much longer than `relaxation`, and the weights settled if the slope
    would take longer than that, the `patience`, to make the barrier another one.
    """
    names = list(NEEDS)
    times = {key: np.full(len(names), np.nan) for key in ("", "_low", "_high")}
    status = np.full(len(names), int(Status.FAILED), dtype=np.uint8)
    checks = np.full((len(names), len(ASSUMPTIONS)), NOT_NEEDED, dtype=np.uint8)
    for i, name in enumerate(names):
        found = predictions.get(name, Prediction())
        status[i] = int(found.status)
        for suffix, value in (("", found.time), ("_low", found.low), ("_high", found.high)):
            times[suffix][i] = value
        own = dict(held)
        if math.isfinite(found.time):
            own["rare"] = HOLDS if found.time > 10 * relaxation else FAILS
            own["settled"] = HOLDS if found.time < patience else FAILS
        for j, assumption in enumerate(ASSUMPTIONS):
            if assumption in NEEDS[name]:
                checks[i, j] = own[assumption]
    return {f"escape_time{suffix}": value for suffix, value in times.items()} | {
        "theory_status": status,
        "assumption_holds": checks,
    }


def _input(
    name: str, dims: tuple[str, ...], units: str, source: str = "", optional: bool = False
) -> Input:
    recorder = "ExitTimes(steps=[...], barrier=...)" if "exits/" in source else "Basin(steps=[...])"
    return Input(
        Variable(name, dims, units),
        (source or f"basin/{name}",),
        optional=optional,
        collector=recorder,
    )


ANALYSIS = Analysis(
    name="escape_times",
    summary="How long does the optimizer stay in a basin? Theory, simulation, observation",
    version=2,
    inputs=(
        _input("eigenvalue", ("step", "eigenpair"), "1"),
        _input("noise_along", ("step", "batch", "eigenpair"), _ROOT),
        _input("quadratic_rise", ("step", "height"), "loss"),
        _input("profile_loss", ("step", "eigenpair", "height", "side"), "loss"),
        _input("loss", ("step",), "loss"),
        _input("gradient_squared_norm", ("step",), "loss"),
        _input("memory", ("step",), "step"),
        _input("median_step", ("step",), "weight^2/loss"),
        _input("noise_form", ("step", "formed"), "loss", optional=True),
        _input("kept", ("step", "batch"), "1", optional=True),
        _input("exit_time", ("step", "replica"), "step", "exits/time", optional=True),
        _input("exit_censored", ("step", "replica"), "1", "exits/censored", optional=True),
        _input("exit_criterion", ("step", "replica"), "1", "exits/criterion", optional=True),
        _input("exit_barrier", ("step",), "loss", "exits/barrier", optional=True),
    ),
    outputs=(
        Variable("escape_time", _THEORY, "step", description="mean exit time, by theory"),
        Variable("escape_time_low", _THEORY, "step", description="interval, lower end"),
        Variable("escape_time_high", _THEORY, "step", description="interval, upper end"),
        Variable("theory_status", _THEORY, dtype="uint8",
                 description="status of the time; failed: the theory has no answer here"),
        Variable("assumption_holds", (*_THEORY, "assumption"), dtype="uint8",
                 description=Assumption.meanings()),
        Variable("barrier", _CELL, "loss", description="rise of the loss that is leaving"),
        Variable("memory", _CELL, "step", description="steps over which gradients are averaged"),
        Variable("curvature", _PAIR, description="eigenvalue; above 2 a direction is unstable"),
        Variable("width", (*_PAIR, "side"), _ROOT,
                 description="where the loss reaches the barrier, behind and before the weights"),
        Variable("variance", _PAIR, "loss", description="of the noise of a step along u"),
        Variable("alpha", _PAIR, description="tail index of the noise along u"),
        Variable("alpha_low", _PAIR, description="interval, lower end"),
        Variable("alpha_high", _PAIR, description="interval, upper end"),
        Variable("scale", _PAIR, _ROOT, description="scale of the stable law"),
        Variable("gaussian_pvalue", _PAIR, description="of the Anderson-Darling test"),
        Variable("stable_pvalue", _PAIR, description="of the fitted stable law"),
        Variable("alpha_common", _CELL, description="one tail index for all directions"),
        Variable("curvature_share", _CELL,
                 description="part of tr(HC) that the directions carry"),
        Variable("kept_share", _CELL,
                 description="part of the noise left by steps that it changes; 1 for SGD"),
        Variable("truncated_jumps", _CELL,
                 description="least number of clipped steps that lead out; NaN unless clipped"),
        Variable("truncated_exponent", _CELL,
                 description="steps until the exit grow like the rate to minus this"),
        Variable("n_directions", _CELL, dtype="int64", description="of positive curvature"),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches of the noise"),
        Variable("n_replicas", _CELL, dtype="int64", description="observed replicas"),
        Variable("n_exits", _CELL, dtype="int64", description="of which left"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={"theory": tuple(NEEDS), "assumption": tuple(ASSUMPTIONS), "side": ("below", "above")},
    cell=_CELL,
    kernel=escape_times,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("barrier", None, "rise of the loss; default: of the recorded exits", low=0.0),
        Parameter("clip", None, "norm to which gradients are clipped", low=0.0),
        Parameter("replicas", 200, "simulated replicas", low=2, high=100_000),
        Parameter("max_steps", 20_000, "they are censored then", low=1, high=10_000_000),
        Parameter("draws", 100, "bootstrap samples", low=20, high=10_000),
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Xie, Sato, Sugiyama, A Diffusion Theory for Deep Learning Dynamics: Stochastic "
            "Gradient Descent Exponentially Favors Flat Minima, ICLR 2021",
            "https://arxiv.org/abs/2002.03495",
        ),
        Reference(
            "Imkeller, Pavlyukevich, First exit times of SDEs driven by stable Levy processes, "
            "Stochastic Processes and their Applications 116, 2006",
            "https://arxiv.org/abs/math/0409246",
        ),
        Reference(
            "Simsekli, Sagun, Gurbuzbalaban, A Tail-Index Analysis of Stochastic Gradient Noise in "
            "Deep Neural Networks, ICML 2019",
            "https://arxiv.org/abs/1901.06053",
        ),
        Reference(
            "Zhou, Feng, Ma, Xiong, Hoi, E, Towards Theoretically Understanding Why SGD "
            "Generalizes Better Than Adam in Deep Learning, NeurIPS 2020",
            "https://arxiv.org/abs/2010.05627",
        ),
        Reference(
            "Wang, Oh, Rhee, Eliminating Sharp Minima from SGD with Truncated Heavy-tailed Noise, "
            "ICLR 2022",
            "https://arxiv.org/abs/2102.04297",
        ),
    ),
)  # fmt: skip
