"""OptimizerState: momentum, second moments and the step size of every coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab.sketch import Project, Sample, Sketch, validate
from tracelab_collectors.collector import Block, Recording, Run, Source, local_part
from tracelab_collectors.moments import moments
from tracelab_collectors.scheduled import Scheduled
from tracelab_collectors.sketching import lack, sketcher

__all__ = ["OptimizerState", "long_run_step"]

QUANTITIES = ("momentum", "second_moment", "effective_step")
DEFAULT = (Project(256), Sample(64))

State: TypeAlias = Mapping[str, Any]
Scalar: TypeAlias = float | Tensor


@dataclass(frozen=True)
class OptimizerState(Scheduled):
    r"""What the optimizer remembers of the gradients, and how far it steps along each coordinate.

    The row of step t is the state at its start, after the t-th update, at the learning rate of
    then: ``momentum`` is the first moment :math:`\hat m_t`, ``second_moment`` :math:`\hat v_t`,
    both without the bias of their start at 0, and ``effective_step`` the factor :math:`a_t` of the
    first moment in the update, :math:`-a_t \hat m_t`, of step t - 1. As torch has them:

    ================ ============================== =======================================
    optimizer        momentum, second moment        effective step
    ================ ============================== =======================================
    SGD              ``momentum_buffer``, none      lr
    Adam, AdamW      ``exp_avg`` / (1 - beta1^t),   lr / (sqrt(second moment) + eps)
                     ``exp_avg_sq`` / (1 - beta2^t)
    NAdam            as Adam                        as Adam
    RAdam            as Adam                        as the paper rectifies it
    SparseAdam       as Adam                        as Adam, with eps / sqrt(1 - beta2^t)
    Adamax           as Adam, none                  lr / ``exp_inf``
    RMSprop          ``momentum_buffer``,           lr / (sqrt(``square_avg``) + eps);
                     ``square_avg``                 if centered, less ``grad_avg``^2
    Adagrad          none, ``sum``                  lr / (1 + (t - 1) lr_decay) /
                                                    (sqrt(``sum``) + eps)
    ================ ============================== =======================================

    With ``amsgrad`` the second moment is that of ``max_exp_avg_sq``, which the step divides by.
    Without momentum (SGD), and in Adagrad and RMSprop, the effective step is the factor of the
    gradient; RMSprop's ``momentum_buffer`` is one of gradients already divided, of unit 1. NAdam
    and Nesterov's momentum step along a mixture of gradient and first moment. Weight decay that is
    not part of the gradient (AdamW) comes beside all this. Of other optimizers the states called
    ``exp_avg`` or ``momentum_buffer``, and ``exp_avg_sq``, ``square_avg`` or ``sum``, are recorded
    as they are, and the effective step is missing; the group's attribute ``optimizers`` says so.

    Parameters
    ----------
    every, start, stop, steps, layers, exclude, name
        As for every collector; see `tracelab_collectors.scheduled.Scheduled`.
    quantities : sequence of {"momentum", "second_moment", "effective_step"}
        What is recorded; each takes two copies of the weights in memory.
    sketch : Sketch or sequence of Sketch
        How each is kept, at most one of each kind. Only the momentum is projected: projections of
        what is positive everywhere tell nothing. Each layer's norm, moments, largest value and log
        moments are exact in any case; ``numel * mean^2 / moment2`` is the participation ratio.

    Raises
    ------
    UsageError
        If a quantity is unknown, or the sketches or the schedule are invalid.

    Notes
    -----
    What does not exist (yet) is missing: before the first step, of a layer without a gradient so
    far. Of sharded states this process records its part.

    References
    ----------
    Kingma, Ba (2015), "Adam", algorithm 1; Liu et al. (2020), "On the variance of the adaptive
    learning rate and beyond", algorithm 2 (RAdam).
    """

    every: InitVar[int | Schedule] = 10
    quantities: Sequence[str] = QUANTITIES
    sketch: Sketch | Sequence[Sketch] = DEFAULT
    name: str = "optimizer_state"
    kind: str = field(default="optimizer_state", init=False)

    def validate(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "sketch", validate(self.sketch))
        named = () if isinstance(self.quantities, str) else tuple(self.quantities)
        if not named or set(named) - set(QUANTITIES):
            raise UsageError(
                f"OptimizerState(quantities={self.quantities!r}) must be a sequence of "
                f"{', '.join(QUANTITIES)}"
            )

    def bind(self, run: Run) -> Recording:
        """Return the recording of one run."""
        layout = self.layout(run)
        sketches = validate(self.sketch)
        positive = tuple(each for each in sketches if not isinstance(each, Project))
        bound = {
            quantity: sketcher(
                sketches if quantity == "momentum" else positive,
                layout,
                dtype=run.dtype,
                device=run.device,
            )
            for quantity in QUANTITIES
            if quantity in self.quantities
        }

        def reduce(block: Block) -> dict[str, Tensor]:
            arrays: dict[str, Tensor] = {}
            for quantity, sketch in bound.items():
                rows = block.sources[quantity]
                found, sketched = moments(rows, layout), sketch(rows)
                missing = block.missing.get(quantity, ())
                lack(sketched, missing)
                for row, layer in missing:
                    for values in found.values():
                        values[row, layer] = torch.nan
                named = {**found, **sketched}
                arrays |= {f"{quantity}_{name}": values for name, values in named.items()}
            return arrays

        return Recording(
            layout,
            reduce,
            reads=frozenset(
                Source(quantity, _Reading(quantity, run.optimizers)) for quantity in bound
            ),
            sketches=sketches,
            attrs={"optimizers": [_described(optimizer) for optimizer in run.optimizers]},
        )


@dataclass(frozen=True)
class _Reading:
    """Reads one quantity of a parameter's state; equal ones share their copies."""

    quantity: str
    optimizers: tuple[torch.optim.Optimizer, ...]

    def __call__(self, parameter: Tensor, state: State, group: State) -> Tensor | None:
        owner = next(
            each for each in self.optimizers if any(own is group for own in each.param_groups)
        )
        read = getattr(_rule(owner), self.quantity)
        found: Tensor | None = read(local_part(parameter), state, group)
        return found


Read: TypeAlias = Callable[[Tensor, State, State], Tensor | None]


def long_run_step(
    optimizers: Sequence[torch.optim.Optimizer], parameter: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, float] | None:
    """Return how far a constant gradient of 1 moves each coordinate a step, and the memory for it.

    The effective step of `OptimizerState` times what momentum adds up to.

    Parameters
    ----------
    optimizers : sequence of Optimizer
        Those that train the model.
    parameter : Tensor
        A layer, not sharded.
    seen : Tensor, optional
        A gradient of it that the second moment takes in before.

    Returns
    -------
    step : Tensor, of the parameter's shape
        Unit weight^2/loss.
    memory : float
        Steps over which gradients are averaged: 1 without momentum.

        None where the optimizer's rule is not known, or it has not stepped yet.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not any(each is parameter for each in group["params"]):
                continue
            state = optimizer.state.get(parameter, {})
            if seen is not None:
                state = _after(state, group, seen)
            step = _rule(optimizer).effective_step(parameter.detach(), state, group)
            if step is None:
                return None
            betas = group.get("betas")
            if betas is not None:
                return step, 1 / (1 - float(betas[0]))
            momentum = float(group.get("momentum", 0.0))
            gain = (1 - float(group.get("dampening", 0.0))) / (1 - momentum)
            if group.get("nesterov", False):
                gain = 1 + momentum * gain
            return step * (gain if momentum else 1.0), 1 / (1 - momentum)
    return None


def _after(state: State, group: State, gradient: Tensor) -> State:
    """Return a state whose second moment has taken in one more gradient."""
    after = dict(state)
    square = gradient.square()
    beta = group["betas"][1] if "betas" in group else group.get("alpha", 0.0)
    for name in ("exp_avg_sq", "square_avg"):
        if name in state:
            after[name] = _number(beta) * state[name] + (1 - _number(beta)) * square
    if "grad_avg" in state:
        after["grad_avg"] = _number(beta) * state["grad_avg"] + (1 - _number(beta)) * gradient
    if "max_exp_avg_sq" in state:
        after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], after["exp_avg_sq"])
    if "exp_inf" in state:
        after["exp_inf"] = torch.maximum(_number(beta) * state["exp_inf"], gradient.abs())
    if "sum" in state:
        after["sum"] = state["sum"] + square
    if "step" in state:
        after["step"] = state["step"] + 1
    return after


@dataclass(frozen=True)
class _Rule:
    """How the three quantities come out of an optimizer's state, and in words."""

    momentum: Read
    second_moment: Read
    effective_step: Read
    words: tuple[str, str, str]


def _described(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    words = dict(zip(QUANTITIES, _rule(optimizer).words, strict=True))
    return {"name": type(optimizer).__name__, **words}


def _rule(optimizer: torch.optim.Optimizer) -> _Rule:
    # A class that is derived from one of these may step in another way.
    return _RULES.get(type(optimizer), _UNKNOWN)


def _nothing(parameter: Tensor, state: State, group: State) -> None:
    return None


def _plain(*names: str) -> Read:
    """Return what reads the first of some states that is there, as it is."""

    def read(parameter: Tensor, state: State, group: State) -> Tensor | None:
        for name in names:
            value = state.get(name)
            if isinstance(value, Tensor):
                local = local_part(value)
                # Factored and quantized states are no vectors of weights.
                if local.shape == parameter.shape and local.is_floating_point():
                    return _precise(local)
        return None

    return read


def _precise(tensor: Tensor) -> Tensor:
    """Return a state of half precision as float32, others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _number(value: Any) -> Scalar:
    """Return a number as a float; on a device as a tensor of float64, not to wait for it."""
    if not isinstance(value, Tensor):
        return float(value)
    return float(value) if value.device.type == "cpu" else value.double()


def _over(scale: Tensor, rate: Any) -> Tensor:
    """Return a learning rate divided by the scale of each coordinate."""
    return scale.reciprocal() * _number(rate)


def _correction(which: int, state: State, group: State) -> Scalar:
    """Return ``1 - beta^t``, of the first or the second moment."""
    found: Scalar = 1 - _number(group["betas"][which]) ** _number(state["step"])
    return found


def _first(parameter: Tensor, state: State, group: State) -> Tensor | None:
    raw = _plain("exp_avg")(parameter, state, group)
    return None if raw is None else raw / _correction(0, state, group)


def _second(parameter: Tensor, state: State, group: State) -> Tensor | None:
    largest = group.get("amsgrad", False)
    name = "max_exp_avg_sq" if largest else "exp_avg_sq"
    raw = _plain(name)(parameter, state, group)
    return None if raw is None else raw / _correction(1, state, group)


def _of_sgd(parameter: Tensor, state: State, group: State) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.ones_like(parameter, dtype=dtype) * _number(group["lr"])


def _of_adam(parameter: Tensor, state: State, group: State) -> Tensor | None:
    second = _second(parameter, state, group)
    return None if second is None else _over(second.sqrt() + group["eps"], group["lr"])


def _of_sparse_adam(parameter: Tensor, state: State, group: State) -> Tensor | None:
    raw = _plain("exp_avg_sq")(parameter, state, group)
    if raw is None:
        return None
    root = _correction(1, state, group) ** 0.5
    return _over(raw.sqrt() + group["eps"], group["lr"]) * root


def _of_radam(parameter: Tensor, state: State, group: State) -> Tensor | None:
    plain = _of_sparse_adam(parameter, state, group)
    if plain is None:
        return None
    beta, step = _number(group["betas"][1]), _number(state["step"])
    longest = 2 / (1 - beta) - 1
    length = longest - 2 * step * beta**step / _correction(1, state, group)
    rectified: Scalar = (length - 4) * (length - 2) * longest
    rectified = rectified / ((longest - 4) * (longest - 2) * length)
    if isinstance(length, Tensor):
        along = plain * rectified.clamp_min(0) ** 0.5
        return torch.where(length > 5, along, torch.ones_like(plain) * _number(group["lr"]))
    return plain * math.sqrt(float(rectified)) if length > 5 else _of_sgd(parameter, state, group)


def _of_adamax(parameter: Tensor, state: State, group: State) -> Tensor | None:
    largest = _plain("exp_inf")(parameter, state, group)
    return None if largest is None else _over(largest, group["lr"])


def _of_rmsprop(parameter: Tensor, state: State, group: State) -> Tensor | None:
    square = _plain("square_avg")(parameter, state, group)
    if square is None:
        return None
    if group["centered"]:
        square = square - _precise(local_part(state["grad_avg"])).square()
    return _over(square.sqrt() + group["eps"], group["lr"])


def _sum(parameter: Tensor, state: State, group: State) -> Tensor | None:
    found = _plain("sum")(parameter, state, group)
    if found is None:
        return None
    # Its state is there before the first step.
    step = _number(state["step"])
    if isinstance(step, Tensor):
        return found.where(step > 0, torch.nan)
    return found if step else None


def _of_adagrad(parameter: Tensor, state: State, group: State) -> Tensor | None:
    total = _sum(parameter, state, group)
    if total is None:
        return None
    decay: Scalar = 1 + (_number(state["step"]) - 1) * group["lr_decay"]
    return _over(total.sqrt() + group["eps"], group["lr"]) / decay


_FIRST = "exp_avg / (1 - beta1^t)"
_SECOND = "exp_avg_sq (amsgrad: max_exp_avg_sq) / (1 - beta2^t)"
_ADAM = "lr / (sqrt(second_moment) + eps)"
_RULES: Mapping[type, _Rule] = {
    torch.optim.SGD: _Rule(
        _plain("momentum_buffer"), _nothing, _of_sgd, ("momentum_buffer", "none", "lr")
    ),
    **dict.fromkeys(
        (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam),
        _Rule(_first, _second, _of_adam, (_FIRST, _SECOND, _ADAM)),
    ),
    torch.optim.RAdam: _Rule(
        _first, _second, _of_radam, (_FIRST, _SECOND, "rectified lr of the paper's algorithm 2")
    ),
    torch.optim.SparseAdam: _Rule(
        _first,
        _second,
        _of_sparse_adam,
        (_FIRST, _SECOND, "lr sqrt(1 - beta2^t) / (sqrt(exp_avg_sq) + eps)"),
    ),
    torch.optim.Adamax: _Rule(_first, _nothing, _of_adamax, (_FIRST, "none", "lr / exp_inf")),
    torch.optim.RMSprop: _Rule(
        _plain("momentum_buffer"),
        _plain("square_avg"),
        _of_rmsprop,
        (
            "momentum_buffer of gradients already divided, of unit 1",
            "square_avg",
            "lr / (sqrt(square_avg) + eps), centered: square_avg - grad_avg^2",
        ),
    ),
    torch.optim.Adagrad: _Rule(
        _nothing,
        _sum,
        _of_adagrad,
        ("none", "sum", "lr / (1 + (t - 1) lr_decay) / (sqrt(sum) + eps)"),
    ),
}
_UNKNOWN = _Rule(
    _plain("exp_avg", "momentum_buffer"),
    _plain("exp_avg_sq", "square_avg", "sum"),
    _nothing,
    (
        "exp_avg or momentum_buffer, as it is",
        "exp_avg_sq, square_avg or sum, as it is",
        "missing: how this optimizer steps is not known",
    ),
)
