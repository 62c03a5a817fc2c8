"""Sharpness: how far the loss rises around frozen weights, at worst and on average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np
import torch
from torch import Tensor

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab.typing import FloatArray
from tracelab_collectors.boxes import Climb, GaussianSpace, Space, WholeSpace, climb
from tracelab_collectors.collector import Block, Loss, Recording, Run
from tracelab_collectors.evaluation import Measure
from tracelab_collectors.frozen import FrozenLoss, in_mode
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout
from tracelab_collectors.products import inner
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least, rising
from tracelab_collectors.surface import LossSurface, mean_of

__all__ = ["Sharpness"]

EPSILONS = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
SIGMAS = tuple(float(each) for each in np.geomspace(1e-3, 1.0, 9).round(6))
# Foret et al. 2021 take 0.05, and Kwon et al. 2021 0.5 where steps are scaled by the weights.
RADII = (0.05, 0.5)
SUBSPACE = 100
_REHEARSED = 8
_SPACES = 2


@dataclass(frozen=True)
class Sharpness(Scheduled):
    r"""How far the mean loss L over fixed examples rises near the weights w of a step.

    At each step of its schedule, without a trace left in the training run:

    - the largest loss in the boxes of Keskar et al., :math:`|z_i| \le \epsilon (|w_i| + 1)`, in all
      directions, and in a random subspace; beside it what the gradient alone would raise the loss
      by, :math:`\epsilon \sum_i |g_i| (|w_i| + 1)`;
    - losses at :math:`w \pm \sigma \xi` and at :math:`w \pm \sigma |w| \xi`, each coordinate of
      :math:`\xi` standard normal: of these is the noise that weights withstand;
    - the loss one step of a given length up the gradient.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. Weights of the chosen
        layers move, and the others stay.
    epsilons : sequence of float
        Sizes of the box, rising.
    subspace : int, optional
        Dimension of the random subspace; 0 for none. Default: 100, or the number of weights if
        there are fewer.
    iterations : int
        Of L-BFGS-B, at most.
    corner : bool
        Whether a second search begins in the corner of the box that the gradient points to, in a
        random one where there is no gradient.
    sigmas : sequence of float
        Standard deviations of the noise, rising.
    draws : int
        Draws of it, the same for every standard deviation; each in both directions.
    radii : sequence of float
        Lengths of the step up the gradient, rising.
    error : callable, optional
        ``error(model, batch)``, such as `tracelab_collectors.misclassified`: its mean is measured
        under noise as the loss is.
    examples : int, optional
        Examples over which the loss is averaged, drawn once. None: all of the data.
    data_batch_size : int, optional
        Examples per piece. Default: all of them.
    corrections : int
        Pairs of vectors that L-BFGS-B keeps.
    mode : {"eval"}, optional
        Put the model into evaluation mode for the measurement (the default), or, with None, leave
        it in its mode: dropout then draws the same masks for every evaluation.

    Raises
    ------
    UsageError
        If a number is out of range, a profile is empty, or the mode or the schedule is invalid.

    Notes
    -----
    A search takes about ``iterations + 5`` gradients, and there are two (four with `corner`) for
    each epsilon; noise takes ``4 * draws`` passes forward for each sigma. L-BFGS-B holds
    ``2 * corrections + 10`` numbers of float64 a weight; the matrix of the subspace is drawn by
    seed in blocks for every product, unless it has less than 16 MiB.

    The largest loss is a lower bound of the maximum: the largest of those seen. Searches are in
    units of the box, so that neither the size of the box nor that of the loss decides where they
    stop. Losses are computed in the floating type of the network: rises of less than 1e-6 of the
    loss are rounding in float32.

    References
    ----------
    Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, "On Large-Batch Training for Deep Learning", ICLR
    2017, metric 2.1; Jiang, Neyshabur, Mobahi, Krishnan, Bengio, "Fantastic Generalization Measures
    and Where to Find Them", ICLR 2020 (noise that weights withstand); Foret, Kleiner, Mobahi,
    Neyshabur, "Sharpness-Aware Minimization", ICLR 2021, and Kwon, Kim, Park, Choi, "ASAM", ICML
    2021 (the step up the gradient).
    """

    every: InitVar[int | Schedule] = 1000
    epsilons: Sequence[float] = EPSILONS
    subspace: int | None = None
    iterations: int = 10
    corner: bool = False
    sigmas: Sequence[float] = SIGMAS
    draws: int = 16
    radii: Sequence[float] = RADII
    error: Measure | None = None
    examples: int | None = 512
    data_batch_size: int | None = None
    corrections: int = 10
    mode: str | None = "eval"
    name: str = "sharpness"
    kind: str = field(default="sharpness", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "Sharpness'"
        for name in ("epsilons", "sigmas", "radii"):
            object.__setattr__(self, name, rising(f"{whose} {name}", getattr(self, name)))
        for name in ("iterations", "draws", "corrections"):
            at_least(1, **{f"{whose} {name}": getattr(self, name)})
        if self.subspace is not None:
            at_least(0, **{f"{whose} subspace": self.subspace})
        for name in ("examples", "data_batch_size"):
            if getattr(self, name) is not None:
                at_least(1, **{f"{whose} {name}": getattr(self, name)})
        if self.mode not in ("eval", None):
            raise UsageError(f"{whose} mode must be 'eval' or None, got {self.mode!r}")

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after a gradient over a few examples.

        Raises
        ------
        UsageError
            If the run has no loss or no data, weights are sharded, the subspace has more dimensions
            than there are weights, or loss or error fail.
        """
        data, loss = Indexed.of_run(run, self.whose)
        layout = self.layout(run)
        n_weights = sum(layout.numel)
        if self.subspace is not None and self.subspace > n_weights:
            raise UsageError(
                f"{self.whose}: subspace={self.subspace} exceeds the {n_weights} weights that are "
                "recorded; lower it"
            )
        dimension = min(SUBSPACE, n_weights) if self.subspace is None else self.subspace
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)
        subspace = GaussianSpace(layout, dimension, seed) if dimension else None

        def measurement(indices: Tensor, seed: int) -> _Measurement:
            def surface(of: Loss) -> LossSurface:
                return LossSurface(
                    FrozenLoss.of_run(run, of, layout), data, indices, layout,
                    piece=self.data_batch_size or len(indices), seed=seed,
                )  # fmt: skip

            error = None if self.error is None else surface(mean_of(self.error))
            return _Measurement(
                self,
                surface(loss),
                error,
                run.weights(layout),
                layout,
                subspace,
                (run.model, loss, self.error),
            )

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            return measurement(chosen, step).row(step)

        remedy = "loss and error are called with the model and a batch as the data give it"
        with refusing(self.whose, "on the first examples", remedy):
            measurement(chosen[:_REHEARSED], seed).rehearse(seed)
        return Recording(
            layout,
            measure,
            attrs={
                "n_weights": n_weights,
                "n_examples": len(chosen),
                "n_data": data.size,
                "subspace": dimension,
                "subspace_seed": seed,
                "iterations": self.iterations,
                "mode": self.mode or "as trained",
            },
            variables=self.variables(),
            probe=True,
        )

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        step, box, noise = ("step",), ("step", "space", "box", "search"), ("step", "geometry")
        spaces = "; space 0: all directions, 1: random subspace (NaN if none)"
        geometries = "; geometry 0: the same for all weights, 1: times |w|"
        return (
            Variable("loss", step, "loss", "float64", "mean loss at the weights"),
            Variable("gradient_norm", step, "loss/weight", "float64", "norm of its gradient"),
            Variable("epsilon", ("step", "box"), "1", "float64", "size of the box"),
            Variable("box_gradient", ("step", "space"), "loss", "float64",
                     "sum of |gradient| times half the box's width, over epsilon" + spaces),
            Variable("max_loss", box, "loss", "float64",
                     "largest loss in the box; search 0 begins at the weights, 1 in a corner"
                     + spaces),
            Variable("iterations", box, "1", "int64", "iterations of L-BFGS-B"),
            Variable("evaluations", box, "1", "int64", "evaluations of loss and gradient"),
            Variable("converged", box, "1", "bool", "whether it ended before the limit"),
            Variable("sigma", ("step", "level"), "1", "float64",
                     "standard deviation of noise, of weights or of their ratio"),
            Variable("noise_loss", (*noise, "level", "sign", "draw"), "loss", "float64",
                     "mean loss at w plus and minus noise" + geometries),
            Variable("noise_error", (*noise, "level", "sign", "draw"), "1", "float64",
                     "mean error there; NaN if none is given" + geometries),
            Variable("error", step, "1", "float64", "mean error at the weights; NaN if none"),
            Variable("radius", ("step", "length"), "1", "float64", "length of a step uphill"),
            Variable("ascent_loss", (*noise, "length"), "loss", "float64",
                     "loss one step up the gradient" + geometries),
        )  # fmt: skip


@dataclass(frozen=True)
class _Measurement:
    """What one row needs."""

    collector: Sharpness
    loss: LossSurface
    error: LossSurface | None
    weights: Tensor
    layout: Layout
    subspace: GaussianSpace | None
    roots: tuple[object, ...]

    def rehearse(self, seed: int) -> None:
        """Compute a gradient and an error."""
        with in_mode(self.collector.mode, *self.roots), forked_generators(seed):
            self.loss.gradient(self.weights, torch.empty_like(self.weights))
            if self.error is not None:
                self.error.value(self.weights)

    def row(self, seed: int) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        collector = self.collector
        with in_mode(self.collector.mode, *self.roots), forked_generators(seed):
            gradient = torch.empty_like(self.weights)
            loss = self.loss.gradient(self.weights, gradient)
            arrays = {
                "loss": torch.tensor(loss, dtype=torch.float64),
                "gradient_norm": inner(gradient, gradient).sqrt().reshape(()),
                "error": torch.tensor(self._error(self.weights), dtype=torch.float64),
            }
            for name in ("epsilon", "sigma"):
                arrays[name] = torch.tensor(getattr(collector, f"{name}s"), dtype=torch.float64)
            arrays["radius"] = torch.tensor(collector.radii, dtype=torch.float64)
            arrays |= self._boxes(loss, gradient, seed)
            arrays |= self._noise(seed)
            arrays["ascent_loss"] = self._ascent(gradient)
        return {name: values.unsqueeze(0) for name, values in arrays.items()}

    def _error(self, weights: Tensor) -> float:
        return math.nan if self.error is None else self.error.value(weights)

    def _boxes(self, loss: float, gradient: Tensor, seed: int) -> dict[str, Tensor]:
        """Return what the searches found, and what the gradient alone promises."""
        collector = self.collector
        shape = (_SPACES, len(collector.epsilons), 1 + collector.corner)
        found = {
            "box_gradient": torch.full((_SPACES,), math.nan, dtype=torch.float64),
            "max_loss": torch.full(shape, math.nan, dtype=torch.float64),
            "iterations": torch.zeros(shape, dtype=torch.int64),
            "evaluations": torch.zeros(shape, dtype=torch.int64),
            "converged": torch.zeros(shape, dtype=torch.bool),
        }
        if not (math.isfinite(loss) and bool(gradient.isfinite().all())):
            return found
        spaces: tuple[Space | None, ...] = (WholeSpace(), self.subspace)
        for number, space in enumerate(spaces):
            if space is None:
                continue
            slope = space.pull(_numbers(gradient))
            widths = np.abs(space.coordinates(_numbers(self.weights))) + 1
            found["box_gradient"][number] = float(np.sum(np.abs(slope) * widths))
            begins = [np.zeros_like(slope)]
            if collector.corner:
                random = np.random.default_rng(seed).choice((-1.0, 1.0), slope.size)
                begins.append(np.where(slope == 0, random, np.sign(slope)))
            for box, epsilon in enumerate(collector.epsilons):
                for search, begin in enumerate(begins):
                    climbed: Climb = climb(
                        self.loss, space, self.weights, epsilon * widths, begin,
                        loss=loss, slope=slope, iterations=collector.iterations,
                        corrections=collector.corrections,
                    )  # fmt: skip
                    place = (number, box, search)
                    found["max_loss"][place] = climbed.loss
                    for name in ("iterations", "evaluations", "converged"):
                        found[name][place] = getattr(climbed, name)
        return found

    def _noise(self, seed: int) -> dict[str, Tensor]:
        """Return losses and errors under noise, (geometry, sigma, sign, draw)."""
        collector = self.collector
        shape = (2, len(collector.sigmas), 2, collector.draws)
        found = torch.full((2, *shape), math.nan, dtype=torch.float64)
        for draw, each in enumerate(splitmix64(seed, 1, collector.draws)):
            generator = torch.Generator().manual_seed(int(each) >> 2)
            normal = [torch.randn(shape, generator=generator) for shape in self.layout.shapes]
            noise = self.layout.flat(normal, dtype=self.weights.dtype, device=self.weights.device)
            for geometry, direction in enumerate((noise, noise * self.weights.abs())):
                for place, sigma in enumerate(collector.sigmas):
                    for sign in (0, 1):
                        moved = self.weights.add(direction, alpha=sigma * (1 - 2 * sign))
                        found[0, geometry, place, sign, draw] = self.loss.value(moved)
                        found[1, geometry, place, sign, draw] = self._error(moved)
        return {"noise_loss": found[0], "noise_error": found[1]}

    def _ascent(self, gradient: Tensor) -> Tensor:
        """Return losses one step up the gradient, (geometry, radius).

        A step of length r is r g / |g|, and r w^2 g / | |w| g | where lengths are those of z / |w|.
        """
        radii = self.collector.radii
        found = torch.full((2, len(radii)), math.nan, dtype=torch.float64)
        size = self.weights.abs()
        for geometry, scale in enumerate((torch.ones_like(size), size)):
            uphill = scale * gradient
            length = inner(uphill, uphill).sqrt().to(uphill.dtype)
            if not float(length) > 0:
                continue
            for place, radius in enumerate(radii):
                moved = self.weights.add(scale * uphill / length, alpha=radius)
                found[geometry, place] = self.loss.value(moved)
        return found


def _numbers(flat: Tensor) -> FloatArray:
    return flat.cpu().numpy().astype(np.float64)
