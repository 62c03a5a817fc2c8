"""report(): gathers results and figures of traces and writes one self-contained HTML page."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from tracelab.errors import MissingExtraError, UsageError
from tracelab.reporting.distance import distance_picture
from tracelab.reporting.facts import facts
from tracelab.reporting.quantiles import quantile_pictures
from tracelab.reporting.sections import sections
from tracelab.reporting.style import Picture, styled
from tracelab.trace import Trace
from tracelab.trace import open as open_trace

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["report"]

_LINES = 3
_NAMED = 4
_SOFTWARE = ("tracelab", "matplotlib", "numpy", "xarray")


def report(
    traces: Trace | str | os.PathLike[str] | Store | Sequence[Any],
    output: str | os.PathLike[str],
    *,
    title: str | None = None,
    results: str | os.PathLike[str] | Store | None = None,
) -> Path:
    """Write the stored results of traces as one HTML page, and return its path.

    The page holds its figures and loads nothing, so it can be mailed as it is. Each figure is
    also saved as SVG and PNG in the folder ``<stem>_figures`` beside it; that folder belongs to
    the page, and pictures of an earlier report in it are removed. Nothing is analysed here: see
    `tracelab.analyze`.

    Parameters
    ----------
    traces : Trace, location, or sequence of them
        Shown side by side, in this order, each under the stem of its store's name.
    output : path
        An ``.html`` file; an older one is replaced in one step.
    title : str, optional
        Heading of the page. Default: the traces' names.
    results : str, path or zarr Store, optional
        Where results are that are not kept beside the traces (`tracelab.open`).

    Returns
    -------
    pathlib.Path
        `output`, absolute.

    Raises
    ------
    MissingExtraError
        Without Matplotlib.
    UsageError
        No trace, no results in any of them, or an output that cannot be written.

    Examples
    --------
    >>> import tracelab
    >>> tracelab.report(["runs/sgd.zarr", "runs/adam.zarr"], "report.html")  # doctest: +SKIP
    """
    _require_matplotlib()
    target = _target(output)
    folder = _figures_folder(target)
    given: list[Any] = (
        list(traces) if isinstance(traces, Sequence) and not isinstance(traces, str) else [traces]
    )
    if not given:
        raise UsageError("report needs at least one trace, got none")
    with ExitStack() as ours:
        opened = [
            item
            if isinstance(item, Trace) and results is None
            else ours.enter_context(open_trace(item, results))
            for item in given
        ]
        if not any(len(trace.results) for trace in opened):
            raise UsageError(
                f"no trace has any result to report ({', '.join(t.location for t in opened)}); "
                "compute some with: tracelab analyze TRACE"
            )
        named = dict(zip(_labels(opened), opened, strict=True))
        text, pictures = _draw(named, title, folder.name)
    _write_figures(folder, pictures)
    _replace(target, text.encode())
    return target


def _draw(traces: Mapping[str, Trace], title: str | None, folder: str) -> tuple[str, list[Picture]]:
    """Return the page and its figures, which it says are in `folder`."""
    with styled():
        analysed = sections(traces)
        distance = distance_picture(traces)
        quantiles = quantile_pictures(traces)
    pictures = [drawn for section in analysed for drawn in section.pictures]
    pictures += [*quantiles, *([distance] if distance else [])]
    text = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title or _title(list(traces)),
            labels=list(traces),
            answers=[section.answer for section in analysed[:_LINES]],
            facts=facts(traces),
            sections=analysed,
            quantiles=quantiles,
            distance=distance,
            folder=folder,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            software={name: version(name) for name in _SOFTWARE},
        )
    )
    return text, pictures


def _title(labels: Sequence[str]) -> str:
    if len(labels) > _NAMED:
        return f"Gradient noise of {len(labels)} runs"
    return f"Gradient noise of {', '.join(labels)}"


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "a report") from None


def _target(output: str | os.PathLike[str]) -> Path:
    target = Path(output).absolute()
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the report is an HTML page: output must end in .html, got {output!s}")
    if not target.parent.is_dir():
        raise UsageError(
            f"the report cannot be written to {target}: the folder {target.parent} does not exist; "
            "create it first"
        )
    if target.is_dir():
        raise UsageError(f"the report cannot be written to {target}: that is a folder")
    return target


def _figures_folder(target: Path) -> Path:
    folder = target.with_name(f"{target.stem}_figures")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"figures cannot be saved to {folder}: that is a file; move it away")
    return folder


def _labels(traces: Sequence[Trace]) -> list[str]:
    """Return a short name for each trace: its store's stem, with its folder where two agree."""
    parts = [_place(str(trace.location)) for trace in traces]
    stems = [stem for _, stem in parts]
    labels: list[str] = []
    for (folder, stem), trace in zip(parts, traces, strict=True):
        label = stem or str(trace.run)[:8]
        if stems.count(stem) > 1 and folder:
            label = f"{folder}/{label}"
        count = 1
        unique = label
        while unique in labels:
            count += 1
            unique = f"{label} ({count})"
        labels.append(unique)
    return labels


def _place(location: str) -> tuple[str, str]:
    path = urlsplit(location).path if "://" in location else location
    names = [name for name in re.split(r"[/\\]", path) if name not in ("", ".")]
    if not names:
        return "", ""
    stem = re.sub(r"(\.zarr)?(\.zip)?$", "", names[-1])
    return (names[-2] if len(names) > 1 else ""), stem


def _environment() -> Environment:
    # What a trace says is not to be trusted: everything is escaped but our own figures.
    environment = Environment(
        loader=PackageLoader("tracelab.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["link"] = lambda url: str(url).startswith(("https://", "http://"))
    return environment


def _write_figures(folder: Path, pictures: Sequence[Picture]) -> None:
    files: Mapping[str, bytes] = {
        f"{drawn.name}{suffix}": content
        for drawn in pictures
        for suffix, content in ((".svg", drawn.svg), (".png", drawn.png))
    }
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        _replace(folder / name, content)
    for path in folder.iterdir():
        if path.suffix in (".svg", ".png") and path.name not in files:
            path.unlink()


def _replace(target: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files that only their owner can read; a report is to be shared.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
