"""What an analysis, a variable and a parameter are: frozen values that every layer understands.

A plugin is described by one constant. An analysis file holds its kernel, its plot, its finding
and ``ANALYSIS = Analysis(...)``; the entry point group ``tracelab.analyses`` names that constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tracelab.errors import UsageError
from tracelab.typing import Array

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "NETWORK",
    "Analysis",
    "Finding",
    "Input",
    "Parameter",
    "Reference",
    "Variable",
]

NETWORK = "network"
"""Label of the row that takes all layers together, in results along ``layer``."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A named array: its dimensions, unit and dtype.

    Parameters
    ----------
    name : str
        Name of the array in its group or result.
    dims : tuple of str
        Dimensions, outermost first.
    units : str
        Unit in terms of ``loss``, ``weight``, ``step``, ``s``; ``"1"`` if dimensionless.
    dtype : str
        NumPy dtype name as stored.
    description : str
        One line a reader of the raw store can understand.
    """

    name: str
    dims: tuple[str, ...]
    units: str = "1"
    dtype: str = "float64"
    description: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """What an analysis reads from a trace.

    Parameters
    ----------
    variable : Variable
        Name by which the kernel receives it, its dims (cell dims first) and the unit it must have.
    sources : tuple of str
        Where it can come from, the first that is recorded wins. ``"noise"`` are noise samples
        (dims ``step, layer, batch, series``) of minibatches, ``"examples"`` those of single
        examples or of batches drawn from them; ``"kind/array"`` is an array or a coordinate
        (``"statistics/step"``) of the group of that kind; ``"kind@attribute"`` is a scalar, and
        ``"@attribute"`` what the trace itself says, whatever it is (dtype ``object``).
    network : {"sum", "root_sum_square", None}
        How layers combine into the row ``network``; None where the input has no layers or the
        source combines them itself (noise samples).
    optional : bool
        Whether the analysis does without it: the kernel, whose default for it is None, does not
        receive what was not recorded at all, and gets NaN at steps at which it was not. Arrays of
        floating numbers only.
    whole : bool
        Whether every cell gets all steps that the group has, however few the other inputs have.
        Its dims then name the axis of these steps otherwise, such as ``"every_step"``.
    collector : str
        What records it, such as ``"NoiseProbe(every=200)"``: said where a trace lacks it.
    """

    variable: Variable
    sources: tuple[str, ...]
    network: Literal["sum", "root_sum_square"] | None = None
    optional: bool = False
    whole: bool = False
    collector: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an analysis, with its default and what it may be.

    Parameters
    ----------
    name : str
        Keyword the kernel receives.
    default : bool, int, float, str, None or tuple of str
        Default; its type is the parameter's type. A tuple takes several of `choices`.
    description : str
        One line for ``tracelab analyses NAME``.
    choices : tuple of str
        Allowed values, if it is a choice.
    low, high : float, optional
        Inclusive bounds, if it is a number.
    """

    name: str
    default: bool | int | float | str | tuple[str, ...] | None
    description: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def parse(self, value: Any) -> Any:
        """Return `value` (perhaps a command-line string) as this parameter's type.

        Raises
        ------
        UsageError
            If it has the wrong type, is out of bounds or is not among the choices.
        """
        wanted = self._wanted()
        try:
            parsed = self._convert(value)
        except (TypeError, ValueError):
            raise UsageError(f"parameter {self.name!r} must be {wanted}, got {value!r}") from None
        for item in parsed if isinstance(parsed, tuple) else (parsed,):
            if self.choices and item is not None and item not in self.choices:
                raise UsageError(f"parameter {self.name!r} must be {wanted}, got {item!r}")
        if isinstance(parsed, (int, float)) and not isinstance(parsed, bool):
            too_low = self.low is not None and not parsed >= self.low
            too_high = self.high is not None and not parsed <= self.high
            if too_low or too_high or not np.isfinite(parsed):
                raise UsageError(f"parameter {self.name!r} must be {wanted}, got {value!r}")
        return parsed

    def _wanted(self) -> str:
        if self.choices:
            kind = "one or more of" if isinstance(self.default, tuple) else "one of"
            return f"{kind} {', '.join(self.choices)}"
        kind = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}.get(
            type(self.default), "a number"
        )
        if self.low is not None or self.high is not None:
            low = "-inf" if self.low is None else f"{self.low:g}"
            high = "inf" if self.high is None else f"{self.high:g}"
            kind = f"{kind} in [{low}, {high}]"
        return kind

    def _convert(self, value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if self.default is None:
                return None
            raise ValueError
        if isinstance(self.default, tuple):
            return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, value))
        if isinstance(self.default, bool):
            truth = {"true": True, "1": True, "false": False, "0": False}
            if isinstance(value, str):
                if value.lower() not in truth:
                    raise ValueError
                return truth[value.lower()]
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError
            return bool(value)
        if isinstance(self.default, str):
            if not isinstance(value, str):
                raise TypeError
            return value
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        if isinstance(self.default, int):
            if isinstance(value, float) and not value.is_integer():
                raise ValueError
            return int(value)
        # A default of None means an optional number, integral where it can be.
        number = float(value)
        return int(number) if self.default is None and number.is_integer() else number


@dataclass(frozen=True, slots=True)
class Reference:
    """A paper: what the report and ``tracelab analyses`` cite."""

    citation: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a result says in plain words.

    Parameters
    ----------
    sentence : str
        What was found and how sure it is, in numbers.
    warnings : tuple of str
        What the reader must know before believing it.
    """

    sentence: str
    warnings: tuple[str, ...] = ()


Kernel = Callable[..., Mapping[str, Array]]
Contrast = Callable[[Mapping[str, Sequence["xr.Dataset"]]], "Figure | None"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis: what it needs, how it is cut into cells, its kernel, its figure, its sources.

    Parameters
    ----------
    name, summary : str
        Identifier, and one line of what it estimates.
    version : int
        Raised whenever the numbers can change: results of an older version are not reused.
    inputs : tuple of Input
        Arrays the kernel receives, by keyword, as NumPy arrays whose leading dims are `cell`.
    outputs : tuple of Variable
        Arrays the kernel returns, by name; ``status`` (dims `cell`, uint8) must be among them.
        Where a cell is a layer they may have the dim ``step``: the steps of what it reads.
    cell : tuple of str
        Dimensions of a cell: ``("step", "layer")`` or ``("layer",)``.
    kernel : callable
        ``kernel(**inputs, **parameters) -> mapping of name to array``: pure, batched over the
        leading cell dims, picklable. If it takes ``seed``, it receives a uint64 array with the
        cell dims, derived from (seed, run, analysis, step, layer).
    parameters : tuple of Parameter
        What the user can set. ``mode``, ``sketch`` and those of `tracelab.series.SELECTION` are
        understood by the noise source; every parameter also reaches the kernel.
    finding : callable
        Result dataset to `Finding`.
    plot : callable
        ``plot(results: mapping of trace label to result dataset) -> Figure``; the figure's label
        (``figure.set_label``) is its caption in the report.
    references : tuple of Reference
        At least one.
    coords : mapping of str to tuple
        Coordinate labels of output dims that are not cell dims. Dims of inputs that are not among
        them are numbered.
    contrasts : tuple of callables
        Figures over results by different parameters:
        ``contrast(results: mapping of trace label to all results of the trace) -> Figure`` with
        its caption as its label, or None where these results show no contrast. Results have the
        coordinates of `tracelab.covariates`.
    """

    name: str
    summary: str
    version: int
    inputs: tuple[Input, ...]
    outputs: tuple[Variable, ...]
    cell: tuple[str, ...]
    kernel: Kernel
    finding: Callable[[xr.Dataset], Finding]
    plot: Callable[[Mapping[str, xr.Dataset]], Figure]
    references: tuple[Reference, ...]
    parameters: tuple[Parameter, ...] = ()
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return every parameter's value: the given ones parsed, the others at their defaults.

        Raises
        ------
        UsageError
            If a name is unknown or a value is not allowed.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"analysis {self.name!r} has no parameter {name!r}; "
                    f"it has: {', '.join(known) or 'none'}"
                )
        return {
            name: parameter.parse(given.get(name, parameter.default))
            for name, parameter in known.items()
        }
