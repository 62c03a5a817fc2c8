"""SmoothedGradient: the gradient one step ahead, averaged over the noise of that step."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, splitmix64
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.frozen import FrozenLoss, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.moments import squared_norms
from tracelab_collectors.products import inner
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.sketching import Sketcher, sketcher
from tracelab_collectors.surface import LossSurface

__all__ = ["SmoothedGradient"]

DIRECTIONS = 4096
"""Largest default size of a sketch; layers of no more weights are kept exactly."""
_PART = ("part", "direction")
_REHEARSED = 8


@dataclass(frozen=True)
class SmoothedGradient(Scheduled):
    r"""Gradients of the loss smoothed by the noise of a step of SGD, where that step leads.

    At each step of its schedule, and once more at the end, at the weights :math:`w` with the
    learning rate :math:`\eta` of the step and the gradient :math:`g` over all examples, for each of
    `draws` minibatches with gradient :math:`G_k` and noise :math:`\omega_k = G_k - g`,

    .. math:: y = w - \eta g, \qquad \nabla f(y - \eta \omega_k),

    whose mean is the gradient of the smoothed loss (Kleinberg, Li, Yuan 2018). With `neighbours`
    also gradients at points drawn uniformly from the ball of `radius` around :math:`w`.

    Recorded are projections of :math:`w`, :math:`g` and of each of these gradients, and exact
    squared norms. What they point to, the weights at the end, is known only then: its inner
    products with them are those of the projections, exact for layers of no more weights than the
    projection has directions.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. Weights of the chosen
        layers move, and the others stay.
    draws : int
        Minibatches.
    batch_size : int
        Examples in each.
    replacement : bool
        Whether a minibatch's examples are drawn with replacement.
    neighbours : int
        Points of the ball; 0 for none.
    radius : float
        Its radius.
    examples : int, optional
        Examples that stand for all of the data, drawn once: the loss is their mean, and minibatches
        are drawn from them. None: all of the data.
    data_batch_size : int, optional
        Examples per piece of a pass over them. Default: all of them.
    sketch : Project, optional
        How vectors are kept. Default: as many directions as the largest layer has weights, 4,096
        at most.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement (the default), or, with None, leave
        it in its mode: dropout then draws the same masks for every pass over the examples.

    Raises
    ------
    UsageError
        If a number is out of range, the sketch is no projection, or the mode or the schedule is
        invalid.

    Notes
    -----
    A row takes ``1 + draws + neighbours`` passes over the examples and `draws` minibatches. The
    step is that of plain SGD, whatever the optimizer is: momentum and preconditioning are left out.

    References
    ----------
    Kleinberg, Li, Yuan, "An Alternative View: When Does SGD Escape Local Minima?", ICML 2018.
    """

    every: InitVar[int | Schedule] = 1000
    draws: int = 16
    batch_size: int = 128
    replacement: bool = True
    neighbours: int = 0
    radius: float = 0.5
    examples: int | None = None
    data_batch_size: int | None = None
    sketch: Project | None = None
    mode: str | None = "eval"
    name: str = "smoothed_gradient"
    kind: str = field(default="smoothed_gradient", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "SmoothedGradient's"
        for name in ("draws", "batch_size"):
            at_least(1, **{f"{whose} {name}": getattr(self, name)})
        at_least(0, **{f"{whose} neighbours": self.neighbours})
        for name in ("examples", "data_batch_size"):
            if getattr(self, name) is not None:
                at_least(1, **{f"{whose} {name}": getattr(self, name)})
        number = isinstance(self.radius, (int, float)) and not isinstance(self.radius, bool)
        if not number or not 0 < self.radius < float("inf"):
            raise UsageError(f"{whose} radius must be a positive number, got {self.radius!r}")
        if self.sketch is not None and not isinstance(self.sketch, Project):
            raise UsageError(
                f"{whose} sketch must be tracelab.Project(k) or None, got {self.sketch!r}; a "
                "projection with as many directions as a layer has weights keeps all of it"
            )
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after a gradient over a few examples.

        Raises
        ------
        UsageError
            If the run has no loss or no data, fewer examples than a minibatch drawn without
            replacement, weights are sharded, or the loss fails.
        """
        data, loss = Indexed.of_run(run, self.whose)
        layout = self.layout(run)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)
        if not self.replacement and self.batch_size > len(chosen):
            raise UsageError(
                f"{self.whose}: batch_size={self.batch_size} without replacement exceeds the "
                f"{len(chosen)} examples; lower it or set replacement=True"
            )
        sketch = self.sketch or Project(min(max(layout.numel), DIRECTIONS))
        apply = sketcher((sketch,), layout, dtype=run.dtype, device=run.device)

        def measurement(indices: Tensor, seed: int) -> _Measurement:
            frozen = FrozenLoss.of_run(run, loss, layout)
            surface = LossSurface(
                frozen, data, indices, layout,
                piece=self.data_batch_size or len(indices), seed=seed,
            )  # fmt: skip
            return _Measurement(
                self, run, layout, data, indices, frozen, surface, apply, (run.model, loss)
            )

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            return measurement(chosen, step).row(step)

        remedy = "loss is called with the model and a batch as the data give it"
        with refusing(self.whose, "on the first examples", remedy):
            measurement(chosen[:_REHEARSED], seed).rehearse(seed)
        return Recording(
            layout,
            measure,
            attrs={
                "batch_size": self.batch_size,
                "replacement": self.replacement,
                "n_examples": len(chosen),
                "directions": sketch.k,
                "sketch_seed": sketch.seed,
                "radius": self.radius,
                "mode": self.mode or "as trained",
            },
            variables=self.variables(),
            probe=True,
            final=True,
        )

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        step, part, drawn = ("step",), ("step", "part"), ("step", "draw", "part")
        square, gradient = "(loss/weight)^2", "loss/weight"
        found = [
            Variable("member", ("step", "layer", "part"), "1", "float64",
                     "1 where the part, one for each layer, is the layer; 0 elsewhere"),
            Variable("numel", part, "1", "int64", "weights of the part"),
            Variable("learning_rate", part, "weight^2/loss", "float64", "of the step"),
            Variable("loss", step, "loss", "float64", "mean loss at the weights"),
            Variable("weight", (*step, *_PART), "weight", "float32", "projection of the weights"),
            Variable("gradient", (*step, *_PART), gradient, "float32",
                     "projection of the gradient over the examples"),
            Variable("squared_norm", part, square, "float64", "its squared norm, exact"),
            Variable("noise_squared_norm", drawn, square, "float64",
                     "squared norm of a minibatch's noise, exact"),
            Variable("smoothed_loss", ("step", "draw"), "loss", "float64",
                     "mean loss one step of plain SGD ahead, by minibatch"),
            Variable("smoothed", (*step, "draw", *_PART), gradient, "float32",
                     "projection of the gradient there"),
            Variable("smoothed_squared_norm", part, square, "float64",
                     "squared norm of its mean over minibatches, exact"),
        ]  # fmt: skip
        if self.neighbours:
            near = ("step", "neighbour")
            found += [
                Variable("neighbour_gradient", (*near, *_PART), gradient, "float32",
                         "projection of the gradient at a point near the weights"),
                Variable("neighbour_outward", (*near, "part"), "loss", "float64",
                         "inner product of that gradient with point less weights, exact"),
                Variable("neighbour_squared_norm", (*near, "part"), square, "float64",
                         "its squared norm, exact"),
            ]  # fmt: skip
        return tuple(found)


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: SmoothedGradient
    run: Run
    layout: Layout
    data: Indexed
    indices: Tensor
    loss: FrozenLoss
    surface: LossSurface
    sketch: Sketcher
    roots: tuple[object, ...]

    def rehearse(self, seed: int) -> None:
        """Compute a gradient."""
        weights = self.run.weights(self.layout)
        with in_mode(self.collector.mode, *self.roots), forked_generators(seed):
            self.surface.gradient(weights, torch.empty_like(weights))

    def row(self, seed: int) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        layout = self.layout
        with in_mode(self.collector.mode, *self.roots), forked_generators(seed):
            generator = torch.Generator().manual_seed(seed)
            weights = self.run.weights(layout)
            gradient = torch.empty_like(weights)
            loss = self.surface.gradient(weights, gradient)
            rates = self._rates()
            arrays = {
                "member": torch.eye(len(layout.names), dtype=torch.float64),
                "numel": torch.tensor(layout.numel),
                "learning_rate": torch.tensor(rates, dtype=torch.float64),
                "loss": torch.tensor(loss, dtype=torch.float64),
                "weight": self._projected(weights),
                "gradient": self._projected(gradient),
                "squared_norm": squared_norms(gradient[None], layout)[0],
            }
            pairs = zip(layout.shapes, rates, strict=True)
            full = [torch.full(shape, each, dtype=weights.dtype) for shape, each in pairs]
            rate = layout.flat(full, dtype=weights.dtype, device=weights.device)
            arrays |= self._smoothed(weights, gradient, rate, generator)
            if self.collector.neighbours:
                arrays |= self._neighbours(weights, generator)
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _rates(self) -> list[float]:
        """Return the learning rate of each layer; 0 of what no optimizer moves."""
        groups = [group for each in self.run.optimizers for group in each.param_groups]
        known = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        return [known.get(id(self.run.parameters[name]), 0.0) for name in self.layout.names]

    def _smoothed(
        self, weights: Tensor, gradient: Tensor, rate: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return what is at the ends of steps of plain SGD, by minibatch."""
        batch_gradient, there = torch.zeros_like(weights), torch.empty_like(weights)
        mean = torch.zeros_like(weights, dtype=torch.float64)
        found: dict[str, list[Tensor]] = {
            name: [] for name in ("noise_squared_norm", "smoothed_loss", "smoothed")
        }
        for _ in range(self.collector.draws):
            batch = self.data.batch(self.indices[self._drawn(generator)])
            _, parts = self.loss.gradient(batch)
            copy_into(self.layout.views(batch_gradient), parts)
            noise = (batch_gradient - gradient)[None]
            found["noise_squared_norm"].append(squared_norms(noise, self.layout)[0])
            # y - eta omega is where the step by this minibatch leads.
            loss = self.surface.gradient(weights - rate * batch_gradient, there)
            found["smoothed_loss"].append(torch.tensor(loss, dtype=torch.float64))
            found["smoothed"].append(self._projected(there))
            mean += there
        squares = squared_norms(mean[None] / self.collector.draws, self.layout)[0]
        return {name: torch.stack(each) for name, each in found.items()} | {
            "smoothed_squared_norm": squares
        }

    def _drawn(self, generator: torch.Generator) -> Tensor:
        size, count = len(self.indices), self.collector.batch_size
        if self.collector.replacement:
            return torch.randint(size, (count,), generator=generator)
        return torch.randperm(size, generator=generator)[:count]

    def _neighbours(self, weights: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return gradients at points of the ball around the weights."""
        layout, there = self.layout, torch.empty_like(weights)
        found: dict[str, list[Tensor]] = {
            name: []
            for name in ("neighbour_gradient", "neighbour_outward", "neighbour_squared_norm")
        }
        for _ in range(self.collector.neighbours):
            normal = [torch.randn(shape, generator=generator) for shape in layout.shapes]
            away = layout.flat(normal, dtype=weights.dtype, device=weights.device)
            # Of points uniform in a ball of n dims the n-th power of the radius is uniform.
            share = float(torch.rand((), generator=generator)) ** (1 / sum(layout.numel))
            away *= self.collector.radius * share / float(inner(away, away).sqrt())
            self.surface.gradient(weights + away, there)
            found["neighbour_gradient"].append(self._projected(there))
            found["neighbour_outward"].append(_by_layer(layout, there, away))
            found["neighbour_squared_norm"].append(squared_norms(there[None], layout)[0])
        return {name: torch.stack(each) for name, each in found.items()}

    def _projected(self, flat: Tensor) -> Tensor:
        return self.sketch(flat[None])["projected"][0]


def _by_layer(layout: Layout, a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each layer."""
    pairs = zip(layout.views(a), layout.views(b), strict=True)
    return torch.stack([inner(x.reshape(-1), y.reshape(-1)) for x, y in pairs])
