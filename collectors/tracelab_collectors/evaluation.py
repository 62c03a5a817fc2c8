"""Evaluation: loss and error on given sets of examples, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab.trace.schema import NAME
from tracelab_collectors.batch_means import BatchMeans
from tracelab_collectors.collector import Loss, Recording, Run
from tracelab_collectors.frozen import Frozen, evaluating
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.scheduled import at_least

__all__ = ["Evaluation", "Measure", "misclassified"]

Measure: TypeAlias = Callable[[nn.Module, Any], Tensor]


def misclassified(model: nn.Module, batch: Any) -> Tensor:
    """Return the 0-1 error of each example of a batch ``(inputs, classes)``.

    Parameters
    ----------
    model : nn.Module
        Inputs to scores, shape (example, class, ...).
    batch : sequence
        Its first item are the inputs, its second the integer classes, shape (example, ...).

    Returns
    -------
    Tensor of float, shape (example,)
        1 where the class of the largest score is another than the given one; where an example has
        several classes (pixels, words), the share of them.

    Raises
    ------
    UsageError
        If scores and classes do not have these shapes.
    """
    inputs, classes = batch[0], batch[1]
    scores = model(inputs)
    fits = classes.dtype in (torch.int64, torch.int32, torch.uint8) and scores.ndim >= 2
    if not fits or scores.shape[:1] + scores.shape[2:] != classes.shape:
        raise UsageError(
            "misclassified needs scores of shape (example, class, ...) and integer classes of "
            f"shape (example, ...), got {tuple(scores.shape)} and {classes.dtype} "
            f"{tuple(classes.shape)}; give Evaluation an error= of your own"
        )
    wrong: Tensor = scores.argmax(1) != classes
    return wrong.float().reshape(len(wrong), -1).mean(1)


@dataclass(frozen=True)
class Evaluation:
    r"""Loss and error on given sets, at the weights of a step and once more at the end.

    The model is in evaluation mode for as long as it takes, and its modules are put back into the
    modes they had, one by one; buffers and random generators are as if nothing had happened.

    For a set called ``test`` the group holds ``test_loss``, the mean over its examples,
    ``test_loss_se``, its standard error, and with `error` ``test_error`` and ``test_error_se``;
    the attribute ``sets`` says of how many examples.

    The standard error :math:`s / \sqrt n` takes the examples as drawn from a population. If the
    loss returns one value an example, :math:`s^2` is their variance. If it returns the mean of a
    batch, it is that of the batch means, as examples are put into batches at random:

    .. math:: s^2 = \frac{1}{B - 1} \sum_{b=1}^B n_b (\bar\ell_b - \bar\ell)^2,

    NaN where there is one batch. A loss of one value an example is worth giving: of 10 batches the
    standard error is known to a quarter. Losses that couple the examples of a batch have no other
    mean than that of their batches.

    Parameters
    ----------
    sets : mapping of str to Dataset or callable, optional
        What to evaluate on, by name: data as ``attach(data=...)`` takes it, that have a length.
        Default: what was given there, under the name ``data``.
    every, start, stop, steps
        When; see `tracelab_collectors.scheduled.Scheduled`.
    batch_size : int
        Examples per batch.
    examples : int, optional
        At most so many examples of each set: drawn once, without replacement, and the same at
        every step. Default: all.
    loss : callable, optional
        ``loss(model, batch)`` returns the mean of the batch, or one value an example. Default:
        that of the session.
    error : callable, optional
        ``error(model, batch)``, likewise; `misclassified` is one for classes. It costs a forward
        pass of its own. Default: none is recorded.
    final : bool
        Whether to evaluate once more at the end of the run, after its last step, whatever the
        schedule says.
    name : str
        Name of the group.

    Raises
    ------
    UsageError
        If there is no set, a set's name is not a plain one, or the schedule or a number is
        invalid.
    """

    sets: Mapping[str, Any] | None = None
    every: InitVar[int | Schedule] = 100
    start: InitVar[int] = 0
    stop: InitVar[int | None] = None
    steps: InitVar[Iterable[int] | None] = None
    batch_size: int = 256
    examples: int | None = None
    loss: Measure | None = None
    error: Measure | None = None
    final: bool = True
    name: str = "evaluation"
    kind: str = field(default="evaluation", init=False)
    schedule: Schedule = field(init=False)

    def __post_init__(
        self,
        every: int | Schedule,
        start: int,
        stop: int | None,
        steps: Iterable[int] | None,
    ) -> None:
        object.__setattr__(self, "schedule", Schedule.of(every, start, stop, steps))
        sets = {"data": None} if self.sets is None else self.sets
        if not isinstance(sets, Mapping) or not sets:
            raise UsageError(
                f"Evaluation needs sets by name, such as {{'test': dataset}}, got {self.sets!r}"
            )
        for name in sets:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise UsageError(
                    f"a set cannot be called {name!r}; use letters, digits, '_', '.', '-'"
                )
        at_least(1, **{"Evaluation's batch_size": self.batch_size})
        if self.examples is not None:
            at_least(1, **{"Evaluation's examples": self.examples})

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after a first batch of each set.

        Raises
        ------
        UsageError
            If there is no loss or no set, a set cannot be indexed, weights are sharded, or loss or
            error fail.
        """
        whose = f"collector {self.name!r}"
        if run.layout.shards is not None:
            raise UsageError(
                f"{whose} evaluates the model by itself, which one process cannot do with weights "
                "that are sharded over several; leave it out"
            )
        loss: Loss | None = self.loss or run.loss
        if loss is None:
            raise UsageError(f"{whose} needs a loss; give Evaluation(loss=...) or attach(loss=...)")
        measures = {"loss": loss} | ({} if self.error is None else {"error": self.error})
        if self.sets is not None:
            sets = {name: Indexed.of(data, None, run.device) for name, data in self.sets.items()}
        elif run.data is not None:
            sets = {"data": Indexed.of(run.data, run.data_size, run.device)}
        else:
            raise UsageError(
                f"{whose} needs sets of examples; give Evaluation({{'test': dataset}}) or "
                "attach(data=...)"
            )
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 1
        orders = {
            name: torch.randperm(data.size, generator=torch.Generator().manual_seed(seed))[
                : self.examples
            ]
            for name, data in sets.items()
        }

        def evaluate(whole: bool) -> dict[str, Tensor]:
            frozen = Frozen(run.model, *measures.values())
            arrays: dict[str, Tensor] = {}
            with forked_generators(seed), evaluating(*frozen.modules), torch.no_grad():
                for name, data in sets.items():
                    order = orders[name] if whole else orders[name][: self.batch_size]
                    sums = {
                        what: BatchMeans(f"Evaluation's {what}", len(order)) for what in measures
                    }
                    for indices in order.split(self.batch_size):
                        batch = data.batch(indices)
                        for what, function in measures.items():
                            sums[what].take(frozen(function, batch), len(indices))
                    for what, found in sums.items():
                        arrays[f"{name}_{what}"], arrays[f"{name}_{what}_se"] = found.mean()
            return {name: values.reshape(1) for name, values in arrays.items()}

        try:
            evaluate(whole=False)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"{whose} fails on the first batch of a set: {type(error).__name__}: {error}; loss "
                "and error are called with the model and a batch as the set gives it"
            ) from error

        return Recording(
            run.layout,
            lambda block: evaluate(whole=True),
            attrs={
                "sets": {name: {"n_examples": len(order)} for name, order in orders.items()},
                "batch_size": self.batch_size,
            },
            variables=tuple(
                variable
                for name in sets
                for what in measures
                for variable in _variables(name, what, len(orders[name]))
            ),
            probe=True,
            final=self.final,
        )


def _variables(name: str, what: str, examples: int) -> tuple[Variable, Variable]:
    units = "loss" if what == "loss" else "1"
    of = f"{what} on the set {name!r}, {examples} examples, in evaluation mode"
    return (
        Variable(f"{name}_{what}", ("step",), units, "float64", f"mean {of}"),
        Variable(
            f"{name}_{what}_se", ("step",), units, "float64", f"standard error of the mean {of}"
        ),
    )
