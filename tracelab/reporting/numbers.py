"""Numbers and values as a reader wants them, and tables of a result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tracelab.contracts import NETWORK
from tracelab.typing import Status

__all__ = [
    "Estimate",
    "Headline",
    "Table",
    "estimates",
    "headline",
    "number",
    "row_label",
    "sample_sizes",
    "status_counts",
    "status_names",
    "table",
    "value_text",
]

MAX_ROWS = 24
MAX_COLUMNS = 4
_MISSING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Text by row and column.

    Parameters
    ----------
    header : tuple of str
        One name a column; the first column names the rows.
    rows : tuple of tuple of str
        As wide as the header.
    subject : str
        What the rows are about.
    note : str
        What was left out, if anything.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    subject: str = ""
    note: str = ""


def number(value: Any, digits: int = 4) -> str:
    """Return a number in so many significant digits; integers in full; ``–`` for NaN.

    >>> number(1437), number(0.031415), number(2.5e-7), number(float("nan"))
    ('1,437', '0.03142', '2.5e-07', '–')
    """
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    real = float(value)
    if math.isnan(real):
        return _MISSING
    if math.isinf(real):
        return "∞" if real > 0 else "−∞"
    if 10 ** (digits - 1) <= abs(real) < 1e6:
        return f"{real:,.0f}"
    return f"{real:.{digits}g}"


def value_text(value: Any) -> str:
    """Return any JSON-like value on one line: ``lr = 0.1, betas = (0.9, 0.999)``."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {value_text(item)}" for key, item in value.items())
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return f"({', '.join(value_text(item) for item in value)})"
    if isinstance(value, (bool, np.bool_, int, float, np.number)):
        return number(value)
    return str(value)


def row_label(result: xr.Dataset) -> str:
    """Return the label that speaks for the whole model: ``network``, else the last layer's."""
    labels = [str(label) for label in result["layer"].values]
    return NETWORK if NETWORK in labels else labels[-1]


def status_counts(result: xr.Dataset) -> dict[str, int]:
    """Return how many cells have each status, by its words; ``ok`` first, also where it is 0."""
    values = np.asarray(result["status"].values).ravel()
    names = status_names(result)
    counts = {names.get(0, "ok"): 0}
    for code, count in zip(*np.unique(values, return_counts=True), strict=True):
        counts[names.get(int(code), f"status {int(code)}")] = int(count)
    return counts


def status_names(result: xr.Dataset) -> dict[int, str]:
    """Return the words of a result's status codes."""
    attributes = {**Status.attributes(), **result["status"].attrs}
    meanings = str(attributes["flag_meanings"]).split()
    codes = np.atleast_1d(attributes["flag_values"])
    return {int(c): m.replace("_", " ") for c, m in zip(codes, meanings, strict=False)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate of a result at one label of its further dims, such as one test."""

    name: str
    selection: Mapping[str, Any]

    @property
    def labels(self) -> str:
        """Return the labels of the further dims; a number with what it numbers."""
        return ", ".join(
            f"{dim} {label}" if isinstance(label, (int, float, np.number)) else str(label)
            for dim, label in self.selection.items()
        )

    @property
    def title(self) -> str:
        """Return its name with its labels."""
        return f"{self.name} ({self.labels})" if self.labels else self.name

    def values(self, row: xr.Dataset) -> tuple[Any, ...]:
        """Return the estimate in one cell, with the ends of its interval if it has one."""
        return tuple(
            row[self.name + suffix].sel(self.selection).values[()]
            for suffix in ("", "_low", "_high")
            if self.name + suffix in row
        )

    def text(self, row: xr.Dataset) -> str:
        """Return the estimate in one cell with its interval: ``1.35 [1.2, 1.5]``."""
        parts = [number(each, 3) for each in self.values(row)]
        if len(parts) < 3:
            return parts[0]
        estimate, low, high = parts
        if low == high == estimate or low == high == _MISSING:
            return estimate
        return f"{estimate} [{low}, {high}]"


def estimates(result: xr.Dataset) -> list[Estimate]:
    """Return estimates with an interval and their Gaussian controls; else the first variable."""
    names = [str(name) for name in result.data_vars]
    chosen = [name for name in names if f"{name}_low" in names and f"{name}_high" in names]
    if not chosen:
        chosen = [n for n in names if n != "status" and not n.startswith("n_")][:1]
    chosen += [
        name
        for name in names
        if name.endswith("_control") and name.removesuffix("_control") in chosen
    ]
    return [column for name in chosen for column in _labelled(result, name)]


def _labelled(result: xr.Dataset, name: str) -> Iterator[Estimate]:
    cell = result["status"].dims
    further = [str(dim) for dim in result[name].dims if dim not in cell]
    for place in itertools.product(*(_told(result, dim) for dim in further)):
        labels = {}
        for dim, index in zip(further, place, strict=True):
            labels[dim] = result[dim].values[index] if dim in result.coords else index
        yield Estimate(name, labels)


def _told(result: xr.Dataset, dim: str) -> Sequence[int]:
    """Return the places along a further dimension that have a column: of many numbers the last."""
    size = result.sizes[dim]
    named = dim in result.coords and result[dim].dtype.kind not in "iuf"
    return range(size) if named or size <= MAX_COLUMNS else (size - 1,)


def sample_sizes(result: xr.Dataset) -> list[str]:
    """Return the names of a result's sample sizes, one number a cell."""
    cell = set(result["status"].dims)
    return [
        str(name)
        for name in result.data_vars
        if str(name).startswith("n_") and set(result[name].dims) <= cell
    ]


def _thinned(count: int) -> Sequence[int]:
    if count <= MAX_ROWS:
        return range(count)
    places: list[int] = np.unique(np.linspace(0, count - 1, MAX_ROWS).round().astype(int)).tolist()
    return places


def table(result: xr.Dataset) -> Table:
    """Return a result's estimates with intervals, sample sizes and status.

    By step for the network (else the last layer) where the result has steps, by layer elsewhere.
    """
    columns, counts, names = estimates(result), sample_sizes(result), status_names(result)
    by_step = "step" in result["status"].dims
    dim = "step" if by_step else "layer"
    rows = result.sel(layer=row_label(result)) if by_step else result
    total = rows.sizes[dim]
    lines = []
    for index in _thinned(total):
        row = rows.isel({dim: index})
        status = names.get(int(row["status"]), str(int(row["status"])))
        label = row[dim].values[()]
        lines.append(
            (
                number(int(label)) if by_step else str(label),
                *(column.text(row) for column in columns),
                *(number(row[name].values[()]) for name in counts),
                status,
            )
        )
    note = f"{len(lines)} of {total:,} {dim}s" if len(lines) < total else ""
    header = (dim, *(column.title for column in columns), *counts, "status")
    subject = f"{row_label(result)}, by step" if by_step else "by layer"
    return Table(header, tuple(lines), subject, note)


@dataclass(frozen=True, slots=True)
class Headline:
    """A result in one phrase.

    Parameters
    ----------
    quantity : str
        What is estimated.
    values : tuple of (str, str)
        Where, and the estimate with its interval: at the first and the last step that are ok.
    """

    quantity: str
    values: tuple[tuple[str, str], ...]


def headline(result: xr.Dataset) -> Headline:
    """Return a result's first estimate, for the network or else the last layer."""
    columns = estimates(result)
    if not columns:
        return Headline("", (("", "no numbers"),))
    column = columns[0]
    described = str(result[column.name].attrs.get("long_name") or column.name)
    quantity = f"{described} ({column.labels})" if column.labels else described
    row = result.sel(layer=row_label(result))
    if "step" not in row["status"].dims:
        status = int(row["status"])
        ok = status == int(Status.OK)
        text = column.text(row) if ok else status_names(result).get(status, f"status {status}")
        return Headline(quantity, (("", text),))
    good = row.isel(step=np.flatnonzero(row["status"].values == int(Status.OK)))
    if good.sizes["step"] == 0:
        return Headline(quantity, (("", "no cell is ok"),))
    ends = dict.fromkeys((0, good.sizes["step"] - 1))
    cells = [good.isel(step=index) for index in ends]
    return Headline(
        quantity, tuple((f"step {int(cell['step']):,}", column.text(cell)) for cell in cells)
    )
