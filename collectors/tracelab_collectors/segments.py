"""What a network does along the segments between pairs of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["along", "relu_signs"]


@contextmanager
def relu_signs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Gather, while the block runs, which units of each ReLU module are on, one row an input.

    A list of tensors of bool, shape (input, unit), in the order of calls; hooks are removed behind
    the block. ReLU that is called as a function passes unseen.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((output > 0).flatten(1))

    handles = [
        module.register_forward_hook(keep) for module in model.modules() if type(module) is nn.ReLU
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def along(
    scores: Callable[[Tensor], Tensor],
    model: nn.Module,
    begin: Tensor,
    end: Tensor,
    points: int,
) -> dict[str, float]:
    r"""Return what changes along a segment, as seen at `points` + 1 equidistant points.

    Parameters
    ----------
    scores : callable
        Inputs to scores, shape (input, class).
    model : nn.Module
        Whose ReLU modules are watched meanwhile.
    begin, end : Tensor
        Two inputs, without a dimension of examples.
    points : int
        Pieces.

    Returns
    -------
    dict of str to float
        ``class_changes``: neighbours of which the largest score is another class's;
        ``unit_changes``: units of ReLU modules that go on or off between neighbours, NaN if there
        is no such module; both from below, since what changes back in between is not seen.
        ``length``, and ``slope``: the largest :math:`\|f(x') - f(x)\| / \|x' - x\|` of neighbours,
        from below the Lipschitz constant of the scores; NaN where both ends are the same.
    """
    weight = torch.linspace(0, 1, points + 1, dtype=begin.dtype, device=begin.device)
    weight = weight.view(-1, *[1] * begin.dim())
    with torch.no_grad(), relu_signs(model) as signs:
        values = scores(begin + weight * (end - begin)).double()
    classes = values.argmax(1)
    length = float((end - begin).double().norm())
    steepest = float(values.diff(dim=0).norm(dim=1).max())
    changed = [(each[1:] != each[:-1]).sum() for each in signs]
    return {
        "class_changes": float((classes[1:] != classes[:-1]).sum()),
        "unit_changes": float(sum(changed)) if changed else torch.nan,
        "length": length,
        "slope": steepest * points / length if length else torch.nan,
    }
