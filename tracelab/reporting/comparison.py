"""Results of many runs side by side, by hyper-parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from tracelab import catalogue
from tracelab.errors import NotRecordedError
from tracelab.reporting.numbers import estimates, row_label, sample_sizes, status_names
from tracelab.runs import Runs

__all__ = ["compare"]


def compare(
    runs: Runs,
    names: Sequence[str] | None = None,
    *,
    by: str | None = None,
    layer: str | None = None,
    step: int | None = None,
) -> list[dict[str, Any]]:
    """Return every estimate of every run as a record.

    Parameters
    ----------
    runs : Runs
        The runs.
    names : sequence of str, optional
        Analyses. Default: all of which any run has a result.
    by : str, optional
        A hyper-parameter: records are sorted by it and it comes first. Default: all in which the
        runs differ are given, records stay in the order of the runs.
    layer : str, optional
        A layer or ``"network"``. Default: the network, else the last layer.
    step : int, optional
        A step. Default: the last of each run.

    Returns
    -------
    list of dict
        Hyper-parameters, then ``run``, ``analysis``, ``parameters``, ``quantity``, ``layer``,
        ``step``, ``estimate``, ``low``, ``high`` (None without an interval), ``units``, the sample
        sizes in ``samples`` and ``status``. A run without such a result or cell has a record whose
        ``estimate`` is None and whose ``status`` says ``"no result"`` or ``"no such cell"``.

    Raises
    ------
    UsageError
        If no run has such a hyper-parameter.
    NotRecordedError
        If no run has any result.
    """
    shown = [catalogue.column(by, runs.columns)] if by is not None else runs.differing
    wanted = list(names) if names is not None else list(runs.results)
    if not any(name in trace.results for trace in runs.values() for name in wanted):
        raise NotRecordedError(
            f"none of {len(runs)} runs has a result of {' or '.join(wanted) or 'any analysis'}; "
            "compute it with `tracelab analyze`"
        )
    records = []
    for run in _sorted(runs, shown[0] if by is not None else None):
        parameters = {key: runs.hyperparameters[run].get(key) for key in shown}
        for name in wanted:
            head = {**parameters, "run": run, "analysis": name}
            result = runs[run].results.get(name)
            found = [_missing("no result")] if result is None else _cells(result, layer, step)
            records += [head | each for each in found]
    return records


def _sorted(runs: Runs, key: str | None) -> list[str]:
    if key is None:
        return list(runs)
    values = {run: runs.hyperparameters[run].get(key) for run in runs}
    # Numbers before texts, those without the hyper-parameter last.
    return sorted(
        runs,
        key=lambda run: (
            values[run] is None,
            isinstance(values[run], str),
            values[run] if values[run] is not None else 0,
        ),
    )


def _missing(status: str, **known: Any) -> dict[str, Any]:
    keys = ("parameters", "quantity", "layer", "step", "estimate", "low", "high", "units")
    return {**dict.fromkeys(keys), "samples": {}, **known, "status": status}


def _cells(result: xr.Dataset, layer: str | None, step: int | None) -> list[dict[str, Any]]:
    parameters = dict(result.attrs.get("parameters", {}))
    label = layer if layer is not None else row_label(result)
    by_step = "step" in result["status"].dims
    has_step = not by_step or (
        result.sizes["step"] > 0 if step is None else step in result["step"].values
    )
    if label not in result["layer"].values or not has_step:
        return [_missing("no such cell", parameters=parameters, layer=label, step=step)]
    cell = result.sel(layer=label)
    if by_step:
        cell = cell.isel(step=-1) if step is None else cell.sel(step=step)
    code = int(cell["status"])
    status = status_names(result).get(code, f"status {code}")
    records = []
    for estimate in estimates(result):
        values = [_finite(value) for value in estimate.values(cell)]
        records.append(
            {
                "parameters": parameters,
                "quantity": estimate.title,
                "layer": label,
                "step": int(cell["step"]) if by_step else None,
                "estimate": values[0],
                "low": values[1] if len(values) == 3 else None,
                "high": values[2] if len(values) == 3 else None,
                "units": result[estimate.name].attrs.get("units"),
                "samples": {name: int(cell[name]) for name in sample_sizes(result)},
                "status": status,
            }
        )
    return records


def _finite(value: Any) -> float | int | None:
    plain: float | int = np.asarray(value).item()
    return plain if np.isfinite(plain) else None
