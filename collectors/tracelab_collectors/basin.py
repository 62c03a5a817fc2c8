"""Basin: curvature, noise and the loss around frozen weights, in the optimizer's own metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.frozen import FrozenLoss, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout, copy_into
from tracelab_collectors.optimizer_state import long_run_step
from tracelab_collectors.products import HessianProducts, inner, lanczos, ritz
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least
from tracelab_collectors.surface import LossSurface

__all__ = ["Basin"]

_STEP = ("step",)
_PAIR = ("step", "eigenpair")
_ROOT = "loss^(1/2)"
_REHEARSED = 8
HEIGHTS = tuple(4.0**power for power in range(-4, 3))


@dataclass(frozen=True)
class Basin(Scheduled):
    r"""What decides how long an optimizer stays near the weights of a step.

    In the long run an optimizer moves the weights by :math:`-a \circ g` at every gradient g, with
    a vector a of steps: the learning rate of SGD, over 1 - beta with momentum; the learning rate
    over :math:`\sqrt{\hat v} + \epsilon` of Adam. In the coordinates :math:`z = w / \sqrt a` it is
    therefore plain descent of rate 1, for SGD as for Adam,

    .. math:: z_{t+1} = z_t - \nabla_z L - \zeta_z, \qquad
       H_z = \sqrt a\, H \sqrt a, \qquad \zeta_z = \sqrt a \circ \zeta,

    time counts steps, heights of the loss are what they were, and :math:`H_z` has no unit: above 2
    a direction is unstable. Recorded at each step of the schedule, without a trace left in the
    training run: the top eigenpairs of :math:`H_z`, the gradients of the mean loss and of
    minibatches along them, what is left of each minibatch's squared norm when the second moment has
    taken it in (``kept``: 1 for SGD, little where single minibatches make Adam cautious), and the
    loss itself at the places along them at which a quadratic has
    risen by each of `heights`, on both sides.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    top : int
        Eigenpairs.
    lanczos_steps : int
        Steps of Lanczos' recurrence, from one random start.
    examples : int, optional
        Examples over which the loss is averaged, drawn once. None: all of the data.
    data_batch_size : int, optional
        Examples per piece. Default: all of them at once.
    noise_batches : int
        Minibatches whose gradients are measured.
    batch_size : int
        Examples of each, drawn with replacement: what training uses.
    noise_forms : int
        Of how many of them :math:`\zeta_z' H_z \zeta_z` is measured.
    heights : sequence of float
        Rises of the loss.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement (the default), or, with None, leave
        it in its mode.

    Raises
    ------
    UsageError
        If a number is out of range, or the mode or the schedule are invalid.

    Notes
    -----
    A row costs 2 to 2.7 gradients of `examples` for every product (`lanczos_steps` and
    `noise_forms` of them), a forward pass for each of ``2 * top * len(heights)`` places, and
    `noise_batches` minibatch gradients. The row is NaN where the optimizer has not stepped yet
    (Adam at step 0, and for a layer that never has a gradient: exclude it) or its rule is not
    known; `OptimizerState` lists those that are. Weight decay is no part of the loss.

    References
    ----------
    Zhou, Feng, Ma, Xiong, Hoi, E (NeurIPS 2020), "Towards theoretically understanding why SGD
    generalizes better than Adam in deep learning" (preconditioned noise and basins); Cohen et al.
    (2022), "Adaptive gradient methods at the edge of stability" (the preconditioned Hessian).
    """

    every: InitVar[int | Schedule] = 1000
    top: int = 8
    lanczos_steps: int = 48
    examples: int | None = 512
    data_batch_size: int | None = None
    noise_batches: int = 512
    batch_size: int = 64
    noise_forms: int = 32
    heights: Sequence[float] = HEIGHTS
    mode: str | None = "eval"
    name: str = "basin"
    kind: str = field(default="basin", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "Basin's"
        for name in ("top", "lanczos_steps", "noise_batches", "batch_size"):
            at_least(1, **{f"{whose} {name}": getattr(self, name)})
        at_least(0, **{f"{whose} noise_forms": self.noise_forms})
        for name in ("examples", "data_batch_size"):
            if getattr(self, name) is not None:
                at_least(1, **{f"{whose} {name}": getattr(self, name)})
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")
        if self.top > self.lanczos_steps:
            raise UsageError(
                f"{whose} top={self.top} eigenpairs take at least as many lanczos_steps, got "
                f"{self.lanczos_steps}"
            )
        if self.noise_forms > self.noise_batches:
            raise UsageError(
                f"{whose} noise_forms={self.noise_forms} exceeds noise_batches="
                f"{self.noise_batches}, whose gradients they are of"
            )
        heights = tuple(map(float, self.heights))
        rising = all(a < b for a, b in pairwise(heights))
        if not heights or not rising or not (heights[0] > 0 and math.isfinite(heights[-1])):
            raise UsageError(
                f"{whose} heights must be positive and rise, got {tuple(self.heights)!r}"
            )
        object.__setattr__(self, "heights", heights)

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after a product over a few examples.

        Raises
        ------
        UsageError
            If the run has no loss or no data, weights are sharded, or the loss has no second
            derivative.
        """
        data, loss = Indexed.of_run(run, self.whose)
        layout = self.layout(run)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)

        def measurement(indices: Tensor, step: int) -> _Measurement:
            frozen = FrozenLoss.of_run(run, loss, layout)
            weights = run.weights(layout)
            return _Measurement(self, frozen, data, indices, layout, weights, run, step)

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            return measurement(chosen, step).row()

        remedy = "the loss must have second derivatives; leave the collector out if it has none"
        with refusing(self.whose, "on the first examples", remedy):
            measurement(chosen[:_REHEARSED], seed).rehearse()
        return Recording(
            layout,
            measure,
            attrs={
                "n_weights": sum(layout.numel),
                "n_examples": len(chosen),
                "n_data": data.size,
                "batch_size": self.batch_size,
                "replacement": True,
                "mode": self.mode or "as trained",
                "optimizers": [type(each).__name__ for each in run.optimizers],
            },
            variables=self.variables(),
            probe=True,
        )

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        by_batch, profile = ("step", "batch"), (*_PAIR, "height", "side")
        found = [
            ("memory", _STEP, "step", "steps over which gradients are averaged"),
            ("median_step", _STEP, "weight^2/loss", "median of the steps a"),
            ("loss", _STEP, "loss", "the mean loss"),
            ("gradient_squared_norm", _STEP, "loss", "of its gradient: a step's gain"),
            ("eigenvalue", _PAIR, "1", "largest Ritz values of H_z, falling"),
            ("residual", _PAIR, "1", "||H_z u - eigenvalue u||"),
            ("gradient_along", _PAIR, _ROOT, "gradient of the mean loss, along u"),
            ("noise_along", (*by_batch, "eigenpair"), _ROOT,
             "minibatch gradient along u, not centred"),
            ("noise_squared_norm", by_batch, "loss", "||zeta_z||^2 about that gradient"),
            ("kept", by_batch, "1", "part of its squared norm left by the steps it changes"),
            ("quadratic_rise", ("step", "height"), "loss", "heights where it was measured"),
            ("profile_loss", profile, "loss",
             "loss where a quadratic has risen so: behind along u, and before"),
        ]  # fmt: skip
        if self.noise_forms:
            words = "zeta_z' H_z zeta_z of the first minibatches"
            found.append(("noise_form", ("step", "formed"), "loss", words))
        return tuple(
            Variable(name, dims, units, "float64", words) for name, dims, units, words in found
        )


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: Basin
    loss: FrozenLoss
    data: Indexed
    indices: Tensor
    layout: Layout
    weights: Tensor
    run: Run
    seed: int

    def rehearse(self) -> None:
        """Multiply once, and look at the loss."""
        with in_mode(self.collector.mode, *self.loss.roots), forked_generators(self.seed):
            self._hessian()(torch.ones_like(self.weights))
            self._surface().value(self.weights)

    def row(self) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        collector = self.collector
        found = self._roots()
        if found is None:
            # As wide as any other row.
            sizes = {
                "eigenpair": collector.top, "batch": collector.noise_batches, "side": 2,
                "formed": collector.noise_forms, "height": len(collector.heights), "step": 1,
            }  # fmt: skip
            return {
                each.name: torch.full([sizes[dim] for dim in each.dims], torch.nan)
                for each in collector.variables()
            }
        roots, memory = found
        with in_mode(self.collector.mode, *self.loss.roots), forked_generators(self.seed):
            hessian = self._hessian()
            gradient = hessian.gradient(self.weights) * roots
            values, vectors, residuals = self._eigenpairs(hessian, roots)
            surface = self._surface()
            every = torch.cat([view.flatten() for view in self.layout.views(roots)])
            arrays = {
                "memory": torch.tensor(memory),
                "median_step": every.square().median(),
                "loss": torch.tensor(surface.value(self.weights), dtype=torch.float64),
                "gradient_squared_norm": inner(gradient, gradient),
                "eigenvalue": values,
                "residual": residuals,
                "gradient_along": inner(vectors, gradient),
                "quadratic_rise": torch.tensor(collector.heights, dtype=torch.float64),
                "profile_loss": self._profile(surface, values, vectors * roots),
            }
            arrays |= self._noise(hessian, gradient, roots, vectors)
        return {name: each.double().unsqueeze(0) for name, each in arrays.items()}

    def _hessian(self) -> HessianProducts:
        piece = self.collector.data_batch_size or len(self.indices)
        return HessianProducts(
            self.loss, self.data, self.indices, self.layout, piece=piece, seed=self.seed
        )

    def _roots(self) -> tuple[Tensor, float] | None:
        """Return the roots of the long-run steps, and the memory; None where they are not known."""
        found = [
            long_run_step(self.run.optimizers, self.run.parameters[name])
            for name in self.layout.names
        ]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        steps = self.layout.flat(
            [step for step, _ in known], dtype=self.weights.dtype, device=self.weights.device
        )
        return steps.sqrt(), max(memory for _, memory in known)

    def _eigenpairs(self, hessian: HessianProducts, roots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        normal = [torch.randn(shape, generator=generator) for shape in self.layout.shapes]
        start = self.layout.flat(normal, dtype=self.weights.dtype, device=self.weights.device)
        found = lanczos(
            lambda row: roots * hessian(roots * row), start, self.collector.lanczos_steps
        )
        return ritz(found, self.collector.top)

    def _surface(self) -> LossSurface:
        piece = self.collector.data_batch_size or len(self.indices)
        return LossSurface(
            self.loss, self.data, self.indices, self.layout, piece=piece, seed=self.seed
        )

    def _profile(self, surface: LossSurface, values: Tensor, directions: Tensor) -> Tensor:
        """Return losses along directions, (eigenpair, height, side)."""
        heights = self.collector.heights
        out = torch.full((len(values), len(heights), 2), torch.nan, dtype=torch.float64)
        for pair, value in enumerate(values.tolist()):
            if not value > 0:
                continue
            for place, height in enumerate(heights):
                for side, sign in enumerate((-1.0, 1.0)):
                    away = sign * math.sqrt(2 * height / value)
                    out[pair, place, side] = surface.value(self.weights + away * directions[pair])
        return out

    def _noise(
        self, hessian: HessianProducts, gradient: Tensor, roots: Tensor, vectors: Tensor
    ) -> dict[str, Tensor]:
        collector = self.collector
        generator = torch.Generator().manual_seed(self.seed)
        along, norms, forms, kept = [], [], [], []
        row = self.weights.clone()
        for number in range(collector.noise_batches):
            drawn = torch.randint(self.data.size, (collector.batch_size,), generator=generator)
            _, found = self.loss.gradient(self.data.batch(drawn))
            copy_into(self.layout.views(row), found)
            scaled = row * roots
            along.append(inner(vectors, scaled))
            noise = scaled - gradient
            norms.append(inner(noise, noise))
            if number < collector.noise_forms:
                image = roots * hessian(roots * noise)
                forms.append(inner(noise, image))
            kept.append(self._kept(row, inner(scaled, scaled)))
        arrays = {
            "noise_along": torch.stack(along),
            "noise_squared_norm": torch.stack(norms),
            "kept": torch.stack(kept),
        }
        return arrays | ({"noise_form": torch.stack(forms)} if forms else {})

    def _kept(self, gradient: Tensor, before: Tensor) -> Tensor:
        """Return a gradient's squared norm by the steps after it, over that by those before."""
        after = []
        for name, part in zip(self.layout.names, self.layout.views(gradient), strict=True):
            found = long_run_step(self.run.optimizers, self.run.parameters[name], part)
            assert found is not None
            after.append(found[0])
        steps = self.layout.flat(after, dtype=gradient.dtype, device=gradient.device)
        return inner(gradient, steps * gradient) / before
