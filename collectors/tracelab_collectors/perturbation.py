"""Loss, error and gradients at frozen weights and under Gaussian noise of them, of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tracelab.errors import UsageError
from tracelab.sketch import splitmix64
from tracelab_collectors.extremes import Extremes
from tracelab_collectors.frozen import FrozenLoss, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.products import HessianProducts, inner, lanczos, ritz
from tracelab_collectors.surface import LossSurface

__all__ = ["ExampleSet", "Perturbation"]

# Parts of a set whose means tell the standard error of a mean to an eighth.
PARTS = 32
_SETS, _SHAPES = 2, 2
# Where streams of seeds begin: those of the noise, of the recurrence and of minibatches.
_NOISE, _BEGIN, _BATCHES = 1, 1 << 32, 2 << 32


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Examples in random order.

    Parameters
    ----------
    data : Indexed
        Where they are.
    indices : Tensor of int64
        Which.
    """

    data: Indexed
    indices: Tensor

    @classmethod
    def drawn(cls, data: Indexed, count: int | None, seed: int) -> ExampleSet:
        """Return so many examples, or all."""
        return cls(data, torch.randperm(data.size, generator=_generator(seed))[:count])

    def halves(self) -> tuple[ExampleSet, ExampleSet]:
        """Return two sets without an example in common."""
        middle = len(self.indices) // 2
        first, second = self.indices[:middle], self.indices[middle:]
        return ExampleSet(self.data, first), ExampleSet(self.data, second)


@dataclass(frozen=True)
class Perturbation:
    """What is measured at the weights of one step.

    Parameters
    ----------
    loss, error : FrozenLoss
        Means over a batch's examples; error is optional.
    sets : list of ExampleSet
        The training data, and held-out data if there are any.
    weights : Tensor, shape (layout.size,)
        The weights.
    layout : Layout
        Layers that move.
    roots : tuple
        Whose mode is set: model, loss and error.
    seed : int
        Of all draws, and of random numbers that the model draws.
    mode : {"eval", None}
        As for `frozen.in_mode`.
    piece : int, optional
        Examples per piece; all if None.
    extremes : Extremes, optional
        What the error is of.
    """

    loss: FrozenLoss
    error: FrozenLoss | None
    sets: list[ExampleSet]
    weights: Tensor
    layout: Layout
    roots: tuple[object, ...]
    seed: int
    mode: str | None = "eval"
    piece: int | None = None
    extremes: Extremes | None = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Put model and generators aside for the block."""
        with in_mode(self.mode, *self.roots), forked_generators(self.seed):
            yield

    def rehearse(self, *, curved: bool) -> None:
        """Compute what a row does, once.

        Raises
        ------
        UsageError
            If an error is outside 0 and 1, or no number.
        """
        with self.frozen():
            row = torch.empty_like(self.weights)
            for each in self.sets:
                self._surface(self.loss, each).gradient(self.weights, row)
                if self.error is not None:
                    value = self._surface(self.error, each).value(self.weights)
                    self._check(value)
            if curved:
                self._hessian()(self.weights)

    def _check(self, mean: float) -> None:
        # Of means alone the extremes are NaN, and of an error that is no number the mean as well.
        seen = () if self.extremes is None else self.extremes.seen()
        for value in (mean, *(each for each in seen if not math.isnan(each))):
            if not 0 <= value <= 1:
                raise UsageError(
                    f"error(model, batch) is {value:g} on the first examples, and bounds are for "
                    "errors within 0 and 1; give such a one, as misclassified is, or leave error= "
                    "out and give the analysis a loss_bound="
                )

    def range(self) -> dict[str, Tensor]:
        """Return the smallest and the largest error of an example that was seen."""
        seen = (math.nan, math.nan) if self.extremes is None else self.extremes.seen()
        pairs = zip(("error_low", "error_high"), seen, strict=True)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in pairs}

    def distance(self, start: Tensor) -> Tensor:
        """Return the norm of the weights less others, summed in float64."""
        moved = self.weights - start
        return inner(moved, moved).sqrt()

    def _surface(self, loss: FrozenLoss, examples: ExampleSet) -> LossSurface:
        piece = self.piece or len(examples.indices)
        return LossSurface(
            loss, examples.data, examples.indices, self.layout, piece=piece, seed=self.seed
        )

    def _hessian(self) -> HessianProducts:
        data, indices = self.sets[0].data, self.sets[0].indices
        piece = self.piece or len(indices)
        return HessianProducts(self.loss, data, indices, self.layout, piece=piece, seed=self.seed)

    def _normal(self, seed: int) -> Tensor:
        generator = _generator(seed)
        drawn = [torch.randn(shape, generator=generator) for shape in self.layout.shapes]
        return self.layout.flat(drawn, dtype=self.weights.dtype, device=self.weights.device)

    def _seeds(self, count: int) -> list[int]:
        return [int(each) >> 2 for each in splitmix64(self.seed, _NOISE, count)]

    def _measures(self) -> list[tuple[str, FrozenLoss]]:
        measures = [("loss", self.loss)]
        return measures if self.error is None else [*measures, ("error", self.error)]

    def at_weights(self) -> dict[str, Tensor]:
        """Return means and standard errors by set, and the largest mean of a part of a set."""
        names = [f"{name}{end}" for name in ("loss", "error") for end in ("", "_se")]
        found = {name: torch.full((_SETS,), math.nan, dtype=torch.float64) for name in names}
        largest = []
        for name, measure in self._measures():
            for place, examples in enumerate(self.sets):
                parts = [ExampleSet(examples.data, each) for each in examples.indices.chunk(PARTS)]
                found_means = [self._surface(measure, each).value(self.weights) for each in parts]
                means = torch.tensor(found_means, dtype=torch.float64)
                sizes = torch.tensor([len(each.indices) for each in parts], dtype=torch.float64)
                mean = self._surface(measure, examples).value(self.weights)
                squares = (sizes * (means - mean).square()).sum()
                variance = squares / (len(parts) - 1 or math.nan)
                found[name][place] = mean
                found[f"{name}_se"][place] = (variance / sizes.sum()).sqrt()
                if name == "loss":
                    largest.append(means.max())
        return {**found, "max_loss": torch.stack(largest).max()}

    def noise(
        self, sigmas: Sequence[float], draws: int, top: int, lanczos_steps: int, damping: float
    ) -> dict[str, Tensor]:
        """Return losses and errors under noise, and what the noise's shapes are.

        Parameters
        ----------
        sigmas : sequence of float
            Standard deviations.
        draws : int
            Draws for each, common to all.
        top, lanczos_steps : int
            Eigenpairs that shape the noise, 0 for none, and steps of the recurrence.
        damping : float
            Curvature at which the variance is halved.
        """
        shaped, arrays = self._shape(top, lanczos_steps, damping)
        seeds = self._seeds(draws)
        shape = (_SETS, _SHAPES, len(sigmas), 2, len(seeds))
        found = {
            name: torch.full(shape, math.nan, dtype=torch.float64) for name in ("loss", "error")
        }
        surfaces = [
            (found[name][place], self._surface(measure, examples))
            for name, measure in self._measures()
            for place, examples in enumerate(self.sets)
        ]
        for draw, seed in enumerate(seeds):
            normal = self._normal(seed)
            directions = [normal] if shaped is None else [normal, shaped(normal)]
            for kind, direction in enumerate(directions):
                for level, sigma in enumerate(sigmas):
                    for sign in (0, 1):
                        moved = self.weights.add(direction, alpha=sigma * (1 - 2 * sign))
                        for values, surface in surfaces:
                            values[kind, level, sign, draw] = surface.value(moved)
        return arrays | {f"noise_{name}": values for name, values in found.items()}

    def _shape(
        self, count: int, lanczos_steps: int, damping: float
    ) -> tuple[Callable[[Tensor], Tensor] | None, dict[str, Tensor]]:
        """Return the root of S as a function of a vector, its mean variance and determinant."""
        variance, log_det = torch.tensor([[1.0, math.nan], [0.0, math.nan]], dtype=torch.float64)
        arrays = {
            "noise_variance": variance,
            "noise_log_det": log_det,
            "eigenvalue": torch.full((max(count, 1),), math.nan, dtype=torch.float64),
        }
        if not count:
            return None, arrays
        begin = self._normal(int(splitmix64(self.seed, _BEGIN, 1)[0]) >> 2)
        krylov = lanczos(self._hessian(), begin, lanczos_steps)
        arrays["eigenvalue"], vectors, _ = ritz(krylov, count)
        kept = arrays["eigenvalue"].isfinite()
        if not kept.any():
            return None, arrays
        values, vectors = arrays["eigenvalue"][kept], vectors[kept.to(vectors.device)]
        scales = 1 / (1 + values.clamp_min(0) / damping)
        n_weights = sum(self.layout.numel)
        variance[1] = 1 + (scales - 1).sum() / n_weights
        log_det[1] = scales.log().sum()
        less = (scales.sqrt() - 1).to(vectors)
        return lambda normal: normal + (less * (vectors @ normal)) @ vectors, arrays

    def gradients(self, sigmas: Sequence[float], draws: int) -> tuple[Tensor, Tensor]:
        """Return how the gradient changes under noise, and the gradients of two halves.

        Returns
        -------
        change : Tensor of float64, shape (sigma, draw)
            Inner products of what the halves' gradients change by.
        halves : Tensor, shape (2, layout.size)
            Gradients of the halves at the weights.
        """
        halves = [self._surface(self.loss, each) for each in self.sets[-1].halves()]
        at_weights = self.weights.new_empty(2, self.weights.numel())
        for half, out in zip(halves, at_weights, strict=True):
            half.gradient(self.weights, out)
        change = torch.empty(len(sigmas), draws, dtype=torch.float64)
        moved = torch.empty_like(at_weights)
        for draw, seed in enumerate(self._seeds(draws)):
            normal = self._normal(seed)
            for level, sigma in enumerate(sigmas):
                for half, out in zip(halves, moved, strict=True):
                    half.gradient(self.weights.add(normal, alpha=sigma), out)
                first, second = moved - at_weights
                change[level, draw] = inner(first, second)
        return change, at_weights

    def minibatches(
        self, about: Tensor, batches: int, size: int, replacement: bool
    ) -> dict[str, Tensor]:
        """Return what the gradients of minibatches of the training data are.

        Parameters
        ----------
        about : Tensor, shape (2, layout.size)
            The two gradients that deviations are from.
        batches, size : int
            Minibatches, and examples of each.
        replacement : bool
            How they are drawn.
        """
        losses, deviations, norms = [], [], []
        spread = _Spread.like(self.weights)
        for loss, row in self._drawn(batches, size, replacement):
            spread.take(row)
            first, second = row - about
            losses.append(loss)
            deviations.append(inner(first, second))
            norms.append(inner(row, row).sqrt())
        data = self.sets[0].data.size
        part, example = size, spread
        if not replacement and size == data:
            # Batches of everything do not differ: halves do.
            part, example = data // 2, _Spread.like(self.weights)
            for _, row in self._drawn(batches, part, replacement):
                example.take(row)
        # Of batches from n examples: the variance of one, unbiased over n, by that of a batch.
        scale = part * data / (data - 1) if replacement else part * data / (data - part)
        return {
            "batch_loss": torch.stack(losses),
            "deviation": torch.stack(deviations),
            "variance": spread.variance(),
            "example_variance": scale * example.variance(),
            "example_variance_se": scale * example.error(),
            "max_gradient_norm": torch.stack(norms).max(),
        }

    def _drawn(self, batches: int, size: int, replacement: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield losses and flat gradients of minibatches, these in the same memory."""
        data = self.sets[0].data
        generator = _generator(int(splitmix64(self.seed, _BATCHES, 1)[0]) >> 2)
        row = torch.zeros_like(self.weights)
        for _ in range(batches):
            if replacement:
                indices = torch.randint(data.size, (size,), generator=generator)
            else:
                indices = torch.randperm(data.size, generator=generator)[:size]
            loss, found = self.loss.gradient(data.batch(indices))
            copy_into(self.layout.views(row), found)
            yield loss.reshape(()).double(), row


@dataclass(slots=True)
class _Spread:
    """Trace of the covariance of vectors as they come, by Welford's recursion in float64.

    What the k-th vector adds to the sum of squares is that of a contrast (Helmert's), uncorrelated
    with the others and of the same covariance as a vector: so their spread tells the error.
    """

    mean: Tensor
    squares: Tensor
    added: list[Tensor]
    count: int = 0

    @classmethod
    def like(cls, row: Tensor) -> _Spread:
        mean = torch.zeros_like(row, dtype=torch.float64)
        return cls(mean, mean.new_zeros(()), [])

    def take(self, row: Tensor) -> None:
        self.count += 1
        away = row - self.mean
        self.mean.add_(away, alpha=1 / self.count)
        added = inner(away, row - self.mean)
        self.squares += added
        if self.count > 1:
            self.added.append(added)

    def variance(self) -> Tensor:
        return self.squares / (self.count - 1)

    def error(self) -> Tensor:
        """Return the standard error of it; NaN of two vectors."""
        added = torch.stack(self.added)
        deviation = added.std() if len(added) > 1 else added.new_full((), math.nan)
        return deviation / math.sqrt(len(added))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
