"""Noise samples of a trace: source, centring, mode and synthetic batch sizes.

Gradient noise is a minibatch gradient minus the full-data gradient **at the same weights**.
Functions here take the dataset of one ``noise`` group and stay lazy if it is. An ``examples`` group
is one whose minibatches have one example each, from which minibatches of any size are drawn.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, get_args

import numpy as np
import xarray as xr

from tracelab import steps
from tracelab.contracts import NETWORK
from tracelab.drawing import Held, check_mean, drawn
from tracelab.errors import NotRecordedError, UsageError
from tracelab.typing import Array, FloatArray, IntArray, Mode, Sketched

__all__ = [
    "MODES",
    "RUN",
    "SKETCHED",
    "cell",
    "coordinate_layers",
    "example_cell",
    "layer_samples",
    "mean_of",
    "samples",
    "sketch_of",
    "squared_norm",
    "standardize",
    "synthetic",
]

MODES: tuple[Mode, ...] = get_args(Mode)
SKETCHED: tuple[Sketched, ...] = get_args(Sketched)

RUN = 2**14
"""Elements of a vector that are summed at once."""

# Preferred first: coordinates show tails that projections hide.
_PREFERENCE: tuple[Sketched, ...] = ("full", "sampled", "projected")


def sketch_of(group: xr.Dataset, sketch: str | None) -> Sketched:
    """Return which sketch of a noise group to read: the one asked for, or the most telling one.

    Raises
    ------
    UsageError
        If `sketch` is no sketch.
    NotRecordedError
        If the group does not hold it.
    """
    recorded = [name for name in _PREFERENCE if name in group]
    if sketch is None or sketch == "auto":
        if not recorded:
            raise NotRecordedError(
                "the noise group holds no minibatch gradients; record them with NoiseProbe or "
                f"append one of {', '.join(_PREFERENCE)}"
            )
        return recorded[0]
    for name in SKETCHED:
        if name == sketch:
            if name in group:
                return name
            raise NotRecordedError(
                f"the noise group holds no {sketch!r} gradients; it holds: "
                f"{', '.join(recorded) or 'none'}"
            )
    raise UsageError(f"sketch must be one of auto, {', '.join(SKETCHED)}, got {sketch!r}")


def coordinate_layers(group: xr.Dataset, layers: xr.Dataset) -> IntArray:
    """Return, for each coordinate of a group, the position of its layer in the group.

    Parameters
    ----------
    group : xarray.Dataset
        A group with a ``coordinate`` dimension.
    layers : xarray.Dataset
        The trace's layer table (``numel`` by ``layer``).

    Returns
    -------
    ndarray of int64, shape (coordinate,)
    """
    if "coordinate_layer" in group.variables:
        return np.asarray(group["coordinate_layer"].values, dtype=np.int64)
    numel = layers["numel"].sel(layer=group["layer"].values).values
    # Python's integers: a damaged table may say anything, and memory is taken for what it says.
    total = sum(numel.tolist())
    if total != group.sizes["coordinate"] or (numel < 0).any():
        raise NotRecordedError(
            f"the group holds {group.sizes['coordinate']} coordinates of layers with "
            f"{total} and no table of which they are; define it with coordinates="
        )
    positions: IntArray = np.repeat(np.arange(numel.size), numel)
    return positions


def layer_samples(
    group: xr.Dataset,
    layers: xr.Dataset,
    layer: str,
    *,
    sketch: str | None = None,
    batch_size: int | None = None,
    batches: int | None = None,
    replacement: bool | None = None,
    seed: int | None = None,
) -> xr.DataArray:
    """Return the noise of one layer, or of the network, as dims ``(step, batch, series)``.

    A series is one coordinate or one direction of projection. The network's coordinates are those
    of all layers; its projections are the sum of the layers'. Where the full-data gradient was not
    recorded, each series is centred by the mean of the middle half of its batches, single examples
    by their mean.

    Parameters
    ----------
    group : xarray.Dataset
        A noise group, or one of examples.
    layers : xarray.Dataset
        The trace's layer table.
    layer : str
        A layer's name, or ``"network"``.
    sketch : {"sampled", "projected", "full"}, optional
        Default: what shows most (full, sampled, projected).
    batch_size : int, optional
        A multiple of the recorded batch size: batches are averaged in disjoint groups. Of examples
        any size: batches are drawn, see `drawn`.
    batches, replacement, seed : int, bool, int, optional
        Of batches drawn from examples; see `drawn`.

    Returns
    -------
    xarray.DataArray
        Unit ``loss/weight``; attributes ``sketch``, ``centring``, ``batch_size``.
    """
    chosen = sketch_of(group, sketch)
    of_examples = "example" in group.dims
    given = {"batches": batches, "replacement": replacement, "seed": seed}
    draws = {name: value for name, value in given.items() if value is not None}
    if draws and not of_examples:
        raise UsageError(
            f"{', '.join(f'{name}={value}' for name, value in draws.items())}: batches are drawn "
            "from the gradients of single examples, and this group holds minibatches; record "
            "Examples and give group='examples'"
        )
    names = [str(name) for name in group["layer"].values]
    if layer != NETWORK and layer not in names:
        raise NotRecordedError(
            f"no layer {layer!r} in the noise group; it has: {', '.join(names)}, {NETWORK}"
        )
    selection: dict[str, Any] = {}
    if chosen != "projected" and layer != NETWORK:
        found = np.flatnonzero(coordinate_layers(group, layers) == names.index(layer))
        contiguous = found.size and found[-1] - found[0] + 1 == found.size
        # A contiguous range reads only the chunks it needs.
        selection["coordinate"] = slice(int(found[0]), int(found[-1]) + 1) if contiguous else found

    def restrict(array: xr.DataArray) -> xr.DataArray:
        if chosen != "projected":
            return array.isel(selection)
        if layer == NETWORK:
            return array.sum("layer", skipna=False)
        return array.sel(layer=layer, drop=True)

    series = "direction" if chosen == "projected" else "coordinate"
    names_of = {series: "series"} | ({"example": "batch"} if of_examples else {})

    def plain(array: xr.DataArray) -> xr.DataArray:
        array = restrict(array).astype(np.float64)
        return array.rename({dim: name for dim, name in names_of.items() if dim in array.dims})

    values = plain(group[chosen])
    mean = plain(group[f"mean_{chosen}"]) if f"mean_{chosen}" in group else None
    if of_examples:
        noise = _of_examples(values, mean, group.attrs, batch_size, draws)
    else:
        noise = _of_batches(values, mean, group.attrs, batch_size)
    noise = noise.reset_coords(drop=True)
    noise.attrs |= {"units": "loss/weight", "long_name": "gradient noise", "sketch": chosen}
    return noise.rename("noise")


def _of_batches(
    values: xr.DataArray,
    mean: xr.DataArray | None,
    attrs: Mapping[Any, Any],
    batch_size: int | None,
) -> xr.DataArray:
    """Return the noise of recorded minibatches."""
    centre = _midmean(values) if mean is None else mean
    recorded = attrs.get("batch_size")
    noise = (values - centre).transpose(..., "batch", "series")
    noise = _synthesise(noise, recorded, batch_size)
    noise.attrs = {
        "centring": "midmean of the batches" if mean is None else "full-data gradient",
        "batch_size": recorded if batch_size is None else batch_size,
    }
    return noise


def _of_examples(
    values: xr.DataArray,
    mean: xr.DataArray | None,
    attrs: Mapping[Any, Any],
    batch_size: int | None,
    draws: Mapping[str, Any],
) -> xr.DataArray:
    """Return the noise of single examples, or of batches drawn from them if any are asked for."""
    size = 1 if batch_size is None else batch_size
    if not draws and size == 1:
        noise = (values - (values.mean("batch") if mean is None else mean)).transpose(*values.dims)
        centring = "mean of the examples" if mean is None else "full-data gradient"
        noise.attrs = {"centring": centring, "batch_size": 1}
        return noise
    check_mean(attrs)
    noise = drawn(values, batch_size=size, n_data=attrs.get("n_data"), **draws)
    noise.attrs["centring"] = "mean of the examples"
    return noise


def cell(
    values: Array, mean: Array | None, *, times: int = 1, standardized: bool = False
) -> FloatArray:
    """Return the noise of one cell; the numbers of `samples`, from arrays in memory.

    Parameters
    ----------
    values : ndarray, shape (batch, series)
        Minibatch gradients.
    mean : ndarray, shape (series,), or None
        The full-data gradient. Without it each series is centred by its midmean.
    times : int
        How many batches are averaged to a synthetic one.
    standardized : bool
        Whether each series is scaled; see `standardize`.

    Returns
    -------
    ndarray of float64, shape (batch // times, series)
    """
    noise: FloatArray = np.array(values, dtype=np.float64, order="C")
    # What is not finite stays so, and is a status of the cell.
    with np.errstate(invalid="ignore"):
        noise -= _trim_mean(noise, axis=0) if mean is None else mean
    if times > 1:
        kept = noise[: noise.shape[0] // times * times]
        noise = kept.reshape(-1, times, noise.shape[1]).mean(axis=1)
    return _scaled(noise) if standardized else noise


def _scaled(noise: FloatArray) -> FloatArray:
    """Return the noise of one cell, overwritten, as `standardize` does it."""
    low, middle, high = np.quantile(noise, [0.25, 0.5, 0.75], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        noise -= middle
        noise /= high - low
    noise[:, high == low] = 0.0
    return noise


def example_cell(
    values: Array, mean: Array | None, held: Held | None, *, standardized: bool = False
) -> FloatArray:
    """Return the noise of one cell from the gradients of single examples.

    Parameters
    ----------
    values : ndarray, shape (example, series)
        Gradients of single examples.
    mean : ndarray, shape (series,), or None
        The full-data gradient, by which single examples are centred. Without it, and for batches
        that are drawn, the mean of the examples.
    held : Held or None
        The batches; None: single examples.
    standardized : bool
        Whether each series is scaled; see `standardize`.

    Returns
    -------
    ndarray of float64, shape (batch, series)
    """
    from tracelab.stats.resampling import sparse_sums

    noise: FloatArray = np.array(values, dtype=np.float64, order="C")
    with np.errstate(invalid="ignore"):
        noise -= noise.mean(axis=0) if mean is None or held is not None else mean
        if held is not None:
            noise = sparse_sums(held.ends, held.places, held.weights, noise)
    return _scaled(noise) if standardized else noise


def synthetic(recorded: int | None, batch_size: int | None) -> int:
    """Return how many recorded batches make one of the wanted size.

    Raises
    ------
    UsageError
        If it cannot be made of them.
    """
    if batch_size is None or batch_size == recorded:
        return 1
    if recorded is None:
        raise UsageError(
            f"batch_size={batch_size} cannot be synthesised: the trace does not say at which "
            "batch size it was recorded; leave batch_size out"
        )
    if batch_size % recorded:
        raise UsageError(
            f"batch_size={batch_size} cannot be synthesised from batches of {recorded}; "
            f"take a multiple of {recorded}"
        )
    return batch_size // recorded


def _trim_mean(values: Array, axis: int) -> FloatArray:
    # Imported late: it takes longer than opening a trace, and a fifth of the memory.
    from scipy import stats

    trimmed: FloatArray = np.asarray(stats.trim_mean(values, 0.25, axis=axis))
    return trimmed


def _midmean(values: xr.DataArray) -> xr.DataArray:
    """Return the mean of the middle half over batches: the centre of heavy tails too.

    The mean of stable samples is stable itself: with alpha near 1 it would shift every series by
    a heavy-tailed amount, which pooling reads as noise.
    """
    whole = values.chunk({"batch": -1}) if values.chunks else values
    centre: xr.DataArray = xr.apply_ufunc(
        _trim_mean,
        whole,
        input_core_dims=[["batch"]],
        kwargs={"axis": -1},
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    return centre


def _synthesise(noise: xr.DataArray, recorded: int | None, batch_size: int | None) -> xr.DataArray:
    times = synthetic(recorded, batch_size)
    return noise if times == 1 else noise.coarsen(batch=times, boundary="trim").mean()


def standardize(noise: xr.DataArray) -> xr.DataArray:
    """Return each series minus its median over batches, divided by its interquartile range.

    The interquartile range, not the standard deviation: the latter does not exist for alpha < 2.
    A series whose interquartile range is zero cannot be scaled: it becomes zero throughout, and
    analyses leave it out as constant.
    """
    whole = noise.chunk({"batch": -1}) if noise.chunks else noise
    low, middle, high = (
        whole.quantile(q, dim="batch", skipna=False).drop_vars("quantile")
        for q in (0.25, 0.5, 0.75)
    )
    spread = high - low
    scaled = ((noise - middle) / spread.where(spread != 0)).where(spread != 0, 0.0)
    result: xr.DataArray = scaled.transpose(*noise.dims)
    result.attrs = {**noise.attrs, "units": "1"}
    return result


def samples(
    group: xr.Dataset,
    layers: xr.Dataset,
    *,
    step: Any = None,
    layer: str | None = None,
    mode: str = "batches",
    batch_size: int | None = None,
    sketch: str | None = None,
    batches: int | None = None,
    replacement: bool | None = None,
    seed: int | None = None,
) -> xr.DataArray:
    """Return the gradient noise of a trace, arranged as the mode treats it.

    Parameters
    ----------
    group : xarray.Dataset
        A noise group, or one of examples.
    layers : xarray.Dataset
        The trace's layer table.
    step : int, list or slice, optional
        Steps, by label; a slice includes both ends.
    layer : str, optional
        A layer, or ``"network"``. Default: the series of all layers side by side.
    mode : {"batches", "pooled", "standardized"}
        ``batches``: dims ``(step, batch, series)``, one sample per series. ``pooled``: dims
        ``(step, sample)``, all series thrown together. ``standardized``: the same, each series
        first centred by its median and scaled by its interquartile range.
    batch_size : int, optional
        Synthetic batch size, a multiple of the recorded one; of examples any.
    sketch : {"sampled", "projected", "full"}, optional
        Default: what shows most.
    batches, replacement, seed : int, bool, int, optional
        Of batches drawn from examples; see `drawn`.

    Returns
    -------
    xarray.DataArray
        Lazy if the group is.

    Raises
    ------
    UsageError
        Unknown mode or sketch, or a batch size that cannot be synthesised.
    NotRecordedError
        A step, layer or sketch that the trace does not hold.
    """
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    rows = steps.select(group, step, name="noise")
    wanted = [str(name) for name in rows["layer"].values] if layer is None else [layer]
    parts = []
    for name in wanted:
        part = layer_samples(
            rows,
            layers,
            name,
            sketch=sketch,
            batch_size=batch_size,
            batches=batches,
            replacement=replacement,
            seed=seed,
        )
        labels = {"layer": ("series", np.full(part.sizes["series"], name, dtype=object))}
        parts.append(part.assign_coords(labels))
    noise = xr.concat(parts, "series", combine_attrs="override") if len(parts) > 1 else parts[0]
    if mode == "standardized":
        noise = standardize(noise)
    if mode != "batches":
        stacked: Mapping[Any, tuple[Hashable, ...]] = {"sample": ("batch", "series")}
        noise = noise.stack(stacked, create_index=False)
    noise.attrs["mode"] = mode
    return noise


def mean_of(group: xr.Dataset) -> str:
    """Return which recorded sketch of the full-data gradient tells its norm best.

    Raises
    ------
    NotRecordedError
        If the full-data gradient was not recorded in any form.
    """
    for name in ("mean_full", "mean_projected", "mean_sampled"):
        if name in group:
            return name
    raise NotRecordedError(
        "the noise group holds no full-data gradient; record it with "
        "NoiseProbe(full_gradient=True) or append mean_projected"
    )


def squared_norm(values: Array, mean: Array | None, *, centred: bool) -> FloatArray:
    """Return the squared norm of each vector, of its difference from a mean if it is centred.

    Summed within runs of `RUN` elements and over runs in order: the same bits from pieces.

    Parameters
    ----------
    values : ndarray, shape (..., batch, element)
        Vectors, or a piece of them that begins at a multiple of `RUN` elements.
    mean : ndarray, shape (..., element), or None
        Their centre. Without it, the mean over batches.
    centred : bool
        Whether to subtract it.

    Returns
    -------
    ndarray of float64, shape (..., batch)
        With the mean over the same K batches times K/(K-1), which makes it unbiased.
    """
    count = values.shape[-2]
    inflate = 1.0
    if centred and mean is None:
        inflate = count / (count - 1) if count > 1 else np.nan
    total: FloatArray = np.zeros(values.shape[:-1])
    for begin in range(0, values.shape[-1], RUN):
        run = slice(begin, begin + RUN)
        part = np.array(values[..., run], dtype=np.float64, order="C")
        # What is not finite stays so, and is a status of the cell.
        with np.errstate(invalid="ignore"):
            if centred and mean is None:
                part -= part.mean(axis=-2, keepdims=True)
            elif centred and mean is not None:
                part -= np.asarray(mean)[..., None, run]
            total += np.square(part, out=part).sum(axis=-1)
    return inflate * total
