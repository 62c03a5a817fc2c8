"""Sketches: published values of the hash, exact laws, and unbiasedness by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.sketch import Full, Project, Sample, splitmix64, validate

# First outputs for the seeds 0 (the generator of Java's SplittableRandom) and 1234567 (Rosetta
# Code, "Pseudo-random numbers/Splitmix64").
KNOWN = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC],
    1234567: [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ],
}


def splitmix64_reference(seed: int, count: int) -> list[int]:
    """The generator as a state that advances, in Python integers."""
    mask, state, outputs = (1 << 64) - 1, seed & ((1 << 64) - 1), []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


@pytest.mark.parametrize("seed", KNOWN)
def test_splitmix64_known_answers(seed: int) -> None:
    assert splitmix64(seed, 0, len(KNOWN[seed])).tolist() == KNOWN[seed]


@given(st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(0, 50))
def test_any_stretch_of_splitmix64_stands_alone(seed: int, start: int, count: int) -> None:
    expected = splitmix64_reference(seed, start + count)[start:]
    assert splitmix64(seed, start, count).tolist() == expected


def test_signs_are_the_top_bits() -> None:
    expected = [-1.0 if output >> 63 else 1.0 for output in KNOWN[0]]
    assert Project(8).signs(0, 4).tolist() == expected
    long = Project(8, seed=3).signs(0, 600_000)
    np.testing.assert_array_equal(long[262_000:263_000], Project(8, seed=3).signs(262_000, 1000))


def project_slowly(values: np.ndarray, offset: int, sketch: Project) -> np.ndarray:
    """The definition, one coordinate at a time."""
    result = np.zeros(sketch.k)
    hashes = splitmix64_reference(sketch.seed, offset + len(values))[offset:]
    for i, (value, hashed) in enumerate(zip(values, hashes, strict=True)):
        result[(i % sketch.period) % sketch.k] += -value if hashed >> 63 else value
    return result


@pytest.mark.parametrize("k", [1, 2, 3, 8, 13, 64])
@pytest.mark.parametrize("numel", [1, 5, 13, 200])
def test_projection_is_its_definition(k: int, numel: int) -> None:
    values = np.random.default_rng(k).standard_normal(numel)
    sketch = Project(k, seed=5)
    projected = sketch.project(values, 17)
    assert projected.shape == (k,)
    np.testing.assert_allclose(projected, project_slowly(values, 17, sketch), atol=1e-13)


def test_period_is_the_smallest_prime_not_below() -> None:
    periods = [Project(k).period for k in (1, 2, 3, 4, 9, 256, 1024, 4096, 4099)]
    assert periods == [2, 2, 3, 5, 11, 257, 1031, 4099, 4099]


@given(st.integers(1, 40), st.integers(1, 90), st.floats(-3, 3))
def test_projection_is_linear(k: int, numel: int, factor: float) -> None:
    x, y = np.random.default_rng(numel).standard_normal((2, 4, numel))
    sketch = Project(k, seed=1)
    together = sketch.project(x + factor * y, 7)
    apart = sketch.project(x, 7) + factor * sketch.project(y, 7)
    np.testing.assert_allclose(together, apart, atol=1e-12)


@given(st.integers(1, 40), st.integers(0, 4), st.integers(1, 90))
def test_shards_of_a_layer_add_up(k: int, periods: int, rest: int) -> None:
    """A shard that starts at a multiple of the period is a layer of its own further on."""
    sketch = Project(k, seed=2)
    cut = periods * sketch.period
    values = np.random.default_rng(rest).standard_normal(cut + rest)
    shards = sketch.project(values[:cut], 11) + sketch.project(values[cut:], 11 + cut)
    np.testing.assert_allclose(shards, sketch.project(values, 11), atol=1e-12)


@pytest.mark.parametrize("k", [16, 31])
def test_squared_norm_is_unbiased_with_the_variance_of_its_definition(k: int) -> None:
    numel, seeds = 500, 4000
    values = np.random.default_rng(0).standard_t(3, numel)
    values /= np.linalg.norm(values)
    squared = np.array(
        [(Project(k, seed=seed).project(values, 3) ** 2).sum() for seed in range(seeds)]
    )
    # Var ||y||^2 = 2 sum over ordered pairs i != j of one bucket of (g_i g_j)^2.
    period = Project(k).period
    bucket = np.arange(numel) % period % k
    energy = np.bincount(bucket, values**2, minlength=k)
    variance = 2 * ((energy**2).sum() - (values**4).sum())
    # Five standard errors of the mean; for the variance, of a sum of squares of about `seeds`
    # draws whose kurtosis is below 15.
    assert abs(squared.mean() - 1) < 5 * np.sqrt(variance / seeds)
    assert abs(squared.var() / variance - 1) < 5 * np.sqrt(14 / seeds)


def test_network_projection_is_the_sum_over_layers() -> None:
    """Unbiased for the network as well: signs of different layers are independent."""
    seeds, sizes = 3000, (40, 25, 10)
    layers = [np.random.default_rng(n).standard_normal(n) for n in sizes]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    total = sum(float((layer**2).sum()) for layer in layers)
    squared = []
    for seed in range(seeds):
        sketch = Project(16, seed=seed)
        parts = [sketch.project(v, o) for v, o in zip(layers, offsets, strict=True)]
        squared.append((sum(parts) ** 2).sum())
    # Relative variance at most 2 / k times (1 + collisions): bounded by 2 * sum p_j^2 < 0.5.
    assert abs(np.mean(squared) / total - 1) < 5 * np.sqrt(0.5 / seeds)


@given(st.integers(1, 70), st.integers(1, 100), st.text(max_size=5))
def test_coordinates_are_distinct_and_sorted(k: int, numel: int, layer: str) -> None:
    kept = Sample(k, seed=4).indices(layer, numel)
    assert kept.dtype == np.int64
    assert kept.size == min(k, numel)
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < numel
    np.testing.assert_array_equal(kept, Sample(k, seed=4).indices(layer, numel))


def test_coordinates_are_uniform() -> None:
    numel, k, draws = 20, 6, 4000
    counts = np.zeros(numel)
    for seed in range(draws):
        counts[Sample(k, seed=seed).indices("fc.weight", numel)] += 1
    # Inclusion is Bernoulli(k / numel) for each coordinate; five standard deviations each.
    expected = draws * k / numel
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * (1 - k / numel))


def test_layers_and_seeds_draw_differently() -> None:
    kept = {
        tuple(Sample(8, seed=seed).indices(layer, 10_000))
        for seed in range(3)
        for layer in ("a", "b", "c")
    }
    assert len(kept) == 9


def test_coordinates_known_answer() -> None:
    """Pinned: what a stored trace sampled must be found again by every later version."""
    assert Sample(5).indices("fc.weight", 100).tolist() == [16, 20, 63, 85, 99]


def test_tables_name_layer_and_index() -> None:
    layer, index = Sample(3).tables({"a": 2, "b": 50})
    assert layer.tolist() == [0, 0, 1, 1, 1]
    assert layer.dtype == np.int32
    assert index[:2].tolist() == [0, 1]
    np.testing.assert_array_equal(index[2:], Sample(3).indices("b", 50))


def test_descriptions() -> None:
    described = [sketch.describe() for sketch in (Project(4, seed=2), Sample(3), Full())]
    assert described == [
        {"kind": "project", "k": 4, "seed": 2},
        {"kind": "sample", "k": 3, "seed": 0},
        {"kind": "full", "k": 0, "seed": 0},
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Project(0), "Project needs k to be an integer of at least 1, got 0"),
        (lambda: Sample(2.0), "Sample needs k to be an integer of at least 1, got 2.0"),
        (lambda: Project(4, seed=-1), "seed to be an integer of at least 0, got -1"),
        (lambda: validate([]), "sketch is empty"),
        (lambda: validate("full"), r"must be Project\(k\), Sample\(k\) or Full\(\), got 'f'"),
        (lambda: validate([Project(3), Project(4)]), "two of one kind"),
        (lambda: validate([Full(), Sample(4)]), "leave Sample"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_one_sketch_or_several() -> None:
    assert validate(Project(3)) == (Project(3),)
    assert validate([Project(3), Full()]) == (Project(3), Full())
