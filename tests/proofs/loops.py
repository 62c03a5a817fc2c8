"""The loops of one process. What they have in common is in `proofs.training`."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from proofs.networks import INPUTS, TARGETS, Transformer, batch, conv_net, loss_of, mlp
from proofs.training import (
    Loop,
    Row,
    Training,
    autograd,
    norm_of,
    on,
    plain_step,
    same_generators,
    scaled,
)

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=1e-2)
FUSED = partial(torch.optim.AdamW, lr=1e-2, fused=True)


def training_of(network: Callable[[], nn.Module], optimizer: Callable[..., Any]) -> Training:
    model = network()
    return Training(model, [optimizer(model.parameters())])


def plain(network: Callable[[], nn.Module], optimizer: Callable[..., Any]) -> Loop:
    return Loop(
        lambda: training_of(network, optimizer),
        lambda training, t: plain_step(training, on(t)),
        lambda training, t: [autograd(training.model, on(t))],
    )


# Closures.


def closure_step(training: Training, t: int) -> None:
    def closure() -> Tensor:
        training.optimizer.zero_grad()
        loss = training.lost(on(t)(training.model))
        loss.backward()
        return loss

    training.optimizer.step(closure)


def with_closure(optimizer: Callable[..., Any]) -> Loop:
    return Loop(
        lambda: training_of(mlp, optimizer),
        closure_step,
        lambda training, t: [autograd(training.model, on(t))],
    )


# Accumulation and clipping.


def parts(t: int, count: int = 4) -> list[Callable[[nn.Module], Tensor]]:
    return [on(count * t + part, share=1 / count) for part in range(count)]


def accumulation(network: Callable[[], nn.Module], optimizer: Callable[..., Any]) -> Loop:
    def step(training: Training, t: int) -> None:
        training.optimizer.zero_grad()
        for part in parts(t):
            training.lost(part(training.model)).backward()
        training.optimizer.step()

    return Loop(
        lambda: training_of(network, optimizer),
        step,
        lambda training, t: [autograd(training.model, *parts(t))],
        counts=lambda t: [(4, 0, True)],
    )


def zeroed_step(training: Training, t: int) -> None:
    training.lost(on(t)(training.model)).backward()
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=False)


def clipped(training: Training, t: int) -> list[Row | None]:
    row = autograd(training.model, on(t))
    return [scaled(row, 0.1 / (norm_of(row) + 1e-6).clamp_min(0.1).float())]


def clipped_step(training: Training, t: int) -> None:
    training.optimizer.zero_grad()
    training.lost(on(t)(training.model)).backward()
    nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
    training.optimizer.step()


def bounded_step(training: Training, t: int) -> None:
    training.optimizer.zero_grad()
    training.lost(on(t)(training.model)).backward()
    nn.utils.clip_grad_value_(training.model.parameters(), 0.01)
    training.optimizer.step()


def bounded(training: Training, t: int) -> list[Row | None]:
    row = autograd(training.model, on(t))
    return [{name: each.clamp(-0.01, 0.01) for name, each in row.items() if each is not None}]


def penalty_of(t: int) -> Callable[[nn.Module], Tensor]:
    """Return the loss with the squared norm of its gradient by the inputs."""
    inputs, targets = batch(t)

    def loss(model: nn.Module) -> Tensor:
        moved = inputs.clone().requires_grad_()
        value = loss_of(model, (moved, targets))
        (slope,) = torch.autograd.grad(value, [moved], create_graph=True)
        return value + slope.square().sum()

    return loss


# Mixed precision.


def scaler_loop(optimizer: Callable[..., Any], *, fused: bool, unscale: bool = False) -> Loop:
    """A scaler that meets an overflow at every fifth step."""

    def build() -> Training:
        training = training_of(mlp, optimizer)
        training.more["scaler"] = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        return training

    def step(training: Training, t: int) -> None:
        scaler = training.more["scaler"]
        training.optimizer.zero_grad()
        loss = training.lost(on(t)(training.model))
        scaler.scale(loss * (float("inf") if t % 5 == 2 else 1.0)).backward()
        if unscale:
            scaler.unscale_(training.optimizer)
            nn.utils.clip_grad_norm_(training.model.parameters(), 1e9)
        scaler.step(training.optimizer)
        scaler.update()

    def expected(training: Training, t: int) -> list[Row | None]:
        if t % 5 == 2:
            # A fused optimizer is called and skips by itself; another one is not called.
            return [None] if fused else []
        # Scales are powers of two: scaling and unscaling are exact.
        return [autograd(training.model, on(t))]

    def counts(t: int) -> list[tuple[int, int, bool]]:
        if fused:
            return [(1, 0, t % 5 != 2)]
        # Nothing but the gradient that is gone tells of a step that a scaler did not take.
        return [] if t % 5 == 2 else [(1, int(t % 5 == 3), True)]

    return Loop(build, step, expected, counts=counts)


def autocast_of(t: int) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return on(t)(model)

    return loss


# torch.compile, which needs a C++ compiler and seconds.


def compiled_model(network: Callable[[], nn.Module], optimizer: Callable[..., Any]) -> Training:
    model = network()
    return Training(torch.compile(model), [optimizer(model.parameters())])


def compiled_step() -> Training:
    training = training_of(mlp, SGD)
    training.more["step"] = torch.compile(training.optimizer.step)
    return training


def step_compiled(training: Training, t: int) -> None:
    training.optimizer.zero_grad()
    training.lost(on(t)(training.model)).backward()
    training.more["step"]()


# Several optimizers.


def gan() -> Training:
    model = nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 16)),
            "critic": nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)),
        }
    )
    return Training(
        model, [ADAM(model["critic"].parameters()), SGD(model["generator"].parameters())]
    )


def critic_loss(t: int) -> Callable[[nn.ModuleDict], Tensor]:
    def loss(model: nn.ModuleDict) -> Tensor:
        made = model["generator"](torch.randn(8, 4)).detach()
        real, fake = model["critic"](batch(t)[0]), model["critic"](made)
        return nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()

    return loss


def generator_loss(model: nn.ModuleDict) -> Tensor:
    return nn.functional.softplus(-model["critic"](model["generator"](torch.randn(8, 4)))).mean()


def gan_step(training: Training, t: int) -> None:
    """The critic steps in every round and the generator in every other one."""
    critic, generator = training.optimizers
    critic.zero_grad()
    training.lost(critic_loss(t)(training.model)).backward()
    critic.step()
    if t % 2:
        generator.zero_grad()
        training.lost(generator_loss(training.model)).backward()
        generator.step()


def gan_gradients(training: Training, t: int) -> list[Row | None]:
    """A round of the generator begins at the critic's new weights: trained on a copy."""
    twin, optimizers = copy.deepcopy((training.model, training.optimizers))
    with same_generators():
        optimizers[0].zero_grad()
        loss = critic_loss(t)(twin)
        loss.backward()
        row: Row = {n: p.grad for n, p in twin.named_parameters() if n.startswith("critic")}
        row = {name: each.clone() for name, each in row.items() if each is not None}
        if t % 2:
            optimizers[0].step()
            ours = dict(twin["generator"].named_parameters())
            found = torch.autograd.grad(generator_loss(twin), list(ours.values()))
            row |= {f"generator.{name}": g for name, g in zip(ours, found, strict=True)}
    return [row]


# Parameters that are shared, frozen, sparse, replaced or added.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(16, 16), nn.Linear(16, 16)
        self.outward.weight = self.inward.weight
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outward(self.inward(x).tanh()).tanh())


def freezing_step(training: Training, t: int) -> None:
    freeze(training, t)
    plain_step(training, on(t))


def freeze(training: Training, t: int) -> None:
    """The first layer is frozen at every third step."""
    training.model[0].requires_grad_(t % 3 != 1)


def freezing(training: Training, t: int) -> list[Row | None]:
    twin = copy.deepcopy(training.model)
    twin[0].requires_grad_(t % 3 != 1)
    return [autograd(twin, on(t))]


class Words(nn.Module):
    """Tokens, some of them several times in a batch, as rows of a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4, sparse=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words((3 * x).long().clamp(0, 19)).mean(1))


def sparse() -> Training:
    model = Words()
    return Training(
        model,
        [
            torch.optim.SparseAdam(model.words.parameters(), lr=1e-2),
            SGD(model.head.parameters()),
        ],
    )


def sparse_step(training: Training, t: int) -> None:
    for optimizer in training.optimizers:
        optimizer.zero_grad()
    training.lost(on(t)(training.model)).backward()
    for optimizer in training.optimizers:
        optimizer.step()


def replacing_step(training: Training, t: int) -> None:
    replace(training, t)
    plain_step(training, on(t))


def replace(training: Training, t: int) -> None:
    """At step 3 the last layer's weight becomes another tensor, in model and optimizer."""
    if t != 3:
        return
    old = training.model[4].weight
    new = nn.Parameter(old.detach() * 0.5)
    training.model[4].weight = new
    held = training.optimizer.param_groups[0]["params"]
    held[[each is old for each in held].index(True)] = new
    training.optimizer.state[new] = training.optimizer.state.pop(old)


def replacing(training: Training, t: int) -> list[Row | None]:
    twin = copy.deepcopy(training.model)
    if t == 3:
        with torch.no_grad():
            twin[4].weight.mul_(0.5)
    return [autograd(twin, on(t))]


def adding_step(training: Training, t: int) -> None:
    """Layers that were frozen and unknown to the optimizer are trained from step 3 on."""
    if t == 3:
        training.model[0].requires_grad_(True)
        training.optimizer.add_param_group({"params": list(training.model[0].parameters())})
    plain_step(training, on(t))


def adding() -> Training:
    model = mlp()
    model[0].requires_grad_(False)
    return Training(model, [SGD([*model[2].parameters(), *model[4].parameters()])])


# Memory formats, checkpoints, copies, workers.


def channels_last() -> Training:
    model = conv_net().to(memory_format=torch.channels_last)
    return Training(model, [SGD(model.parameters())])


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(16, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Dropout(0.2)) for _ in range(2)
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class NotCheckpointed(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def checkpointed(*, reentrant: bool) -> Loop:
    def expected(training: Training, t: int) -> list[Row | None]:
        twin = NotCheckpointed(reentrant=False)
        twin.load_state_dict(training.model.state_dict())
        return [autograd(twin, on(t))]

    return Loop(
        lambda: training_of(partial(Checkpointed, reentrant=reentrant), SGD),
        lambda training, t: plain_step(training, on(t)),
        expected,
    )


def copying_step(training: Training, t: int) -> None:
    """Copies are trained too, and are not part of the recording; the model is saved and loaded."""
    plain_step(training, on(t))
    with same_generators():
        for model, optimizer in (
            copy.deepcopy((training.model, training.optimizer)),
            pickle.loads(pickle.dumps((training.model, training.optimizer))),
        ):
            plain_step(Training(model, [optimizer]), on(t + 1))
    file = io.BytesIO()
    torch.save({"model": training.model, "optimizer": training.optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    training.model.load_state_dict(loaded["model"].state_dict())
    training.optimizer.load_state_dict(loaded["optimizer"])


def loading() -> Training:
    training = training_of(mlp, SGD)
    training.more["loader"] = DataLoader(
        TensorDataset(INPUTS, TARGETS),
        batch_size=8,
        shuffle=True,
        num_workers=2,
        multiprocessing_context="fork",
    )
    training.more["batches"] = iter(())
    training.more["next"] = []
    return training


def upcoming(training: Training) -> tuple[Tensor, Tensor]:
    """Return the next batch of the workers, without taking it."""
    waiting = training.more["next"]
    if not waiting:
        found = next(training.more["batches"], None)
        if found is None:
            training.more["batches"] = iter(training.more["loader"])
            found = next(training.more["batches"])
        waiting.append(found)
    return waiting[0]


def loading_step(training: Training, t: int) -> None:
    of = upcoming(training)
    training.more["next"].clear()
    plain_step(training, lambda model: loss_of(model, of))


def loaded(training: Training, t: int) -> list[Row | None]:
    of = upcoming(training)
    return [autograd(training.model, lambda model: loss_of(model, of))]


def averaging() -> Training:
    training = training_of(mlp, SGD)
    training.more["average"] = torch.optim.swa_utils.AveragedModel(training.model)
    return training


def averaging_step(training: Training, t: int) -> None:
    plain_step(training, on(t))
    training.more["average"].update_parameters(training.model)


def in_backward() -> Training:
    """Each parameter has an optimizer of its own, which steps inside the backward pass."""
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return Training(model, [*optimizers.values()])


def in_backward_step(training: Training, t: int) -> None:
    training.lost(on(t)(training.model)).backward()


def of_loss(loss: Callable[[int], Callable[[nn.Module], Tensor]], build: Any) -> Loop:
    return Loop(
        build,
        lambda training, t: plain_step(training, loss(t)),
        lambda training, t: [autograd(training.model, loss(t))],
    )


def same(step: Callable[[Training, int], None], build: Any = None, **options: Any) -> Loop:
    """Return a loop whose gradient is that of one batch."""
    return Loop(
        build or (lambda: training_of(mlp, SGD)),
        step,
        lambda training, t: [autograd(training.model, on(t))],
        **options,
    )


PLAIN = partial(torch.optim.SGD, lr=0.1, foreach=False)
NESTEROV = partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True)
ADAM_LOOP = partial(torch.optim.Adam, lr=1e-2, foreach=False)
ADAM_FOREACH = partial(torch.optim.Adam, lr=1e-2, foreach=True)
LBFGS = partial(torch.optim.LBFGS, lr=0.1, max_iter=4)

LOOPS: dict[str, Loop] = {
    "plain: SGD": plain(mlp, PLAIN),
    "plain: SGD, momentum": plain(conv_net, SGD),
    "plain: SGD, Nesterov, foreach": plain(mlp, NESTEROV),
    "plain: Adam": plain(Transformer, ADAM),
    "plain: AdamW, fused": plain(conv_net, FUSED),
    "closure: SGD": with_closure(SGD),
    "closure: LBFGS": with_closure(LBFGS),
    "accumulation: 4 micro-batches": accumulation(conv_net, SGD),
    "gradients zeroed, not dropped": same(zeroed_step),
    "clipping by norm": Loop(lambda: training_of(mlp, SGD), clipped_step, clipped, exact=False),
    "clipping by value": Loop(lambda: training_of(mlp, SGD), bounded_step, bounded),
    "gradient penalty": of_loss(penalty_of, lambda: training_of(mlp, SGD)),
    "GradScaler: plain": scaler_loop(ADAM_LOOP, fused=False),
    "GradScaler: foreach": scaler_loop(ADAM_FOREACH, fused=False),
    "GradScaler: fused": scaler_loop(FUSED, fused=True),
    "GradScaler: fused, unscaled before": scaler_loop(FUSED, fused=True, unscale=True),
    "autocast bfloat16": of_loss(autocast_of, lambda: training_of(mlp, SGD)),
    "two optimizers: GAN": Loop(
        gan,
        gan_step,
        gan_gradients,
        # What the generator's pass leaves in the critic is thrown away.
        counts=lambda t: [(1, int(t > 0 and t % 2 == 0), True)],
    ),
    "an optimizer a parameter, inside backward": same(in_backward_step, in_backward),
    "tied parameters": plain(Tied, SGD),
    "parameters frozen now and then": Loop(lambda: training_of(mlp, SGD), freezing_step, freezing),
    "sparse gradients": same(sparse_step, sparse),
    "a replaced parameter": Loop(lambda: training_of(mlp, SGD), replacing_step, replacing),
    "parameters added": same(
        adding_step,
        adding,
        warned="parameters were added that the trace has no layer for: 0.weight",
    ),
    "channels_last": same(lambda training, t: plain_step(training, on(t)), channels_last),
    "activation checkpointing": checkpointed(reentrant=False),
    "activation checkpointing, reentrant": checkpointed(reentrant=True),
    "copied, pickled and saved at every step": same(copying_step),
    "weight averaging": same(averaging_step, averaging),
    "DataLoader with 2 forked workers": Loop(loading, loading_step, loaded),
    "torch.compile: model": same(
        lambda training, t: plain_step(training, on(t)),
        lambda: compiled_model(mlp, SGD),
        exact=False,
        slow=True,
    ),
    "torch.compile: step": same(step_compiled, compiled_step, slow=True),
}
