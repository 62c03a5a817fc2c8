"""Evaluations against the same numbers computed at once, and what they must leave alone."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab_collectors.attach import attach
from tracelab_collectors.evaluation import Evaluation, misclassified


def each_loss(model: nn.Module, batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def record(net, path: Path, collector: Evaluation, *, steps: int = 1, loss=None, **options) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with attach(net, optimizer, path, collectors=[collector], loss=loss, strict=True, **options):
        for _ in range(steps):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()


def exact(net: nn.Module, data: TensorDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the 0-1 error of every example, in float64."""
    twin = copy.deepcopy(net).double().eval()
    x, y = data.tensors
    with torch.no_grad():
        scores = twin(x.double())
        losses = nn.functional.cross_entropy(scores, y, reduction="none")
    return losses.numpy(), (scores.argmax(1) != y).double().numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 48, 1000])
def test_one_value_an_example(batch_size: int, net, data, path: Path, group) -> None:
    """Means and standard errors are those of all examples at once, whatever the batches."""
    other = TensorDataset(torch.randn(20, 6), torch.randint(0, 3, (20,)))
    losses = {name: exact(net, each) for name, each in (("train", data), ("test", other))}
    sets = {"train": data, "test": other}
    record(
        net,
        path,
        Evaluation(sets, batch_size=batch_size, loss=each_loss, error=misclassified, final=False),
    )
    found = group("evaluation")
    assert found["step"].values.tolist() == [0]
    assert found.attrs["sets"] == {"train": {"n_examples": 48}, "test": {"n_examples": 20}}
    for name, (loss, error) in losses.items():
        for what, values in (("loss", loss), ("error", error)):
            # Forward passes of float32.
            np.testing.assert_allclose(found[f"{name}_{what}"][0], values.mean(), rtol=1e-6)
            expected = values.std(ddof=1) / np.sqrt(values.size)
            np.testing.assert_allclose(found[f"{name}_{what}_se"][0], expected, rtol=1e-5)
    assert found["train_loss"].attrs["units"] == "loss"
    assert "20 examples" in found["test_error"].attrs["long_name"]


def test_a_mean_of_each_batch(net, data, cross_entropy, path: Path, group) -> None:
    """The session's loss; the last batch is smaller and weighs less."""
    losses, _ = exact(net, data)
    record(net, path, Evaluation({"train": data}, batch_size=10, final=False), loss=cross_entropy)
    found = group("evaluation")
    assert set(found.data_vars) == {"train_loss", "train_loss_se"}
    np.testing.assert_allclose(found["train_loss"][0], losses.mean(), rtol=1e-6)
    # The examples in the order in which they were put into batches.
    seed = int(tracelab.sketch.splitmix64(0, 0, 1)[0]) >> 1
    order = torch.randperm(48, generator=torch.Generator().manual_seed(seed)).numpy()
    parts = [losses[order[begin : begin + 10]] for begin in range(0, 48, 10)]
    square = sum(len(part) * (part.mean() - losses.mean()) ** 2 for part in parts) / 4
    np.testing.assert_allclose(found["train_loss_se"][0], np.sqrt(square / 48), rtol=1e-4)


def test_the_standard_error_of_batch_means_is_that_of_examples(net, path: Path, group) -> None:
    """Of data sorted by class too, since batches are put together at random."""
    x, y = torch.randn(4000, 6), torch.arange(4000) * 3 // 4000
    data = TensorDataset(x, y)
    losses, _ = exact(net, data)
    mean = Evaluation(
        {"sorted": data},
        batch_size=10,
        loss=lambda model, batch: each_loss(model, batch).mean(),
        final=False,
    )
    record(net, path, mean)
    found = float(group("evaluation")["sorted_loss_se"][0])
    # A standard deviation of 400 batch means has a relative standard error of 1 / sqrt(798).
    assert abs(found / (losses.std(ddof=1) / np.sqrt(4000)) - 1) < 4 / np.sqrt(798)


def test_the_data_of_the_session(net, inputs, targets, path: Path, group) -> None:
    """Also a callable of a size that the session was told."""
    losses, _ = exact(net, TensorDataset(inputs, targets))
    record(
        net,
        path,
        Evaluation(loss=each_loss, final=False),
        data=lambda indices: (inputs[indices], targets[indices]),
        data_size=40,
    )
    found = group("evaluation")
    assert set(found.data_vars) == {"data_loss", "data_loss_se"}
    assert found.attrs["sets"] == {"data": {"n_examples": 40}}
    np.testing.assert_allclose(found["data_loss"][0], losses[:40].mean(), rtol=1e-6)


def test_one_batch_has_no_standard_error(net, data, cross_entropy, path: Path, group) -> None:
    record(net, path, Evaluation({"train": data}, final=False), loss=cross_entropy)
    found = group("evaluation")
    assert np.isnan(found["train_loss_se"]).all()
    assert np.isfinite(found["train_loss"]).all()


def test_some_examples_are_the_same_at_every_step(net, data, path: Path, group) -> None:
    seen = []

    def loss(model, batch):
        seen.append(batch[0].clone())
        return each_loss(model, batch)

    collector = Evaluation({"some": data}, every=1, examples=5, loss=loss, final=False)
    record(net, path, collector, steps=3)
    # The first before training.
    assert [len(batch) for batch in seen] == [5] * 4
    assert torch.equal(seen[1], seen[3])
    assert len(torch.unique(seen[0], dim=0)) == 5
    assert group("evaluation").attrs["sets"] == {"some": {"n_examples": 5}}


def test_the_weights_of_a_step_and_of_the_end(net, data, path: Path, group) -> None:
    before = exact(net, data)[0].mean()
    record(net, path, Evaluation({"train": data}, every=2, loss=each_loss), steps=3)
    found = group("evaluation")
    assert found["step"].values.tolist() == [0, 2, 3]
    np.testing.assert_allclose(found["train_loss"][0], before, rtol=1e-6)
    np.testing.assert_allclose(found["train_loss"][2], exact(net, data)[0].mean(), rtol=1e-6)


class Peculiar(nn.Module):
    """Modules in several modes, buffers that every forward pass moves, and modes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).eval()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)
        self.register_buffer("passes", torch.zeros(()))
        self.turned = 0

    def train(self, mode: bool = True):
        self.turned += 1
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return self.head(self.drop(self.norm(self.frozen(x))))


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def test_modes_are_put_back_one_by_one(data, path: Path, group) -> None:
    model = Peculiar()
    before, buffers = modes(model), [each.clone() for each in model.buffers()]
    assert before["norm"]
    assert not before["frozen"]
    during = []

    def loss(net, batch):
        during.append(modes(net))
        return each_loss(net, batch)

    record(model, path, Evaluation({"train": data}, batch_size=16, loss=loss, final=False))
    assert [any(each.values()) for each in during] == [False] * 4
    assert modes(model) == before
    assert model.turned == 0
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert group("evaluation").sizes["step"] == 1


def test_a_loss_that_fails_ends_the_collector_alone(data, path: Path, attrs) -> None:
    """Modes, places of parameters, buffers and generators are put back also then."""
    model = Peculiar()
    before, parameters = modes(model), list(model.parameters())
    buffers = list(model.buffers())

    lucky = [True]

    def loss(net, batch):
        if lucky:
            lucky.pop()
            return each_loss(net, batch)
        net(batch[0])
        torch.rand(3)
        raise ZeroDivisionError("no luck")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    collectors = [Evaluation({"train": data}, every=1, loss=loss)]
    state = torch.get_rng_state()
    with attach(model, optimizer, path, collectors=collectors):
        with pytest.warns(IncompleteTraceWarning, match="'evaluation' stopped at step 1: ZeroDiv"):
            optimizer.step()
        optimizer.step()
    assert modes(model) == before
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert attrs()["state"] == "incomplete"


def test_nothing_changes(data, tmp_path: Path) -> None:
    """Weights, buffers, modes and every generator are bitwise what they are without it."""

    def loss(model, batch):
        random.random(), np.random.rand(), torch.rand(2)  # noqa: NPY002
        return each_loss(model, batch)

    states = []
    for name in (None, "a"):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        model = Peculiar()
        optimizer = torch.optim.Adam(model.parameters())
        session = None
        if name is not None:
            collector = Evaluation(
                {"train": data}, every=2, batch_size=9, loss=loss, error=misclassified
            )
            session = attach(model, optimizer, tmp_path / name, collectors=[collector], strict=True)
        for _ in range(5):
            optimizer.zero_grad()
            loss(model, data[torch.randint(0, 48, (8,))]).mean().backward()
            optimizer.step()
        if session is not None:
            session.detach()
        generators = [random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        states.append((generators, [t.tolist() for t in tensors], torch.get_rng_state().tolist()))
    assert states[0] == states[1]


def test_misclassified() -> None:
    scores = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0]])
    found = misclassified(nn.Identity(), (scores, torch.tensor([1, 1, 0])))
    assert found.tolist() == [0, 1, 0]
    words = torch.tensor([[[0.0, 2.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]]])
    found = misclassified(nn.Identity(), (words, torch.tensor([[1, 1, 1, 1]])))
    assert found.tolist() == [0.25]


@pytest.mark.parametrize(
    ("scores", "classes"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 2), torch.zeros(4)),
        (torch.zeros(4, 2, 3), torch.zeros(4, 2, dtype=torch.int64)),
    ],
)
def test_misclassified_needs_classes(scores: Tensor, classes: Tensor) -> None:
    with pytest.raises(UsageError, match=r"needs scores of shape .* give Evaluation an error= of"):
        misclassified(nn.Identity(), (scores, classes))


@pytest.mark.parametrize("values", [lambda m, b: torch.zeros(2, 2), lambda m, b: 1.0])
def test_values_that_are_neither(values, net, data, path: Path) -> None:
    with pytest.raises(UsageError, match=r"'?loss\(model, batch\) must return the mean of the"):
        record(net, path, Evaluation({"train": data}, loss=values))


def test_a_loss_that_fails_at_once_is_refused(net, data, path: Path) -> None:
    with pytest.raises(UsageError, match="'evaluation' fails on the first batch of a set: Attrib"):
        record(net, path, Evaluation({"train": data}, loss=lambda model, batch: batch.inputs))
    assert not path.exists()


def test_refusals(net, data, path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs sets by name, such as \{'test': dataset\}, got"):
        Evaluation(data)
    with pytest.raises(UsageError, match="needs sets by name"):
        Evaluation({})
    with pytest.raises(UsageError, match="a set cannot be called 'my set'"):
        Evaluation({"my set": data})
    with pytest.raises(UsageError, match="Evaluation's batch_size must be an integer of at least"):
        Evaluation({"test": data}, batch_size=0)
    with pytest.raises(UsageError, match="Evaluation's examples must be an integer of at least 1"):
        Evaluation({"test": data}, examples=0)
    with pytest.raises(UsageError, match=r"needs a loss; give Evaluation\(loss=...\) or attach\("):
        record(net, path, Evaluation({"test": data}))
    with pytest.raises(UsageError, match="must be a map-style dataset or a callable"):
        record(net, path, Evaluation({"test": 42}, loss=each_loss))
    with pytest.raises(UsageError, match=r"needs sets of examples; give Evaluation\(\{'test'"):
        record(net, path, Evaluation(loss=each_loss))
    assert not path.exists()
