"""Curvature of the loss: trace, top eigenvalues and density of its Hessian, and noise along it.

Two questions that theories of SGD ask are answered beside them. Is the step so long that the
sharpest direction is unstable: is the learning rate times the largest eigenvalue above 2 (Cohen et
al. 2021)? And does the noise lie where the loss is steep: how large is ``tr(HC)`` beside what noise
of the same size, but the same in all directions, would have (Zhu et al. 2019)?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from tracelab.contracts import Analysis, Finding, Input, Parameter, Reference, Variable
from tracelab.outcomes import at_ends, blank, shown, subject
from tracelab.stats import spectrum
from tracelab.typing import Array, FloatArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_VECTORS = 5
POINTS = 512
# Gradient descent on a quadratic leaves a direction whose curvature times the rate exceeds this.
STABLE = 2.0
_CELL = ("step", "layer")
_CURVATURE = "loss/weight^2"
_COLLECTOR = "HessianVectors(every=100)"
_PAIR = (*_CELL, "eigenpair")
_POINT = (*_CELL, "point")
_WHOLE = "; of all layers together: NaN at single ones"


def curvature(
    form: FloatArray,
    product_squared_norm: FloatArray,
    lanczos_diagonal: FloatArray,
    lanczos_beside: FloatArray,
    share: FloatArray,
    eigenvalue: FloatArray,
    residual: FloatArray,
    noise_squared_norm: FloatArray,
    noise_overlap: FloatArray,
    noise_along: FloatArray,
    noise_form: FloatArray,
    learning_rate: FloatArray,
    numel: FloatArray,
    n_weights: Array,
    *,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return what the recorded products say of the Hessian H and the noise covariance C, by cell.

    .. math:: \operatorname{tr} H = E\, v'Hv, \qquad \|H\|_F^2 = E \|Hv\|^2, \qquad
       \operatorname{tr} C = E \|\zeta\|^2, \qquad \|C\|_F^2 = E (\zeta'\zeta^*)^2

    with v of random signs and independent minibatch noises :math:`\zeta, \zeta^*`, and
    :math:`\operatorname{tr} HC = E\, \zeta' H \zeta`.

    Parameters
    ----------
    form : ndarray, shape (step, layer, vector)
        Quadratic forms by layer.
    product_squared_norm : ndarray, shape (step, vector)
        Squared norms of the products.
    lanczos_diagonal, lanczos_beside : ndarray, shape (step, start, lanczos)
        Coefficients of Lanczos' recurrence.
    share : ndarray, shape (step, layer, eigenpair)
        Layer's part of the squared norm of an eigenvector.
    eigenvalue, residual : ndarray, shape (step, eigenpair)
        Largest Ritz values and their residuals.
    noise_squared_norm, noise_overlap : ndarray, shape (step, batch)
        Squared norms of minibatch noise, and inner products of neighbours.
    noise_along : ndarray, shape (step, batch, eigenpair)
        Minibatch gradients along eigenvectors.
    noise_form : ndarray, shape (step, formed)
        Quadratic forms of minibatch noise.
    learning_rate : ndarray, shape (step,)
        Of the step.
    numel : ndarray, shape (step, layer)
        Weights of each layer.
    n_weights : scalar array of int
        Rows of the Hessian.
    confidence : float
        Level of the intervals.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    steps, layers, vectors = form.shape
    pairs = eigenvalue.shape[-1]
    sizes = {"step": steps, "layer": layers, "eigenpair": pairs, "point": POINTS}
    out = blank(ANALYSIS.outputs, sizes)
    estimate = spectrum.trace(form, confidence=confidence)
    for name in ("estimate", "se", "low", "high"):
        suffix = "" if name == "estimate" else f"_{name}"
        out[f"trace{suffix}"][...] = getattr(estimate, name)
    out["status"][...] = estimate.status
    if vectors < MIN_VECTORS:
        out["status"][out["status"] == int(Status.OK)] = int(Status.TOO_FEW_SAMPLES)
    flat = (form == form[..., :1]).all(axis=-1)
    out["status"][flat & (out["status"] == int(Status.OK))] = int(Status.CONSTANT_INPUT)
    out["n_vectors"][...] = vectors
    out["top_share"][...] = share
    # The row of all weights takes all layers together.
    for step, layer in np.argwhere(numel == n_weights):
        found = _whole(
            form[step, layer],
            product_squared_norm[step],
            lanczos_diagonal[step],
            lanczos_beside[step],
            eigenvalue[step],
            residual[step],
            noise_squared_norm[step],
            noise_overlap[step],
            noise_along[step],
            noise_form[step],
            float(learning_rate[step]),
            int(n_weights),
            confidence,
        )
        for name, value in found.items():
            out[name][step, layer] = value
        if len(noise_squared_norm[step]) < 2 and out["status"][step, layer] == int(Status.OK):
            out["status"][step, layer] = int(Status.TOO_FEW_SAMPLES)
    return out


def _whole(
    form: FloatArray,
    squared: FloatArray,
    diagonal: FloatArray,
    beside: FloatArray,
    eigenvalue: FloatArray,
    residual: FloatArray,
    noise_squared: FloatArray,
    overlap: FloatArray,
    along: FloatArray,
    forms: FloatArray,
    rate: float,
    size: int,
    confidence: float,
) -> dict[str, Array | float | int]:
    """Return what is said of all layers together, of one step."""
    shape = spectrum.density(diagonal, beside, points=POINTS)
    rule = spectrum.quadrature(diagonal, beside)
    ends = [spectrum.extremes(diagonal[0], beside[0], size, 1, end, confidence)
            for end in ("largest", "smallest")]  # fmt: skip
    top, bottom = (float(each.value[0]) for each in ends)
    below = np.nansum(np.where(rule.node < 0, rule.weight, 0.0), axis=-1)
    found: dict[str, Array | float | int] = {
        "eigenvalue": eigenvalue,
        "residual": residual,
        "largest": top,
        "largest_high": float(ends[0].bound),
        "smallest": bottom,
        "smallest_low": float(ends[1].bound),
        "negative_share": float(below.mean()) if (rule.status == 0).all() else np.nan,
        "sharpness_rate": rate * top,
        "density_eigenvalue": shape.eigenvalue,
        "density": shape.density,
        "density_se": shape.se,
        "n_starts": len(diagonal),
        "n_batches": len(noise_squared),
        "n_forms": forms.size,
    }
    n = len(noise_squared)
    if n > 1 and np.isfinite(noise_squared).all():
        trace_c = float(noise_squared.mean())
        found["noise_trace"] = trace_c
        found["noise_trace_se"] = float(noise_squared.std(ddof=1)) / np.sqrt(n)
        found["noise_along"] = along.var(axis=0, ddof=1)
        if trace_c > 0:
            found["noise_share"] = float(along.var(axis=0, ddof=1).sum() / trace_c)
        if forms.size > 1:
            found |= _alignment(form, squared, trace_c, overlap, forms, size)
    return found


def _alignment(
    form: FloatArray,
    squared: FloatArray,
    trace_c: float,
    overlap: FloatArray,
    forms: FloatArray,
    size: int,
) -> dict[str, Array | float | int]:
    """Return tr(HC), and the same over what noise without a direction would give."""
    aligned = float(forms.mean())
    found: dict[str, Array | float | int] = {
        "aligned": aligned,
        "aligned_se": float(forms.std(ddof=1)) / np.sqrt(forms.size),
    }
    uniform = float(form.mean()) / size * trace_c
    if uniform > 0:
        found["anisotropy"] = aligned / uniform
    # The first minibatch has none before it.
    norms = float(squared.mean()) * float(np.mean(overlap[1:] ** 2))
    if norms > 0:
        found["cosine"] = aligned / np.sqrt(norms)
    return found


def finding(result: xr.Dataset) -> Finding:
    """Return trace and sharpness at the first and the last step, and whether noise follows them."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No step had enough finite products with the Hessian to say its trace.")

    def describe(row: xr.Dataset) -> str:
        trace, low, high, top, product = (
            float(row[name])
            for name in ("trace", "trace_low", "trace_high", "largest", "sharpness_rate")
        )
        text = f"a Hessian of trace {trace:.3g} ({low:.3g} to {high:.3g})"
        if np.isfinite(top):
            text += (
                f", largest eigenvalue {top:.3g}, {product:.2g} over the learning rate's inverse"
            )
        return f"{text} at step {int(row['step'])}"

    parts = at_ends(good, describe)
    sentence = f"The loss of {subject(good)} has {', and '.join(parts)}."
    last = good.isel(step=-1)
    warnings = []
    if np.isfinite(float(last["anisotropy"])):
        sentence += (
            f" Minibatch noise along its top {result.sizes['eigenpair']} eigenvectors is "
            f"{100 * float(last['noise_share']):.2g} % of all noise; all of it meets "
            f"{float(last['anisotropy']):.3g} times the curvature that noise of the same size, "
            f"equal in all directions, would meet (step {int(last['step'])})."
        )
    unstable = good["step"].values[good["sharpness_rate"].values > STABLE]
    if unstable.size:
        warnings.append(
            f"The learning rate exceeds {STABLE:g} over the largest eigenvalue at "
            f"{unstable.size} of {good.sizes['step']} steps: there plain gradient descent leaves "
            "the quadratic model in this direction (momentum moves the threshold)."
        )
    worst = (good["residual"] / good["largest"]).isel(eigenpair=0)
    if (worst > 0.01).any():
        warnings.append(
            "Some largest eigenvalues have residuals above 1 %: record more lanczos_steps."
        )
    return Finding(sentence, tuple(warnings))


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return trace and largest eigenvalue over training, and the last step's density."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.set_label(
        "Trace of the Hessian and largest eigenvalue over training; density of eigenvalues at the "
        "last step."
    )
    left, middle, right = figure.subplots(1, 3)
    for axis in (left, middle):
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xlabel("step")
    for index, (label, result) in enumerate(results.items()):
        row = shown(result)
        color = f"C{index}"
        left.fill_between(
            row["step"], row["trace_low"], row["trace_high"], color=color, alpha=0.2, linewidth=0
        )
        left.plot(row["step"], row["trace"], "o-", color=color, ms=4, label=label)
        middle.plot(row["step"], row["largest"], "o-", color=color, ms=4)
        rate = row["sharpness_rate"] / row["largest"]
        middle.plot(row["step"], STABLE / rate, ":", color=color)
        if row.sizes["step"]:
            last = row.isel(step=-1)
            right.plot(last["density_eigenvalue"], last["density"], color=color)
    middle.plot([], [], ":", color="0.4", label="2 / learning rate")
    left.set(ylabel="trace (loss/weight²)", title="Trace of the Hessian")
    middle.set(ylabel="eigenvalue (loss/weight²)", title="Largest eigenvalue")
    right.set(xlabel="eigenvalue", ylabel="density", title="Density, last step", yscale="log")
    low, high = right.get_ylim()
    right.set_ylim(max(low, 1e-6 * high), high)
    for axis in (left, middle):
        axis.legend(fontsize=8, frameon=False)
    return figure


def _input(
    name: str,
    dims: tuple[str, ...],
    units: str,
    array: str | None = None,
    network: Literal["sum"] | None = None,
) -> Input:
    return Input(
        Variable(name, dims, units), (f"hessian/{array or name}",), network, collector=_COLLECTOR
    )


ANALYSIS = Analysis(
    name="curvature",
    summary="How curved is the loss, and does noise follow? Trace, eigenvalues, alignment",
    version=1,
    inputs=(
        _input("form", ("step", "layer", "vector"), _CURVATURE, network="sum"),
        _input("product_squared_norm", ("step", "vector"), "(loss/weight^2)^2"),
        _input("lanczos_diagonal", ("step", "start", "lanczos"), _CURVATURE),
        _input("lanczos_beside", ("step", "start", "lanczos"), _CURVATURE),
        _input("share", ("step", "layer", "eigenpair"), "1", "eigenvector_share",
               network="sum"),
        _input("eigenvalue", ("step", "eigenpair"), _CURVATURE),
        _input("residual", ("step", "eigenpair"), _CURVATURE),
        _input("noise_squared_norm", ("step", "batch"), "(loss/weight)^2"),
        _input("noise_overlap", ("step", "batch"), "(loss/weight)^2"),
        _input("noise_along", ("step", "batch", "eigenpair"), "loss/weight"),
        _input("noise_form", ("step", "formed"), "loss^3/weight^4"),
        Input(
            Variable("learning_rate", ("step",), "weight^2/loss"), sources=("steps/learning_rate",)
        ),
        _input("numel", _CELL, "1", network="sum"),
        Input(
            Variable("n_weights", (), dtype="int64"),
            sources=("hessian@n_weights",),
            collector=_COLLECTOR,
        ),
    ),
    outputs=(
        Variable("trace", _CELL, _CURVATURE, description="trace of the Hessian, or of its block"),
        Variable("trace_se", _CELL, _CURVATURE, description="standard error"),
        Variable("trace_low", _CELL, _CURVATURE, description="interval, lower end"),
        Variable("trace_high", _CELL, _CURVATURE, description="interval, upper end"),
        Variable("top_share", _PAIR, description="part of an eigenvector that is in the layer"),
        Variable("eigenvalue", _PAIR, _CURVATURE, description=f"largest Ritz values{_WHOLE}"),
        Variable("residual", _PAIR, _CURVATURE, description="an eigenvalue is within this"),
        Variable("largest", _CELL, _CURVATURE, description=f"largest eigenvalue{_WHOLE}"),
        Variable("largest_high", _CELL, _CURVATURE, description="it is not above, very probably"),
        Variable("smallest", _CELL, _CURVATURE, description=f"smallest eigenvalue{_WHOLE}"),
        Variable("smallest_low", _CELL, _CURVATURE, description="it is not below, very probably"),
        Variable("negative_share", _CELL, description=f"part of the spectrum below 0{_WHOLE}"),
        Variable("sharpness_rate", _CELL, description=f"largest times learning rate{_WHOLE}"),
        Variable("density_eigenvalue", _POINT, _CURVATURE, description="where the density is"),
        Variable("density", _POINT, "weight^2/loss", description=f"density{_WHOLE}"),
        Variable("density_se", _POINT, "weight^2/loss", description="standard error over starts"),
        Variable("noise_trace", _CELL, "(loss/weight)^2", description=f"trace of C{_WHOLE}"),
        Variable("noise_trace_se", _CELL, "(loss/weight)^2", description="standard error"),
        Variable("noise_along", _PAIR, "(loss/weight)^2", description=f"variance along u{_WHOLE}"),
        Variable("noise_share", _CELL, description=f"part of tr C along the top{_WHOLE}"),
        Variable("aligned", _CELL, "loss^3/weight^4",
                 description=f"sum of eigenvalue times variance along it{_WHOLE}"),
        Variable("aligned_se", _CELL, "loss^3/weight^4", description="standard error"),
        Variable("anisotropy", _CELL,
                 description=f"aligned over tr(H) tr(C) / size; where tr(H) > 0{_WHOLE}"),
        Variable("cosine", _CELL, description=f"aligned over |H|_F |C|_F{_WHOLE}"),
        Variable("n_vectors", _CELL, dtype="int64", description="random vectors of the trace"),
        Variable("n_starts", _CELL, dtype="int64", description="random starts of the density"),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches of the noise"),
        Variable("n_forms", _CELL, dtype="int64", description="of which tr(HC) is the mean"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={"point": range(POINTS)},
    cell=_CELL,
    kernel=curvature,
    finding=finding,
    plot=plot,
    parameters=(Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),),
    references=(
        Reference(
            "Ghorbani, Krishnan, Xiao, An Investigation into Neural Net Optimization via Hessian "
            "Eigenvalue Density, ICML 2019",
            "https://arxiv.org/abs/1901.10159",
        ),
        Reference(
            "Zhu, Wu, Yu, Wu, Ma, The Anisotropic Noise in Stochastic Gradient Descent, ICML 2019",
            "https://arxiv.org/abs/1803.00195",
        ),
        Reference(
            "Cohen, Kaur, Li, Kolter, Talwalkar, Gradient Descent on Neural Networks Typically "
            "Occurs at the Edge of Stability, ICLR 2021",
            "https://arxiv.org/abs/2103.00065",
        ),
    ),
)  # fmt: skip
