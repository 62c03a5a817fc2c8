"""The probe against full-batch gradients computed another way, and its own consistency."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import NoiseProbe, several
from tracelab_collectors.attach import attach

EVERYTHING = (tracelab.Project(16), tracelab.Full())


def probe(net, data, path, loss, steps=1, seed=0, **options) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"every": 1, "batches": 6, "batch_size": 8, "sketch": EVERYTHING} | options
    with attach(
        net, optimizer, path, collectors=[NoiseProbe(**options)], loss=loss, data=data, seed=seed
    ):
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()


def by_layer(flat: np.ndarray, net: nn.Module) -> list[np.ndarray]:
    sizes = np.cumsum([parameter.numel() for parameter in net.parameters()])[:-1]
    return np.split(flat, sizes, axis=-1)


@pytest.mark.parametrize("data_batch_size", [None, 7, 48, 1000])
def test_full_gradient(
    data_batch_size, net, inputs, targets, data, cross_entropy, path: Path, group
) -> None:
    """Pieces of any size, the last of them smaller, give the mean over all examples."""
    probe(net, data, path, cross_entropy, data_batch_size=data_batch_size)
    found = group("noise")
    exact = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    exact.load_state_dict(net.state_dict())
    loss = nn.functional.cross_entropy(exact(inputs.double()), targets)
    gradient = torch.autograd.grad(loss, list(exact.parameters()))
    flat = torch.cat([part.flatten() for part in gradient]).numpy()
    # Rounding of float32 forward and backward passes of a small network.
    np.testing.assert_allclose(found["mean_full"][0], flat, atol=3e-7)
    np.testing.assert_allclose(found["mean_loss"][0], loss.item(), rtol=1e-6)
    squared = [part.square().sum().item() for part in gradient]
    np.testing.assert_allclose(found["mean_squared_norm"][0], squared, rtol=1e-5)


@pytest.mark.parametrize("replacement", [False, True])
def test_rows_agree_with_each_other(
    replacement, net, data, cross_entropy, path: Path, group
) -> None:
    probe(net, data, path, cross_entropy, steps=2, replacement=replacement)
    found: xr.Dataset = group("noise")
    assert found.attrs["replacement"] is replacement
    assert (found.attrs["batch_size"], found.attrs["n_data"]) == (8, 48)
    assert found["projected"].dims == ("step", "batch", "layer", "direction")
    full, mean = (found[name].values.astype(np.float64) for name in ("full", "mean_full"))
    for layer, (g, m) in enumerate(zip(by_layer(full, net), by_layer(mean, net), strict=True)):
        np.testing.assert_allclose(found["squared_norm"][:, :, layer], (g**2).sum(-1), rtol=1e-6)
        deviation = ((g - m[:, None]) ** 2).sum(-1)
        np.testing.assert_allclose(found["squared_deviation"][:, :, layer], deviation, rtol=1e-5)
        np.testing.assert_allclose(found["mean_squared_norm"][:, layer], (m**2).sum(-1), rtol=1e-6)
    # The network's projection is the sum over layers; the core projects the layers one by one.
    offsets = np.cumsum([0] + [p.numel() for p in net.parameters()])
    for name, vectors in (("projected", full), ("mean_projected", mean)):
        expected = sum(
            tracelab.Project(16).project(part, int(offset))
            for part, offset in zip(by_layer(vectors, net), offsets, strict=False)
        )
        np.testing.assert_allclose(found[name].sum("layer"), expected, atol=1e-5)


def test_minibatches_are_gradients_of_drawn_examples(
    net, inputs, targets, cross_entropy, path: Path, group
) -> None:
    """Recomputed from the indices that a callable was asked for."""
    asked: list[Tensor] = []

    class Data:
        def __len__(self) -> int:
            return len(inputs)

        def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            asked.append(indices)
            return inputs[indices], targets[indices]

    probe(net, Data(), path, cross_entropy, full_gradient=False)
    found = group("noise")
    assert not {"mean_full", "squared_deviation", "mean_loss"} & set(found.data_vars)
    # The first batches are those that attach tries the loss on.
    tried, asked = asked[:-6], asked[-6:]
    assert torch.cat(tried).tolist() == [*range(32), *range(8)]
    for batch, indices in enumerate(asked):
        loss = cross_entropy(net, (inputs[indices], targets[indices]))
        gradient = torch.autograd.grad(loss, list(net.parameters()))
        flat = torch.cat([part.flatten() for part in gradient])
        np.testing.assert_allclose(found["full"][0, batch], flat, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["loss"][0, batch], loss.item(), rtol=1e-6)


def test_without_replacement_an_example_comes_once(net, data, cross_entropy, path, group) -> None:
    """A minibatch of all examples is the full batch: no noise is left."""
    probe(net, data, path, cross_entropy, batches=1, batch_size=48, replacement=False)
    found = group("noise")
    assert found.sizes["batch"] == 1
    np.testing.assert_allclose(found["full"][:, 0], found["mean_full"], atol=1e-7)
    assert (found["squared_deviation"] < 1e-12 * (1 + found["squared_norm"])).all()


def test_noise_has_the_covariance_of_the_examples(
    net, inputs, targets, data, cross_entropy, path: Path, group
) -> None:
    """E||g_b - g||^2 = trace(Sigma) / b with replacement, with the population covariance."""
    batches, size = 400, 4
    probe(net, data, path, cross_entropy, batches=batches, batch_size=size)
    examples = []
    for x, y in zip(inputs, targets, strict=True):
        loss = cross_entropy(net, (x[None], y[None]))
        parts = torch.autograd.grad(loss, list(net.parameters()))
        examples.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    trace = np.var(examples, axis=0).sum() / size
    drawn = group("noise")["squared_deviation"].sum("layer").values[0]
    # Five standard errors of the mean of independent minibatches.
    assert abs(drawn.mean() - trace) < 5 * drawn.std() / np.sqrt(batches)


def test_draws_depend_on_seed_and_step_alone(net, data, cross_entropy, tmp_path: Path) -> None:
    rows = {}
    for name, seed, steps in (("a", 0, 3), ("b", 0, 3), ("c", 1, 3)):
        torch.manual_seed(len(rows))
        probe(net, data, tmp_path / name, cross_entropy, steps=steps, seed=seed)
        with tracelab.open(tmp_path / name) as trace:
            rows[name] = trace.groups["noise"]["loss"].values
    np.testing.assert_array_equal(rows["a"], rows["b"])
    distinct = {tuple(row) for name in ("a", "c") for row in rows[name]}
    assert len(distinct) == 6


def test_nothing_of_the_model_moves(data, path: Path) -> None:
    """Train-mode buffers, gradients and user's tensor hooks do not notice the probe."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    fired = []
    model[0].weight.register_hook(lambda gradient: fired.append(gradient))
    buffers = [buffer.clone() for buffer in model.buffers()]
    probe(model, data, path, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert not fired
    assert all(not parameter.grad.any() for parameter in model.parameters())
    assert model.training


def test_probe_sees_moved_parameter_memory(net, data, cross_entropy, path: Path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collector = NoiseProbe(every=1, batches=2, batch_size=4, sketch=tracelab.Full())
    with attach(net, optimizer, path, collectors=[collector], loss=cross_entropy, data=data):
        optimizer.step()
        for parameter in net.parameters():
            parameter.data = torch.zeros_like(parameter)
        optimizer.step()
    # At zero weights only the last bias has a gradient.
    found = group("noise")["mean_squared_norm"].values
    assert (found[0] > 0).all()
    np.testing.assert_array_equal(found[1] > 0, [False, False, False, True])


def test_shared_and_unused_parameters(data, path: Path, group) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Model()
    probe(model, data, path, lambda m, b: m(b[0]).square().mean(), sketch=tracelab.Full())
    found = group("noise")
    names = found["layer"].values.tolist()
    assert names == ["a.weight", "a.bias", "b.bias", "unused.weight", "unused.bias"]
    loss = model(data.tensors[0]).square().mean()
    expected = torch.autograd.grad(loss, [model.a.weight, model.a.bias, model.b.bias])
    squared = [part.square().sum().item() for part in expected]
    np.testing.assert_allclose(found["mean_squared_norm"][0], [*squared, 0, 0], rtol=1e-5)


def test_moments_are_those_of_all_minibatches(net, data, cross_entropy, path, group) -> None:
    """Two passes in float64 over the minibatch gradients that the same probe recorded."""
    probe(net, data, path, cross_entropy, steps=2, batches=50, moments="coordinates")
    found = group("noise")
    assert found["variance"].dims == found["batch_mean"].dims == ("step", "weight")
    gradients = found["full"].values.astype(np.float64)
    variance = gradients.var(axis=1, ddof=1)
    # Each of the 50 updates rounds a mean of at most the largest gradient by 2^-24.
    error = 50 * 2.0**-24 * np.abs(gradients).max()
    np.testing.assert_allclose(found["batch_mean"], gradients.mean(axis=1), atol=error)
    np.testing.assert_allclose(found["variance"], variance, rtol=50 * 2.0**-23)
    for layer, part in enumerate(by_layer(variance, net)):
        rtol = 50 * 2.0**-22
        np.testing.assert_allclose(found["variance_sum"][:, layer], part.sum(-1), rtol=rtol)
        squares = (part**2).sum(-1)
        np.testing.assert_allclose(found["variance_square_sum"][:, layer], squares, rtol=rtol)


@pytest.mark.parametrize("moments", [None, "layers"])
def test_moments_as_far_as_asked_for(moments, net, data, cross_entropy, tmp_path: Path) -> None:
    for name, each in (("a", moments), ("b", "coordinates")):
        path = tmp_path / name
        probe(net, data, path, cross_entropy, moments=each, full_gradient=False)
    with tracelab.open(tmp_path / "a") as one, tracelab.open(tmp_path / "b") as two:
        some, every = one.groups["noise"].load(), two.groups["noise"].load()
    assert not {"variance", "batch_mean"} & set(some.data_vars)
    assert ("variance_sum" in some) is (moments is not None)
    xr.testing.assert_equal(some, every[list(some.data_vars)])


def test_moments_of_some_layers(net, data, cross_entropy, path: Path) -> None:
    probe(net, data, path, cross_entropy, layers="2.*", moments="coordinates")
    with tracelab.open(path) as trace:
        whole = trace.groups["noise"]["variance"].values
        assert whole.shape == (1, 18)
        bias = trace.select("noise", layer="2.bias")
        np.testing.assert_array_equal(bias["variance"], whole[:, 15:])
        turned = trace.select("noise", layer=["2.bias", "2.weight"])
        assert turned["layer"].values.tolist() == ["2.bias", "2.weight"]
        np.testing.assert_array_equal(turned["variance"], np.roll(whole, 3, axis=1))


def test_a_loss_that_fails_leaves_every_tensor_in_its_place(data, path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    held = [*model.parameters(), *model.buffers()]

    def loss(net, batch):
        net(batch[0])
        raise ZeroDivisionError("no luck")

    with pytest.raises(UsageError, match="ZeroDivisionError: no luck"):
        probe(model, data, path, loss)
    now = [*model.parameters(), *model.buffers()]
    assert all(a is b for a, b in zip(held, now, strict=True))


def test_parameters_and_buffers_of_the_loss_itself(data, path: Path, group) -> None:
    """A loss that is a module: its weights are frozen and its buffers stay, as the model's do."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, model: nn.Module, batch) -> Tensor:
            self.calls = self.calls + 1
            return self.scale * model(batch[0]).mean()

    net, loss = nn.Linear(6, 1), Scaled()
    probe(net, data, path, loss)
    assert loss.calls == 0
    mean = 2 * data.tensors[0].mean(0)
    np.testing.assert_allclose(group("noise")["mean_full"][0], [*mean, 2.0], rtol=1e-5, atol=1e-6)


def test_a_recurrent_network(path: Path, group) -> None:
    """Its modules keep lists of their weights beside the parameters."""
    net = nn.GRU(3, 2, batch_first=True)
    x = torch.randn(20, 4, 3)
    probe(net, torch.utils.data.TensorDataset(x), path, lambda m, b: m(b[0])[0].square().mean())
    loss = net(x)[0].square().mean()
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    np.testing.assert_allclose(group("noise")["mean_full"][0], flat, atol=1e-6)


class Items(torch.utils.data.Dataset):
    """Dictionaries of values, as many datasets give them."""

    def __init__(self, data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        x, y = self.data[index]
        return {"x": x, "y": int(y), "pair": (x, [y])}


class Batched(Items):
    def __getitems__(self, indices: list[int]) -> list:
        return [self[index] for index in indices]


@pytest.mark.parametrize("kind", ["plain", "items", "batched", "callable"])
def test_every_kind_of_data_gives_the_same(
    kind, net, inputs, targets, data, cross_entropy, tmp_path: Path
) -> None:
    def of_items(model: nn.Module, batch: dict) -> Tensor:
        other = (batch["pair"][0] - batch["x"]).abs().sum()
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"]) + other

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    given, loss, size = {
        "plain": (data, cross_entropy, None),
        "items": (Items(data), of_items, None),
        "batched": (Batched(data), of_items, None),
        "callable": (lambda index: (inputs[index], targets[index]), cross_entropy, 48),
    }[kind]
    found = []
    for name, (one, its_loss, n) in {
        "a": (data, cross_entropy, None),
        "b": (given, loss, size),
    }.items():
        with attach(
            net,
            optimizer,
            tmp_path / name,
            collectors=[NoiseProbe(every=1, batches=3, batch_size=8)],
            loss=its_loss,
            data=one,
            data_size=n,
        ):
            optimizer.step()
        with tracelab.open(tmp_path / name) as trace:
            found.append(trace.groups["noise"].load())
    xr.testing.assert_identical(found[0], found[1])


def probed(path: Path) -> xr.Dataset:
    with tracelab.open(path) as trace:
        return trace.groups["noise"].load()


@pytest.mark.parametrize("replacement", [False, True])
def test_one_by_one_and_at_once(
    replacement, net, data, cross_entropy, tmp_path: Path, monkeypatch
) -> None:
    """The same minibatches and the same gradients, up to the order in which products are summed."""
    options = {"batches": 70, "steps": 2, "replacement": replacement, "moments": "coordinates"}
    probe(net, data, tmp_path / "at once", cross_entropy, **options)
    monkeypatch.setattr(several, "SMALL", 0)
    probe(net, data, tmp_path / "one by one", cross_entropy, **options)
    at_once, one_by_one = probed(tmp_path / "at once"), probed(tmp_path / "one by one")
    assert (at_once.attrs.pop("method"), one_by_one.attrs.pop("method")) == ("vmap", "loop")
    xr.testing.assert_allclose(at_once, one_by_one, rtol=1e-5, atol=1e-6)


def test_dropout_draws_for_each_minibatch(data, tmp_path: Path) -> None:
    """At once and one by one, the noise of masks on equal minibatches has the same size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 3))

    def loss(m: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(m(batch[0]), batch[1])

    def looped(m: nn.Module, batch) -> Tensor:
        assert torch.equal(batch[0], batch[0])
        return loss(m, batch)

    spread = {}
    for name, each in (("at once", loss), ("loop", looped)):
        probe(
            model,
            data,
            tmp_path / name,
            each,
            batches=400,
            batch_size=48,
            replacement=False,
            full_gradient=False,
            sketch=tracelab.Full(),
        )
        found = probed(tmp_path / name)
        expected = "vmap, randomness different" if name == "at once" else "loop"
        assert found.attrs["method"] == expected
        noise = found["full"].values[0].astype(np.float64)
        noise -= noise.mean(0)
        spread[name] = (noise**2).sum(-1)
        # Independent masks: the mean of noise of different minibatches' products is 0.
        gram = noise @ noise.T
        off = gram[np.triu_indices(400, 1)]
        assert abs(off.mean() + gram.trace() / 400 / 399) < 5 * off.std() / np.sqrt(400)
    one, other = spread["at once"], spread["loop"]
    error = np.sqrt((one.var() + other.var()) / 400)
    assert abs(one.mean() - other.mean()) < 5 * error


def test_what_cannot_be_done_at_once_is_done_one_by_one(data, path: Path, tmp_path: Path) -> None:
    """Batch normalisation in training, draws of Python's, state: as one gradient after the other.

    What a network keeps of a pass stays an ordinary tensor, which training goes on with.
    """

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.mean = nn.Linear(6, 3), torch.zeros(6)

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.inner(x - self.mean)

    def loss(m: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(m(batch[0]), batch[1])

    def jittered(m: nn.Module, batch) -> Tensor:
        return loss(m, (batch[0] + random.gauss(0, 1), batch[1]))

    kept: list[Tensor] = []

    def keeping(m: nn.Module, batch) -> Tensor:
        kept.append(loss(m, batch))
        return kept[-1]

    plain = nn.Linear(6, 3)
    normalised = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    cases = [(normalised, loss), (plain, jittered), (Keeping(), loss), (plain, keeping)]
    for index, (model, each) in enumerate(cases):
        probe(model, data, tmp_path / str(index), each)
        found = probed(tmp_path / str(index))
        assert found.attrs["method"] == "loop"
        assert np.isfinite(found["full"]).all()
    assert torch.isfinite(cases[2][0].mean).all()
    assert torch.isfinite(torch.stack(kept)).all()


def test_layers_of_a_probe(net, data, cross_entropy, path: Path, group) -> None:
    probe(net, data, path, cross_entropy, layers=".*weight", sketch=tracelab.Sample(4))
    found = group("noise")
    assert found["layer"].values.tolist() == ["0.weight", "2.weight"]
    assert found["coordinate_layer"].values.tolist() == [0] * 4 + [1] * 4


def test_refusals(net, data, cross_entropy, path: Path) -> None:
    def refuse(words: str, *, loss=cross_entropy, data=data, size=None, **options) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with pytest.raises(UsageError, match=words):
            attach(
                net,
                optimizer,
                path,
                collectors=[NoiseProbe(**options)],
                loss=loss,
                data=data,
                data_size=size,
            )
        assert not path.exists()
        assert not optimizer._optimizer_step_pre_hooks

    refuse("'noise' measures gradients by itself and needs loss", loss=None)
    refuse(r"needs data; give attach\(..., data=...\)", data=None)
    refuse("without replacement exceeds the 48 examples", batch_size=49, replacement=False)
    refuse("has no length; give data_size=", data=lambda indices: indices)
    refuse("must be a map-style dataset or a callable", data=42)
    refuse("data holds no example", data=torch.utils.data.TensorDataset(torch.zeros(0, 6)))
    refuse("NoiseProbe's batches must be an integer of at least 1, got 0", batches=0)
    refuse(
        "NoiseProbe's data_batch_size must be an integer of at least 1, got 0", data_batch_size=0
    )

    refuse("NoiseProbe's moments must be 'layers', 'coordinates' or None, got True", moments=True)
    refuse("moments need at least 2 batches, of which", moments="layers", batches=1)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data)

    refuse("an iterable cannot be drawn from at random", data=Stream())
