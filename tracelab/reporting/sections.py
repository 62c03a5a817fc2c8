"""One section of the page for each analysis that some trace has results of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from tracelab import registry
from tracelab.contracts import Analysis, Reference
from tracelab.covariates import with_covariates
from tracelab.reporting.numbers import Headline, Table, headline, status_counts, table, value_text
from tracelab.reporting.style import Picture, picture, plain_text
from tracelab.trace import Trace

__all__ = ["Answer", "Provenance", "Section", "Variant", "sections"]

_FAILURES_SHOWN = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one result comes from, as text."""

    trace: str
    analysis: str
    version: str
    seed: str
    created: str
    seconds: str
    input_digest: str
    software: str


@dataclass(frozen=True, slots=True)
class Variant:
    """Results of one analysis by one set of parameters, side by side.

    Parameters
    ----------
    title : str
        The parameters that tell it from the analysis' other variants; empty if it is the only one.
    anchor : str
        Its identifier on the page.
    parameters : str
        All parameters.
    findings : tuple of (str, str)
        Trace label and plain sentence.
    warnings : tuple of str
        What traces share is said once.
    picture : Picture or None
        None if it could not be drawn; then `trouble` says why.
    trouble : str
        Why there is no figure.
    statuses : Table
        Cells by status, a row a trace.
    failures : tuple of (str, tuple of str, int)
        Trace label, first messages of cells that failed, and how many failed.
    tables : tuple of (str, Table)
        Trace label and numbers.
    """

    title: str
    anchor: str
    parameters: str
    findings: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    picture: Picture | None
    trouble: str
    statuses: Table
    failures: tuple[tuple[str, tuple[str, ...], int], ...]
    tables: tuple[tuple[str, Table], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One line on top of the page: a question, what answers it, and the estimates by trace."""

    question: str
    quantity: str
    values: Mapping[str, Headline]


@dataclass(frozen=True, slots=True)
class Section:
    """Everything the page says of one analysis."""

    name: str
    summary: str
    contrasts: tuple[Picture, ...]
    variants: tuple[Variant, ...]
    references: tuple[Reference, ...]
    answer: Answer
    provenance: tuple[Provenance, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Figures in the order of the page."""
        own = [variant.picture for variant in self.variants if variant.picture is not None]
        return [*self.contrasts, *own]


def sections(traces: Mapping[str, Trace]) -> list[Section]:
    """Return a section for each analysis with results, in the order of their names.

    Call it inside `style.styled`: it draws.
    """
    known = registry.analyses()
    stored = sorted({name for trace in traces.values() for name in trace.results})
    return [_section(name, known.get(name), traces) for name in stored]


def _section(name: str, analysis: Analysis | None, traces: Mapping[str, Trace]) -> Section:
    by_parameters: dict[str, dict[str, xr.Dataset]] = {}
    for label, trace in traces.items():
        if name in trace.results:
            for described, result in trace.results.all(name).items():
                by_parameters.setdefault(described, {})[label] = _ordered(result, analysis)
    groups = [by_parameters[key] for key in sorted(by_parameters)]
    sets = [_parameters(results) for results in groups]
    varying = _varying(sets)
    variants = []
    for index, (results, parameters) in enumerate(zip(groups, sets, strict=True), start=1):
        stem = name if len(groups) == 1 else f"{name}-{index}"
        title = value_text({key: parameters[key] for key in varying if key in parameters})
        variants.append(_variant(stem, title, analysis, parameters, results))
    chosen = _default(analysis, sets)
    first = next(iter(groups[0].values()))
    cited: Sequence[Reference] = (
        analysis.references
        if analysis
        else [Reference(str(text)) for text in first.attrs.get("references", ())]
    )
    summary = analysis.summary if analysis else str(first.attrs.get("summary", ""))
    return Section(
        name,
        summary,
        tuple(_contrasts(name, analysis, groups, traces)),
        tuple(variants),
        tuple(cited),
        _answer(summary or name, variants[chosen].title, groups[chosen]),
        tuple(
            _provenance(name, variant.title, label, result)
            for variant, results in zip(variants, groups, strict=True)
            for label, result in results.items()
        ),
    )


def _ordered(result: xr.Dataset, analysis: Analysis | None) -> xr.Dataset:
    """Return a loaded result, its main quantity first: a store has no order of its own."""
    declared = [variable.name for variable in analysis.outputs] if analysis else []
    first = [name for name in declared if name in result.data_vars]
    return result[first + sorted(set(map(str, result.data_vars)) - set(first))].load()


def _parameters(results: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    return dict(next(iter(results.values())).attrs.get("parameters", {}))


def _varying(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for parameters in sets for key in parameters)
    return [key for key in keys if len({value_text(p.get(key)) for p in sets}) > 1]


def _default(analysis: Analysis | None, sets: Sequence[Mapping[str, Any]]) -> int:
    """Return the position of the parameters closest to the defaults: what the top line tells.

    Among choices, those that an analysis lists first are closest.
    """

    def away(index: int) -> int:
        total = 0
        for parameter in analysis.parameters if analysis else ():
            value = sets[index].get(parameter.name)
            if value in parameter.choices:
                total += parameter.choices.index(value)
            else:
                total += value_text(value) != value_text(parameter.default)
        return total

    return min(range(len(sets)), key=away)


def _answer(summary: str, variant: str, results: Mapping[str, xr.Dataset]) -> Answer:
    question, mark, _ = summary.partition("?")
    found = {label: headline(result) for label, result in results.items()}
    quantity = next(iter(found.values())).quantity
    return Answer(question + mark, f"{quantity}; {variant}" if variant else quantity, found)


def _variant(
    stem: str,
    title: str,
    analysis: Analysis | None,
    parameters: Mapping[str, Any],
    results: Mapping[str, xr.Dataset],
) -> Variant:
    drawn, trouble = _draw(stem, title, analysis, results)
    warnings = dict.fromkeys(
        str(text) for result in results.values() for text in result.attrs.get("warnings", ())
    )
    failures = []
    for label, result in results.items():
        messages = [str(message) for message in result.attrs.get("failures", ())]
        if messages:
            count = int(result.attrs.get("n_failures", len(messages)))
            failures.append((label, tuple(messages[:_FAILURES_SHOWN]), count))
    return Variant(
        title=title,
        anchor=f"analysis-{stem}",
        parameters=value_text(parameters) or "none",
        findings=tuple((key, str(r.attrs.get("finding", ""))) for key, r in results.items()),
        warnings=tuple(warnings),
        picture=drawn,
        trouble=trouble,
        statuses=_statuses(results),
        failures=tuple(failures),
        tables=tuple((label, table(result)) for label, result in results.items()),
    )


def _draw(
    stem: str, title: str, analysis: Analysis | None, results: Mapping[str, xr.Dataset]
) -> tuple[Picture | None, str]:
    name = str(next(iter(results.values())).attrs.get("analysis", stem))
    if analysis is None:
        return None, f"No figure: the analysis {name!r} is not installed here."
    shown = {plain_text(label): _drawable(result) for label, result in results.items()}
    try:
        figure = analysis.plot(shown)
        caption = str(figure.get_label() or analysis.summary)
        if title:
            caption = f"{caption.rstrip('.')} ({title})."
        return picture(figure, stem, caption), ""
    except Exception as error:
        # A plugin's figure, perhaps of an older version's result, must not cost the whole page.
        logger.warning("%s: the figure could not be drawn", name, exc_info=True)
        return None, f"No figure: drawing it failed with {type(error).__name__}: {error}"


def _contrasts(
    name: str,
    analysis: Analysis | None,
    groups: Sequence[Mapping[str, xr.Dataset]],
    traces: Mapping[str, Trace],
) -> Iterator[Picture]:
    """Yield figures over the results of each trace, by whatever parameters."""
    contrasts = analysis.contrasts if analysis else ()
    found: dict[str, list[xr.Dataset]] = {}
    for index, contrast in enumerate(contrasts, start=1):
        try:
            found = found or _covered(groups, traces)
            figure = contrast(found)
            if figure is not None:
                caption = str(figure.get_label() or name)
                yield picture(figure, f"{name}-contrast-{index}", caption)
        except Exception:
            # As with the figure of one result: the page is worth more.
            logger.warning("%s: a contrast could not be drawn", name, exc_info=True)


def _covered(
    groups: Sequence[Mapping[str, xr.Dataset]], traces: Mapping[str, Trace]
) -> dict[str, list[xr.Dataset]]:
    """Return all results of each trace, with what they may be drawn against."""
    found: dict[str, list[xr.Dataset]] = {}
    for results in groups:
        for label, result in results.items():
            covered = _drawable(with_covariates(result, traces[label]))
            found.setdefault(plain_text(label), []).append(covered)
    return found


def _drawable(result: xr.Dataset) -> xr.Dataset:
    return result.assign_coords(layer=[plain_text(label) for label in result["layer"].values])


def _statuses(results: Mapping[str, xr.Dataset]) -> Table:
    counts = {label: status_counts(result) for label, result in results.items()}
    names = list(dict.fromkeys(name for count in counts.values() for name in count))
    rows = tuple(
        (label, f"{sum(count.values()):,}", *(f"{count.get(name, 0):,}" for name in names))
        for label, count in counts.items()
    )
    return Table(("trace", "cells", *names), rows)


def _provenance(name: str, variant: str, label: str, result: xr.Dataset) -> Provenance:
    attrs = result.attrs
    return Provenance(
        trace=label,
        analysis=f"{name} ({variant})" if variant else name,
        version=value_text(attrs.get("analysis_version", "")),
        seed=str(attrs.get("seed", "")),
        created=str(attrs.get("created", ""))[:19].replace("T", " "),
        seconds=value_text(attrs.get("seconds", "")),
        input_digest=str(attrs.get("input_digest", "")),
        software=value_text(attrs.get("software", "")),
    )
