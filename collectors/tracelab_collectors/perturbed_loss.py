"""PerturbedLoss: loss, error and gradients under Gaussian noise of frozen weights."""

from __future__ import annotations

from collections.abc import Sequence
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
from tracelab_collectors.extremes import Extremes
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout
from tracelab_collectors.perturbation import ExampleSet, Perturbation
from tracelab_collectors.plainness import plain_sgd
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least, rising

__all__ = ["PerturbedLoss"]

SIGMAS = tuple(float(each) for each in np.geomspace(1e-3, 1.0, 9).round(6))
_REHEARSED = 8


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
        Draws of it, the same for every standard deviation and shape; each in both directions. What
        few draws leave open is a term of `pac_bayes`: of nine standard deviations, .58 at an error
        of .1 with 8 draws, .40 with 16, .27 with 32, .17 with 64 and .11 with 128 (.52, .31, .17,
        .09 and .05 without an error). A row of a network of 2,410 weights on 1,797 digits took .6,
        2.2 and 8.6 s of a slow core with 8, 32 and 128. From 32 on twice the cost takes less than
        .1 off; give 128 where passes are cheap, and 4 to 8 for `information_bound` alone, which has
        no such term.
    error : callable, optional
        ``error(model, batch)``, within 0 and 1, such as `tracelab_collectors.misclassified`: its
        mean is measured as the loss is. One value an example is worth giving: a trace then says
        that all were within 0 and 1, and else that the means were.
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
    draws: int = 32
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
            larger than the data it is drawn from without replacement, weights are sharded, loss
            or error fail, or an error is outside 0 and 1.
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
            ExampleSet.drawn(each, count, seed)
            for each, count in zip((data, held), counts, strict=True)
            if each is not None
        ]

        def perturbation(sets: list[ExampleSet], seed: int) -> Perturbation:
            def bound(of: Loss) -> FrozenLoss:
                return FrozenLoss.of_run(run, of, layout)

            extremes = None if self.error is None else Extremes(self.error)
            error = None if extremes is None else bound(extremes)
            roots = (run.model, loss, self.error)
            weights = run.weights(layout)
            return Perturbation(
                bound(loss), error, sets, weights, layout, roots, seed,
                mode=self.mode, piece=self.data_batch_size, extremes=extremes,
            )  # fmt: skip

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            return self._row(perturbation(drawn, step), start)

        remedy = "loss and error are called with the model and a batch as the data give it"
        with refusing(self.whose, "on the first examples", remedy):
            few = [ExampleSet(each.data, each.indices[:_REHEARSED]) for each in drawn]
            perturbation(few, seed).rehearse(curved=self.curvature > 0)
        return Recording(
            layout,
            measure,
            attrs={
                "n_weights": sum(layout.numel),
                "n_examples": len(drawn[0].indices),
                "n_held_out": len(drawn[1].indices) if held is not None else 0,
                "n_data": data.size,
                "all_layers": _all_move(run, layout),
                "batch_size": self.batch_size,
                "replacement": self.replacement,
                "damping": self.damping,
                "mode": self.mode or "as trained",
                "held_out": held is not None,
                "plain_sgd": bool(plain_sgd(run.optimizers)),
            },
            variables=self.variables(),
            probe=True,
            final=True,
            from_start=True,
        )

    def _row(self, measured: Perturbation, start: Tensor) -> dict[str, Tensor]:
        """Return the arrays of one row, with a leading dimension of 1."""
        with measured.frozen():
            arrays = {
                "sigma": torch.tensor(self.sigmas, dtype=torch.float64),
                "distance": measured.distance(start),
                **measured.at_weights(),
                **measured.noise(
                    self.sigmas, self.draws, self.curvature, self.lanczos_steps, self.damping
                ),
            }
            change, about = measured.gradients(self.sigmas, self.gradient_draws)
            if self.held_out is None:
                few, many = (len(each.indices) for each in measured.sets[0].halves())
                about[:] = (few * about[0] + many * about[1]) / (few + many)
            arrays["gradient_change"] = change
            arrays |= measured.minibatches(about, self.batches, self.batch_size, self.replacement)
            largest = [arrays["max_loss"], arrays.pop("batch_loss").max().cpu()]
            arrays["max_loss"] = torch.stack(largest).max()
            arrays |= measured.range()
        return {name: values.double().unsqueeze(0) for name, values in arrays.items()}

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
                ("error_low", step, "1", "smallest error of an example that was seen, at the "
                 "weights and under noise; NaN of an error= that gives means"),
                ("error_high", step, "1", "largest one"),
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
                ("example_variance", step, squared,
                 "trace of the covariance of one example's gradient, over the training data"),
                ("example_variance_se", step, squared,
                 "standard error of it, over minibatches; NaN of two"),
                ("max_gradient_norm", step, "loss/weight", "largest norm of one"),
            )
        )  # fmt: skip


def _all_move(run: Run, layout: Layout) -> bool:
    """Return whether all that training changes moves: trained weights, no running statistics."""
    moving = {id(run.parameters[name]) for name in layout.names}
    groups = (group for optimizer in run.optimizers for group in optimizer.param_groups)
    trained = (each for group in groups for each in group["params"] if each.requires_grad)
    return all(id(each) in moving for each in trained if each.numel()) and not any(
        getattr(module, "running_mean", None) is not None for module in run.model.modules()
    )
