"""Quantile plots of gradient noise against the Gaussian and the fitted symmetric stable law.

Three series of a layer are shown at three probes: those whose excess kurtosis is at the 10 %,
50 % and 90 % quantile of the layer's series, so that neither the tamest nor the wildest speaks
for the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import special

from tracelab.contracts import NETWORK
from tracelab.errors import DamagedError
from tracelab.reporting.style import Picture, picture, plain_text
from tracelab.series import usable_series
from tracelab.stats import stable
from tracelab.trace import Trace
from tracelab.typing import FloatArray, IntArray, Sketched, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["quantile_pictures"]

logger = logging.getLogger(__name__)

MIN_BATCHES = 20
# Of a probe, so many series are read, spread over the first `_BLOCK` of their layer.
_MAX_SERIES = 256
_BLOCK = 16_384
_MAX_POINTS = 120
_MAX_POINTS_IN_ALL = 24_000
_EXTREMES = 25
_CHOSEN = (0.1, 0.5, 0.9)
_BAND = 0.95
# A law whose quantiles go beyond this many scales is drawn on axes linear within so many.
_WIDE = 12.0
_LINEAR = 3.0


def quantile_pictures(traces: Mapping[str, Trace]) -> list[Picture]:
    """Return one figure for each trace that holds noise samples."""
    groups = {label: _noise_group(trace) for label, trace in traces.items()}
    found = {label: name for label, name in groups.items() if name is not None}
    points = max(2 * _EXTREMES + 10, min(_MAX_POINTS, _MAX_POINTS_IN_ALL // (18 * len(found) or 1)))
    return [
        _trace_picture(traces[label], label, name, f"quantiles-{index}", points)
        for index, (label, name) in enumerate(found.items(), start=1)
    ]


def _noise_group(trace: Trace) -> str | None:
    for name in [name for name, kind in trace.kinds.items() if kind == "noise"]:
        try:
            group = trace.groups[name]
        except DamagedError as error:
            logger.warning("no quantiles are drawn: %s", error)
            continue
        if group.sizes.get("step", 0) and _sketch(group):
            return name
    return None


def _sketch(group: xr.Dataset) -> Sketched | None:
    """Return which sketch to show: coordinates rather than projections, which look Gaussian."""
    found: tuple[Sketched, ...] = ("sampled", "full", "projected")
    return next((name for name in found if name in group), None)


def _trace_picture(trace: Trace, label: str, name: str, stem: str, points: int) -> Picture:
    from matplotlib.figure import Figure

    group = trace.groups[name]
    sketch = _sketch(group)
    layer = NETWORK if sketch == "projected" else _largest(trace, group)
    recorded = group["step"].values
    steps = list(dict.fromkeys(int(recorded[i]) for i in (0, len(recorded) // 2, -1)))
    figure = Figure(figsize=(1.2 + 2.6 * len(steps), 5.6), layout="constrained")
    panels = figure.subplots(2, len(steps), squeeze=False)
    kinds = "directions" if sketch == "projected" else "coordinates"
    for column, step in enumerate(steps):
        noise = trace.noise(step=step, layer=layer, sketch=sketch, group=name)
        block = min(noise.sizes["series"], _BLOCK)
        spread = noise.isel(series=slice(0, block, -(-block // _MAX_SERIES)))
        try:
            values = np.asarray(spread.transpose("batch", "series").values, dtype=np.float64)
            status, series = usable_series(values, MIN_BATCHES)
        except DamagedError:
            status = Status.UNREADABLE
        gaussian, heavy = panels[:, column]
        gaussian.set_title(f"step {step:,}")
        if status is not Status.OK:
            for axes in (gaussian, heavy):
                axes.text(
                    0.5, 0.5, status.name.lower().replace("_", " "),
                    ha="center", va="center", transform=axes.transAxes,
                )  # fmt: skip
                axes.set(xticks=[], yticks=[])
            continue
        chosen = _chosen(series)
        _against_gaussian(gaussian, chosen, points)
        _against_stable(heavy, chosen, points)
    panels[0, 0].set_ylabel("noise (standard deviations)")
    panels[1, 0].set_ylabel("noise (fitted scales)")
    where = "all layers together" if layer == NETWORK else layer
    figure.suptitle(plain_text(f"{label}: {where}"), fontsize=10.5)
    caption = (
        f"{label}: quantiles of the noise of three {kinds} of {where} over "
        f"{group.sizes['batch']:,} minibatches, against a Gaussian (top) and the fitted symmetric "
        "stable law (bottom). Of the series whose middle half varies, they have the 10 %, 50 % "
        "and 90 % quantile of excess kurtosis. Grey: where each point lies with probability "
        f"{_BAND:.0%} if the noise follows the reference law."
    )
    return picture(figure, stem, caption)


def _largest(trace: Trace, group: xr.Dataset) -> str:
    names = [str(name) for name in group["layer"].values]
    numel = trace.layers["numel"].sel(layer=names).values
    return names[int(np.argmax(numel))]


def _excess_kurtosis(series: FloatArray) -> FloatArray:
    centred = series - series.mean(axis=0)
    kurtosis: FloatArray = np.mean(centred**4, axis=0) / np.mean(centred**2, axis=0) ** 2 - 3
    return kurtosis


def _chosen(series: FloatArray) -> FloatArray:
    low, high = np.quantile(series, (0.25, 0.75), axis=0)
    # A coordinate that most minibatches leave at zero (a dark pixel's) has no law to compare with.
    if (high > low).any():
        series = series[:, high > low]
    order = np.argsort(_excess_kurtosis(series), kind="stable")
    places = np.round(np.array(_CHOSEN) * (order.size - 1)).astype(np.int64)
    return series[:, order[np.unique(places)]]


def _positions(count: int, points: int) -> tuple[IntArray, FloatArray]:
    """Return which order statistics to draw (all extremes) and the probabilities they stand at."""
    ranks = np.arange(count)
    if count > points:
        middle = np.linspace(_EXTREMES, count - _EXTREMES - 1, points - 2 * _EXTREMES)
        ends = (ranks[:_EXTREMES], middle.round().astype(np.int64), ranks[-_EXTREMES:])
        ranks = np.unique(np.concatenate(ends))
    return ranks, (ranks + 0.5) / count


def _band(ranks: IntArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Return probabilities between which an order statistic lies: it is Beta(i, n + 1 - i)."""
    tail = (1 - _BAND) / 2
    a, b = ranks + 1.0, count - ranks + 0.0
    return special.betaincinv(a, b, tail), special.betaincinv(a, b, 1 - tail)


def _against_gaussian(axes: Axes, series: FloatArray, points: int) -> None:
    scaled = (series - series.mean(axis=0)) / series.std(axis=0, ddof=1)
    ranks, probability = _positions(series.shape[0], points)
    x = special.ndtri(probability)
    low, high = (special.ndtri(p) for p in _band(ranks, series.shape[0]))
    names = [f"kurtosis {excess:.1f}".replace("-", "−") for excess in _excess_kurtosis(series)]
    _draw(axes, [x] * scaled.shape[1], np.sort(scaled, axis=0)[ranks], (x, low, high), names)
    axes.set_xlabel("Gaussian quantile")


def _against_stable(axes: Axes, series: FloatArray, points: int) -> None:
    fit = stable.fit(series, axis=0)
    scaled = (series - fit.loc) / fit.scale
    ranks, probability = _positions(series.shape[0], points)
    quantiles = [stable.ppf(probability, alpha) for alpha in fit.alpha]
    middle = len(quantiles) // 2
    low, high = (stable.ppf(p, fit.alpha[middle]) for p in _band(ranks, series.shape[0]))
    names = [
        f"α = {alpha:.2f}" + ("" if status == Status.OK else " (not converged)")
        for alpha, status in zip(fit.alpha, fit.status, strict=True)
    ]
    band = (quantiles[middle], low, high)
    _draw(axes, quantiles, np.sort(scaled, axis=0)[ranks], band, names)
    axes.set_xlabel("stable quantile")


def _compress(axes: Axes, limit: float) -> None:
    """Make both axes logarithmic beyond a few scales; alike, so that the line stays a line."""
    marks = np.array([3.0, 10.0, 30.0])
    if limit > 60:
        decades = np.arange(1, int(np.log10(limit)) + 1)
        marks = 10.0 ** decades[:: -(-decades.size // 3)]
    ticks = [*-marks[::-1], 0.0, *marks]
    labels = [f"{tick:g}".replace("-", "−") for tick in ticks]
    axes.set_xscale("asinh", linear_width=_LINEAR)
    axes.set_yscale("asinh", linear_width=_LINEAR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels)
        axis.set_ticks([], minor=True)


def _draw(
    axes: Axes,
    x: Sequence[FloatArray],
    y: FloatArray,
    band: tuple[FloatArray, FloatArray, FloatArray],
    names: list[str],
) -> None:
    axes.fill_between(*band, color="0.5", alpha=0.22, linewidth=0)
    ends = [float(min(q[0] for q in x)), float(max(q[-1] for q in x))]
    axes.plot(ends, ends, color="0.35", lw=0.9)
    for index, (quantile, column, name) in enumerate(zip(x, y.T, names, strict=True)):
        axes.plot(quantile, column, ".", ms=3.5, color=f"C{index}", label=name)
    if ends[1] > _WIDE:
        _compress(axes, ends[1])
    # The band of a heavy-tailed law is wider than anything drawn: it must not set the scale.
    axes.set_ylim(1.1 * min(ends[0], float(y.min())), 1.1 * max(ends[1], float(y.max())))
    room = 1.15 * max(-ends[0], ends[1])
    axes.set_xlim(-room, room)
    axes.legend(loc="upper left", handletextpad=0.1, markerscale=2)
