"""PerturbedLoss: loss, error and gradients under Gaussian noise of frozen weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab_collectors.collector import Block, Loss, Recording, Run
from tracelab_collectors.evaluation import Measure
from tracelab_collectors.frozen import FrozenLoss, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.products import HessianProducts, inner, lanczos, ritz
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least, rising
from tracelab_collectors.surface import LossSurface, mean_of

__all__ = ["PerturbedLoss"]

SIGMAS = tuple(float(each) for each in np.geomspace(1e-3, 1.0, 9).round(6))
# Batches of a set's examples whose means tell the standard error to an eighth.
GROUPS = 32
_REHEARSED = 8
_SETS, _SHAPES = 2, 2


@dataclass(frozen=True)
class PerturbedLoss(Scheduled):
    r"""How loss, error and gradient answer to Gaussian noise of the weights w of a step.

    At each step of its schedule, and once more behind the last, without a trace left in the
    training run:

    - loss and error on the training data and on held-out data, at w and at :math:`w \pm \nu`, with
      :math:`\nu \sim N(0, \sigma^2 I)` (shape 0) and :math:`N(0, \sigma^2 S)` (shape 1), where S
      follows the Hessian's largest eigenpairs :math:`(\lambda_j, v_j)`,

      .. math:: S = I - \sum_j \frac{\lambda_j^+}{\lambda_j^+ + c} v_j v_j', \qquad c
         \text{ the damping};

    - an unbiased estimate of :math:`\|g(w + \sigma \xi) - g(w)\|^2`, g the gradient of the
      expected loss, by the inner product of what it is on two halves of the held-out data;
    - gradients of minibatches as training draws them: their variance, their largest norm, and an
      unbiased estimate of :math:`\|G_B - g\|^2` by
      :math:`\langle G_B - g_1, G_B - g_2 \rangle`, with the gradients of the halves.

    Of this are bounds on generalization by noise added to the weights.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. Weights of the chosen
        layers move, and the others stay.
    held_out : dataset or callable, optional
        Examples that training does not see, as ``attach(data=...)`` takes data, with a length.
        Without them set 1 is NaN, halves are those of the training data, and `deviation` is about
        the gradient of the training data, which lacks what comes of using data again.
    sigmas : sequence of float
        Standard deviations of the noise, rising.
    draws : int
        Draws of it, the same for every standard deviation and shape; each in both directions.
    error : callable, optional
        ``error(model, batch)``, such as `tracelab_collectors.misclassified`: its mean is measured
        as the loss is.
    examples, held_out_examples : int, optional
        Examples of each set, drawn once. None: all.
    batches, batch_size : int
        Minibatches, and examples of each: those of the training.
    replacement : bool
        Whether a minibatch's examples are drawn with replacement.
    curvature : int
        Eigenpairs that shape the noise; 0 for none, and then shape 1 is NaN.
    lanczos_steps : int
        Steps of the recurrence that finds them.
    damping : float
        Curvature at which the noise's variance is halved, in units of the loss over weight squared.
    gradient_draws : int
        Draws for which the change of the gradient is measured: the first of them.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement (the default), or, with None, leave
        it in its mode: dropout then draws the same masks for every evaluation.
    data_batch_size : int, optional
        Examples per piece. Default: all of them.

    Raises
    ------
    UsageError
        If a number is out of range, the profile is empty, or the mode or the schedule is invalid.

    Notes
    -----
    A row takes ``2 * draws`` passes forward over both sets for each standard deviation (twice that
    with `curvature`, and again with `error`), ``gradient_draws + 1`` gradients of the held-out data
    for each, and `batches` gradients of minibatches. It holds six copies of the weights, and
    `lanczos_steps` more for the eigenpairs.

    References
    ----------
    Neu, Dziugaite, Haghifam, Roy, "Information-Theoretic Generalization Bounds for Stochastic
    Gradient Descent", COLT 2021 (what is measured); Dziugaite, Roy, "Computing Nonvacuous
    Generalization Bounds for Deep (Stochastic) Neural Networks with Many More Parameters than
    Training Data", UAI 2017 (losses under noise).
    """

    every: InitVar[int | Schedule] = 1000
    held_out: Any = None
    sigmas: Sequence[float] = SIGMAS
    draws: int = 8
    error: Measure | None = None
    examples: int | None = None
    held_out_examples: int | None = None
    batches: int = 64
    batch_size: int = 64
    replacement: bool = True
    curvature: int = 0
    lanczos_steps: int = 32
    damping: float = 1.0
    gradient_draws: int = 2
    mode: str | None = "eval"
    data_batch_size: int | None = None
    name: str = "perturbed_loss"
    kind: str = field(default="perturbed_loss", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "PerturbedLoss'"
        object.__setattr__(self, "sigmas", rising(f"{whose} sigmas", self.sigmas))
        object.__setattr__(self, "damping", rising(f"{whose} damping", (self.damping,))[0])
        for name in ("draws", "batch_size", "lanczos_steps", "gradient_draws"):
            at_least(1, **{f"{whose} {name}": getattr(self, name)})
        at_least(2, **{f"{whose} batches": self.batches})
        at_least(0, **{f"{whose} curvature": self.curvature})
        for name in ("examples", "held_out_examples"):
            if getattr(self, name) is not None:
                at_least(2, **{f"{whose} {name}": getattr(self, name)})
        if self.data_batch_size is not None:
            at_least(1, **{f"{whose} data_batch_size": self.data_batch_size})
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")
        if self.curvature > self.lanczos_steps:
            raise UsageError(
                f"{whose} curvature={self.curvature} eigenpairs take at least as many "
                f"lanczos_steps, got {self.lanczos_steps}"
            )

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after gradients over a few examples.

        Raises
        ------
        UsageError
            If the run has no loss or no data, a set cannot be indexed or halved, a minibatch is
            larger than the data it is drawn from without replacement, weights are sharded, or loss
            or error fail.
        """
        data, loss = Indexed.of_run(run, self.whose)
        held = None if self.held_out is None else Indexed.of(self.held_out, None, run.device)
        if not self.replacement and self.batch_size > data.size:
            raise UsageError(
                f"{self.whose}: batch_size={self.batch_size} exceeds the {data.size} examples of "
                "data, of which it is drawn without replacement; lower it"
            )
        for name, each in (("data", data), ("held_out", held)):
            if each is not None and each.size < 2:
                raise UsageError(
                    f"{self.whose}: {name} has {each.size} example, which has no halves; give more"
                )
        layout = self.layout(run)
        start = run.start_weights(layout)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        counts = (self.examples, self.held_out_examples)
        drawn = [
            _Set(each, torch.randperm(each.size, generator=_generator(seed))[:count])
            for each, count in zip((data, held), counts, strict=True)
            if each is not None
        ]

        def measurement(sets: list[_Set], seed: int) -> _Measurement:
            def bound(of: Loss) -> FrozenLoss:
                return FrozenLoss.of_run(run, of, layout)

            error = None if self.error is None else bound(mean_of(self.error))
            roots = (run.model, loss, self.error)
            weights = run.weights(layout)
            return _Measurement(self, bound(loss), error, sets, weights, layout, roots, seed)

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            return measurement(drawn, step).row(start)

        remedy = "loss and error are called with the model and a batch as the data give it"
        with refusing(self.whose, "on the first examples", remedy):
            few = [_Set(each.data, each.indices[:_REHEARSED]) for each in drawn]
            measurement(few, seed).rehearse()
        return Recording(
            layout,
            measure,
            attrs={
                "n_weights": sum(layout.numel),
                "n_examples": len(drawn[0].indices),
                "n_held_out": len(drawn[1].indices) if held is not None else 0,
                "n_data": data.size,
                "batch_size": self.batch_size,
                "replacement": self.replacement,
                "damping": self.damping,
                "mode": self.mode or "as trained",
                "held_out": held is not None,
                "plain_sgd": all(map(_is_plain, run.optimizers)),
            },
            variables=self.variables(),
            probe=True,
            final=True,
            from_start=True,
        )

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        step, by_set, by_shape = ("step",), ("step", "set"), ("step", "shape")
        noise = ("step", "set", "shape", "level", "sign", "draw")
        sets = "; set 0: training data, 1: held-out data (NaN if none)"
        shapes = "; shape 0: equal for all weights, 1: by the Hessian (NaN if none)"
        halves = "; halves of held-out data, or of the training data if there are none"
        squared = "(loss/weight)^2"
        return tuple(
            Variable(name, dims, units, "float64", words)
            for name, dims, units, words in (
                ("sigma", ("step", "level"), "weight", "standard deviation of noise"),
                ("loss", by_set, "loss", "mean loss at the weights" + sets),
                ("error", by_set, "1", "mean error at the weights" + sets),
                ("loss_se", by_set, "loss", "standard error of it, over examples" + sets),
                ("error_se", by_set, "1", "standard error of it, over examples" + sets),
                ("max_loss", step, "loss",
                 "largest mean loss of some examples that was seen at the weights"),
                ("distance", step, "weight", "norm of the weights less those at the start"),
                ("noise_loss", noise, "loss", "mean loss at w plus and minus noise" + sets
                 + shapes),
                ("noise_error", noise, "1", "mean error there" + sets + shapes),
                ("noise_variance", by_shape, "1", "mean variance of noise over sigma^2" + shapes),
                ("noise_log_det", by_shape, "1",
                 "log det of its covariance over sigma^2" + shapes),
                ("eigenvalue", ("step", "eigenpair"), "loss/weight^2",
                 "largest Ritz values of the Hessian, falling; NaN if there is none"),
                ("gradient_change", ("step", "level", "gradient_draw"), squared,
                 "||g(w + noise) - g(w)||^2, unbiased by halves: can be negative" + halves),
                ("deviation", ("step", "batch"), squared,
                 "||G_B - g||^2 of a minibatch, unbiased by halves of held-out data; without them "
                 "about the gradient of the training data"),
                ("variance", step, squared, "trace of the covariance of a minibatch's gradient"),
                ("max_gradient_norm", step, "loss/weight", "largest norm of one"),
            )
        )  # fmt: skip


def _is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step is the gradient times a rate."""
    extras = ("momentum", "weight_decay", "nesterov", "maximize")
    return type(optimizer) is torch.optim.SGD and not any(
        group[extra] for group in optimizer.param_groups for extra in extras
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, slots=True)
class _Set:
    """Examples, in random order."""

    data: Indexed
    indices: Tensor


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: PerturbedLoss
    loss: FrozenLoss
    error: FrozenLoss | None
    sets: list[_Set]
    weights: Tensor
    layout: Layout
    roots: tuple[object, ...]
    seed: int

    def rehearse(self) -> None:
        """Compute what a row does, once."""
        with in_mode(self.collector.mode, *self.roots), forked_generators(self.seed):
            row = torch.empty_like(self.weights)
            for each in self.sets:
                self._surface(self.loss, each).gradient(self.weights, row)
                if self.error is not None:
                    self._surface(self.error, each).value(self.weights)
            if self.collector.curvature:
                self._hessian()(self.weights)

    def row(self, start: Tensor) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        moved = self.weights - start
        with in_mode(self.collector.mode, *self.roots), forked_generators(self.seed):
            arrays = {
                "sigma": torch.tensor(self.collector.sigmas, dtype=torch.float64),
                "distance": inner(moved, moved).sqrt(),
            }
            arrays |= self._at_weights()
            arrays |= self._noise()
            arrays |= self._gradients()
            largest = [arrays["max_loss"], arrays.pop("batch_loss").max().cpu()]
            arrays["max_loss"] = torch.stack(largest).max()
        return {name: values.double().unsqueeze(0) for name, values in arrays.items()}

    def _surface(self, loss: FrozenLoss, examples: _Set) -> LossSurface:
        piece = self.collector.data_batch_size or len(examples.indices)
        return LossSurface(
            loss, examples.data, examples.indices, self.layout, piece=piece, seed=self.seed
        )

    def _hessian(self) -> HessianProducts:
        data, indices = self.sets[0].data, self.sets[0].indices
        piece = self.collector.data_batch_size or len(indices)
        return HessianProducts(self.loss, data, indices, self.layout, piece=piece, seed=self.seed)

    def _normal(self, seed: int) -> Tensor:
        generator = _generator(seed)
        drawn = [torch.randn(shape, generator=generator) for shape in self.layout.shapes]
        return self.layout.flat(drawn, dtype=self.weights.dtype, device=self.weights.device)

    def _draws(self, count: int) -> list[int]:
        return [int(each) >> 2 for each in splitmix64(self.seed, 1, count)]

    def _measures(self) -> list[tuple[str, FrozenLoss]]:
        measures = [("loss", self.loss)]
        return measures if self.error is None else [*measures, ("error", self.error)]

    def _at_weights(self) -> dict[str, Tensor]:
        """Return means and standard errors by set, and the largest mean of a part of a set."""
        names = [f"{name}{end}" for name in ("loss", "error") for end in ("", "_se")]
        found = {name: torch.full((_SETS,), math.nan, dtype=torch.float64) for name in names}
        largest = []
        for name, measure in self._measures():
            for place, examples in enumerate(self.sets):
                parts = examples.indices.chunk(GROUPS)
                means = torch.tensor(
                    [
                        self._surface(measure, _Set(examples.data, part)).value(self.weights)
                        for part in parts
                    ],
                    dtype=torch.float64,
                )
                sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)
                mean = self._surface(measure, examples).value(self.weights)
                squares = (sizes * (means - mean).square()).sum()
                variance = squares / (len(parts) - 1 or math.nan)
                found[name][place] = mean
                found[f"{name}_se"][place] = (variance / sizes.sum()).sqrt()
                if name == "loss":
                    largest.append(means.max())
        return {**found, "max_loss": torch.stack(largest).max()}

    def _noise(self) -> dict[str, Tensor]:
        """Return losses and errors under noise, and what the noise's shapes are."""
        collector = self.collector
        shaped, arrays = self._shape()
        sigmas, seeds = collector.sigmas, self._draws(collector.draws)
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

    def _shape(self) -> tuple[Callable[[Tensor], Tensor] | None, dict[str, Tensor]]:
        """Return the root of S as a function of a vector, its mean variance and determinant."""
        count = self.collector.curvature
        variance, log_det = torch.tensor([[1.0, math.nan], [0.0, math.nan]], dtype=torch.float64)
        arrays = {
            "noise_variance": variance,
            "noise_log_det": log_det,
            "eigenvalue": torch.full((max(count, 1),), math.nan, dtype=torch.float64),
        }
        if not count:
            return None, arrays
        begin = self._normal(int(splitmix64(self.seed, 1 << 32, 1)[0]) >> 2)
        krylov = lanczos(self._hessian(), begin, self.collector.lanczos_steps)
        arrays["eigenvalue"], vectors, _ = ritz(krylov, count)
        kept = arrays["eigenvalue"].isfinite()
        if not kept.any():
            return None, arrays
        values, vectors = arrays["eigenvalue"][kept], vectors[kept.to(vectors.device)]
        scales = 1 / (1 + values.clamp_min(0) / self.collector.damping)
        n_weights = sum(self.layout.numel)
        variance[1] = 1 + (scales - 1).sum() / n_weights
        log_det[1] = scales.log().sum()
        less = (scales.sqrt() - 1).to(vectors)
        return lambda normal: normal + (less * (vectors @ normal)) @ vectors, arrays

    def _gradients(self) -> dict[str, Tensor]:
        """Return how the gradient changes under noise, and how minibatches differ from it."""
        collector = self.collector
        examples = self.sets[-1]
        middle = len(examples.indices) // 2
        parts = (examples.indices[:middle], examples.indices[middle:])
        halves = [self._surface(self.loss, _Set(examples.data, part)) for part in parts]
        at_weights = self.weights.new_empty(2, self.weights.numel())
        for half, out in zip(halves, at_weights, strict=True):
            half.gradient(self.weights, out)
        change = torch.empty(len(collector.sigmas), collector.gradient_draws, dtype=torch.float64)
        moved = torch.empty_like(at_weights)
        for draw, seed in enumerate(self._draws(collector.gradient_draws)):
            normal = self._normal(seed)
            for level, sigma in enumerate(collector.sigmas):
                for half, out in zip(halves, moved, strict=True):
                    half.gradient(self.weights.add(normal, alpha=sigma), out)
                first, second = moved - at_weights
                change[level, draw] = inner(first, second)
        if collector.held_out is None:
            share = middle / len(examples.indices)
            at_weights[:] = share * at_weights[0] + (1 - share) * at_weights[1]
        return {"gradient_change": change, **self._minibatches(at_weights)}

    def _minibatches(self, about: Tensor) -> dict[str, Tensor]:
        """Return what the gradients of minibatches are, about two gradients, shape (2, size)."""
        collector, data = self.collector, self.sets[0].data
        generator = _generator(int(splitmix64(self.seed, 2 << 32, 1)[0]) >> 2)
        mean = torch.zeros_like(self.weights, dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64, device=mean.device)
        row = torch.zeros_like(self.weights)
        losses, deviations, norms = [], [], []
        for number in range(1, collector.batches + 1):
            if collector.replacement:
                indices = torch.randint(data.size, (collector.batch_size,), generator=generator)
            else:
                indices = torch.randperm(data.size, generator=generator)[: collector.batch_size]
            loss, found = self.loss.gradient(data.batch(indices))
            copy_into(self.layout.views(row), found)
            away = row - mean
            mean.add_(away, alpha=1 / number)
            squares += inner(away, row - mean)
            first, second = row - about
            losses.append(loss.reshape(()).double())
            deviations.append(inner(first, second))
            norms.append(inner(row, row).sqrt())
        return {
            "batch_loss": torch.stack(losses),
            "deviation": torch.stack(deviations),
            "variance": squares / (collector.batches - 1),
            "max_gradient_norm": torch.stack(norms).max(),
        }
