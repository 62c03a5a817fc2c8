"""Complexity: norms of the weights, margins, and how much the function bends between inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.frozen import Frozen, evaluating, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout
from tracelab_collectors.matrices import matrix_of, spectral_norm
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.path_norm import chain_of, path_norm
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.segments import along

__all__ = ["Complexity"]

Scores: TypeAlias = Callable[[nn.Module, Any], Tensor]
_SEGMENT = ("class_changes", "unit_changes", "length", "slope")
_NORMS = ("spectral_norm", "spectral_residual", "log_spectral_norm", "log_norm", "stable_rank")


def _model(model: nn.Module, inputs: Any) -> Tensor:
    scores: Tensor = model(inputs)
    return scores


@dataclass(frozen=True)
class Complexity(Scheduled):
    r"""How large a network's weights are, and how complex a function of its inputs it is.

    At each step of its schedule, and once more at the end, without a trace left in the run:

    - by layer the norm, the distance from the start, and of weights that are matrices the spectral
      norm :math:`\sigma`; of convolutions that of the filters as a matrix (output, rest), which is
      not the norm of the convolution as a map of images;
    - of each of the same examples the margin: the score of its class less the largest other one;
      and the norm of the margin's gradient by the input, its local Lipschitz constant;
    - along segments between pairs of these inputs, how often the predicted class changes, how often
      units of ReLU modules go on or off, and the steepest change of the scores;
    - the path norm, of chains of linear layers, convolutions and ReLU.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. Norms are of the
        chosen layers.
    examples : int, optional
        Examples, drawn once. None: all of the data.
    data_batch_size : int
        Examples at a time.
    pairs : int
        Segments: pairs of different examples among those drawn, at most half as many.
    points : int
        Pieces of a segment.
    scores : callable, optional
        ``scores(model, inputs)``, shape (example, class). Default: what the model returns. A batch
        of the data is ``(inputs, classes)``.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement (the default), or, with None, leave
        it in its mode.

    Raises
    ------
    UsageError
        If a number is out of range, or the mode or the schedule is invalid.

    Notes
    -----
    Gradients by the input, and segments, need inputs that are one tensor of floating numbers: they
    are NaN for others, such as words. Examples must not depend on each other: with batch
    normalisation in training mode they do. A row takes three passes over the examples and
    ``pairs * points`` passes of one input.

    References
    ----------
    Liu, Papailiopoulos, Achlioptas, "Bad Global Minima Exist and SGD Can Reach Them", NeurIPS 2020;
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio, "Fantastic Generalization Measures and Where to
    Find Them", ICLR 2020.
    """

    every: InitVar[int | Schedule] = 1000
    examples: int | None = 512
    data_batch_size: int = 256
    pairs: int = 32
    points: int = 64
    scores: Scores | None = None
    mode: str | None = "eval"
    name: str = "complexity"
    kind: str = field(default="complexity", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "Complexity's"
        for name in ("data_batch_size", "pairs", "points"):
            at_least(1, **{f"{whose} {name}": getattr(self, name)})
        if self.examples is not None:
            at_least(2, **{f"{whose} examples": self.examples})
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after the margins of a few examples.

        Raises
        ------
        UsageError
            If the run has no data or fewer than two examples, weights are sharded, or the model
            gives no scores of the classes.
        """
        if run.data is None:
            raise UsageError(
                f"{self.whose} measures margins and needs data; give attach(..., data=...)"
            )
        if run.layout.shards is not None:
            raise UsageError(
                f"{self.whose} evaluates the model by itself, which one process cannot do with "
                "weights that are sharded over several; leave it out"
            )
        data = Indexed.of(run.data, run.data_size, run.device)
        if data.size < 2:
            raise UsageError(f"{self.whose} needs 2 examples or more, and data has {data.size}")
        layout = self.layout(run)
        start = run.start_weights(layout)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)

        def measurement(indices: Tensor) -> _Measurement:
            return _Measurement(self, run, layout, data, indices, start)

        def measure(block: Block) -> dict[str, Tensor]:
            return measurement(chosen).row(int(splitmix64(seed, block.steps[0], 1)[0]) >> 2)

        remedy = "it is called with the inputs of a batch, and must return scores (example, class)"
        what = "the model" if self.scores is None else "scores(model, inputs)"
        with refusing(f"{self.whose}: {what}", "on the first examples", remedy):
            measurement(chosen[:2]).row(seed)
        return Recording(
            layout,
            measure,
            attrs={
                "n_examples": len(chosen),
                "n_data": data.size,
                "points": self.points,
                "mode": self.mode or "as trained",
                "path_norm": self.without_path_norm(run.model) or "recorded",
            },
            variables=self.variables(),
            probe=True,
            final=True,
            from_start=True,
        )

    def without_path_norm(self, model: nn.Module) -> str:
        """Return why there is no path norm; "" if there is one."""
        # What scores= does with the model is not known to be a chain.
        return "scores= is given" if self.scores is not None else chain_of(model)

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        layer, example, pair = ("step", "layer"), ("step", "example"), ("step", "pair")
        low = ", seen at the recorded points"
        return (
            Variable("norm", layer, "weight", "float64", "Euclidean (Frobenius) norm"),
            Variable("distance", layer, "weight", "float64", "distance from the start"),
            Variable("spectral_norm", layer, "weight", "float64",
                     "largest singular value, of (output, rest); NaN of vectors"),
            Variable("spectral_residual", layer, "1", "float64",
                     "relative residual of its square; 0 where decomposed, NaN of vectors"),
            Variable("log_spectral_norm", layer, "1", "float64",
                     "its logarithm; 0 of vectors, -inf of zeros"),
            Variable("log_norm", layer, "1", "float64",
                     "logarithm of the norm; 0 of vectors, -inf of zeros"),
            Variable("stable_rank", layer, "1", "float64",
                     "square of norm over spectral norm; 0 of vectors and of zeros"),
            Variable("margin", example, "1", "float64", "score of the class less the best other"),
            Variable("input_gradient_norm", example, "1", "float64",
                     "norm of the margin's gradient by the input; NaN if it has none"),
            Variable("class_changes", pair, "1", "float64", "changes of the class" + low),
            Variable("unit_changes", pair, "1", "float64",
                     "units of ReLU modules that go on or off" + low),
            Variable("length", pair, "1", "float64", "length of the segment"),
            Variable("slope", pair, "1", "float64", "steepest change of the scores" + low),
            Variable("path_norm", ("step",), "1", "float64",
                     "sum over paths of products of squared weights; NaN if no ReLU chain"),
        )  # fmt: skip


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: Complexity
    run: Run
    layout: Layout
    data: Indexed
    indices: Tensor
    start: Tensor

    def row(self, seed: int) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        model, collector = self.run.model, self.collector
        frozen = Frozen(model, collector.scores)
        with in_mode(collector.mode, model, collector.scores), forked_generators(seed):
            arrays = self._norms(seed)
            batches = [
                self.data.batch(each) for each in self.indices.split(collector.data_batch_size)
            ]
            margins = [self._margins(frozen, batch) for batch in batches]
            for place, name in enumerate(("margin", "input_gradient_norm")):
                arrays[name] = torch.cat([each[place] for each in margins])
            arrays |= self._segments(frozen, batches, seed)
            arrays["path_norm"] = torch.tensor(math.nan, dtype=torch.float64)
            if not self.collector.without_path_norm(model):
                with evaluating(model):
                    arrays["path_norm"].fill_(path_norm(model, frozen, batches[0][0]))
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _norms(self, seed: int) -> dict[str, Tensor]:
        weights = self.run.weights(self.layout)
        norm = squared_norms(weights[None], self.layout).sqrt()[0]
        away = squared_norms((weights - self.start)[None], self.layout).sqrt()[0]
        found = {name: torch.zeros_like(norm) for name in _NORMS}
        for place, weight in enumerate(self.layout.views(weights)):
            matrix = matrix_of(weight)
            if matrix is None:
                found["spectral_norm"][place] = found["spectral_residual"][place] = math.nan
                continue
            largest, residual = spectral_norm(matrix, seed)
            found["spectral_norm"][place], found["spectral_residual"][place] = largest, residual
            found["log_spectral_norm"][place] = found["spectral_norm"][place].log()
            found["log_norm"][place] = norm[place].log()
            if largest != 0:
                found["stable_rank"][place] = (norm[place] / largest).square()
        return {"norm": norm, "distance": away} | found

    def _scores(self, frozen: Frozen, inputs: Any) -> Tensor:
        return frozen(self.collector.scores or _model, inputs)

    def _margins(self, frozen: Frozen, batch: Any) -> tuple[Tensor, Tensor]:
        """Return margins and norms of their gradients by the inputs, by example."""
        inputs, classes = batch[0], batch[1]
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            inputs = inputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            scores = self._scores(frozen, inputs)
            fits = classes.dtype in (torch.int64, torch.int32, torch.uint8) and scores.ndim == 2
            if not fits or scores.shape[:1] != classes.shape or scores.shape[1] < 2:
                raise UsageError(
                    f"{self.collector.whose} needs scores of shape (example, class) and integer "
                    f"classes of shape (example,), got {tuple(scores.shape)} and {classes.dtype} "
                    f"{tuple(classes.shape)}; give Complexity scores= of your own"
                )
            own = scores.gather(1, classes.long()[:, None])[:, 0]
            others = scores.scatter(1, classes.long()[:, None], -math.inf).amax(1)
            margins = own - others
            norms = torch.full_like(margins.detach(), math.nan, dtype=torch.float64)
            # Numbers that the model turns into words have no gradient.
            if margins.requires_grad:
                (gradient,) = torch.autograd.grad(margins.sum(), inputs, allow_unused=True)
                if gradient is not None:
                    norms = gradient.double().flatten(1).norm(dim=1)
        return margins.detach().double(), norms

    def _segments(self, frozen: Frozen, batches: list[Any], seed: int) -> dict[str, Tensor]:
        """Return what changes along the segments, by pair."""
        pairs = max(1, min(self.collector.pairs, len(self.indices) // 2))
        found = torch.full((len(_SEGMENT), pairs), math.nan, dtype=torch.float64)
        if isinstance(batches[0][0], Tensor) and batches[0][0].is_floating_point():
            inputs = torch.cat([batch[0] for batch in batches])
            # The same pairs at every step: examples were drawn in random order or stand in theirs.
            generator = torch.Generator().manual_seed(len(inputs))
            order = torch.randperm(len(inputs), generator=generator)
            for pair in range(pairs):
                begin, end = inputs[order[2 * pair]], inputs[order[2 * pair + 1]]
                changes = along(
                    lambda each: self._scores(frozen, each),
                    self.run.model, begin, end, self.collector.points,
                )  # fmt: skip
                found[:, pair] = torch.tensor([changes[name] for name in _SEGMENT])
        return dict(zip(_SEGMENT, found, strict=True))
