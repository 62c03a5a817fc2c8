"""Running moments and distances against two passes in float64, on both roads to them."""

import numpy as np
import pytest
import torch

from tracelab_collectors.deviations import Deviations
from tracelab_collectors.layout import CHUNK, Layout

SHAPES = ((3, 5), (CHUNK,), (40, 100), (1,))
LAYOUT = Layout(tuple("abcd"), SHAPES, (0, 15, 271, 4271))
CPU = torch.device("cpu")


@pytest.fixture(params=["kernel", "device"], autouse=True)
def device(request, monkeypatch) -> bool:
    """Take either way: the CPU's kernel, or the torch operations of a device."""
    if request.param == "device":
        monkeypatch.setattr(Deviations, "_take_on_host", Deviations._take_on_device)
    return bool(request.param == "device")


def vectors(count: int, dtype: torch.dtype, mean: float) -> list[torch.Tensor]:
    """Return flat vectors whose coordinates have all scales from 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(0)
    scales = [10.0 ** torch.empty(shape).uniform_(-3, 3, generator=generator) for shape in SHAPES]
    return [
        LAYOUT.flat(
            [scale * (mean + torch.randn(scale.shape, generator=generator)) for scale in scales],
            dtype=dtype,
            device=CPU,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_variance(mean: float, dtype: torch.dtype) -> None:
    count = 200
    drawn = vectors(count, dtype, mean)
    deviations = Deviations(LAYOUT, None, moments=True, dtype=dtype, device=CPU)
    for each in drawn:
        deviations.take(each[None])
    exact = np.stack([each.double().numpy() for each in drawn])
    ulp = torch.finfo(dtype).eps
    # Each update rounds the mean by at most one unit of the largest value there was, and the sum
    # of squares by one of its own; a mean wrong by d changes a square (x - m)^2 by 2 d |x - m|.
    largest = np.abs(exact).max(axis=0)
    error = ulp * largest
    np.testing.assert_array_less(
        np.abs(deviations.mean.numpy() - exact.mean(axis=0)), count * error + 1e-300
    )
    variance = exact.var(axis=0, ddof=1)
    bound = count * ulp * variance + 4 * error * np.sqrt(variance * count)
    np.testing.assert_array_less(np.abs(deviations.variance().numpy() - variance), bound + 1e-300)
    found = deviations.summaries()
    for layer, (start, numel) in enumerate(zip(LAYOUT.starts, LAYOUT.numel, strict=False)):
        mine = deviations.variance()[start : start + numel].double().numpy()
        np.testing.assert_allclose(found["variance_sum"][layer], mine.sum(), rtol=1e-12)
        np.testing.assert_allclose(found["variance_square_sum"][layer], (mine**2).sum(), rtol=1e-12)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_squared_norms_and_distances(moments: bool, centred: bool, device: bool) -> None:
    first, second = vectors(2, torch.float32, 0.0)
    centre = first if centred else None
    deviations = Deviations(LAYOUT, centre, moments=moments, dtype=torch.float32, device=CPU)
    (norm,), (distance,) = deviations.take(second[None])
    there, here = first.double() * centred, second.double()
    for layer, (start, numel) in enumerate(zip(LAYOUT.starts, LAYOUT.numel, strict=False)):
        part = slice(start, start + numel)
        exact = here[part].square().sum().item()
        np.testing.assert_allclose(norm[layer], exact, rtol=1e-12)
        exact = (here - there)[part].square().sum().item()
        # On a device the difference is rounded to float32 before it is squared.
        np.testing.assert_allclose(distance[layer], exact, rtol=2**-22 if device else 1e-12)


def test_the_variance_of_equal_vectors_is_zero() -> None:
    """Exactly, which a difference of two large sums would not be."""
    vector = vectors(1, torch.float32, 1e6)[0]
    deviations = Deviations(LAYOUT, None, moments=True, dtype=torch.float32, device=CPU)
    for _ in range(7):
        deviations.take(vector[None])
    assert (deviations.variance() == 0).all()
    assert torch.equal(deviations.mean, vector)
