"""What a model gives at frozen weights, without a mark left on it or on any generator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tracelab.errors import UsageError
from tracelab_collectors.collector import Loss, Run
from tracelab_collectors.layout import Layout
from tracelab_collectors.stacking import Stacked

__all__ = ["Frozen", "FrozenLoss", "checked_mean", "evaluating", "in_mode"]

_Result = TypeVar("_Result")


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules and all in them into evaluation mode for the block, and each back behind it.

    The flag of each module is set directly: ``train()`` and ``eval()`` can be the user's own, and
    do more than that.
    """
    modes = {module: module.training for each in modules for module in each.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_mode(mode: str | None, *roots: Any) -> AbstractContextManager[None]:
    """Return the context in which those that are modules are evaluated if the mode is 'eval'."""
    modules = [each for each in roots if isinstance(each, nn.Module)]
    return evaluating(*modules) if mode == "eval" else nullcontext()


class Frozen:
    """A model of which functions are computed on stand-ins for its parameters and buffers.

    The model keeps its mode: in training mode dropout draws masks and batch normalisation uses
    the batch's statistics, as in training. Parameters are aliases outside the model's graph, and
    every call has its own copy of the buffers, so that running statistics do not move.

    This is what ``torch.func.functional_call`` does with every parameter and buffer; here the
    places where they are held are looked up once and not at every call, which took a fifth of the
    time of a small network's gradient.

    Parameters
    ----------
    model : nn.Module
        The model.
    *functions : callable
        What will be called; those that are modules have their own parameters stood in for.

    Attributes
    ----------
    modules : tuple of nn.Module
        The model, and the functions that are modules.
    aliases : dict of int to Tensor
        The alias of each parameter, by its identity; a shared one has one alias everywhere.
    buffers : dict of int to Tensor
        The buffers themselves, by identity.
    """

    def __init__(self, model: nn.Module, *functions: Any) -> None:
        self.modules = (model, *(each for each in functions if isinstance(each, nn.Module)))
        self.aliases: dict[int, Tensor] = {}
        self.buffers: dict[int, Tensor] = {}
        # Where a tensor is held, under which name, and what it is.
        self._parameter_places: list[tuple[dict[str, Any], str, Tensor]] = []
        self._buffer_places: list[tuple[dict[str, Any], str, Tensor]] = []
        self._model = model
        for module in {each for root in self.modules for each in root.modules()}:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self.aliases.setdefault(id(parameter), parameter.detach())
                    self._parameter_places.append((module._parameters, name, parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self.buffers[id(buffer)] = buffer
                    self._buffer_places.append((module._buffers, name, buffer))

    def __call__(
        self,
        function: Callable[[nn.Module, Any], _Result],
        batch: Any,
        parameters: Mapping[int, Tensor] | None = None,
        buffers: dict[int, Tensor] | None = None,
    ) -> _Result:
        """Return ``function(model, batch)``, computed on the stand-ins.

        Parameters
        ----------
        function : callable
            One of those the model was frozen with.
        batch : object
            Its second argument.
        parameters : mapping of int to Tensor, optional
            What stands in for a parameter, by its identity, in place of the alias.
        buffers : dict of int to Tensor, optional
            What stands in for the buffers, by identity, in place of copies. May be changed in
            place, and has behind the call what that left.
        """
        aliases = self.aliases if parameters is None else {**self.aliases, **parameters}
        kept = buffers if buffers is not None else self._copies()
        places = (*self._parameter_places, *self._buffer_places)
        try:
            for held, name, parameter in self._parameter_places:
                held[name] = aliases[id(parameter)]
            for held, name, buffer in self._buffer_places:
                held[name] = kept[id(buffer)]
            result = function(self._model, batch)
            for held, name, buffer in self._buffer_places:
                kept[id(buffer)] = held[name]
            return result
        finally:
            for held, name, tensor in places:
                held[name] = tensor

    def _copies(self) -> dict[int, Tensor]:
        return {key: buffer.clone() for key, buffer in self.buffers.items()}


class FrozenLoss:
    """A loss as a function of a batch alone, at the weights of now.

    Parameters
    ----------
    loss : callable
        ``loss(model, batch)``, the mean over the batch's examples.
    model : nn.Module
        The model.
    parameters : mapping of str to Tensor
        Those that the gradient is with respect to, by the name a trace gives them.

    Raises
    ------
    UsageError
        If the model does not have these parameters any more.

    Attributes
    ----------
    roots : tuple
        Whose code is run: the model and the loss.
    """

    def __init__(self, loss: Loss, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self.roots = (model, loss)
        self._loss = loss
        self._frozen = Frozen(model, loss)
        aliases = self._frozen.aliases
        replaced = [name for name, parameter in parameters.items() if id(parameter) not in aliases]
        if replaced:
            raise UsageError(
                f"{', '.join(replaced)}: the model's parameters were replaced after attach; "
                "attach again behind what replaced them"
            )
        self._ids = [id(parameter) for parameter in parameters.values()]
        self._wanted = [aliases[each].requires_grad_() for each in self._ids]

    @classmethod
    def of_run(cls, run: Run, loss: Loss, layout: Layout) -> FrozenLoss:
        """Return the loss over a run's layers, where their memory is now: it can move."""
        return cls(loss, run.model, {name: run.parameters[name] for name in layout.names})

    def value(self, batch: Any, weights: Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch at other weights, one tensor for each parameter."""
        stand_ins = dict(zip(self._ids, self._typed(weights), strict=True))
        with torch.no_grad():
            return self._evaluate(batch, stand_ins)

    def gradient(
        self, batch: Any, weights: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss of a batch and its gradient by parameter (zero where unused).

        Parameters
        ----------
        batch : object
            What the loss takes.
        weights : sequence of Tensor, optional
            Where, one for each parameter. Default: at the weights of now.
        """
        wanted, stand_ins = self._wanted, None
        if weights is not None:
            wanted = [each.requires_grad_() for each in self._typed(weights)]
            stand_ins = dict(zip(self._ids, wanted, strict=True))
        with torch.enable_grad():
            loss = self._evaluate(batch, stand_ins)
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return loss.detach(), gradients

    def graph(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the gradient of a batch with the graph it was computed by, for `product`.

        Attention is computed by plain operations: faster kernels have no second derivative.
        """
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(
                self._evaluate(batch),
                self._wanted,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )

    def product(self, gradient: Sequence[Tensor], vector: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the product of the Hessian with a vector, by parameter; `gradient` from `graph`.

        The gradient's graph is kept, and can be used again. Backward through backward: what goes
        backward through forward derivatives is wrong, without a word, behind layer and batch
        normalisation (pytorch#196699, pytorch#196700).
        """
        pairs = [each for each in zip(gradient, vector, strict=True) if each[0].requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(each) for each in self._wanted)
        return torch.autograd.grad(
            [each for each, _ in pairs],
            self._wanted,
            [each for _, each in pairs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def gradients(
        self, batches: Sequence[Any], *, randomness: str = "error"
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what `gradient` does for each of several batches, by one vectorised pass.

        Parameters
        ----------
        batches : sequence
            Of one structure and of tensors of the same shapes; what is no tensor must be equal.
        randomness : {"error", "different"}
            What random numbers do that the model draws: raise, or differ from batch to batch.

        Returns
        -------
        losses : Tensor, shape (batch,)
        gradients : tuple of Tensor, shape (batch, *parameter.shape)

        Raises
        ------
        ValueError
            If the batches differ in structure, in shapes or in what is no tensor.
        Exception
            Whatever `torch.func.vmap` raises where it cannot take the model.
        """
        stacked = Stacked.of(batches)

        def loss_of(wanted: Sequence[Tensor], varying: Mapping[int, Tensor]) -> Tensor:
            own = dict(zip(self._ids, wanted, strict=True))
            return self._evaluate(stacked.batch(varying), own).reshape(())

        wanted = [alias.detach() for alias in self._wanted]
        gradient_and_loss = torch.func.grad_and_value(loss_of)
        with torch.enable_grad(), warnings.catch_warnings():
            # Operations without a rule for batches are looped over: slower, and as right.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            found, losses = torch.func.vmap(
                gradient_and_loss, in_dims=(None, 0), randomness=randomness
            )(wanted, stacked.tensors)
        return losses.detach(), tuple(each.detach() for each in found)

    def _typed(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights as leaves of the parameters' own floating types."""
        pairs = zip(weights, self._wanted, strict=True)
        return [each.detach().to(alias.dtype) for each, alias in pairs]

    def _evaluate(self, batch: Any, parameters: Mapping[int, Tensor] | None = None) -> Tensor:
        return checked_mean(self._frozen(self._loss, batch, parameters))


def checked_mean(loss: Tensor) -> Tensor:
    """Return what a loss gave for a batch.

    Raises
    ------
    UsageError
        If it is no scalar.
    """
    if loss.numel() != 1:
        raise UsageError(
            "loss(model, batch) must return the scalar mean loss, got a tensor of shape "
            f"{tuple(loss.shape)}; take its mean"
        )
    return loss
