"""Per-example gradients against single backward passes, Opacus, and true minibatches."""

import copy
import os
import random
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab_collectors import Examples, several
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Run
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.layout import Layout

EVERYTHING = (tracelab.Project(16), tracelab.Full())


def record(net, data, path, loss, steps=1, seed=0, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"every": 1, "examples": None, "sketch": EVERYTHING} | options
    with attach(
        net, optimizer, path, collectors=[Examples(**options)], loss=loss, data=data, seed=seed
    ):
        for _ in range(steps):
            optimizer.step()
    with tracelab.open(path) as trace:
        return trace.groups["examples"].load()


def one_by_one(model, data, loss, indices=None):
    """Return gradients (example, weight) by single backward passes, and the losses."""
    gradients, losses = [], []
    for index in range(len(data)) if indices is None else indices:
        value = loss(model, default_collate([data[int(index)]]))
        parts = torch.autograd.grad(
            value, list(model.parameters()), allow_unused=True, materialize_grads=True
        )
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
        losses.append(value.item())
    return torch.stack(gradients).numpy(), np.array(losses)


class Tied(nn.Module):
    """Token and position embeddings, attention, layer norm, an output tied to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 8), nn.Embedding(5, 8)
        self.norm, self.qkv, self.unused = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(2, 2)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x)


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def classified(model: nn.Module, batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def next_tokens(model: nn.Module, batch) -> Tensor:
    tokens = batch[0]
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def problem(kind: str, dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "tied":
        return Tied().to(dtype), TensorDataset(torch.randint(0, 7, (11, 6))), next_tokens
    targets = torch.randint(0, 3, (11,))
    if kind == "conv":
        model = conv_net().to(dtype)
        model(torch.randn(30, 2, 7, 7, dtype=dtype))
        return model, TensorDataset(torch.randn(11, 2, 7, 7, dtype=dtype), targets), classified
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return model, TensorDataset(torch.randn(11, 6, dtype=dtype), targets), classified


def unvectorised(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise RuntimeError("no vmap here")

    monkeypatch.setattr(FrozenLoss, "gradients", refuse)


@pytest.mark.parametrize(("kind", "method"), [("mlp", "vmap"), ("conv", "loop"), ("tied", "vmap")])
def test_large_convolutions_are_done_one_by_one(kind, method, path: Path, monkeypatch) -> None:
    monkeypatch.setattr(several, "SMALL", 0)
    model, data, loss = problem(kind, torch.float32)
    assert record(model, data, path, loss, mode="eval").attrs["method"] == method


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["mlp", "conv", "tied"])
def test_they_are_the_gradients_of_single_backward_passes(
    kind, dtype, method, path: Path, monkeypatch
) -> None:
    model, data, loss = problem(kind, dtype)
    if method == "loop":
        unvectorised(monkeypatch)
    found = record(model, data, path, loss, mode="eval", chunk=4)
    assert found.attrs["method"] == method
    model.eval()
    expected, losses = one_by_one(model, data, loss)
    # Sketches are stored as float32; norms and losses show the precision of the gradients.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found["full"][0] - expected) <= 1e-6 * scale).all()
    sizes = np.cumsum([parameter.numel() for parameter in model.parameters()])[:-1]
    squared = np.stack([(p**2).sum(-1) for p in np.split(expected, sizes, axis=-1)], axis=-1)
    np.testing.assert_allclose(
        found["squared_norm"][0], squared, rtol=10 * tolerance, atol=tolerance * squared.max()
    )
    np.testing.assert_allclose(found["loss"][0], losses, rtol=tolerance)
    np.testing.assert_array_equal(found["index"][0], np.arange(11))
    mean = expected.mean(axis=0)
    np.testing.assert_allclose(found["mean_full"][0], mean, atol=1e-6 * scale.max())
    np.testing.assert_allclose(found["mean_loss"][0], losses.mean(), rtol=10 * tolerance)
    deviation = np.stack(
        [(p**2).sum(-1) for p in np.split(expected - mean, sizes, axis=-1)], axis=-1
    )
    np.testing.assert_allclose(
        found["squared_deviation"][0], deviation, rtol=1e-5, atol=10 * tolerance * squared.max()
    )
    # The core projects the layers one by one.
    offsets, parts = [0, *sizes], np.split(expected, sizes, axis=-1)
    for layer, (part, offset) in enumerate(zip(parts, offsets, strict=True)):
        projected = tracelab.Project(16).project(part, int(offset))
        np.testing.assert_allclose(
            found["projected"][0, :, layer], projected, atol=1e-5 * scale.max()
        )


# Opacus' hooks on modules whose inputs need no gradient, as the first layer's.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_they_are_those_of_opacus(kind, path: Path) -> None:
    # Where CI runs, a missing reference is a failure.
    opacus = import_module("opacus") if "CI" in os.environ else pytest.importorskip("opacus")
    model, data, loss = problem(kind)
    if kind == "conv":
        # Opacus takes no batch normalisation.
        model[1] = nn.GroupNorm(1, 4)
    found = record(model, data, path, loss)
    theirs = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="mean")
    loss(theirs, data[:]).backward()
    expected = torch.cat([p.grad_sample.flatten(1) for p in theirs.parameters()], 1).numpy()
    np.testing.assert_allclose(found["full"][0], expected, atol=1e-6 * np.abs(expected).max())


def test_examples_are_drawn_without_replacement_anew_at_each_step(
    net, data, cross_entropy, tmp_path: Path
) -> None:
    rows = {
        name: record(net, data, tmp_path / name, cross_entropy, steps=3, seed=seed, examples=20)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    for found in rows.values():
        for drawn in found["index"].values:
            assert len(set(drawn)) == 20
            assert 0 <= drawn.min() <= drawn.max() < 48
    a, b, c = (found["index"].values for found in rows.values())
    np.testing.assert_array_equal(a, b)
    assert len({tuple(drawn) for drawn in (*a, *c)}) == 6
    expected, _ = one_by_one(net, data, cross_entropy, a[1])
    np.testing.assert_allclose(rows["a"]["full"][1], expected, atol=1e-6)
    assert rows["a"].attrs["n_data"] == 48


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_chunks_change_nothing(chunk, net, data, cross_entropy, path: Path) -> None:
    found = record(net, data, path, cross_entropy, examples=11, chunk=chunk)
    expected, _ = one_by_one(net, data, cross_entropy, found["index"].values[0])
    np.testing.assert_allclose(found["full"][0], expected, atol=1e-6)


def test_only_some_layers_and_no_full_gradient(net, data, cross_entropy, path: Path) -> None:
    found = record(net, data, path, cross_entropy, layers=".*weight", full_gradient=False)
    assert found["layer"].values.tolist() == ["0.weight", "2.weight"]
    expected, _ = one_by_one(net, data, cross_entropy)
    kept = np.r_[0:30, 35:50]
    np.testing.assert_allclose(found["full"][0], expected[:, kept], atol=1e-6)
    absent = {"mean_full", "mean_projected", "mean_loss", "squared_deviation", "mean_squared_norm"}
    assert not absent & set(found.data_vars)


def test_dropout_is_drawn_for_each_example_by_itself(data, path: Path) -> None:
    """The gradient of a bias behind dropout tells the mask; masks must differ within a chunk."""
    model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5))
    found = record(model, data, path, lambda m, b: m(b[0]).mean(), layers="0.bias", chunk=48)
    assert found.attrs["method"] == "vmap, randomness different"
    masks = found["full"].values[0] != 0
    np.testing.assert_allclose(found["full"].values[0][masks], 2 / 40, rtol=1e-6)
    assert len(np.unique(masks, axis=0)) == 48
    # Five standard deviations of a proportion of 48 * 40 draws.
    assert abs(masks.mean() - 0.5) < 5 * 0.5 / np.sqrt(48 * 40)
    evaluated = record(
        model, data, path.with_name("b.zarr"), lambda m, b: m(b[0]).mean(), mode="eval"
    )
    assert evaluated.attrs["method"] == "vmap"
    assert (evaluated["full"] != 0).all()


def test_models_that_cannot_be_vectorised_are_taken_one_by_one(data, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.mean() > 0 else self.b(x)

    def jittered(model: nn.Module, batch) -> Tensor:
        return classified(model, batch) * (1 + random.random())

    net = Branching()
    # Every batch of one takes its own branch, and a batch of several another.
    found = record(net, data, tmp_path / "a", classified, mean_over_examples=False)
    assert found.attrs["method"] == "loop"
    expected, _ = one_by_one(net, data, classified)
    np.testing.assert_allclose(found["full"][0], expected, atol=1e-6)
    found = record(nn.Linear(6, 3), data, tmp_path / "b", jittered)
    assert found.attrs["method"] == "loop"


def test_a_wrong_vectorised_gradient_is_noticed(
    net, data, cross_entropy, path: Path, monkeypatch
) -> None:
    right = FrozenLoss.gradients

    def wrong(self, batches, **options):
        losses, gradients = right(self, batches, **options)
        return losses, (gradients[0] * 1.01, *gradients[1:])

    monkeypatch.setattr(FrozenLoss, "gradients", wrong)
    assert record(net, data, path, cross_entropy).attrs["method"] == "loop"


class Texts(torch.utils.data.Dataset):
    """Examples of several lengths, beside what is no tensor."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.tokens = [torch.randint(0, 7, (4 + index % 3,)) for index in range(9)]

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict:
        name = "all" if self.shared else f"text {index}"
        return {"tokens": self.tokens[index], "name": name}


@pytest.mark.parametrize("shared", [False, True])
def test_examples_of_several_shapes(shared, path: Path) -> None:
    def of_texts(model: nn.Module, batch: dict) -> Tensor:
        assert isinstance(batch["name"][0], str)
        return next_tokens(model, [batch["tokens"]])

    model, data = Tied(), Texts(shared)
    options = {"full_gradient": False, "mean_over_examples": False}
    found = record(model, data, path, of_texts, **options)
    expected, _ = one_by_one(model, data, of_texts)
    np.testing.assert_allclose(found["full"][0], expected, atol=1e-6)


def test_shapes_that_come_late_fall_back(path: Path) -> None:
    """The four examples that are tried first are of one shape, the others are not."""
    model, data = Tied(), Texts(shared=True)
    for index in (0, 2, 5, 8):
        data.tokens[index] = torch.randint(0, 7, (5,))

    def of_texts(model: nn.Module, batch: dict) -> Tensor:
        return next_tokens(model, [batch["tokens"]])

    found = record(model, data, path, of_texts, full_gradient=False)
    assert found.attrs["method"] == "vmap"
    expected, _ = one_by_one(model, data, of_texts)
    np.testing.assert_allclose(found["full"][0], expected, atol=1e-6)


def noisy_loss(model: nn.Module, batch) -> Tensor:
    """Draws from all three generators, as augmentation does."""
    shift = random.random() + np.random.random() + torch.rand(())  # noqa: NPY002
    return nn.functional.cross_entropy(model(batch[0] + 0.1 * shift), batch[1])


def state_of(value: object) -> list[bytes]:
    """Return every tensor and number of a nested state, as bytes."""
    if isinstance(value, Tensor):
        return [value.detach().numpy().tobytes()]
    if isinstance(value, dict):
        return [found for key in value for found in [repr(key).encode(), *state_of(value[key])]]
    if isinstance(value, (list, tuple)):
        return [found for each in value for found in state_of(each)]
    return [repr(value).encode()]


@pytest.mark.parametrize("make", ["conv, noisy", "conv, eval", "dropout"])
def test_training_is_bitwise_the_same(make: str, tmp_path: Path) -> None:
    states = []
    for path in (None, tmp_path / "run.zarr"):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        if make == "dropout":
            model = nn.Sequential(nn.Flatten(), nn.Linear(98, 8), nn.Dropout(), nn.Linear(8, 3))
        else:
            model = conv_net()
        model[-1].register_buffer("counter", torch.zeros(2))
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(24, 2, 7, 7, generator=generator)
        data = TensorDataset(pixels, torch.randint(0, 3, (24,), generator=generator))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        loss = noisy_loss if make == "conv, noisy" else classified
        collector = Examples(
            every=2, examples=7, chunk=3, mode=None if make == "dropout" else "eval"
        )
        session = path and attach(
            model, optimizer, path, collectors=[collector], loss=loss, data=data, strict=True
        )
        for _ in range(5):
            chosen = torch.randint(0, 24, (8,))
            optimizer.zero_grad()
            loss(model, data[chosen]).backward()
            optimizer.step()
        if session:
            session.detach()
        states.append(
            state_of(
                [
                    model.state_dict(),
                    [module.training for module in model.modules()],
                    [parameter.grad for parameter in model.parameters()],
                    [parameter.requires_grad for parameter in model.parameters()],
                    optimizer.state_dict(),
                    torch.get_rng_state(),
                    list(np.random.get_state()[1]),  # noqa: NPY002
                    random.getstate(),
                ]
            )
        )
    assert states[0] == states[1]
    assert tracelab.open(path).groups["examples"].sizes["step"] == 3


def test_eval_mode_leaves_every_module_in_its_own_mode(data, path: Path) -> None:
    """Also where the loss fails in the middle."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    model[2].eval()
    modes = [module.training for module in model.modules()]
    calls = []

    def failing(m: nn.Module, batch) -> Tensor:
        calls.append(m.training)
        # Behind the rehearsal and the pass over the data.
        if len(calls) > 7:
            raise ZeroDivisionError
        return classified(m, batch)

    with pytest.warns(IncompleteTraceWarning, match="collector 'examples' stopped.*ZeroDivision"):
        record_failing(model, data, path, failing)
    assert not any(calls)
    assert [module.training for module in model.modules()] == modes


def record_failing(model, data, path, loss, **options) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    collector = Examples(every=1, examples=None, mode="eval", **options)
    with attach(model, optimizer, path, collectors=[collector], loss=loss, data=data):
        optimizer.step()


def test_a_model_that_goes_into_training_mode_later_is_noticed(data, path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    collector = Examples(every=1, examples=4)
    with attach(model, optimizer, path, collectors=[collector], loss=classified, data=data):
        optimizer.step()
        model.train()
        with pytest.warns(IncompleteTraceWarning, match="'1' is in training mode"):
            optimizer.step()
    assert tracelab.open(path).groups["examples"].sizes["step"] == 1


def test_losses_and_gradients_that_are_not_finite_are_recorded(net, data, path: Path) -> None:
    data.tensors[0][5] = torch.nan
    found = record(net, data, path, classified)
    missing = found["loss"].isnull().values[0]
    assert missing.nonzero()[0].tolist() == [5]
    assert found["full"].isnull().values[0][5].all()
    assert np.isfinite(np.delete(found["full"].values[0], 5, axis=0)).all()


@pytest.mark.parametrize(("size", "replacement"), [(6, True), (6, False), (30, False)])
def test_drawn_noise_is_that_of_true_minibatches(
    size, replacement, net, data, cross_entropy, path: Path
) -> None:
    """Variances along random directions, and the trace, of drawn and of real minibatches.

    The exact covariance is Sigma/b, times (n - b)/(n - 1) without replacement.
    """
    record(net, data, path, cross_entropy)
    batches, n = 3000, 48
    drawn = tracelab.open(path).noise(
        step=0, group="examples", batch_size=size, batches=batches, replacement=replacement
    )
    examples, _ = one_by_one(net, data, cross_entropy)
    factor = 1 / size if replacement else (n - size) / (n - 1) / size
    exact = np.cov(examples.T, bias=True) * factor
    generator = torch.Generator().manual_seed(0)
    real = []
    for _ in range(300):
        if replacement:
            chosen = torch.randint(n, (size,), generator=generator)
        else:
            chosen = torch.randperm(n, generator=generator)[:size]
        parts = torch.autograd.grad(cross_entropy(net, data[chosen]), list(net.parameters()))
        real.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    directions = np.random.default_rng(0).standard_normal((examples.shape[1], 8))
    for noise in (drawn.values, np.array(real) - examples.mean(axis=0)):
        squares = np.column_stack([(noise @ directions) ** 2, (noise**2).sum(axis=1)])
        expected = [*(u @ exact @ u for u in directions.T), np.trace(exact)]
        # Noise is centred exactly, so mean squares are unbiased: five of their standard errors.
        error = squares.std(axis=0) / np.sqrt(len(squares))
        assert (np.abs(squares.mean(axis=0) - expected) < 5 * error).all()


def test_sharded_weights_are_refused(net, data, cross_entropy) -> None:
    layout = Layout(("a",), ((2, 3),), (0,), shards=((0, 12),))
    run = Run(layout, {}, net, torch.float32, torch.device("cpu"), 0, cross_entropy, data)
    with pytest.raises(UsageError, match="weights that are sharded over several; leave it out"):
        Examples().bind(run)


def test_refusals(net, data, cross_entropy, path: Path) -> None:
    def refuse(words: str, *, model=net, loss=cross_entropy, data=data, **options) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(UsageError, match=words):
            attach(
                model,
                optimizer,
                path,
                collectors=[Examples(**{"examples": 4, **options})],
                loss=loss,
                data=data,
            )
        assert not path.exists()
        assert not optimizer._optimizer_step_pre_hooks

    refuse("'examples' measures gradients by itself and needs loss", loss=None)
    refuse(r"needs data; give attach\(..., data=...\)", data=None)
    refuse("examples=49 exceeds the 48 examples of data; lower it, or give examples", examples=49)
    refuse("Examples' examples must be an integer of at least 1, got 0", examples=0)
    refuse("Examples' chunk must be an integer of at least 1, got 0", chunk=0)
    refuse("Examples' data_batch_size must be an integer of at least 1, got 0", data_batch_size=0)
    refuse("Examples' mode must be None or 'eval', got 'train'", mode="train")

    def unreduced(model: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def summed(model: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def squeezed(model: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).squeeze(0), batch[1])

    def for_one(model: nn.Module, batch) -> Tensor:
        assert len(batch[0]) == 1
        return cross_entropy(model, batch)

    refuse(r"must return the scalar mean loss, got a tensor of shape \(4,\)", loss=unreduced)
    refuse("a batch of 4 examples is .* and the mean of their losses .*; return the", loss=summed)
    refuse("fails on a batch of one example, .*; make it take one", loss=squeezed)
    refuse("fails on a batch of 4 examples, AssertionError", loss=for_one)
    refuse(
        "loss.model, batch. is nan on example 0 of data, at the weights of now",
        loss=lambda model, batch: cross_entropy(model, batch) * torch.nan,
    )
    refuse(
        "batch normalisation '1' is in training mode.*Examples\\(mode='eval'\\)",
        model=nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    )
    refuse(
        "batch normalisation '1' keeps no running statistics",
        model=nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)
        ),
        mode="eval",
    )
