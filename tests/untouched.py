"""What a probe must leave as it was: weights, buffers, modes, generators."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Check that the block moves neither a network nor a generator of torch or NumPy."""
    plain = copy.deepcopy(net)
    modes = [module.training for module in net.modules()]

    def drawn() -> tuple[torch.Tensor, np.ndarray]:
        return torch.rand(3), np.random.rand(3)  # noqa: NPY002

    def seeded() -> None:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002

    seeded()
    yield
    after = drawn()
    seeded()
    alone = drawn()
    assert torch.equal(after[0], alone[0])
    assert (after[1] == alone[1]).all()
    for (name, a), b in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [module.training for module in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())
