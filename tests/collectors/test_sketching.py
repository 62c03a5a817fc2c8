"""Both ways to a projection, a kernel and torch operations, against the core's NumPy."""

import numpy as np
import pytest
import torch

from tracelab.sketch import Full, Project, Sample
from tracelab_collectors.layout import Layout
from tracelab_collectors.sketching import device_fold, sketcher

CPU = torch.device("cpu")
SHAPES = ((3, 5), (7,), (300, 40), (1,), (257,))
OFFSETS = tuple(np.cumsum([0, *(int(np.prod(shape)) for shape in SHAPES[:-1])]).tolist())
LAYOUT = Layout(("a", "b", "c", "d", "e"), SHAPES, OFFSETS)


def rows_of(dtype: torch.dtype) -> tuple[torch.Tensor, list[np.ndarray]]:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(4, *shape, generator=generator, dtype=dtype) for shape in SHAPES]
    rows = [
        LAYOUT.flat([layer[row] for layer in layers], dtype=dtype, device=CPU) for row in range(4)
    ]
    return torch.stack(rows), [layer.flatten(1).double().numpy() for layer in layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 16, 17, 256, 1024])
@pytest.mark.parametrize("way", ["kernel", "device"])
def test_projection_is_that_of_the_core(way: str, k: int, dtype: torch.dtype) -> None:
    sketch = Project(k, seed=9)
    rows, layers = rows_of(dtype)
    if way == "kernel":
        found = sketcher([sketch], LAYOUT, dtype=dtype, device=CPU)(rows)["projected"]
    else:
        signs = [
            torch.from_numpy(sketch.signs(offset, numel)).view(shape)
            for offset, numel, shape in zip(LAYOUT.offsets, LAYOUT.numel, SHAPES, strict=True)
        ]
        flat = LAYOUT.flat(signs, dtype=dtype, device=CPU)
        found = device_fold(sketch, LAYOUT, flat, rows)
    assert found.shape == (4, len(SHAPES), k)
    assert found.dtype == dtype
    expected = [
        sketch.project(layer, offset) for layer, offset in zip(layers, OFFSETS, strict=True)
    ]
    # At most 12,000 summands of size one fall into a bucket.
    atol = 1e-3 if dtype == torch.float32 and way == "device" else 1e-4
    atol = 1e-11 if dtype == torch.float64 else atol
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=atol)


def test_signs_and_coordinates_are_the_same_bits() -> None:
    """A unit vector's projection is its sign; a sample of positions is the positions."""
    sketch = Project(64, seed=3)
    project = sketcher([sketch], LAYOUT, dtype=torch.float32, device=CPU)
    for layer, (start, offset, numel) in enumerate(
        zip(LAYOUT.starts, LAYOUT.offsets, LAYOUT.numel, strict=False)
    ):
        chosen = np.unique(np.linspace(0, numel - 1, 40).astype(int))
        rows = torch.zeros(chosen.size, LAYOUT.size)
        rows[torch.arange(chosen.size), torch.from_numpy(start + chosen)] = 1.0
        found = project(rows)["projected"][:, layer]
        bucket = chosen % sketch.period % sketch.k
        np.testing.assert_array_equal(
            found[np.arange(chosen.size), bucket], sketch.signs(offset, numel)[chosen]
        )
        assert found.abs().sum() == chosen.size


@pytest.mark.parametrize("sketch", [Sample(6, seed=2), Full()])
def test_coordinates_are_those_of_the_core(sketch: Sample | Full) -> None:
    rows, layers = rows_of(torch.float32)
    (found,) = sketcher([sketch], LAYOUT, dtype=torch.float32, device=CPU)(rows).values()
    expected = [
        layer if isinstance(sketch, Full) else layer[:, sketch.indices(name, layer.shape[1])]
        for name, layer in zip(LAYOUT.names, layers, strict=True)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))


def test_padding_is_not_part_of_any_layer() -> None:
    rows, _ = rows_of(torch.float32)
    apply = sketcher([Project(16), Full()], LAYOUT, dtype=torch.float32, device=CPU)
    before = apply(rows)
    for start, end, numel in zip(LAYOUT.starts, LAYOUT.starts[1:], LAYOUT.numel, strict=False):
        rows[:, start + numel : end] = torch.nan
    after = apply(rows)
    assert all(torch.equal(before[name], after[name]) for name in before)
