"""How far the loss rises around the weights: Keskar's sharpness, and the noise weights withstand.

Sharpness is shown with what is known against it: it is not invariant under reparametrization (Dinh
et al. 2017), depends on the size of the box, and in small boxes says how large the gradient is, not
how the loss bends. So the whole profile stands beside what the gradient alone promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import at_ends, blank, shown, subject
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_DRAWS = 5
# Below this part of the loss a rise is no more than float32's rounding of a mean of examples.
ROUNDING = 1e-6
_CELL = ("step", "layer")
_BOX = (*_CELL, "space", "box")
_NOISE = (*_CELL, "geometry", "level")
_WITHSTOOD = (*_CELL, "measure", "geometry")


def sharpness(
    loss: FloatArray,
    gradient_norm: FloatArray,
    epsilon: FloatArray,
    box_gradient: FloatArray,
    max_loss: FloatArray,
    evaluations: IntArray,
    converged: Array,
    sigma: FloatArray,
    noise_loss: FloatArray,
    noise_error: FloatArray,
    error: FloatArray,
    radius: FloatArray,
    ascent_loss: FloatArray,
    seed: Array,
    *,
    rise: float = 0.1,
    error_rise: float = 0.1,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return sharpness by box and by noise, of all layers together.

    .. math:: \phi_\epsilon = 100\, \frac{\max_{z \in C_\epsilon} L(w + A z) - L(w)}{1 + L(w)},
       \qquad \bar L(\sigma) = E\, L(w + \sigma c \xi) - L(w),

    the latter as the mean over draws of :math:`\xi` of the mean of both directions, from which all
    odd orders of the loss cancel. The noise withstood is the :math:`\sigma` at which
    :math:`\bar L` first reaches `rise`; its interval are the :math:`\sigma` at which Student's
    interval of :math:`\bar L` holds `rise`. Between recorded :math:`\sigma` a power law is assumed
    where both rises are positive, and a line in :math:`\sigma^2` elsewhere.

    Parameters
    ----------
    loss, gradient_norm, error : ndarray, shape (step,)
        At the weights.
    epsilon : ndarray, shape (step, box)
        Sizes of the box.
    box_gradient : ndarray, shape (step, space)
        What the gradient alone raises the loss by in a box, over epsilon.
    max_loss, evaluations, converged : ndarray, shape (step, space, box, search)
        Largest loss found, by how many evaluations, and whether the search ended by itself.
    sigma : ndarray, shape (step, level)
        Standard deviations of noise, rising.
    noise_loss, noise_error : ndarray, shape (step, geometry, level, sign, draw)
        Under noise, in both directions.
    radius : ndarray, shape (step, length)
        Lengths of a step up the gradient.
    ascent_loss : ndarray, shape (step, geometry, length)
        Loss behind it.
    seed : ndarray, shape (step, layer)
        Its shape says how many rows there are: nothing here is by layer, and all say the same.
    rise, error_rise : float
        By how much noise must raise loss and error.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    steps, layers = seed.shape
    sizes = {
        "step": steps, "layer": layers, "measure": 2,
        "space": max_loss.shape[1], "geometry": noise_loss.shape[1],
        "box": epsilon.shape[-1], "level": sigma.shape[-1], "length": radius.shape[-1],
    }  # fmt: skip
    out = blank(ANALYSIS.outputs, sizes)
    for step in range(steps):
        # Losses that are infinite have a status, and differences that are NaN.
        with np.errstate(invalid="ignore"):
            found = _boxes(
                loss[step], epsilon[step], box_gradient[step], max_loss[step], converged[step]
            )
            profiles = [
                _profile(noise_loss[step], loss[step], confidence),
                _profile(noise_error[step], error[step], confidence),
            ]
            found |= _withstood(sigma[step], profiles, (rise, error_rise))
            found |= {
                "loss": loss[step],
                "gradient_norm": gradient_norm[step],
                "epsilon": epsilon[step],
                "noise": sigma[step],
                "radius": radius[step],
                "ascent_rise": ascent_loss[step] - loss[step],
                "expected_rise": profiles[0][0],
                "expected_rise_se": profiles[0][1],
                "n_evaluations": evaluations[step].sum(axis=-1),
                "n_draws": noise_loss.shape[-1],
                "status": int(_status(loss[step], max_loss[step], noise_loss[step])),
            }
        for name, value in found.items():
            out[name][step] = value
    return out


def _boxes(
    loss: float,
    epsilon: FloatArray,
    box_gradient: FloatArray,
    max_loss: FloatArray,
    converged: Array,
) -> dict[str, Array | float | int]:
    """Return Keskar's sharpness by space and size of the box."""
    best = max_loss.max(axis=-1)
    linear = box_gradient[:, None] * epsilon
    # Keskar et al. 2017, metric 2.1.
    per = 100.0 / (1.0 + loss) if loss > -1.0 else np.nan
    return {
        "phi": per * (best - loss),
        "phi_linear": per * linear,
        "phi_curved": per * (best - loss - linear),
        "converged": converged.any(axis=-1),
    }


def _profile(
    noisy: FloatArray, at_weights: float, confidence: float
) -> tuple[FloatArray, FloatArray, float]:
    """Return the expected rise by geometry and sigma, its standard error, Student's quantile."""
    pairs = noisy.mean(axis=-2) - at_weights
    draws = pairs.shape[-1]
    if draws < 2:
        return pairs.mean(axis=-1), np.full(pairs.shape[:-1], np.nan), np.nan
    error = pairs.std(axis=-1, ddof=1) / np.sqrt(draws)
    return pairs.mean(axis=-1), error, float(stats.t.ppf(0.5 + confidence / 2, draws - 1))


def _withstood(
    sigma: FloatArray,
    profiles: list[tuple[FloatArray, FloatArray, float]],
    targets: tuple[float, float],
) -> dict[str, Array | float | int]:
    """Return the noise at which loss and error have risen so far, by measure and geometry."""
    shape = (len(targets), len(profiles[0][0]))
    found = {name: np.full(shape, np.nan) for name in ("sigma", "sigma_low", "sigma_high")}
    for measure, ((mean, error, quantile), target) in enumerate(
        zip(profiles, targets, strict=True)
    ):
        for geometry in range(shape[1]):
            place = (measure, geometry)
            for name, side in (("sigma", 0.0), ("sigma_low", 1.0), ("sigma_high", -1.0)):
                band = mean[geometry]
                if side:
                    band = band + side * quantile * error[geometry]
                found[name][place] = _crossing(sigma, band, target)
    found["flatness"] = found["sigma"] ** -2
    found["flatness_low"] = found["sigma_high"] ** -2
    found["flatness_high"] = found["sigma_low"] ** -2
    return dict(found)


def _crossing(sigma: FloatArray, rises: FloatArray, target: float) -> float:
    """Return where rises first reach the target; NaN if they begin above or end below it."""
    reached = rises >= target
    if reached[0] or not reached.any() or not np.isfinite(rises[: reached.argmax() + 1]).all():
        return np.nan
    last = int(reached.argmax())
    (low, high), (before, after) = sigma[last - 1 : last + 1], rises[last - 1 : last + 1]
    if before > 0:
        part = np.log(target / before) / np.log(after / before)
        return float(low * (high / low) ** part)
    part = (target - before) / (after - before)
    return float(np.sqrt(low**2 + part * (high**2 - low**2)))


def _status(loss: float, max_loss: FloatArray, noisy: FloatArray) -> Status:
    full = max_loss[0]
    if not (np.isfinite(loss) and np.isfinite(full).all() and np.isfinite(noisy).all()):
        return Status.NON_FINITE_INPUT
    if (noisy == loss).all() and (full == loss).all():
        return Status.CONSTANT_INPUT
    if noisy.shape[-1] < MIN_DRAWS:
        return Status.TOO_FEW_SAMPLES
    return Status.OK


def finding(result: xr.Dataset) -> Finding:
    """Return sharpness in the largest box and the noise withstood, at the first and last step."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No step had finite, varying losses around the weights.")

    def describe(row: xr.Dataset) -> str:
        size = float(row["epsilon"][-1])
        phi, linear = (float(row[name][0, -1]) for name in ("phi", "phi_linear"))
        text = f"a sharpness of {phi:.3g} in the box of epsilon {size:g}"
        text += f" ({linear:.3g} of it the gradient's) at a loss of {float(row['loss']):.3g}"
        value, low, high = (float(row[f"sigma{end}"][0, 0]) for end in ("", "_low", "_high"))
        if np.isfinite(value):
            ends = [f"{end:.3g}" if np.isfinite(end) else "beyond what is recorded"
                    for end in (low, high)]  # fmt: skip
            text += f", withstands noise of {value:.3g} a weight ({' to '.join(ends)})"
        return f"{text}, at step {int(row['step'])}"

    parts = at_ends(good, describe)
    rise = result.attrs.get("parameters", {}).get("rise", 0.1)
    sentence = f"The loss of {subject(good)} has {'; and '.join(parts)}."
    if np.isfinite(good["sigma"].values[:, 0, 0]).any():
        sentence += f" Noise withstood raises the expected loss by {rise:g}."
    return Finding(sentence, tuple(_warnings(good)))


def _warnings(good: xr.Dataset) -> list[str]:
    found = [
        "Sharpness is not invariant: scaling the layers of a ReLU network changes it and leaves "
        "the function as it is (Dinh et al. 2017). It depends on epsilon and on the loss: compare "
        "networks at equal loss, by the whole profile and with the largest eigenvalue beside it."
    ]
    phi, curved = (good[name].values[:, 0] for name in ("phi", "phi_curved"))
    led = (curved < 0.5 * phi).any(axis=0)
    if led.any():
        sizes = good["epsilon"].values[0][led]
        found.append(
            f"In boxes up to epsilon {sizes.max():g} the gradient alone makes half of sharpness or "
            "more at some step: there it compares gradients, and can order networks the other way "
            "than curvature does."
        )
    stopped = ~good["converged"].values[:, 0]
    if stopped.any():
        found.append(
            f"{stopped.sum()} of {stopped.size} searches in all directions used up their "
            "iterations, as in the original metric: these are lower bounds of the maximum."
        )
    rise = phi * (1 + good["loss"].values[:, None]) / 100
    if (rise < ROUNDING * good["loss"].values[:, None]).any():
        found.append("Some rises are less than 1e-6 of the loss: in float32 they are rounding.")
    if (good["loss"] <= -1).any():
        found.append("Sharpness is over 1 + loss: there is none at losses of -1 and less.")
    outside = ~np.isfinite(good["sigma"].values[:, 0]).all(axis=-1)
    if outside.any():
        found.append(
            f"At {outside.sum()} of {outside.size} steps the loss rises by the given amount at no "
            "recorded standard deviation of noise: record other sigmas or ask for another rise."
        )
    return found


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return sharpness over the box, over training, and the expected rise under noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.set_label(
        "Sharpness by size of the box at the last step, with what the gradient alone promises; in "
        "the largest box over training; expected rise of the loss under noise at the last step."
    )
    left, middle, right = figure.subplots(1, 3)
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
    middle.set_xscale("symlog", linthresh=10)
    middle.set_yscale("log")
    for index, (label, result) in enumerate(results.items()):
        row = shown(result)
        if row.sizes["step"] == 0:
            continue
        color = f"C{index}"
        last = row.isel(step=-1)
        size = last["epsilon"]
        left.plot(size, last["phi"][0], "o-", color=color, ms=4, label=label)
        left.plot(size, last["phi_linear"][0], ":", color=color)
        if np.isfinite(last["phi"].values[1]).all():
            left.plot(size, last["phi"][1], "s--", color=color, ms=3)
        middle.plot(row["step"], row["phi"][:, 0, -1], "o-", color=color, ms=4, label=label)
        middle.plot(row["step"], row["loss"], "--", color=color, lw=1)
        for geometry, style in ((0, "o-"), (1, "s--")):
            mean, error = (
                last[name][geometry].values for name in ("expected_rise", "expected_rise_se")
            )
            right.errorbar(last["noise"], np.where(mean > 0, mean, np.nan), error,
                           fmt=style, color=color, ms=3, lw=1)  # fmt: skip
    left.plot([], [], ":", color="0.4", label="gradient alone")
    left.plot([], [], "s--", color="0.4", ms=3, label="random subspace")
    middle.plot([], [], "--", color="0.4", lw=1, label="loss")
    right.plot([], [], "o-", color="0.4", ms=3, label="equal for all weights")
    right.plot([], [], "s--", color="0.4", ms=3, label="in proportion to weights")
    left.set(xlabel="epsilon", ylabel="sharpness (%)", title="By box, last step")
    middle.set(xlabel="step", ylabel="sharpness (%), loss", title="Over training, largest box")
    right.set(xlabel="standard deviation", ylabel="rise of the loss", title="Noise, last step")
    for axis in (left, middle, right):
        axis.legend(fontsize=7, frameon=False)
    return figure


def _input(name: str, dims: tuple[str, ...], units: str = "loss", dtype: str = "float64") -> Input:
    return Input(
        Variable(name, dims, units, dtype), (f"sharpness/{name}",), collector="Sharpness()"
    )


_GEOMETRY = "; geometry 0: the same for all weights, 1: times |w|"
_SPACE = "; space 0: all directions, 1: random subspace"
_MEASURE = "; measure 0: the loss, 1: the error (NaN if not recorded)"

ANALYSIS = Analysis(
    name="sharpness",
    summary="How far does the loss rise near the weights? In boxes, and under noise",
    version=1,
    inputs=(
        _input("loss", ("step",)),
        _input("gradient_norm", ("step",), "loss/weight"),
        _input("epsilon", ("step", "box"), "1"),
        _input("box_gradient", ("step", "space")),
        _input("max_loss", ("step", "space", "box", "search")),
        _input("evaluations", ("step", "space", "box", "search"), "1", "int64"),
        _input("converged", ("step", "space", "box", "search"), "1", "bool"),
        _input("sigma", ("step", "level"), "1"),
        _input("noise_loss", ("step", "geometry", "level", "sign", "draw")),
        _input("noise_error", ("step", "geometry", "level", "sign", "draw"), "1"),
        _input("error", ("step",), "1"),
        _input("radius", ("step", "length"), "1"),
        _input("ascent_loss", ("step", "geometry", "length")),
    ),
    outputs=(
        Variable("loss", _CELL, "loss", description="mean loss at the weights"),
        Variable("gradient_norm", _CELL, "loss/weight", description="norm of its gradient"),
        Variable("epsilon", (*_CELL, "box"), description="size of the box"),
        Variable("phi", _BOX, description="sharpness of Keskar et al., in percent" + _SPACE),
        Variable("phi_linear", _BOX,
                 description="what the gradient alone promises, in percent" + _SPACE),
        Variable("phi_curved", _BOX, description="what is beyond it, in percent" + _SPACE),
        Variable("converged", _BOX, dtype="bool",
                 description="a search ended before its limit of iterations" + _SPACE),
        Variable("n_evaluations", _BOX, dtype="int64", description="gradients it took" + _SPACE),
        Variable("noise", (*_CELL, "level"), description="standard deviation of noise"),
        Variable("expected_rise", _NOISE, "loss", description="mean rise under noise" + _GEOMETRY),
        Variable("expected_rise_se", _NOISE, "loss", description="standard error" + _GEOMETRY),
        Variable("sigma", _WITHSTOOD,
                 description="noise that raises it by the given amount" + _GEOMETRY + _MEASURE),
        Variable("sigma_low", _WITHSTOOD, description="interval, lower end"),
        Variable("sigma_high", _WITHSTOOD, description="interval, upper end"),
        Variable("flatness", _WITHSTOOD, description="1 / sigma^2: larger where less is withstood"),
        Variable("flatness_low", _WITHSTOOD, description="interval, lower end"),
        Variable("flatness_high", _WITHSTOOD, description="interval, upper end"),
        Variable("radius", (*_CELL, "length"), description="length of a step uphill"),
        Variable("ascent_rise", (*_CELL, "geometry", "length"), "loss",
                 description="rise one step up the gradient" + _GEOMETRY),
        Variable("n_draws", _CELL, dtype="int64", description="draws of the noise"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={"measure": range(2)},
    cell=_CELL,
    kernel=sharpness,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("rise", 0.1, "by how much noise must raise the loss", low=0.0),
        Parameter("error_rise", 0.1, "by how much noise must raise the error", low=0.0),
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, On Large-Batch Training for Deep "
            "Learning: Generalization Gap and Sharp Minima, ICLR 2017, metric 2.1",
            "https://arxiv.org/abs/1609.04836",
        ),
        Reference(
            "Dinh, Pascanu, Bengio, Bengio, Sharp Minima Can Generalize For Deep Nets, ICML 2017",
            "https://arxiv.org/abs/1703.04933",
        ),
        Reference(
            "Jiang, Neyshabur, Mobahi, Krishnan, Bengio, Fantastic Generalization Measures and "
            "Where to Find Them, ICLR 2020",
            "https://arxiv.org/abs/1912.02178",
        ),
        Reference(
            "Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization for Efficiently "
            "Improving Generalization, ICLR 2021",
            "https://arxiv.org/abs/2010.01412",
        ),
        Reference(
            "Andriushchenko, Croce, Mueller, Hein, Flammarion, A Modern Look at the Relationship "
            "between Sharpness and Generalization, ICML 2023",
            "https://arxiv.org/abs/2302.07011",
        ),
    ),
)  # fmt: skip
