"""What ``attach(collectors="...")`` records, from what may always stay on to all there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from tracelab.errors import UsageError
from tracelab.sketch import Histogram, Project, Sample
from tracelab_collectors.collector import Collector
from tracelab_collectors.gradients import Gradients
from tracelab_collectors.noise_probe import NoiseProbe
from tracelab_collectors.optimizer_state import OptimizerState
from tracelab_collectors.statistics import Statistics
from tracelab_collectors.weights import Weights

__all__ = ["PRESETS", "chosen"]

Preset: TypeAlias = Callable[[bool], Sequence[Collector]]


def _light(probes: bool) -> Sequence[Collector]:
    return (Statistics(every=10), Gradients(every=10, sketch=(Project(256), Sample(64))))


def _standard(probes: bool) -> Sequence[Collector]:
    return (Statistics(), Gradients(sketch=(Project(256), Sample(64))))


def _full(probes: bool) -> Sequence[Collector]:
    recorded: list[Collector] = [
        Statistics(quantities=("gradient", "weight", "update")),
        Gradients(sketch=(Project(1021), Sample(256))),
        Gradients(every=10, sketch=Histogram(), name="histograms"),
        OptimizerState(),
        Weights(),
    ]
    return [*recorded, NoiseProbe()] if probes else recorded


PRESETS: Mapping[str, Preset] = {"light": _light, "standard": _standard, "full": _full}
"""Collectors by name of a preset; the argument says whether loss and data are there for probes."""


def chosen(collectors: str | Sequence[Collector] | None, *, probes: bool) -> Sequence[Collector]:
    """Return the collectors that a preset names, or the ones given, checked.

    Raises
    ------
    UsageError
        If there is no such preset, or something is no collector.
    """
    if collectors is None or isinstance(collectors, str):
        name = "standard" if collectors is None else collectors
        if name not in PRESETS:
            raise UsageError(
                f"collectors={name!r} is no preset; give one of {', '.join(PRESETS)} or a list of "
                "collectors"
            )
        return PRESETS[name](probes)
    for collector in collectors:
        if not isinstance(collector, Collector):
            raise UsageError(
                f"collectors must hold collectors such as Gradients(), got {collector!r}"
            )
    return collectors
