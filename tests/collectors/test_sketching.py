"""Both ways to a sketch, kernels and torch operations, against the core's NumPy; and shards."""

import numpy as np
import pytest
import torch

from tracelab.errors import UsageError
from tracelab.sketch import Full, Histogram, Project, Sample
from tracelab_collectors import MicroBatches, NoiseProbe, sketching
from tracelab_collectors.layout import Layout
from tracelab_collectors.sketching import device_counter, device_fold, lack, sketcher

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


def by_device(sketch: Project | Histogram, layout: Layout, rows: torch.Tensor) -> torch.Tensor:
    """What another device than the CPU computes, on the CPU."""
    if isinstance(sketch, Histogram):
        return device_counter(sketch, layout, CPU)(rows)
    signs = [
        torch.from_numpy(sketch.signs(offset, numel)).view(shape)
        for offset, numel, shape in zip(layout.offsets, layout.numel, layout.shapes, strict=True)
    ]
    return device_fold(sketch, layout, layout.flat(signs, dtype=rows.dtype, device=CPU), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 16, 17, 256, 1024])
@pytest.mark.parametrize("way", ["kernel", "device"])
def test_projection_is_that_of_the_core(way: str, k: int, dtype: torch.dtype) -> None:
    sketch = Project(k, seed=9)
    rows, layers = rows_of(dtype)
    if way == "kernel":
        found = sketcher([sketch], LAYOUT, dtype=dtype, device=CPU)(rows)["projected"]
    else:
        found = by_device(sketch, LAYOUT, rows)
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
    sketches = [Project(16), Full(), Histogram()]
    apply = sketcher(sketches, LAYOUT, dtype=torch.float32, device=CPU)
    before = apply(rows)
    for start, end, numel in zip(LAYOUT.starts, LAYOUT.starts[1:], LAYOUT.numel, strict=False):
        rows[:, start + numel : end] = torch.nan
    after = apply(rows)
    assert all(torch.equal(before[name], after[name]) for name in before)


ODD = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-42, 1.1754942e-38, 3.4e38, -256.0]


def odd_rows(dtype: torch.dtype) -> torch.Tensor:
    """Rows with everything in them that a float can be; padding stays zero."""
    rows, _ = rows_of(dtype)
    rows *= torch.tensor([1e-12, 1e-5, 1.0, 1e20], dtype=dtype)[:, None]
    bits = torch.randint(0, 2**31, (40,), generator=torch.Generator().manual_seed(1))
    special = torch.cat([torch.tensor(ODD), (bits * 2 + 1).to(torch.int32).view(torch.float32)])
    special = special.to(dtype)
    for start, numel in zip(LAYOUT.starts, LAYOUT.numel, strict=False):
        count = min(len(special), numel)
        rows[1:, start : start + count] = special[:count]
    if dtype == torch.float64:
        rows[3, 5], rows[3, 6] = -1e300, 1e-300
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sketch", [Histogram(), Histogram(0), Histogram(10, (-3, 4))])
@pytest.mark.parametrize("way", ["kernel", "device"])
def test_counts_are_those_of_the_core(
    way: str, sketch: Histogram, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = odd_rows(dtype)
    # Smaller than a layer, so that counts are gathered over several.
    monkeypatch.setattr(sketching, "PIECE", 1024)
    if way == "kernel":
        found = sketcher([sketch], LAYOUT, dtype=dtype, device=CPU)(rows)["histogram"]
    else:
        found = by_device(sketch, LAYOUT, rows)
    assert found.dtype == torch.uint32
    assert found.shape == (4, len(SHAPES), sketch.bins)
    for layer, (start, numel) in enumerate(zip(LAYOUT.starts, LAYOUT.numel, strict=False)):
        expected = sketch.count(rows[:, start : start + numel].numpy())
        np.testing.assert_array_equal(found[:, layer].numpy(), expected)


def shards_of(layout: Layout, rng: np.random.Generator, ranks: int) -> list[Layout]:
    """Cut every layer along its first dimension at random places; some parts are empty."""
    found = []
    cuts = [np.sort(rng.integers(0, shape[0] + 1, ranks - 1)) for shape in layout.shapes]
    for rank in range(ranks):
        shapes, shards = [], []
        for places, shape, numel in zip(cuts, layout.shapes, layout.numel, strict=True):
            bounds = [0, *places.tolist(), shape[0]]
            shapes.append((bounds[rank + 1] - bounds[rank], *shape[1:]))
            shards.append((bounds[rank] * (numel // shape[0]), numel))
        offsets = [offset + start for offset, (start, _) in zip(OFFSETS, shards, strict=True)]
        found.append(Layout(layout.names, tuple(shapes), tuple(offsets), tuple(shards)))
    return found


@pytest.mark.parametrize("way", ["kernel", "device"])
@pytest.mark.parametrize("seed", range(8))
def test_shards_add_up(way: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    project, count, sample = Project(int(rng.integers(1, 70)), seed=5), Histogram(), Sample(9)
    rows = odd_rows(torch.float64)
    rows[:, :] = torch.where(rows.isfinite() & (rows.abs() < 1e6), rows, 0.5 * (rows == rows))
    layers = [
        rows[:, start : start + numel].view(-1, *shape)
        for start, numel, shape in zip(LAYOUT.starts, LAYOUT.numel, SHAPES, strict=False)
    ]

    def sketches(layout: Layout, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        found = sketcher([project, sample, count], layout, dtype=rows.dtype, device=CPU)(rows)
        if way == "device":
            found["projected"] = by_device(project, layout, rows)
            found["histogram"] = by_device(count, layout, rows)
        return found

    whole = sketches(LAYOUT, rows)
    projected = torch.zeros_like(whole["projected"])
    histogram = np.zeros(whole["histogram"].shape, dtype=np.int64)
    coordinates: dict[tuple[int, int], np.ndarray] = {}
    for shard in shards_of(LAYOUT, rng, ranks=3):
        places = [
            start // (numel // shape[0])
            for (start, numel), shape in zip(shard.shards or (), SHAPES, strict=True)
        ]
        parts = [
            layer[:, place : place + shape[0]]
            for layer, place, shape in zip(layers, places, shard.shapes, strict=True)
        ]
        own = torch.stack(
            [
                shard.flat([part[row] for part in parts], dtype=rows.dtype, device=CPU)
                for row in range(len(rows))
            ]
        )
        found = sketches(shard, own)
        projected += found["projected"]
        histogram = count.merge(histogram, found["histogram"].numpy())
        owners, index = shard.coordinates([sample])
        for column, place in enumerate(zip(owners.tolist(), index.tolist(), strict=True)):
            assert place not in coordinates
            coordinates[place] = found["sampled"][:, column].numpy()
    # Sums of the same numbers in another order: 12,000 of them below 1e6.
    np.testing.assert_allclose(projected, whole["projected"], rtol=0, atol=1e-16 * 12_000 * 1e6)
    np.testing.assert_array_equal(histogram, whole["histogram"].numpy())
    owners, index = LAYOUT.coordinates([sample])
    assert sorted(coordinates) == list(zip(owners.tolist(), index.tolist(), strict=True))
    union = np.stack([coordinates[place] for place in sorted(coordinates)], axis=1)
    np.testing.assert_array_equal(union, whole["sampled"])


def test_the_network_is_the_sum_of_its_layers() -> None:
    """Of its histogram exactly; of its projection, since signs go by the index in the network."""
    rows, layers = rows_of(torch.float64)
    project, count = Project(31, seed=2), Histogram(3)
    found = sketcher([project, count], LAYOUT, dtype=torch.float64, device=CPU)(rows)
    network = np.concatenate(layers, axis=1)
    np.testing.assert_array_equal(found["histogram"].numpy().sum(1), count.count(network))
    signed = network * project.signs(0, network.shape[1])
    expected = np.zeros((4, project.k))
    for offset, numel in zip(OFFSETS, LAYOUT.numel, strict=True):
        buckets = np.arange(numel) % project.period % project.k
        np.add.at(expected.T, buckets, signed[:, offset : offset + numel].T)
    np.testing.assert_allclose(found["projected"].sum(1), expected, rtol=0, atol=1e-11)


def test_what_is_missing_is_marked() -> None:
    rows, _ = rows_of(torch.float32)
    rows[1, LAYOUT.starts[2] : LAYOUT.starts[2] + LAYOUT.numel[2]] = torch.nan
    sketches = [Project(600), Histogram()]
    found = sketcher(sketches, LAYOUT, dtype=torch.float32, device=CPU)(rows)
    before = {name: values.numpy().copy() for name, values in found.items()}
    lack(found, [(1, 2)])
    assert found["projected"][1, 2].isnan().all()
    sums = found["histogram"].numpy().sum(-1)
    expected = np.tile(LAYOUT.numel, (4, 1))
    expected[1, 2] = 0
    np.testing.assert_array_equal(sums, expected)
    for name, values in found.items():
        kept = np.ones(values.shape[:2], dtype=bool)
        kept[1, 2] = False
        np.testing.assert_array_equal(values.numpy()[kept], before[name][kept])


@pytest.mark.parametrize("collector", [NoiseProbe, MicroBatches])
def test_histograms_of_minibatches_are_refused(collector: type) -> None:
    with pytest.raises(UsageError, match=r"Histogram\(.*\) is not recorded here; give Project"):
        collector(sketch=[Project(4), Histogram()])


def test_a_layer_that_is_too_large_to_count_is_refused() -> None:
    layout = Layout(("huge",), ((4,),), (0,), ((0, 2**32),))
    with pytest.raises(UsageError, match="layer 'huge' has 4294967296 weights, and a histogram"):
        sketcher([Histogram()], layout, dtype=torch.float32, device=CPU)
