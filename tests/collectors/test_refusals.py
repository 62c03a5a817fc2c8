"""What cannot be recorded is refused when attaching, in a sentence, and nothing is changed."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from proofs.states import bits, generators
from torch import Tensor, nn

from tracelab.errors import UsageError
from tracelab_collectors import Evaluation, Examples, Gradients, NoiseProbe, Statistics
from tracelab_collectors.attach import attach

PROBES = [NoiseProbe(batches=2, batch_size=8)]


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.fixture
def refuse(path: Path) -> Callable[..., None]:
    """Attach, and check the words; that nothing is hooked, started, drawn, moved or stored."""

    def refuse(words: str, model: nn.Module, optimizer: Any, **options: Any) -> None:
        before = [*bits(model.state_dict()), *generators()]
        files = sorted(path.rglob("*"))
        with pytest.raises(UsageError, match=words) as caught:
            attach(model, optimizer, path, **options)
        assert "\n" not in str(caught.value)
        assert [*bits(model.state_dict()), *generators()] == before
        assert not [each.name for each in threading.enumerate() if "tracelab" in each.name]
        assert sorted(path.rglob("*")) == files
        for each in optimizer if isinstance(optimizer, list) else [optimizer]:
            assert not getattr(each, "_optimizer_step_pre_hooks", None)
        assert all(not parameter._backward_hooks for parameter in model.parameters())

    return refuse


def test_parameters(net, optimizer, refuse) -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    refuse(
        "the model Linear has no parameter with requires_grad=True; attach after unfreezing",
        frozen,
        torch.optim.SGD(frozen.parameters()),
    )
    stranger = nn.Linear(4, 4)
    both = torch.optim.SGD([*net.parameters(), *stranger.parameters()])
    refuse(
        r"the optimizers train 2 parameters that the model Sequential does not have \(shapes "
        r"\(4, 4\), \(4,\)\); give a module that holds them all",
        net,
        both,
    )
    refuse(
        "the optimizer SGD trains none of the parameters of the model Sequential; give the "
        "optimizer that was made from model.parameters",
        net,
        torch.optim.SGD(stranger.parameters()),
    )


def test_optimizers(net, optimizer, refuse) -> None:
    refuse("optimizer must be a torch.optim.Optimizer or a list of them, got 'adam'", net, "adam")
    refuse("optimizer is empty; give at least one", net, [])
    refuse("got 2 of which some are the same; give each once", net, [optimizer, optimizer])
    other = torch.optim.SGD([net[0].weight])
    refuse(
        r"a parameter of shape \(5, 6\) is trained by two of the optimizers; record each",
        net,
        [optimizer, other],
    )


def test_a_model_that_is_none(net, optimizer, path: Path) -> None:
    with pytest.raises(UsageError, match=r"model must be a torch\.nn\.Module, got <generator"):
        attach(net.parameters(), optimizer, path)


def test_a_loss_that_is_a_vector(net, optimizer, data, refuse) -> None:
    refuse(
        r"loss\(model, batch\) must return the scalar mean loss, got a tensor of shape \(8,\); "
        "take its mean",
        net,
        optimizer,
        collectors=PROBES,
        data=data,
        loss=lambda model, batch: nn.functional.cross_entropy(
            model(batch[0]), batch[1], reduction="none"
        ),
    )


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite(value, net, optimizer, data, refuse) -> None:
    refuse(
        rf"loss\(model, batch\) is {value} on the first 8 examples of data, at the weights of now; "
        "no gradient can be measured, look at the loss and at the data",
        net,
        optimizer,
        collectors=PROBES,
        data=data,
        loss=lambda model, batch: model(batch[0]).square().mean() * float(value),
    )


def test_a_loss_that_fails(net, optimizer, data, refuse) -> None:
    refuse(
        r"loss\(model, batch\) fails on the first 8 examples of data: TypeError: .*; it is called "
        "with the model and a batch as data gives it",
        net,
        optimizer,
        collectors=PROBES,
        data=data,
        loss=lambda model: model,
    )


def test_a_loss_is_tried_without_a_mark(data, path: Path) -> None:
    """Batch normalization, dropout and a loss that draws: all as before attaching."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    called = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        called.append(len(batch[0]))
        return nn.functional.cross_entropy(model(batch[0] + torch.rand(())), batch[1])

    before = [*bits(model.state_dict()), *generators()]
    session = attach(model, optimizer, path, collectors=PROBES, loss=loss, data=data)
    assert [*bits(model.state_dict()), *generators()] == before
    # Once for all probes, and on four minibatches for how this one computes them.
    assert called == [8] * 5
    session.detach()
    # Nothing probes: nothing is tried.
    attach(
        model, optimizer, path, collectors=[Gradients()], loss=loss, data=data, overwrite=True
    ).detach()
    assert called == [8] * 5


def test_a_loss_of_one_value_an_example_is_for_evaluation(net, optimizer, data, path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    collectors = [Evaluation({"train": data})]
    attach(net, optimizer, path, collectors=collectors, loss=loss, data=data).detach()
    assert path.exists()


def test_examples_of_a_net_with_batch_normalization(data, cross_entropy, path: Path) -> None:
    """What is tried holds more than one example, which batch normalization needs."""
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collectors = [Examples(examples=4, mode="eval", every=50)]
    attach(net, optimizer, path, collectors=collectors, loss=cross_entropy, data=data).detach()


def test_data(net, optimizer, data, cross_entropy, refuse) -> None:
    def no(words: str, collector: Any = PROBES[0], **options: Any) -> None:
        options = {"loss": cross_entropy, "data": data} | options
        refuse(words, net, optimizer, collectors=[collector], **options)

    no("needs loss; give attach", loss=None)
    no("needs data; give attach", data=None)
    no(
        "'noise': batch_size=49 without replacement exceeds the 48 examples of data; lower it or "
        "set replacement=True",
        NoiseProbe(batch_size=49, replacement=False),
    )
    no("data holds no example; give a dataset that does", data=[])
    no("has no length; give data_size=", data=lambda indices: None)
    no("data must be a map-style dataset or a callable of indices, got", data=iter([1]))


def test_schedules_and_names(net, optimizer, refuse) -> None:
    for collector in (Gradients, Statistics, NoiseProbe):
        with pytest.raises(UsageError, match="every must be an integer of at least 1, got 0"):
            collector(every=0)
    refuse(
        "collector 'gradients': layers='conv.*', exclude=None leaves no layer; there are: "
        "0.weight, 0.bias, 2.weight, 2.bias",
        net,
        optimizer,
        collectors=[Gradients(layers="conv.*")],
    )
    refuse("attach: layers=None, exclude='.*' leaves no layer", net, optimizer, exclude=".*")


def test_a_store_of_another_model(net, optimizer, inputs, path: Path, refuse) -> None:
    with attach(net, optimizer, path):
        net(inputs).sum().backward()
        optimizer.step()
    other = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    refuse(
        r"records layer '0.weight' with shape \(5, 6\) and kind 'Linear', and now it has \(4, 6\) "
        "and 'Linear'; go on with the same model, or record into another trace",
        other,
        torch.optim.SGD(other.parameters(), lr=0.1),
        resume=True,
    )
    refuse("there is a trace at .*; choose another path or pass overwrite=True", net, optimizer)
