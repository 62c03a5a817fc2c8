"""What recording relies on in PyTorch's hooks, so that a release that changes it is noticed."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def backward(net: nn.Module, inputs: Tensor) -> None:
    net(inputs).square().mean().backward()


def test_step_hooks_run_before_and_after(net, optimizer, inputs) -> None:
    order = []
    optimizer.register_step_pre_hook(lambda *_: order.append(net[0].weight.detach().clone()))
    optimizer.register_step_post_hook(lambda *_: order.append(net[0].weight.detach().clone()))
    backward(net, inputs)
    optimizer.step()
    assert not torch.equal(order[0], order[1])
    assert torch.equal(order[1], net[0].weight)


def test_pre_hook_may_replace_the_arguments(optimizer) -> None:
    called = []

    def hook(own, args, kwargs):
        assert args[0] is own
        return (own, lambda: called.append(True)), kwargs

    optimizer.register_step_pre_hook(hook)
    optimizer.step()
    assert called == [True]


def test_pre_hooks_are_an_ordered_dictionary_by_handle(optimizer) -> None:
    handles = [optimizer.register_step_pre_hook(lambda *_: None) for _ in range(2)]
    optimizer._optimizer_step_pre_hooks.move_to_end(handles[0].id)
    assert list(optimizer._optimizer_step_pre_hooks) == [handles[1].id, handles[0].id]


def test_nesterov_foreach_changes_the_gradient_in_the_step(net, inputs) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    for _ in range(2):
        optimizer.zero_grad()
        backward(net, inputs)
        before = net[0].weight.grad.clone()
        optimizer.step()
    assert not torch.equal(net[0].weight.grad, before)


def test_post_accumulate_hook_fires_for_every_pass_with_the_running_sum(net, inputs) -> None:
    seen = []
    weight = net[0].weight
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    backward(net, inputs)
    backward(net, inputs)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], 2 * seen[0])


def test_autograd_grad_fires_tensor_hooks_but_no_post_accumulate_hook(net, inputs) -> None:
    tensor_hook, accumulated = [], []
    weight = net[0].weight
    weight.register_hook(tensor_hook.append)
    weight.register_post_accumulate_grad_hook(accumulated.append)
    torch.autograd.grad(net(inputs).square().mean(), [weight])
    assert (len(tensor_hook), len(accumulated)) == (1, 0)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_and_the_pre_hook(fused: bool, net, inputs) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    (true,) = torch.autograd.grad(net(inputs).square().mean(), [net[0].weight])
    seen = []

    def hook(own, args, kwargs) -> None:
        scale, found = (getattr(own, name, None) for name in ("grad_scale", "found_inf"))
        seen.append((net[0].weight.grad.clone(), scale, found))

    optimizer.register_step_pre_hook(hook)
    for factor in (1.0, float("inf")):
        optimizer.zero_grad()
        scaler.scale(net(inputs).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(seen) == (2 if fused else 1)
    gradient, scale, found = seen[0]
    if fused:
        assert float(scale) == 8.0
        assert torch.equal(gradient, 8 * true)
        assert float(found) == 0.0
        assert float(seen[1][2]) == 1.0
    else:
        assert (scale, found) == (None, None)
        assert torch.equal(gradient, true)


def test_copies_and_pickles_carry_no_hooks(net, optimizer, inputs) -> None:
    fired = []
    optimizer.register_step_pre_hook(lambda *_: fired.append(1))
    net[0].weight.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    for model, stepper in (
        copy.deepcopy((net, optimizer)),
        pickle.loads(pickle.dumps((net, copy.deepcopy(optimizer)))),
    ):
        backward(model, inputs)
        stepper.step()
    assert not fired


def test_functional_call_leaves_buffers_and_parameters_alone(inputs) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    before = [tensor.clone() for tensor in model.state_dict().values()]
    own = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    own |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss = torch.func.functional_call(model, own, (inputs,)).square().mean()
    torch.autograd.grad(loss, [own["0.weight"]])
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model[0].weight.grad is None


def test_optimizers_state_dict_holds_no_hooks(net, optimizer) -> None:
    optimizer.register_step_pre_hook(lambda *_: None)
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
