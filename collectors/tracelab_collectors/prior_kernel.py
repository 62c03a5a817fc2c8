"""PriorKernel: the covariance of a network's outputs over fresh initializations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import splitmix64
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.frozen import evaluating
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.rehearsal import refusing
from tracelab_collectors.scheduled import Scheduled, at_least

__all__ = ["PriorKernel"]

Outputs: TypeAlias = Callable[[nn.Module, Any], Tensor]

_REHEARSED = 8


def _outputs(model: nn.Module, batch: Any) -> Tensor:
    """Return what the model gives for a batch's first item."""
    found: Tensor = model(batch[0])
    return found


def _labels(batch: Any) -> Tensor:
    """Return a batch's second item."""
    found: Tensor = batch[1]
    return found


@dataclass(frozen=True)
class PriorKernel(Scheduled):
    r"""What function the network is before it learns: the second moment of its outputs f.

    Networks are initialized anew, and evaluated on examples that are drawn once:

    .. math:: K_{ij} = \frac{1}{M U} \sum_{m=1}^M \sum_{u=1}^U f^{(m)}_u(x_i) f^{(m)}_u(x_j)

    over M networks and U output units, nothing added and nothing centred. Of wide networks, whose
    outputs are independent and Gaussian with mean zero, it estimates the covariance of each output
    with a relative standard error of about :math:`\sqrt{2 / (M U)}` on its diagonal. Networks
    come in groups, each with a kernel of its own, so that the error can be estimated.

    The model of the run is copied when it is attached, and neither it nor a generator is touched.

    Parameters
    ----------
    every, start, stop, steps, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. By default once, at
        the start: nothing here depends on the weights of a step.
    networks : int
        M, of all groups together.
    groups : int
        Into how many they are divided: a divisor of `networks`.
    examples : int
        Examples of the data, drawn once.
    initialize : callable, optional
        ``initialize(model)`` draws all its parameters in place, as they are at the start of the
        run. Default: ``reset_parameters()`` of every module that has parameters, which is what
        PyTorch's own modules start with.
    outputs : callable, optional
        ``outputs(model, batch)`` returns the outputs, shape (example, unit) or (example,). Default:
        ``model(batch[0])``.
    labels : callable, optional
        ``labels(batch)`` returns the classes, integers of shape (example,). Default: ``batch[1]``.
    data_batch_size : int, optional
        Examples per pass forward. Default: all of them.

    Raises
    ------
    UsageError
        If a number is out of range, or the schedule is invalid.

    Notes
    -----
    Modules are in evaluation mode. A row takes `networks` initializations and passes forward over
    the examples, and is `groups` matrices of float64 of the number of examples squared. The kernel
    has a rank of M U at most: of fewer outputs than examples it is singular.

    References
    ----------
    Novak et al., "Bayesian Deep Convolutional Networks with Many Channels are Gaussian Processes",
    ICLR 2019 (the kernel by draws); Mingard, Valle-Perez, Skalse, Louis, "Is SGD a Bayesian
    sampler? Well, almost", JMLR 2021.
    """

    every: InitVar[int | Schedule] = 1
    steps: InitVar[Iterable[int] | None] = (0,)
    layers: str | None = field(default=None, init=False)
    exclude: str | None = field(default=None, init=False)
    networks: int = 1024
    groups: int = 8
    examples: int = 128
    initialize: Callable[[nn.Module], object] | None = None
    outputs: Outputs | None = None
    labels: Callable[[Any], Tensor] | None = None
    data_batch_size: int | None = None
    name: str = "prior_kernel"
    kind: str = field(default="prior_kernel", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        whose = "PriorKernel's"
        at_least(2, **{f"{whose} groups": self.groups, f"{whose} examples": self.examples})
        at_least(1, **{f"{whose} networks": self.networks})
        if self.networks % self.groups:
            raise UsageError(
                f"{whose} networks={self.networks} do not make {self.groups} equal groups; give a "
                "multiple of groups"
            )
        if self.data_batch_size is not None:
            at_least(1, **{f"{whose} data_batch_size": self.data_batch_size})

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run, after two networks on a few examples.

        Raises
        ------
        UsageError
            If the run has no data or its weights are sharded, a module cannot be initialized,
            outputs or labels have another shape, or the user's code fails.
        """
        if run.data is None:
            raise UsageError(
                f"{self.whose} evaluates networks on examples and needs data; give attach(data=...)"
            )
        if run.layout.shards is not None:
            raise UsageError(
                f"{self.whose} initializes the model by itself, which one process cannot do with "
                "weights that are sharded over several; leave it out"
            )
        data = Indexed.of(run.data, run.data_size, run.device)
        seed = int(splitmix64(run.seed, 0, 1)[0]) >> 2
        chosen = data.drawn(self.examples, seed)
        remedy = (
            "outputs is called with the model and a batch as data gives it, labels with a batch"
        )
        with forked_generators(seed), refusing(self.whose, "on the first examples", remedy):
            model = copy.deepcopy(run.model)
            initialize = self.initialize or _resetting(model, self.whose)
            few = chosen[:_REHEARSED]
            sampler = _Sampler(self, model, initialize, data, few)
            self._checked_labels(data.batch(few), len(few))
            first, second = sampler.network(), sampler.network()
            if torch.equal(first, second):
                raise UsageError(
                    f"{self.whose}: two initializations give the same outputs; give PriorKernel an "
                    "initialize= that draws the parameters anew"
                )
        units = first.shape[1]

        def measure(block: Block) -> dict[str, Tensor]:
            step = int(splitmix64(seed, block.steps[0], 1)[0]) >> 2
            with forked_generators(step):
                labels = self._checked_labels(data.batch(chosen), len(chosen))
                arrays = _Sampler(self, model, initialize, data, chosen).moments()
            arrays |= {"label": labels, "index": chosen}
            return {name: values.unsqueeze(0) for name, values in arrays.items()}

        return Recording(
            run.layout,
            measure,
            attrs={
                "n_networks": self.networks,
                "n_units": units,
                "n_examples": len(chosen),
                "n_data": data.size,
                "initialize": "reset_parameters" if self.initialize is None else "given",
            },
            variables=self.variables(),
            probe=True,
        )

    def variables(self) -> tuple[Variable, ...]:
        """Return what its group holds."""
        each = ("step", "group", "example")
        over = ", over the networks of a group and their output units"
        return (
            Variable("kernel", (*each, "example2"), "1", "float64",
                     "mean of f(x) f(x')" + over),
            Variable("mean", each, "1", "float64", "mean of f(x)" + over),
            Variable("fourth", each, "1", "float64", "mean of f(x)^4" + over),
            Variable("label", ("step", "example"), "1", "int64", "class of an example"),
            Variable("index", ("step", "example"), "1", "int64", "its place in the data"),
        )  # fmt: skip

    def _checked_labels(self, batch: Any, count: int) -> Tensor:
        labels = (self.labels or _labels)(batch)
        integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
        if (
            not isinstance(labels, Tensor)
            or labels.shape != (count,)
            or labels.dtype not in integers
        ):
            got = (
                f"{labels.dtype} of shape {tuple(labels.shape)}"
                if isinstance(labels, Tensor)
                else type(labels).__name__
            )
            raise UsageError(
                f"{self.whose} needs an integer class of each of {count} examples, got {got}; give "
                "PriorKernel a labels= that returns them"
            )
        return labels.to("cpu", torch.int64)


@dataclass(frozen=True)
class _Sampler:
    """Networks of new parameters, on fixed examples."""

    collector: PriorKernel
    model: nn.Module
    initialize: Callable[[nn.Module], object]
    data: Indexed
    indices: Tensor

    def network(self) -> Tensor:
        """Return the outputs of one network, float64, shape (example, unit)."""
        return self._evaluate(self._batches())

    def moments(self) -> dict[str, Tensor]:
        """Return the moments by group."""
        collector, count = self.collector, len(self.indices)
        batches = self._batches()
        shape = (collector.groups, count)
        kernel = torch.zeros(*shape, count, dtype=torch.float64)
        mean, fourth = torch.zeros(2, *shape, dtype=torch.float64)
        size = collector.networks // collector.groups
        for group in range(collector.groups):
            for _ in range(size):
                found = self._evaluate(batches)
                share = 1.0 / (size * found.shape[1])
                kernel[group].addmm_(found, found.T, alpha=share)
                mean[group] += share * found.sum(1)
                fourth[group] += share * found.pow(4).sum(1)
        return {"kernel": kernel, "mean": mean, "fourth": fourth}

    def _batches(self) -> list[Any]:
        pieces = self.indices.split(self.collector.data_batch_size or len(self.indices))
        return [self.data.batch(piece) for piece in pieces]

    def _evaluate(self, batches: list[Any]) -> Tensor:
        with torch.no_grad():
            self.initialize(self.model)
            with evaluating(self.model):
                outputs = self.collector.outputs or _outputs
                found = [outputs(self.model, batch) for batch in batches]
        rows = torch.cat([each if each.ndim != 1 else each[:, None] for each in found])
        if rows.ndim != 2 or len(rows) != len(self.indices):
            raise UsageError(
                f"{self.collector.whose} needs outputs of shape (example, unit) of "
                f"{len(self.indices)} examples, got {tuple(rows.shape)}; give PriorKernel an "
                "outputs= that returns them"
            )
        return rows.detach().to("cpu", torch.float64)


def _resetting(model: nn.Module, whose: str) -> Callable[[nn.Module], None]:
    """Return what calls reset_parameters() of every module.

    Raises
    ------
    UsageError
        If a module has parameters and no such method.
    """
    lacking = sorted(
        {
            type(module).__name__
            for module in model.modules()
            if any(True for _ in module.parameters(recurse=False))
            and not callable(getattr(module, "reset_parameters", None))
        }
    )
    if lacking:
        raise UsageError(
            f"{whose}: {', '.join(lacking)} has parameters and no reset_parameters(); give "
            "PriorKernel an initialize= that draws all parameters of a model anew"
        )

    def reset(model: nn.Module) -> None:
        for module in model.modules():
            own: Any = getattr(module, "reset_parameters", None)
            if callable(own) and any(True for _ in module.parameters(recurse=False)):
                own()

    return reset
