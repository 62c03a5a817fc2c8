"""LiveExamples: sketched per-example gradients of every step, from its own backward pass."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tracelab.errors import UsageError
from tracelab.kronecker import Kronecker
from tracelab.sketch import Sketch
from tracelab_collectors.collector import Block, Recording, Run, select_layers
from tracelab_collectors.layout import Layout
from tracelab_collectors.scheduled import Scheduled, at_least

__all__ = ["LiveExamples"]

CONVOLUTIONS: Mapping[type, Callable[..., Tensor]] = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
}

DEFAULT = Kronecker(8, 8)

# How well examples must add up to the gradient, as the cosine between their sketches.
COSINE = 0.999


@dataclass(frozen=True)
class LiveExamples(Scheduled):
    r"""Per-example gradients of the training steps themselves, projected from both sides.

    The gradient of one example with respect to the weight of a linear or convolutional layer is a
    sum of products of the layer's inputs and output gradients, and both pass by in the training
    step. Hooks on these layers keep projections of them, so that no backward pass is added. The
    sketch, `tracelab.Kronecker`, is linear; its random error is larger than that of
    `tracelab.Project` of the same size. Recorded are the sketches of the examples' gradients,
    times the number of examples: the gradients of their losses, where the step's loss is a mean.
    ``mean_projected`` is the sketch of the gradient that the optimizer uses.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`. Of the layers that
        are chosen those are recorded that can be: weights of ``nn.Linear`` and of ``nn.Conv1d``
        to ``nn.Conv3d`` with ``groups=1`` and zero padding, of modules that are not shared.
    sketch : Kronecker
        Size and seed of the projections.
    examples : int, optional
        Examples per row: the first of each step, in the order of its passes and batches, NaN where
        there are fewer. Default: as many as the first recorded step has; recording stops if a
        step has more.
    check : bool
        Whether a layer's examples must add up to its gradient, up to a factor, at the first
        recorded step. They do not where something else adds to the gradient or changes its
        direction before the step, such as clipping by value.

    Raises
    ------
    UsageError
        If an argument or the schedule is invalid.

    Notes
    -----
    The first dimension of a layer's input must be that of examples. Micro-batches are counted by
    calls of the model: examples of each are rows of their own. Activation checkpointing is fine in
    both variants. A model under ``torch.compile`` runs no hooks: recording stops at the first step
    and says so. Forward passes that no backward pass follows, in probes or in evaluation, count
    nothing. Under a ``GradScaler`` and data parallelism, what is recorded is of the loss whose
    backward pass was called, scale included, and of this process's examples.
    """

    sketch: Kronecker = DEFAULT
    examples: int | None = None
    check: bool = True
    name: str = "live_examples"
    kind: str = field(default="examples", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        if not isinstance(self.sketch, Kronecker):
            raise UsageError(
                f"LiveExamples(sketch={self.sketch!r}) must be tracelab.Kronecker(p, q); "
                "record Examples for other sketches"
            )
        if self.examples is not None:
            at_least(1, **{"LiveExamples' examples": self.examples})

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run.

        Raises
        ------
        UsageError
            If no layer can be recorded, or the run has sharded weights, several optimizers or a
            compiled model.
        """
        if run.layout.shards is not None:
            raise UsageError(f"{self.whose} cannot record weights that are sharded; leave it out")
        if len(run.optimizers) != 1:
            raise UsageError(
                f"{self.whose} records the steps of one optimizer, and there are "
                f"{len(run.optimizers)}; leave it out"
            )
        if any(getattr(m, "_compiled_call_impl", None) for m in run.model.modules()):
            raise UsageError(
                f"{self.whose}: a compiled model runs no hooks; record Examples instead, or do "
                "not compile"
            )
        layout = select_layers(run.layout, self.layers, self.exclude, self.whose)
        modules = _modules(run, layout)
        if not modules:
            raise UsageError(
                f"{self.whose} records weights of linear and convolutional layers (groups=1, zero "
                f"padding, not shared), and none is among {', '.join(layout.names)}; record "
                "Examples instead"
            )
        layout = layout.select(modules)
        sides = [_Sides.of(self.sketch, name, module, run) for name, module in modules.items()]
        listener = _Listener(self, run, layout.names, sides)
        given = run.data_size or (len(run.data) if hasattr(run.data, "__len__") else None)
        return Recording(
            layout,
            listener.take,
            sketches=(cast("Sketch", self.sketch),),
            attrs={"n_data": given} if given else {},
            probe=True,
            listen=partial(_listen, listener, run.model, list(modules.values())),
        )


def _modules(run: Run, layout: Layout) -> dict[str, nn.Module]:
    """Return the modules whose weights can be recorded, by layer."""
    owners: dict[int, list[nn.Module | None]] = {}
    for module in run.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            takes = name == "weight" and _takes(module)
            owners.setdefault(id(parameter), []).append(module if takes else None)
    found: dict[str, nn.Module] = {}
    for layer in layout.names:
        own = owners.get(id(run.parameters[layer]), [])
        if len(own) == 1 and own[0] is not None:
            found[layer] = own[0]
    return found


def _takes(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return True
    if type(module) not in CONVOLUTIONS:
        return False
    return bool(module.groups == 1 and module.padding_mode == "zeros")


@dataclass(frozen=True, slots=True)
class _Sides:
    """How the two sides of a layer's per-example gradient are projected.

    Parameters
    ----------
    module : nn.Module
        The layer.
    left : Tensor, shape (p, out)
    right : Tensor, shape (in, q), or of a convolution (q, channel, *kernel)
        As its filters: what a filter sees at a position is what its weight is multiplied by.
    """

    module: nn.Module
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, sketch: Kronecker, layer: str, module: nn.Module, run: Run) -> _Sides:
        shape = run.parameters[layer].shape
        left, right = (
            torch.from_numpy(side).to(run.device, run.dtype)
            for side in sketch.sides(layer, shape[0], shape[1:].numel())
        )
        if type(module) is not nn.Linear:
            right = right.T.reshape(-1, *shape[1:]).contiguous()
        return cls(module, left, right)

    def inputs(self, inputs: Tensor) -> Tensor:
        """Return projected inputs, shape (example, position, q)."""
        inputs = inputs.detach().to(self.right.dtype)
        module = self.module
        if isinstance(module, nn.Linear):
            return _positions(inputs @ self.right)
        convolve = CONVOLUTIONS[type(module)]
        strides = (module.stride, module.padding, module.dilation)
        return convolve(inputs, self.right, None, *strides).flatten(2).transpose(1, 2)

    def product(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Return the sketch of each example's gradient, shape (example, p * q)."""
        gradients = gradients.detach().to(self.left.dtype)
        if isinstance(self.module, nn.Linear):
            outer = _positions(gradients @ self.left.T)
            return (outer.transpose(1, 2) @ inputs).flatten(1)
        return (self.left @ gradients.flatten(2) @ inputs).flatten(1)

    def matrix(self, gradient: Tensor) -> Tensor:
        """Return the sketch of a gradient of the weight's shape, shape (p * q,)."""
        right = self.right
        if not isinstance(self.module, nn.Linear):
            right = right.flatten(1).T
        return (self.left @ gradient.detach().to(right.dtype).flatten(1) @ right).flatten()


def _positions(values: Tensor) -> Tensor:
    """Return values of shape (example, ..., feature) as (example, position, feature)."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


class _Listener:
    """What hooks call: gathers the sketches of a step until its row is taken.

    Parameters
    ----------
    collector : LiveExamples
        What is recorded.
    run : Run
        Of what.
    names : sequence of str
        The layers.
    sides : sequence of _Sides
        Of each.
    """

    def __init__(
        self, collector: LiveExamples, run: Run, names: Sequence[str], sides: Sequence[_Sides]
    ) -> None:
        self._collector = collector
        self._run = run
        self._names = names
        self._sides = sides
        self._size = collector.examples
        self._checked = not collector.check
        # By call of the model, then by layer: the sketches of its examples.
        self._found: dict[int, dict[int, Tensor]] = {}
        self._call = 0
        # Known once a row was taken; until then every step may be due.
        self._step: int | None = None
        self._active = True
        self._error: Exception | None = None

    # In the user's forward and backward passes: nothing may be raised there.

    def begin(self) -> None:
        """Hear of a call of the model."""
        if not self._active:
            return
        self._call += 1
        if self._found and all(self._run.parameters[n].grad is None for n in self._names):
            # The gradients were thrown away, as after an overflow.
            self._found = {}

    def forward(self, layer: int, inputs: Any, output: Any) -> None:
        """Keep the projected inputs of a layer until its output's gradient comes."""
        if not self._active or not torch.is_grad_enabled():
            return
        sides = self._sides[layer]
        # A probe calls modules with other weights.
        if sides.module.weight is not self._run.parameters[self._names[layer]]:
            return
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        try:
            if output.dim() < 2:
                raise UsageError(_no_examples(self._names[layer], tuple(output.shape)))
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                projected = sides.inputs(inputs)
            output.register_hook(partial(self._backward, self._call, layer, projected))
        except Exception as error:
            self._fail(error)

    def _backward(self, call: int, layer: int, inputs: Tensor, gradients: Tensor) -> None:
        if not self._active:
            return
        try:
            with torch.no_grad(), torch.autocast(gradients.device.type, enabled=False):
                found = self._sides[layer].product(gradients, inputs)
            of_call = self._found.setdefault(call, {})
            of_call[layer] = of_call[layer] + found if layer in of_call else found
        except Exception as error:
            self._fail(error)

    def stepped(self) -> None:
        """Hear of the end of a step."""
        self._found = {}
        if self._step is not None and self._error is None:
            self._step += 1
            self._active = self._collector.schedule.next(self._step) == self._step

    def close(self) -> None:
        """Hear no more."""
        self._active = False
        self._found = {}

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.close()

    # In the session, before a step that is due.

    def take(self, block: Block) -> dict[str, Tensor]:
        """Return the row of a step, with a leading dimension of 1."""
        self._step = block.steps[0]
        try:
            if self._error is not None:
                raise self._error
            return self._row()
        except Exception as error:
            self._fail(error)
            raise

    def _row(self) -> dict[str, Tensor]:
        if not self._found:
            raise UsageError(
                "no gradient of an example passed by before this step; a compiled model runs no "
                "hooks, and an optimizer that is given a closure computes gradients too late: "
                "record Examples instead"
            )
        with torch.no_grad():
            # A backward pass through several calls reaches the last one first.
            rows = torch.cat([self._of_call(self._found[call]) for call in sorted(self._found)])
            mean = torch.full_like(rows[0], torch.nan)
            for layer, (name, sides) in enumerate(zip(self._names, self._sides, strict=True)):
                gradient = self._run.parameters[name].grad
                if gradient is not None:
                    mean[layer] = sides.matrix(gradient)
            if not self._checked:
                self._check(rows.sum(0), mean)
            count = len(rows)
            if self._size is None:
                self._size = count
            if self._collector.examples is None and count > self._size:
                raise UsageError(
                    f"a step of {count} examples does not fit into rows of {self._size}, as many "
                    f"as the first had; give LiveExamples(examples={count})"
                )
            padded = rows.new_full((self._size, *rows.shape[1:]), torch.nan)
            kept = min(count, self._size)
            padded[:kept] = rows[:kept] * count
        return {"projected": padded.unsqueeze(0), "mean_projected": mean.unsqueeze(0)}

    def _of_call(self, found: Mapping[int, Tensor]) -> Tensor:
        """Return the sketches of the examples of one call, shape (example, layer, p * q)."""
        counts = {layer: len(each) for layer, each in found.items()}
        first = min(counts)
        for layer, count in counts.items():
            if count != counts[first]:
                raise UsageError(
                    f"layer {self._names[first]!r} had {counts[first]} examples in a call of the "
                    f"model and layer {self._names[layer]!r} {count}; the first dimension must be "
                    "that of examples: leave the others out with exclude="
                )
        example = found[first]
        rows = example.new_zeros(len(example), len(self._names), example.shape[1])
        for layer, each in found.items():
            rows[:, layer] = each
        return rows

    def _check(self, total: Tensor, mean: Tensor) -> None:
        """Compare the sum of the examples' sketches with that of the gradient, up to a factor."""
        for name, found, wanted in zip(self._names, total, mean, strict=True):
            norm = found.norm() * wanted.norm()
            if not norm.isfinite() or not wanted.any():
                continue
            if norm == 0 or torch.dot(found, wanted) < COSINE * norm:
                raise UsageError(
                    f"the gradients of the examples of layer {name!r} do not add up to its "
                    "gradient; if its weight is used outside of its module, leave it out with "
                    "exclude=, and if gradients are changed before the step, give check=False"
                )
            self._checked = True


def _no_examples(layer: str, shape: tuple[int, ...]) -> str:
    return (
        f"layer {layer!r} returned the shape {shape}, which has no dimension of examples; "
        "leave it out with exclude="
    )


# Hooks hold no state: a model that carries them can be copied and pickled.


class _Hears(Protocol):
    def begin(self) -> None: ...
    def forward(self, layer: int, inputs: Any, output: Any) -> None: ...
    def stepped(self) -> None: ...


_listeners: dict[int, _Hears] = {}
_tokens = itertools.count()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_listeners.clear)


@dataclass(frozen=True, slots=True)
class _Begin:
    token: int

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        listener = _listeners.get(self.token)
        if listener is not None:
            listener.begin()


@dataclass(frozen=True, slots=True)
class _Forward:
    token: int
    layer: int

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        listener = _listeners.get(self.token)
        if listener is not None:
            listener.forward(self.layer, args[0] if args else kwargs.get("input"), output)


@dataclass(frozen=True, slots=True)
class _Stepped:
    token: int

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        listener = _listeners.get(self.token)
        if listener is not None:
            listener.stepped()


def _listen(
    listener: _Listener, model: nn.Module, modules: Sequence[nn.Module]
) -> Callable[[], None]:
    """Register the hooks of a run; return what removes them."""
    token = next(_tokens)
    _listeners[token] = listener
    handles = [model.register_forward_pre_hook(_Begin(token))]
    for layer, module in enumerate(modules):
        hook = _Forward(token, layer)
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    (optimizer,) = listener._run.optimizers
    handles.append(optimizer.register_step_post_hook(_Stepped(token)))

    def remove() -> None:
        _listeners.pop(token, None)
        listener.close()
        for handle in handles:
            handle.remove()

    return remove
