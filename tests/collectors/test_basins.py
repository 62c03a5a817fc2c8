"""Descents by the flow of the gradient, and the rise between two ends."""

import itertools

import numpy as np
import torch
from torch import Tensor

from tracelab_collectors.basins import descend, rise


def test_descents_keep_to_their_side() -> None:
    """The flow of a double well ends in the minimum of the side where it begins."""

    def gradients(rows: Tensor) -> tuple[Tensor, Tensor]:
        return ((rows**2 - 1) ** 2 / 4).sum(1), rows**3 - rows

    start = torch.tensor([[-3.0], [-1.1], [-0.01], [0.02], [0.7], [5.0]], dtype=torch.float64)
    for rate in (1e-3, 0.1, 10.0):
        ends, losses = descend(gradients, start, rate, 120)
        torch.testing.assert_close(ends, start.sign(), rtol=0, atol=1e-4)
        assert (losses < 1e-7).all()
    rises = rise(lambda rows: gradients(rows)[0], ends[:1], ends, losses.clamp(min=losses[0]))
    # Its 8th of 15 points is the middle, where the well is a quarter deep.
    torch.testing.assert_close(rises[3:], torch.full((3,), 0.25).double(), rtol=0, atol=1e-4)
    assert (rises[:3] <= 1e-7).all()


def test_descent_in_a_narrow_valley_only_falls() -> None:
    scale = torch.tensor([100.0, 1.0], dtype=torch.float64)

    def gradients(rows: Tensor) -> tuple[Tensor, Tensor]:
        return (scale * rows**2).sum(1) / 2, scale * rows

    start = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    found = [descend(gradients, start, 0.5, steps)[1].item() for steps in (0, 10, 50, 400)]
    assert found[0] == 50.5
    assert all(b < a for a, b in itertools.pairwise(found))
    # Steps are at least 1/400 once they are short enough, as 100 times that bends by a half.
    assert found[3] <= 0.5 * np.exp(-2 * (400 / 2 - 20) / 400) + 1e-9
