"""Averages of the weights that a run recorded: measured beside the last weights, after training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import tracelab
from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.sketch import splitmix64
from tracelab.trace import Trace
from tracelab.trace.places.locations import PathLike
from tracelab.typing import Array, FloatArray
from tracelab_collectors import averages_arguments as given
from tracelab_collectors import batch_norm as normalisation
from tracelab_collectors.batch_means import BatchMeans
from tracelab_collectors.collector import Loss
from tracelab_collectors.frozen import checked_mean, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import at_least
from tracelab_collectors.stored_weights import StoredWeights, Window

__all__ = ["averages_variables", "measure_averages"]

Measure: TypeAlias = Callable[[nn.Module, Any], Tensor]

FRACTIONS = (0.5, 0.25, 0.1)
LINE = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
KIND = "averages"
_POINTS = 2
_BATCH_NORM = ("recompute", "keep")
_CALLED = "they are called with the model and a batch as the data give it"


def measure_averages(
    trace: Trace | PathLike,
    out: PathLike,
    model: nn.Module | None = None,
    *,
    loss: Loss | None = None,
    data: Any = None,
    windows: Sequence[tuple[int, int] | float] = FRACTIONS,
    sets: Mapping[str, Any] | None = None,
    error: Measure | None = None,
    draws: int = 16,
    batch_size: int = 128,
    learning_rate: float | None = None,
    line: Sequence[float] = LINE,
    batch_norm: str = "recompute",
    data_batch_size: int = 256,
    data_size: int | None = None,
    group: str = "weights",
    seed: int = 0,
) -> None:
    r"""Write a trace that compares averages of stored weights with the last ones averaged.

    For each window of steps the average :math:`\bar w` of the stored weights is taken, a window at
    a time and in one pass, and beside the last weights :math:`w` of the window are measured, on a
    copy of the model in evaluation mode: loss and error on the data and on each set, with the
    standard error of the difference, examples paired; for `draws` minibatches with noise
    :math:`\omega_k` of the gradient *at that point*, the losses :math:`f(v \mp \eta \omega_k)`, of
    which the loss smoothed by noise is made (Nitanda et al.); the loss along the line from
    :math:`w` to :math:`\bar w`. Minibatches are the same at both points.

    Without a model only distances and spreads are measured, from whole weights or projections.

    Parameters
    ----------
    trace : Trace, str or path
        The trace of a run, with ``Weights(sketch=tracelab.Full())``.
    out : str or path
        Where the new trace goes, and none is yet: group ``averages``, one row for each last step
        of a window.
    model : nn.Module, optional
        A model with the trained parameters' names and shapes; it is copied and not changed.
    loss, data, data_size
        As given to ``attach``: ``loss(model, batch)`` is the mean over the batch's examples.
    windows : sequence of (start, stop) or float
        First and last step, both included, among those at which weights are stored; or the last
        share of the steps from the first to the last of them.
    sets : mapping of str to Dataset or callable, optional
        What to measure loss and error on besides.
    error : callable, optional
        ``error(model, batch)``, the mean of the batch or one value an example, such as
        `tracelab_collectors.misclassified`.
    draws : int
        Minibatches.
    batch_size : int
        Examples in each, drawn with replacement.
    learning_rate : float, optional
        :math:`\eta`, above 0. Default: that recorded at the last step before the window's end.
    line : sequence of float
        Where on the line: 0 is the last weights, 1 the average.
    batch_norm : {"recompute", "keep"}
        Whether running statistics of batch normalisation are those of a pass over the data at each
        point, as Izmailov et al. do, or the model's own.
    data_batch_size : int
        Examples per piece of a pass, at most. A loss that is the mean of its batch has a standard
        error from the scatter of pieces: of two or more.
    group : str
        Group of the weights.
    seed : int
        Of minibatches, and of whatever random numbers model and loss draw.

    Raises
    ------
    NotRecordedError
        If the weights are not stored, or at fewer than two steps of a window.
    UsageError
        If the model does not fit, loss or data are missing or fail, there is no learning rate, or
        an argument is invalid. Nothing is written but where they fail later than at first.

    Notes
    -----
    A window takes ``2 + 4 * draws`` passes over the data, one for each position on the line, and
    one gradient over the data at each of both points. Losses have the model's precision.

    References
    ----------
    Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights Leads to Wider Optima and
    Better Generalization", UAI 2018; Nitanda, Kikuchi, Maeda, Wu, "Why is Parameter Averaging
    Beneficial in SGD? An Objective Smoothing Perspective", AISTATS 2024.
    """
    for name, value in (
        ("draws", draws), ("batch_size", batch_size), ("data_batch_size", data_batch_size)
    ):  # fmt: skip
        at_least(1, **{f"measure_averages' {name}": value})
    at_least(0, **{"measure_averages' seed": seed})
    if batch_norm not in _BATCH_NORM:
        raise UsageError(f"batch_norm must be one of {', '.join(_BATCH_NORM)}, got {batch_norm!r}")
    places = given.places(line)
    given.check_model(model, loss=loss, data=data, sets=sets, error=error)
    others = given.named_sets(sets)
    opened = trace if isinstance(trace, Trace) else tracelab.open(trace)
    given.check_vacant(out)
    weights = StoredWeights.of(opened, group, whole=model is not None)
    chosen = given.windows_of(windows, weights)
    by_end: dict[int, list[tuple[int, int]]] = {}
    for start, stop in chosen:
        by_end.setdefault(stop, []).append((start, stop))
    most = max(map(len, by_end.values()))
    rates = given.rates(opened, by_end, learning_rate, needed=model is not None)
    names = ["data", *others]
    subject = None
    if model is not None and loss is not None:
        subject = _Subject.of(
            model, loss, error, weights,
            {"data": (data, data_size)} | {name: (each, None) for name, each in others.items()},
            piece=data_batch_size, recompute=batch_norm == "recompute", seed=seed,
        )  # fmt: skip
    with tracelab.create(out, weights.shapes) as writer:
        writer.define(
            KIND,
            kind=KIND,
            variables=averages_variables(),
            attrs={
                "sets": names,
                "batch_size": batch_size,
                "batch_norm": batch_norm,
                "weights": weights.array,
                "source": opened.run,
            },
        )
        for stop in sorted(by_end):
            rate, rows = rates[stop], []
            for window in (weights.window(*each) for each in by_end[stop]):
                row: dict[str, Array] = {
                    "window_start": np.asarray(float(window.start)),
                    "n_iterates": np.asarray(float(window.count)),
                    "distance": weights.distances(window),
                    "spread": np.sqrt(window.squares),
                }
                sizes = {"set": len(names), "draw": draws, "place": len(places)}
                if subject is None:
                    row |= _nothing(sizes)
                else:
                    where = f"at weights of the window {window.start} to {window.stop}"
                    with refusing("loss or error", where, _CALLED):
                        row |= subject.measured(window, rate, draws, batch_size, places)
                rows.append(row)
            padded = {
                name: np.stack(
                    [each[name] for each in rows]
                    + [np.full_like(rows[0][name], np.nan)] * (most - len(rows))
                )
                for name in rows[0]
            }
            writer.append(KIND, step=stop, learning_rate=rate, position=np.array(places), **padded)


def averages_variables() -> tuple[Variable, ...]:
    """Return what the group ``averages`` holds; NaN where a row has fewer windows than others."""
    window, point = ("step", "window"), "; point 0: the last weights, 1: their average"
    noise = (*window, "point", "draw")
    of_sets = []
    for what, units in (("loss", "loss"), ("error", "1")):
        each, pair = (*window, "set", "point"), (*window, "set")
        of_sets += [
            Variable(f"set_{what}", each, units, "float64", f"mean {what} on a set{point}"),
            Variable(f"set_{what}_se", each, units, "float64", f"standard error{point}"),
            Variable(f"{what}_difference", pair, units, "float64",
                     f"mean {what} at the average less that at the last weights"),
            Variable(f"{what}_difference_se", pair, units, "float64",
                     "standard error, examples paired"),
            Variable(f"{what}_units", pair, "1", "float64",
                     "values that it is from: examples, or pieces of which one gave the mean"),
        ]  # fmt: skip
    return (
        Variable("learning_rate", ("step",), "weight^2/loss", "float64", "of noise steps"),
        Variable("position", ("step", "place"), "1", "float64",
                 "on the line: 0 the last weights, 1 the average"),
        Variable("window_start", window, "step", "float64", "first step of the window"),
        Variable("n_iterates", window, "1", "float64", "stored weights in the window"),
        Variable("distance", (*window, "layer"), "weight", "float64",
                 "distance of the average from the last weights"),
        Variable("spread", (*window, "layer"), "weight", "float64",
                 "root mean squared distance of the weights from their average"),
        *of_sets,
        Variable("noise_squared_norm", noise, "(loss/weight)^2", "float64",
                 f"squared norm of a minibatch's noise there{point}"),
        Variable("moved_loss", (*noise, "sign"), "loss", "float64",
                 f"loss at the point less (sign 0) or plus (1) rate times noise{point}"),
        Variable("line_loss", (*window, "place"), "loss", "float64", "loss on the line"),
    )  # fmt: skip


def _nothing(sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return NaN for all that takes a model."""
    sizes = {"point": _POINTS, "sign": 2, **sizes}
    return {
        variable.name: np.full([sizes[dim] for dim in variable.dims[2:]], np.nan)
        for variable in averages_variables()
        if variable.dims[:2] == ("step", "window")
        and variable.name not in ("window_start", "n_iterates", "distance", "spread")
    }


@dataclass(frozen=True)
class _Subject:
    """A copy of the model whose weights are set, and what it is measured on.

    Parameters
    ----------
    model, loss, error
        The copy, in evaluation mode, and what takes it.
    parameters : list of Parameter
        Those that are stored, in order.
    sets : dict of str to Indexed
        Sets by name, the first the data.
    piece : int
        Examples at a time.
    recompute : bool
        Whether batch normalisation gets statistics of its own at each point.
    seed : int
        Of random numbers.
    """

    model: nn.Module
    loss: Loss
    error: Measure | None
    parameters: list[nn.Parameter]
    sets: dict[str, Indexed]
    piece: int
    recompute: bool
    seed: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Loss,
        error: Measure | None,
        weights: StoredWeights,
        sets: Mapping[str, tuple[Any, int | None]],
        *,
        piece: int,
        recompute: bool,
        seed: int,
    ) -> _Subject:
        """Return it, rehearsed.

        Raises
        ------
        UsageError
            If parameters are not those stored, data cannot be indexed, or loss or error fail.
        """
        own = copy.deepcopy(model)
        own.eval()
        trained = {name: p for name, p in own.named_parameters() if p.requires_grad}
        for name, shape in weights.shapes.items():
            if name not in trained or tuple(trained[name].shape) != shape:
                had = tuple(trained[name].shape) if name in trained else "no such parameter"
                raise UsageError(
                    f"the trace holds {name!r} of shape {shape}, and the model has {had}; give the "
                    "model that was trained"
                )
        lacking = [name for name in trained if name not in weights.shapes]
        if lacking:
            raise UsageError(
                f"the trace holds no weights of {', '.join(lacking)}; record Weights() of all "
                "layers, or set requires_grad=False where they were not trained"
            )
        device = next(own.parameters()).device
        found = cls(
            own, loss, error, [trained[name] for name in weights.shapes],
            {name: given.indexed(name, *each, device) for name, each in sets.items()},
            piece, recompute, seed,
        )  # fmt: skip
        with in_mode("eval", loss, error):
            found._rehearse()
        return found

    def _rehearse(self) -> None:
        """Call what will be called on a few examples, before anything is written.

        Raises
        ------
        UsageError
            If it fails, or gives neither a mean nor a value an example.
        """
        what = {"loss": self.loss} | ({} if self.error is None else {"error": self.error})
        for name, data in self.sets.items():
            where = f"on the first examples of {name}"
            with refusing("loss or error", where, _CALLED), forked_generators(self.seed):
                count = min(data.size, 2)
                batch = data.batch(torch.arange(count))
                with torch.no_grad():
                    for each, function in what.items():
                        BatchMeans(each, count).take(function(self.model, batch), count)
                if name == "data":
                    self._gradient(batch)
        if self.recompute:
            # The last piece is the smallest.
            indices = self._pieces("data")[-1]
            remedy = (
                "batch normalisation takes no single value: give data_batch_size=2 or more, or "
                "batch_norm='keep'"
            )
            where = f"on a piece of {len(indices)} of {self.sets['data'].size} examples"
            with refusing("a pass for batch normalisation", where, remedy):
                batch = self.sets["data"].batch(indices)
                with forked_generators(self.seed):
                    normalisation.recompute(
                        self.model,
                        lambda each: self.loss(self.model, each),
                        [(batch, len(indices))],
                    )

    def measured(
        self, window: Window, rate: float, draws: int, batch_size: int, line: tuple[float, ...]
    ) -> dict[str, Array]:
        """Return all that takes a model, of one window."""
        points = (window.last, window.average)
        with in_mode("eval", self.loss, self.error):
            found = self._compared(points)
            noise = [self._noise(each, rate, draws, batch_size) for each in points]
            found["noise_squared_norm"] = np.stack([each for each, _ in noise])
            found["moved_loss"] = np.stack([each for _, each in noise])
            away = window.average - window.last
            losses = []
            for place in line:
                self._place(window.last + place * away)
                losses.append(self._mean_loss())
            found["line_loss"] = np.array(losses)
        return found

    def _set(self, flat: FloatArray) -> None:
        begin = 0
        with torch.no_grad():
            for parameter in self.parameters:
                values = torch.from_numpy(flat[begin : begin + parameter.numel()])
                parameter.copy_(values.view(parameter.shape))
                begin += parameter.numel()

    def _place(self, flat: FloatArray) -> None:
        """Go to weights, and give batch normalisation its statistics there."""
        self._set(flat)
        if self.recompute:
            with forked_generators(self.seed):
                normalisation.recompute(
                    self.model, lambda batch: self.loss(self.model, batch), self._batches("data")
                )

    def _pieces(self, name: str) -> tuple[Tensor, ...]:
        """Return examples by piece, evenly: batch normalisation takes no rest of one example."""
        size = self.sets[name].size
        return torch.arange(size).tensor_split(math.ceil(size / self.piece))

    def _batches(self, name: str) -> Iterator[tuple[Any, int]]:
        for indices in self._pieces(name):
            yield self.sets[name].batch(indices), len(indices)

    def _mean_loss(self) -> float:
        size, total = self.sets["data"].size, 0.0
        with forked_generators(self.seed), torch.no_grad():
            for batch, count in self._batches("data"):
                total += float(self.loss(self.model, batch).double().mean()) * count / size
        return total

    def _compared(self, points: tuple[FloatArray, FloatArray]) -> dict[str, Array]:
        """Return loss and error at both points on each set, and of their differences."""
        measures = {"loss": self.loss} | ({} if self.error is None else {"error": self.error})
        kept: dict[tuple[str, str], list[list[Tensor]]] = {}
        for point in points:
            self._place(point)
            for name in self.sets:
                values: dict[str, list[Tensor]] = {what: [] for what in measures}
                with forked_generators(self.seed), torch.no_grad():
                    for batch, _ in self._batches(name):
                        for what, function in measures.items():
                            values[what].append(function(self.model, batch).detach())
                for what, each in values.items():
                    kept.setdefault((name, what), []).append(each)
        shape = (len(self.sets), _POINTS)
        found: dict[str, Array] = {}
        for what in ("loss", "error"):
            for name in (f"set_{what}", f"set_{what}_se"):
                found[name] = np.full(shape, np.nan)
            for name in (f"{what}_difference", f"{what}_difference_se", f"{what}_units"):
                found[name] = np.full(shape[:1], np.nan)
        for (name, what), (before, after) in kept.items():
            place = list(self.sets).index(name)
            counts = [len(each) for each in self._pieces(name)]
            differences = [b - a for a, b in zip(before, after, strict=True)]
            for number, values_of in enumerate((before, after)):
                mean = _means(what, values_of, counts)
                found[f"set_{what}"][place, number] = mean[0]
                found[f"set_{what}_se"][place, number] = mean[1]
            mean = _means(what, differences, counts)
            for name, value in zip(("difference", "difference_se", "units"), mean, strict=True):
                found[f"{what}_{name}"][place] = value
        return found

    def _noise(
        self, point: FloatArray, rate: float, draws: int, batch_size: int
    ) -> tuple[FloatArray, FloatArray]:
        """Return squared norms of noise and the losses behind steps along it, by draw."""
        self._place(point)
        data = self.sets["data"]
        full = np.zeros_like(point)
        for batch, count in self._batches("data"):
            full += self._gradient(batch) * (count / data.size)
        squares, losses = np.empty(draws), np.empty((draws, 2))
        for draw, seed in enumerate(splitmix64(self.seed, 0, draws)):
            self._set(point)
            generator = torch.Generator().manual_seed(int(seed) >> 2)
            drawn = torch.randint(data.size, (batch_size,), generator=generator)
            noise = self._gradient(data.batch(drawn)) - full
            squares[draw] = noise @ noise
            for sign in (0, 1):
                # Statistics of batch normalisation stay those of the point.
                self._set(point - rate * (1 - 2 * sign) * noise)
                losses[draw, sign] = self._mean_loss()
        return squares, losses

    def _gradient(self, batch: Any) -> FloatArray:
        with forked_generators(self.seed), torch.enable_grad():
            value = checked_mean(self.loss(self.model, batch).mean())
            parts = torch.autograd.grad(
                value, self.parameters, allow_unused=True, materialize_grads=True
            )
        return torch.cat([each.reshape(-1).double().cpu() for each in parts]).numpy()


def _means(what: str, values: list[Tensor], counts: list[int]) -> tuple[float, float, int]:
    means = BatchMeans(what, sum(counts))
    for each, count in zip(values, counts, strict=True):
        means.take(each, count)
    mean, error = means.mean()
    return float(mean), float(error), means.units
