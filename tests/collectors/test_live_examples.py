"""Sketches from the training's own backward pass, against single backward passes."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab_collectors import Examples, LiveExamples, NoiseProbe
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Run
from tracelab_collectors.layout import Layout

SKETCH = tracelab.Kronecker(3, 2, seed=1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def classified(model: nn.Module, batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def expected_of(model, layers, inputs, targets, loss=classified) -> np.ndarray:
    """Return sketches (example, layer, direction) of the gradients of batches of one."""
    model = copy.deepcopy(model).double()
    parameters = dict(model.named_parameters())
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        x = x.double() if x.is_floating_point() else x
        value = loss(model, (x[None], y[None]))
        gradients = torch.autograd.grad(value, [parameters[layer] for layer in layers])
        rows.append(
            [
                SKETCH.project(g.flatten(1).numpy(), n)
                for n, g in zip(layers, gradients, strict=True)
            ]
        )
    return np.array(rows)


def record(model, batches, path, loss=classified, optimizer=None, **options) -> xr.Dataset:
    """Train for some steps, each of a list of micro-batches, and return what was recorded."""
    optimizer = optimizer or sgd(model)
    collector = LiveExamples(**{"sketch": SKETCH, **options})
    with attach(model, optimizer, path, collectors=[collector], strict=True):
        for micro_batches in batches:
            optimizer.zero_grad()
            for batch in micro_batches:
                (loss(model, batch) / len(micro_batches)).backward()
            optimizer.step()
    with tracelab.open(path) as trace:
        return trace.groups["live_examples"].load()


class Positions(nn.Module):
    """Linear layers on sequences, one of them called twice, and convolutions of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 4, 3, padding="same", dilation=2)
        self.embed, self.mix, self.head = (
            nn.Linear(4, 6),
            nn.Linear(6, 6, bias=False),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.conv1(x).relu_().transpose(1, 2))
        x = torch.tanh(self.mix(torch.tanh(self.mix(x))))
        return self.head(x).mean(1)


MODELS = {
    "mlp": (mlp, (6,)),
    "positions": (Positions, (3, 8)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(4 * 4 * 6, 3),
        ),
        (2, 8, 8),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(16, 3)),
        (1, 5, 5, 5),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MODELS)
def test_they_are_sketches_of_the_gradients_of_single_examples(kind, dtype, path: Path) -> None:
    make, shape = MODELS[kind]
    model = make().to(dtype)
    x, y = torch.randn(7, *shape, dtype=dtype), torch.randint(0, 3, (7,))
    layers = [n for n, p in model.named_parameters() if n.endswith("weight")]
    expected = expected_of(model, layers, x, y)
    found = record(model, [[(x, y)]], path)
    assert found["layer"].values.tolist() == layers
    assert found["projected"].dims == ("step", "example", "layer", "direction")
    # Stored as float32; single passes are in float64.
    tolerance = 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(found["projected"][0], expected, atol=tolerance)
    np.testing.assert_allclose(found["mean_projected"][0], expected.mean(axis=0), atol=tolerance)
    assert found.attrs["sketches"] == [SKETCH.describe()]


def test_micro_batches_are_rows_of_one_step(inputs, targets, path: Path) -> None:
    model = mlp()
    expected = expected_of(model, ["0.weight", "2.weight"], inputs[:12], targets[:12])
    pieces = [(inputs[i : i + 4], targets[i : i + 4]) for i in (0, 4, 8)]
    found = record(model, [pieces, pieces[:2]], path)
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)
    np.testing.assert_allclose(found["mean_projected"][0], expected.mean(axis=0), atol=1e-6)
    # The second step has fewer examples.
    assert found["projected"][1].isnull().all(("layer", "direction")).values.tolist() == [
        *[False] * 8,
        *[True] * 4,
    ]


def test_two_calls_before_one_backward_pass(inputs, targets, path: Path) -> None:
    def both(model: nn.Module, batch) -> Tensor:
        x, y = batch
        return (classified(model, (x[:3], y[:3])) + classified(model, (x[3:6], y[3:6]))) / 2

    model = mlp()
    expected = expected_of(model, ["0.weight", "2.weight"], inputs[:6], targets[:6])
    found = record(model, [[(inputs, targets)]], path, loss=both)
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, inputs, targets, path: Path) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(6, 5), mlp(), nn.Linear(3, 3)
            self.inner[0] = nn.Linear(5, 5)
            self.on = True

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = checkpoint(self.inner, x, use_reentrant=reentrant) if self.on else self.inner(x)
            return self.last(x)

    model = Checkpointed()
    plain = copy.deepcopy(model)
    plain.on = False
    layers = ["first.weight", "inner.0.weight", "inner.2.weight", "last.weight"]
    expected = expected_of(plain, layers, inputs[:6], targets[:6])
    found = record(model, [[(inputs[:3], targets[:3]), (inputs[3:6], targets[3:6])]], path)
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)


def test_only_the_training_pass_counts(inputs, targets, data, path: Path) -> None:
    """Evaluations, passes without a backward pass, and probes of the same session do not."""
    model = mlp()
    optimizer = sgd(model)
    expected = expected_of(model, ["0.weight", "2.weight"], inputs[:5], targets[:5])
    collectors = [
        NoiseProbe(every=1, batches=2, batch_size=4),
        LiveExamples(sketch=SKETCH),
        Examples(every=1, examples=3),
    ]
    with attach(
        model, optimizer, path, collectors=collectors, loss=classified, data=data, strict=True
    ):
        for _ in range(2):
            optimizer.zero_grad()
            with torch.no_grad():
                model(inputs)
            model(inputs)
            loss = classified(model, (inputs[:5], targets[:5]))
            model(inputs[:2])
            loss.backward()
            optimizer.step()
    found = tracelab.open(path).groups["live_examples"]
    assert found.attrs["n_data"] == 48
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)


def test_clipped_and_scaled_gradients_are_those_of_the_backward_pass(
    inputs, targets, path: Path
) -> None:
    model = mlp()
    optimizer = sgd(model)
    expected = expected_of(model, ["0.weight", "2.weight"], inputs, targets)
    with attach(model, optimizer, path, collectors=[LiveExamples(sketch=SKETCH)], strict=True):
        (4 * classified(model, (inputs, targets))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    found = tracelab.open(path).groups["live_examples"]
    np.testing.assert_allclose(found["projected"][0], 4 * expected, atol=8e-6)
    mean = found["mean_projected"].values[0]
    unclipped = 4 * expected.mean(axis=0)
    factor = np.sum(mean * unclipped) / np.sum(unclipped**2)
    assert 0 < factor < 0.01
    np.testing.assert_allclose(mean, factor * unclipped, atol=1e-5 * np.abs(mean).max())


def test_gradients_that_are_thrown_away_are_not_recorded(inputs, targets, path: Path) -> None:
    """As by a gradient scaler after an overflow."""
    model = mlp()
    optimizer = sgd(model)
    expected = expected_of(model, ["0.weight", "2.weight"], inputs[:5], targets[:5])
    with attach(model, optimizer, path, collectors=[LiveExamples(sketch=SKETCH)], strict=True):
        (classified(model, (inputs, targets)) * torch.inf).backward()
        optimizer.zero_grad()
        classified(model, (inputs[:5], targets[:5])).backward()
        optimizer.step()
    found = tracelab.open(path).groups["live_examples"]
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)


@pytest.mark.parametrize("schedule", [{"every": 3}, {"steps": [2, 5]}, {"start": 2, "stop": 4}])
def test_schedules(schedule, inputs, targets, path: Path, monkeypatch) -> None:
    """Between steps that are due, layers are not looked at."""
    from tracelab_collectors import live_examples

    calls = []
    inside = live_examples._Sides.inputs
    monkeypatch.setattr(
        live_examples._Sides, "inputs", lambda *args: (calls.append(args), inside(*args))[1]
    )
    model = mlp()
    found = record(model, [[(inputs, targets)]] * 7, path, **schedule)
    due = {3: [0, 3, 6], 2: [2, 3]}.get(schedule.get("every", schedule.get("start")), [2, 5])
    assert found["step"].values.tolist() == due
    # Until the first row all steps may be due.
    before = due[0]
    assert len(calls) == 2 * (before + len(due))


def test_autocast(inputs, targets, path: Path) -> None:
    def cast(model: nn.Module, batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch[0])
        return nn.functional.cross_entropy(outputs.float(), batch[1])

    model = mlp()
    expected = expected_of(model, ["0.weight", "2.weight"], inputs, targets)
    found = record(model, [[(inputs, targets)]], path, loss=cast)
    # Eight bits of mantissa, through two layers.
    assert np.abs(found["projected"][0] - expected).max() < 0.05 * np.abs(expected).max()


def test_what_can_be_recorded(path: Path) -> None:
    """Of a shared weight, a grouped convolution and others there are none; single ones stay."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.tokens.weight
            self.grouped = nn.Conv1d(4, 4, 1, groups=2)
            self.circular = nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")
            self.norm, self.fine = nn.LayerNorm(4), nn.Linear(4, 4)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.normed(self.norm(self.tokens(tokens)))
            x = self.circular(self.grouped(x.transpose(1, 2))).transpose(1, 2)
            return self.head(self.fine(x)).mean(1)

    model = Mixed()
    x, y = torch.randint(0, 7, (5, 6)), torch.randint(0, 7, (5,))
    expected = expected_of(model, ["fine.weight"], x, y)
    found = record(model, [[(x, y)]], path)
    assert found["layer"].values.tolist() == ["fine.weight"]
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)


def test_noise_of_any_batch_size_follows(inputs, targets, path: Path) -> None:
    record(mlp(), [[(inputs, targets)]], path)
    trace = tracelab.open(path)
    noise = trace.noise(group="live_examples", step=0, batch_size=8, batches=100)
    assert noise.sizes == {"batch": 100, "series": 12}
    assert np.isfinite(noise).all()


def test_training_is_bitwise_the_same(tmp_path: Path) -> None:
    states = []
    for path in (None, tmp_path / "run.zarr"):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(64, 3),
        ).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        x, y = torch.randn(40, 1, 4, 4), torch.randint(0, 3, (40,))
        session = path and attach(
            model, optimizer, path, collectors=[LiveExamples(sketch=SKETCH)], strict=True
        )
        for _ in range(6):
            chosen = torch.randint(0, 40, (8,))
            optimizer.zero_grad()
            classified(model, (x[chosen], y[chosen])).backward()
            optimizer.step()
        if session:
            session.detach()
        states.append(
            [
                *model.state_dict().values(),
                *(parameter.grad for parameter in model.parameters()),
                *(v for s in optimizer.state.values() for v in s.values()),
                torch.get_rng_state(),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert tracelab.open(path).groups["live_examples"].sizes["step"] == 6


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    return [
        len(optimizer._optimizer_step_post_hooks),
        *(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    ]


def test_hooks_are_removed_and_copies_are_silent(net, inputs, targets, path: Path) -> None:
    optimizer = sgd(net)
    before = hooks_of(net, optimizer)
    with attach(net, optimizer, path, collectors=[LiveExamples(sketch=SKETCH)], strict=True):
        assert hooks_of(net, optimizer) != before
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            classified(twin, (inputs[:2], targets[:2])).backward()
        classified(net, (inputs, targets)).backward()
        optimizer.step()
    assert hooks_of(net, optimizer) == before
    assert tracelab.open(path).groups["live_examples"].sizes["example"] == 48


def test_hooks_are_not_left_where_another_collector_is_refused(net, path: Path) -> None:
    optimizer = sgd(net)
    before = hooks_of(net, optimizer)
    with pytest.raises(UsageError, match="needs loss"):
        attach(net, optimizer, path, collectors=[LiveExamples(), NoiseProbe()])
    assert hooks_of(net, optimizer) == before


def stopped(model, optimizer, path, words, train, **options) -> None:
    """Recording stops with a warning; training goes on, and hooks are silent from then on."""
    session = attach(model, optimizer, path, collectors=[LiveExamples(**options)])
    with pytest.warns(IncompleteTraceWarning, match=f"(?s)'live_examples' stopped.*{words}"):
        train()
    train()
    session.detach()
    with tracelab.open(path) as trace:
        assert trace.state == "incomplete"


def test_a_compiled_model_is_noticed(inputs, targets, path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    compiled = torch.compile(model, backend="eager")

    def train() -> None:
        optimizer.zero_grad()
        classified(compiled, (inputs, targets)).backward()
        optimizer.step()

    stopped(compiled, optimizer, path, "a compiled model runs no hooks", train)


def test_a_closure_is_noticed(net, inputs, targets, path: Path) -> None:
    optimizer = sgd(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = classified(net, (inputs, targets))
        loss.backward()
        return loss

    stopped(
        net,
        optimizer,
        path,
        "given a closure computes gradients too late",
        lambda: optimizer.step(closure),
    )


def test_examples_that_do_not_add_up_are_noticed(path: Path) -> None:
    """An attention layer reads its output's weight without calling its module."""

    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.b(self.a(x)), self.b.weight)

    model = Used()
    optimizer = sgd(model)

    def train() -> None:
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()

    stopped(model, optimizer, path, "layer 'b.weight' do not add up to its gradient", train)
    other = path.with_name("other.zarr")
    with attach(model, optimizer, other, collectors=[LiveExamples(check=False)], strict=True):
        train()
    assert tracelab.open(other).groups["live_examples"].sizes["layer"] == 2


def test_layers_without_a_dimension_of_examples_are_noticed(path: Path) -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x.flatten(0, 1) if x.dim() > 2 else x)

    model = Flattened()
    optimizer = sgd(model)

    def train(*shape: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(*shape)).square().mean().backward()
        optimizer.step()

    stopped(
        model,
        optimizer,
        path,
        "layer 'a.weight' had 3 examples in a call of the model and layer 'b.weight' 15",
        lambda: train(3, 5, 4),
    )
    stopped(
        model,
        optimizer,
        path.with_name("b.zarr"),
        r"layer 'a.weight' returned the shape \(4,\), which has no dimension of examples",
        lambda: train(4),
    )


def test_steps_of_more_examples(net, inputs, targets, path: Path) -> None:
    optimizer = sgd(net)
    counts = iter([3, 5, 5])

    def train() -> None:
        count = next(counts)
        optimizer.zero_grad()
        classified(net, (inputs[:count], targets[:count])).backward()
        optimizer.step()

    session = attach(net, optimizer, path, collectors=[LiveExamples()])
    train()
    with pytest.warns(IncompleteTraceWarning, match=r"5 examples .* rows of 3.*\(examples=5\)"):
        train()
    session.detach()
    expected = expected_of(net, ["0.weight", "2.weight"], inputs[:4], targets[:4])
    found = record(net, [[(inputs[:6], targets[:6])]], path.with_name("b.zarr"), examples=4)
    assert found.sizes["example"] == 4
    np.testing.assert_allclose(found["projected"][0], expected, atol=2e-6)


def test_refusals(net, path: Path) -> None:
    def refuse(words: str, model=net, optimizers=None, **options) -> None:
        optimizers = optimizers or sgd(model)
        with pytest.raises(UsageError, match=words):
            attach(model, optimizers, path, collectors=[LiveExamples(**options)])
        assert not path.exists()

    refuse(r"must be tracelab.Kronecker\(p, q\); record Examples", sketch=tracelab.Project(4))
    refuse("LiveExamples' examples must be an integer of at least 1, got 0", examples=0)
    refuse("none is among 0.bias, 2.bias; record Examples", layers=".*bias")
    refuse("layers='x'.* leaves no layer", layers="x")
    halves = [torch.optim.SGD(net[i].parameters(), lr=0.1) for i in (0, 2)]
    refuse("records the steps of one optimizer, and there are 2", optimizers=halves)
    compiled = mlp()
    compiled[0].compile(backend="eager")
    refuse("a compiled model runs no hooks", model=compiled)
    layout = Layout(("a",), ((2, 3),), (0,), shards=((0, 12),))
    run = Run(layout, {}, net, torch.float32, torch.device("cpu"))
    with pytest.raises(UsageError, match="cannot record weights that are sharded"):
        LiveExamples().bind(run)
