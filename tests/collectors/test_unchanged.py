"""Recording changes nothing: weights, optimizer state, buffers and generators, bit for bit."""

import copy
import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from proofs.collectors import every_collector
from proofs.matrix import MATRIX
from proofs.running import probed, run
from torch import Tensor, nn

import tracelab
from tracelab_collectors import (
    Evaluation,
    ExitTimes,
    Gradients,
    NoiseProbe,
    OptimizerState,
    Statistics,
    Weights,
)
from tracelab_collectors.attach import attach

STEPS = 12


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(40, 1, 4, 4, generator=generator)
    return pixels, torch.randint(0, 3, (40,), generator=generator)


def noisy_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Draws from every generator, as augmentation does."""
    jitter = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
    return nn.functional.cross_entropy(model(batch[0] + 0.1 * jitter), batch[1])


def everything() -> list:
    return [
        Statistics(quantities=("gradient", "weight", "update", "displacement")),
        OptimizerState(every=3),
        Evaluation({"all": torch.utils.data.TensorDataset(*images())}, every=4, loss=noisy_loss),
        ExitTimes(every=7, replicas=2, batch_size=8, max_steps=3, radius=1.0, barrier=1.0),
        Statistics(every=5, layers=".*weight", name="late_statistics"),
        Gradients(sketch=(tracelab.Project(16), tracelab.Full())),
        Gradients(every=2, sketch=tracelab.Sample(8), name="sampled"),
        NoiseProbe(every=4, batches=3, batch_size=8),
        NoiseProbe(every=5, batches=2, batch_size=8, replacement=False, name="no_replacement"),
        NoiseProbe(every=6, batches=3, batch_size=8, moments="coordinates", name="moments"),
        Weights(every=3, sketch=(tracelab.Project(8), tracelab.Sample(4))),
    ]


def state_of(value: object) -> list[bytes]:
    """Return every tensor and number of a nested state, as bytes."""
    if isinstance(value, Tensor):
        return [value.detach().cpu().numpy().tobytes()]
    if isinstance(value, dict):
        return [found for key in value for found in [repr(key).encode(), *state_of(value[key])]]
    if isinstance(value, (list, tuple)):
        return [found for each in value for found in state_of(each)]
    return [repr(value).encode()]


def train(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], path: Path | None
) -> list[bytes]:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    model = conv_net()
    optimizer = make_optimizer(model)
    pixels, labels = images()
    session = None
    if path is not None:
        dataset = torch.utils.data.TensorDataset(pixels, labels)
        session = attach(
            model, optimizer, path, collectors=everything(), loss=noisy_loss, data=dataset
        )
    for _ in range(STEPS):
        chosen = torch.randint(0, 40, (8,))
        optimizer.zero_grad()
        loss = noisy_loss(model, (pixels[chosen], labels[chosen]))
        loss.backward()
        optimizer.step()
        if session is not None:
            session.log(loss=loss)
    if session is not None:
        session.detach()
    return state_of(
        [
            model.state_dict(),
            [parameter.grad for parameter in model.parameters()],
            optimizer.state_dict(),
            torch.get_rng_state(),
            list(np.random.get_state()[1]),  # noqa: NPY002
            random.getstate(),
        ]
    )


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "nesterov, foreach": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True
    ),
    "nesterov, loop": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=False
    ),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
    "adamw, fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bitwise_the_same(optimizer: str, path: Path) -> None:
    recorded = train(OPTIMIZERS[optimizer], path)
    assert recorded == train(OPTIMIZERS[optimizer], None)
    with tracelab.open(path) as trace:
        assert trace.state == "complete"
        assert trace.groups["gradients"].sizes["step"] == STEPS


def live(name: str) -> bool:
    return name.startswith("MLP") and name.endswith("plain")


# Every network and every optimizer; all pairs, over many more steps, are below.
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in MATRIX
        if name.endswith(", plain") and (name.startswith("MLP, ") or ", Adam, " in name)
    ],
)
def test_few_steps_are_bitwise_the_same(name: str, path: Path) -> None:
    loop = MATRIX[name]
    assert run(loop, STEPS, path, every_collector(live=live(name)), **probed()) == run(loop, STEPS)
    with tracelab.open(path) as trace:
        assert trace.state == "complete"
        assert trace.rows["noise"] == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", MATRIX)
def test_200_steps_are_bitwise_the_same(name: str, path: Path) -> None:
    loop = MATRIX[name]
    assert run(loop, 200, path, every_collector(live=live(name)), **probed()) == run(loop, 200)
    with tracelab.open(path) as trace:
        assert trace.state == "complete"
        assert trace.rows["steps"] == 200
        assert trace.rows["noise"] == 5


def test_the_check_sees_one_changed_bit(path: Path) -> None:
    def other(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=np.nextafter(0.1, 1.0) + 1e-7)

    assert train(OPTIMIZERS["sgd"], None) != train(other, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_is_bitwise_the_same(tmp_path: Path) -> None:
    states = []
    for path in (None, tmp_path / "cuda.zarr"):
        torch.manual_seed(0)
        model = conv_net().cuda()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        pixels, labels = (each.cuda() for each in images())
        data = torch.utils.data.TensorDataset(pixels.cpu(), labels.cpu())
        session = path and attach(
            model, optimizer, path, collectors=everything(), loss=noisy_loss, data=data
        )
        for _ in range(STEPS):
            optimizer.zero_grad()
            noisy_loss(model, (pixels, labels)).backward()
            optimizer.step()
        if session:
            session.detach()
        states.append(state_of([model.state_dict(), torch.cuda.get_rng_state()]))
    assert states[0] == states[1]


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    return [
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
        *(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()),
    ]


def test_detach_leaves_no_hook_and_no_thread(net: nn.Module, path: Path) -> None:
    import threading

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before, threads = hooks_of(net, optimizer), threading.active_count()
    session = attach(net, optimizer, path)
    assert hooks_of(net, optimizer) != before
    session.detach()
    session.detach()
    assert hooks_of(net, optimizer) == before
    assert threading.active_count() == threads


def test_hooks_are_removed_after_an_exception(net: nn.Module, path: Path, attrs) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = hooks_of(net, optimizer)

    def train() -> None:
        with attach(net, optimizer, path):
            net(torch.ones(1, 6)).sum().backward()
            optimizer.step()
            raise ZeroDivisionError("in the loop")

    with pytest.raises(ZeroDivisionError):
        train()
    assert hooks_of(net, optimizer) == before
    assert attrs()["state"] == "incomplete"
    assert attrs()["incomplete_reasons"] == ["ZeroDivisionError: in the loop"]
    with tracelab.open(path) as trace:
        assert trace.groups["gradients"].sizes["step"] == 1


def test_model_and_optimizer_copy_and_pickle_while_attached(
    net: nn.Module, path: Path, inputs: Tensor
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with attach(net, optimizer, path) as session:
        net(inputs).sum().backward()
        optimizer.step()
        twin, twin_optimizer = copy.deepcopy((net, optimizer))
        again = pickle.loads(pickle.dumps((net, optimizer)))
        file = io.BytesIO()
        torch.save({"model": net, "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for model, stepper in ((twin, twin_optimizer), again):
            model(inputs).sum().backward()
            stepper.step()
        # Copies are not part of the recording.
        assert session.step == 1
        optimizer.load_state_dict(loaded["optimizer"])
        net.load_state_dict(loaded["model"].state_dict())
        optimizer.step()
        assert session.step == 2


def test_two_sessions_on_one_optimizer(net: nn.Module, tmp_path: Path, inputs: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        attach(net, optimizer, tmp_path / "a.zarr"),
        attach(net, optimizer, tmp_path / "b.zarr"),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            net(inputs).square().sum().backward()
            optimizer.step()
    first, second = (tracelab.open(tmp_path / name) for name in ("a.zarr", "b.zarr"))
    np.testing.assert_array_equal(first.gradients["projected"], second.gradients["projected"])
