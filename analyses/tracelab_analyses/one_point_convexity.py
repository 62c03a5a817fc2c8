"""One-point convexity: does the gradient, plain or smoothed by noise, point to where the run ends?

Kleinberg, Li, Yuan (2018) show that SGD goes to a point to which the gradient of the loss smoothed
by the noise of one step points everywhere on the way, and stays near it. The target here is where
the same run ended, which is known in hindsight only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from tracelab.contracts import Analysis, Input, Parameter, Reference, Variable
from tracelab.outcomes import blank
from tracelab.typing import Array, Assumption, BoolArray, FloatArray, IntArray, Status
from tracelab_analyses.one_point_figures import ASSUMPTIONS, finding, plot

_CELL = ("layer",)
_PATH = ("layer", "step")


@dataclass(frozen=True, slots=True)
class _Products:
    """By part: inner products with a displacement, and what projections leave open of them.

    Parameters
    ----------
    inner, square : ndarray, shape (part,)
        Inner product with the displacement, and the displacement's squared norm.
    inner_var, square_var, covariance : ndarray, shape (part,)
        Of their errors by projection.
    """

    inner: FloatArray
    square: FloatArray
    inner_var: FloatArray
    square_var: FloatArray
    covariance: FloatArray

    @classmethod
    def of(
        cls, inner: FloatArray, squared_norm: FloatArray, away: FloatArray, numel: FloatArray
    ) -> _Products:
        r"""Return them for a vector of known squared norm.

        With k directions and n weights a pair of weights shares one with probability about
        :math:`(1 - k/n)/k`, and never where n is no more than k:

        .. math:: \mathrm{var}\, \langle a, b \rangle \approx
           \frac{1 - k/n}{k} (\|a\|^2 \|b\|^2 + \langle a, b \rangle^2).
        """
        directions = away.shape[-1]
        square = np.square(away).sum(axis=-1)
        share = np.maximum(0.0, 1 - directions / numel) / directions
        return cls(
            inner,
            square,
            share * (squared_norm * square + inner**2),
            2 * share * square**2,
            2 * share * inner * square,
        )


def one_point_convexity(
    step: IntArray,
    learning_rate: FloatArray,
    member: FloatArray,
    every_step: IntArray,
    numel: FloatArray,
    every_rate: FloatArray,
    weight: FloatArray,
    gradient: FloatArray,
    squared_norm: FloatArray,
    noise_squared_norm: FloatArray,
    smoothed: FloatArray,
    smoothed_squared_norm: FloatArray,
    neighbour_gradient: FloatArray | None = None,
    neighbour_outward: FloatArray | None = None,
    eigenvalue: FloatArray | None = None,
    *,
    target: int | None = None,
    confidence: float = 0.95,
) -> dict[str, Array]:
    r"""Return inner products of negative gradients with the way to the target, by layer and step.

    With :math:`x^*` the weights of the last row (that is no later than `target`),

    .. math:: c = \frac{\langle -\nabla f(w), x^* - w \rangle}{\|x^* - w\|^2}, \qquad
       c_s = \frac{\langle -E \nabla f(y - \eta \omega), x^* - y \rangle}{\|x^* - y\|^2},
       \qquad y = w - \eta \nabla f(w) .

    Errors of projections are derived from norms (see ``docs/statistics.md``), and 0 where a layer
    has no more weights than there are directions; the error of a smoothed quantity has that of the
    draws besides. The lower ends of c that are judged take Student's t for what is from the draws,
    at the level for all steps together. The intervals of shares take a draw or a point nearby for
    positive or not only where its inner product is as many errors of projection from 0 as the level
    says: draws have the error in common, and Wilson's interval knows of none. Where a row is at the
    target, nothing points to it, and it has no numbers.

    Where :math:`c_s \ge c > 0` all along the path, its rates are below
    :math:`\min(1/2L, c/L^2, 1/2c)`, and norms of the noise below r, the run stays within

    .. math:: \sqrt{20 B / \lambda}, \quad B = \eta^2 r^2 (1 + \eta L)^2, \quad
       \lambda = 2 \eta c - \eta^2 L^2

    of the target with probability one half, once it has had the time to come there (Theorem 1).

    Parameters
    ----------
    step, learning_rate : ndarray, shape (step,), (step, part)
        Steps of the result, and rates there.
    member : ndarray, shape (layer, every_step, part)
        1 where a part, one for each layer that was recorded, is the row's or among the network's.
    every_step, numel, every_rate : ndarray, shape (every_step,), (every_step, part) twice
        All rows: steps, numbers of weights, learning rates.
    weight, gradient : ndarray, shape (every_step, part, direction)
        Projections.
    squared_norm, smoothed_squared_norm : ndarray, shape (every_step, part)
        Of the gradient, and of the mean of the smoothed ones.
    noise_squared_norm : ndarray, shape (every_step, draw, part)
        Of the noise of minibatches.
    smoothed : ndarray, shape (every_step, draw, part, direction)
        Projections of gradients one step ahead.
    neighbour_gradient, neighbour_outward : ndarray, optional
        Shapes (every_step, neighbour, part, direction) and (every_step, neighbour, part).
    eigenvalue : ndarray, shape (hessian_step, eigenpair), optional
        Largest of the Hessian.
    target, confidence
        See ``ANALYSIS.parameters``.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    layers = len(member)
    among = member[:, 0] > 0
    every = np.asarray(among.all(axis=1))
    # What belongs to none of these rows is not computed: most of it, where cells come one by one.
    used = among.any(axis=0)
    among = among[:, used]
    numel, every_rate, weight, gradient, squared_norm, smoothed_squared_norm = (
        each[:, used]
        for each in (numel, every_rate, weight, gradient, squared_norm, smoothed_squared_norm)
    )
    noise_squared_norm, smoothed = noise_squared_norm[:, :, used], smoothed[:, :, used]
    if neighbour_gradient is not None and neighbour_outward is not None:
        neighbour_gradient = neighbour_gradient[:, :, used]
        neighbour_outward = neighbour_outward[:, :, used]
    out = blank(
        ANALYSIS.outputs,
        {"layer": layers, "step": step.size, "assumption": len(ASSUMPTIONS)},
    )
    draws = smoothed.shape[1]
    out["n_draws"][:] = draws
    out["n_neighbours"][:] = 0 if neighbour_gradient is None else neighbour_gradient.shape[1]
    rows = np.flatnonzero(every_step <= (every_step[-1] if target is None else target))
    last, passed = (int(rows[-1]), rows[:-1]) if rows.size else (0, rows)
    out["n_steps"][:] = passed.size
    known = [passed, np.r_[passed, last].astype(int)] if rows.size else [passed, passed]
    out["status"][:] = _status(
        among, weight[known[1]], gradient[known[0]], smoothed[known[0]], weight[last],
        (squared_norm[known[0]], smoothed_squared_norm[known[0]], every_rate[known[0]]),
    )  # fmt: skip
    if rows.size:
        out["target_step"][:] = every_step[last]
    # The path's smallest c takes all rows, whichever steps the result is of.
    path = {name: np.full((layers, passed.size), np.nan) for name in ("c", "low", "high")}
    tail = (1 - confidence) / 2 / max(passed.size, 1)
    quantile, drawn_quantile = float(stats.norm.isf(tail)), float(stats.t.isf(tail, draws - 1))
    # What is not finite has a status, and spoils no other row.
    with np.errstate(invalid="ignore", over="ignore"):
        for number, row in enumerate(passed.tolist()):
            way = weight[last] - weight[row]
            ahead = way + every_rate[row][:, None] * gradient[row]
            found = _plain(
                among, -np.sum(gradient[row] * way, -1), squared_norm[row], way, numel[row]
            )
            inner = -np.sum(smoothed[row] * ahead, -1)
            ahead_of, drawn = _smoothed(
                among, inner, smoothed[row], smoothed_squared_norm[row], ahead, numel[row],
                confidence,
            )  # fmt: skip
            found |= ahead_of
            if neighbour_gradient is not None and neighbour_outward is not None:
                there = neighbour_gradient[row]
                near = -np.sum(there * way, -1)
                spread = _spread(among, near, there, way, numel[row])
                outward = _summed(among, neighbour_outward[row] + near)
                found |= _share(outward, spread, "neighbours_positive", confidence)
            centre, error = found["smoothed_convexity"], found["smoothed_convexity_se"]
            path["c"][:, number] = centre
            # A variance from few draws is an estimate, that of projections is not: this interval
            # holds its level whatever their ratio (Banerjee 1961, Sankhya A 23).
            half = np.sqrt(
                quantile**2 * np.maximum(error**2 - drawn, 0.0) + drawn_quantile**2 * drawn
            )
            path["low"][:, number], path["high"][:, number] = centre - half, centre + half
            for place in np.flatnonzero(step == every_step[row]):
                for name, value in found.items():
                    out[name][:, place] = value
    if passed.size:
        _along(
            out, among, every, path, every_rate[passed], noise_squared_norm[passed],
            np.nan if eigenvalue is None else _largest(eigenvalue),
        )  # fmt: skip
    bad = out["status"] != Status.OK
    for variable in ANALYSIS.outputs:
        if variable.dtype == "float64":
            out[variable.name][bad] = np.nan
    out["assumption_holds"][bad] = Assumption.UNCHECKED
    return out


def _summed(among: BoolArray, by_part: FloatArray) -> FloatArray:
    """Return sums over the parts of each row, (layer, ...), of what has parts last."""
    rows = [np.where(row, by_part, 0.0).sum(axis=-1) for row in among]
    return np.stack(rows)


def _status(
    among: BoolArray,
    weight: FloatArray,
    gradient: FloatArray,
    smoothed: FloatArray,
    target: FloatArray,
    numbers: tuple[FloatArray, ...],
) -> IntArray:
    """Return the status of each row, from what is used."""
    finite = np.isfinite(weight).all(axis=(0, 2)) & np.isfinite(gradient).all(axis=(0, 2))
    finite = np.asarray(finite & np.isfinite(smoothed).all(axis=(0, 1, 3)))
    for each in numbers:
        finite &= np.isfinite(each).all(axis=0)
    moved = np.asarray(np.any(weight != target, axis=(0, 2)))
    sloped = np.asarray(np.any(gradient != 0, axis=(0, 2)))
    found = np.full(len(among), int(Status.OK))
    for place, row in enumerate(among):
        if not finite[row].all():
            found[place] = Status.NON_FINITE_INPUT
        elif len(gradient) == 0 or smoothed.shape[1] < 2:
            found[place] = Status.TOO_FEW_SAMPLES
        elif not (moved[row].any() and sloped[row].any()):
            found[place] = Status.CONSTANT_INPUT
    return found


def _ratios(
    among: BoolArray, products: _Products, squared_norm: FloatArray, draws_var: FloatArray | float
) -> dict[str, FloatArray]:
    """Return inner product, cosine and c with their errors, by row; by the delta method."""
    inner, square, norm = (
        _summed(among, each) for each in (products.inner, products.square, squared_norm)
    )
    inner_var, square_var, covariance = (
        _summed(among, each)
        for each in (products.inner_var, products.square_var, products.covariance)
    )
    # At the target there is nothing to point to.
    inner = np.where(square > 0, inner, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        c, length = inner / square, np.sqrt(norm * square)
        # Relative to the square of the displacement's, whose own error pulls the same way.
        ratio_var = (inner_var + c**2 * square_var - 2 * c * covariance) / square**2
        cosine_var = (
            inner_var + (c / 2) ** 2 * square_var - c * covariance
        ) / length**2 + draws_var / length**2
        return {
            "inner": inner,
            "inner_se": np.sqrt(inner_var + draws_var),
            "cosine": inner / length,
            "cosine_se": np.sqrt(np.maximum(cosine_var, 0.0)),
            "convexity": c,
            "convexity_se": np.sqrt(np.maximum(ratio_var, 0.0) + draws_var / square**2),
        }


def _plain(
    among: BoolArray,
    inner: FloatArray,
    squared_norm: FloatArray,
    way: FloatArray,
    numel: FloatArray,
) -> dict[str, FloatArray]:
    products = _Products.of(inner, squared_norm, way, numel)
    return _ratios(among, products, squared_norm, 0.0) | {
        "distance": np.sqrt(_summed(among, products.square))
    }


def _smoothed(
    among: BoolArray,
    inner: FloatArray,
    smoothed: FloatArray,
    squared_norm: FloatArray,
    ahead: FloatArray,
    numel: FloatArray,
    confidence: float,
) -> tuple[dict[str, FloatArray], FloatArray]:
    """Return the same of the mean over draws, whose inner products are (draw, part).

    And of the variance of c what is from the draws.
    """
    by_draw = _summed(among, inner)
    draws = by_draw.shape[1]
    spread = by_draw.var(axis=1, ddof=1) / draws if draws > 1 else np.full(len(among), np.nan)
    products = _Products.of(inner.mean(axis=0), squared_norm, ahead, numel)
    ratios = _ratios(among, products, squared_norm, spread)
    found = {f"smoothed_{name}": value for name, value in ratios.items()}
    projected = _spread(among, inner, smoothed, ahead, numel)
    square = _summed(among, products.square)
    shares = _share(by_draw, projected, "draws_positive", confidence)
    found |= {name: np.where(square > 0, each, np.nan) for name, each in shares.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        return found, spread / square**2


def _spread(
    among: BoolArray, inner: FloatArray, vectors: FloatArray, away: FloatArray, numel: FloatArray
) -> FloatArray:
    """Return the error by projection of inner products of vectors (draw, part, direction)."""
    products = _Products.of(inner, np.square(vectors).sum(axis=-1), away, numel)
    return np.sqrt(_summed(among, products.inner_var))


def _share(
    values: FloatArray, spread: FloatArray, name: str, confidence: float
) -> dict[str, FloatArray]:
    """Return the share of positive values along the last axis, with Wilson's interval.

    Its lower end is of those that are positive for all their errors leave open, its upper end of
    those that may be. Where a value is not finite, as where a loss overflows at a point nearby,
    all are NaN.
    """
    count = values.shape[-1]
    reach = float(stats.norm.isf((1 - confidence) / 2)) * spread
    sure, perhaps = (
        proportion_confint((values > edge).sum(axis=-1), count, 1 - confidence, method="wilson")
        for edge in (reach, -reach)
    )
    unknown = ~np.isfinite(values).all(axis=-1)
    found = {name: (values > 0).mean(axis=-1), f"{name}_low": sure[0], f"{name}_high": perhaps[1]}
    return {end: np.where(unknown, np.nan, share) for end, share in found.items()}


def _largest(eigenvalue: FloatArray) -> float:
    finite = np.abs(eigenvalue[np.isfinite(eigenvalue)])
    return float(finite.max()) if finite.size else np.nan


def _along(
    out: dict[str, Array],
    among: BoolArray,
    every: BoolArray,
    path: dict[str, FloatArray],
    rates: FloatArray,
    noise: FloatArray,
    smooth: float,
) -> None:
    """Write what holds of the whole path: the smallest c, the assumptions, the bound."""
    # Rows at the target have none.
    least = {name: np.fmin.reduce(each, axis=1) for name, each in path.items()}
    lowest = least["low"]
    out["convexity_min"][:], out["convexity_min_low"][:] = least["c"], lowest
    out["noise_radius"][:] = np.sqrt(_summed(among, noise).max(axis=(1, 2)))
    out["smoothness"][:] = smooth
    for place, row in enumerate(among):
        rate = rates[:, row].max()
        out["rate"][place] = rate
        c = lowest[place]
        checks = out["assumption_holds"][place]
        checks[0] = _verdict(c > 0, least["high"][place] < 0)
        if c > 0:
            checks[3] = _verdict(2 * rate * c < 1, 2 * rate * c >= 1)
        # The curvature is that of all layers together, along the recorded path: L is no less.
        if np.isfinite(smooth) and every[place]:
            checks[1] = _verdict(2 * rate * smooth < 1, 2 * rate * smooth >= 1)
            if c > 0:
                checks[2] = _verdict(rate * smooth**2 < c, rate * smooth**2 >= c)
        if (checks[:4] == Assumption.HOLDS).all():
            # Kleinberg et al. 2018, Theorem 1.
            contraction = 2 * rate * c - (rate * smooth) ** 2
            spread = (rate * out["noise_radius"][place] * (1 + rate * smooth)) ** 2
            out["bound"][place] = np.sqrt(20 * spread / contraction)


def _verdict(holds: bool, fails: bool) -> Assumption:
    if holds:
        return Assumption.HOLDS
    return Assumption.FAILS if fails else Assumption.UNCHECKED


def _whole(
    name: str,
    dims: tuple[str, ...],
    units: str = "1",
    dtype: str = "float64",
    *,
    source: str = "",
    network: bool = False,
    optional: bool = False,
    collector: str = "SmoothedGradient(every=...)",
) -> Input:
    return Input(
        Variable(name, dims, units, dtype),
        (source or f"smoothed_gradient/{name}",),
        network="sum" if network else None,
        optional=optional,
        whole=True,
        collector=collector,
    )


_RATE, _GRADIENT, _SQUARE = "weight^2/loss", "loss/weight", "(loss/weight)^2"
_PER = "loss/weight^2"
_ROWS, _PARTS = "every_step", ("every_step", "part")
_PLAIN = "negative gradient and way to the target"
_AHEAD = "the same of the smoothed gradient, one step ahead"
ANALYSIS = Analysis(
    name="one_point_convexity",
    summary="Does the gradient, smoothed by the noise, point to where the run ends?",
    version=2,
    inputs=(
        Input(Variable("step", ("step",), "step", "int64"), ("smoothed_gradient/step",),
              collector="SmoothedGradient(every=...)"),
        Input(Variable("learning_rate", ("step", "part"), _RATE),
              ("smoothed_gradient/learning_rate",), collector="SmoothedGradient(every=...)"),
        _whole("member", ("layer", *_PARTS), network=True),
        _whole("every_step", (_ROWS,), "step", "int64", source="smoothed_gradient/step"),
        _whole("numel", _PARTS),
        _whole("every_rate", _PARTS, _RATE, source="smoothed_gradient/learning_rate"),
        _whole("weight", (*_PARTS, "direction"), "weight"),
        _whole("gradient", (*_PARTS, "direction"), _GRADIENT),
        _whole("squared_norm", _PARTS, _SQUARE),
        _whole("noise_squared_norm", (_ROWS, "draw", "part"), _SQUARE),
        _whole("smoothed", (_ROWS, "draw", "part", "direction"), _GRADIENT),
        _whole("smoothed_squared_norm", _PARTS, _SQUARE),
        _whole("neighbour_gradient", (_ROWS, "neighbour", "part", "direction"), _GRADIENT,
               optional=True, collector="SmoothedGradient(neighbours=100)"),
        _whole("neighbour_outward", (_ROWS, "neighbour", "part"), "loss", optional=True,
               collector="SmoothedGradient(neighbours=100)"),
        _whole("eigenvalue", ("hessian_step", "eigenpair"), _PER, source="hessian/eigenvalue",
               optional=True, collector="HessianVectors()"),
    ),
    outputs=(
        Variable("distance", _PATH, "weight", description="distance to the target"),
        *(
            Variable(f"{prefix}{name}{end}", _PATH, units, description=f"{what}, {of}{error}")
            for prefix, of in (("", _PLAIN), ("smoothed_", _AHEAD))
            for name, units, what in (
                ("inner", "loss", "inner product"),
                ("cosine", "1", "cosine"),
                ("convexity", _PER, "c, inner product over squared distance"),
            )
            for end, error in (("", ""), ("_se", ": standard error"))
        ),
        *(
            Variable(f"{name}{end}", _PATH, description=f"share of {what}{text}")
            for name, what in (
                ("draws_positive", "draws whose smoothed inner product is positive"),
                ("neighbours_positive", "points nearby whose gradient points to the target"),
            )
            for end, text in (
                ("", ""), ("_low", ", interval, lower end"), ("_high", ", upper end")
            )
        ),
        Variable("convexity_min", _CELL, _PER, description="smallest smoothed c of the path"),
        Variable("convexity_min_low", _CELL, _PER,
                 description="smallest lower end of c, all steps at the level together"),
        Variable("noise_radius", _CELL, _GRADIENT, description="largest norm of a draw's noise"),
        Variable("smoothness", _CELL, _PER, description="largest recorded curvature, L from below"),
        Variable("rate", _CELL, _RATE, description="largest learning rate of the path"),
        Variable("assumption_holds", ("layer", "assumption"), dtype="uint8",
                 description=Assumption.meanings()),
        Variable("bound", _CELL, "weight",
                 description="radius the theorem keeps the run in; NaN without its conditions"),
        Variable("target_step", _CELL, dtype="int64", units="step", description="of the target"),
        Variable("n_steps", _CELL, dtype="int64", description="recorded steps before the target"),
        Variable("n_draws", _CELL, dtype="int64", description="minibatches"),
        Variable("n_neighbours", _CELL, dtype="int64", description="points nearby"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    coords={"assumption": ASSUMPTIONS},
    cell=_CELL,
    kernel=one_point_convexity,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter("target", None, "take the last row up to this step as the target", low=1),
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
    ),
    references=(
        Reference(
            "Kleinberg, Li, Yuan, An Alternative View: When Does SGD Escape Local Minima?, ICML "
            "2018",
            "https://arxiv.org/abs/1802.06175",
        ),
    ),
)  # fmt: skip
