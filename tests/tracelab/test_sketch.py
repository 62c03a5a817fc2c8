"""Sketches: published values of the hash, exact laws, and unbiasedness by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.sketch import Full, Histogram, Project, Sample, splitmix64, validate
from tracelab.stats import normality

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


def test_inner_products_are_unbiased_with_the_variance_of_their_definition() -> None:
    numel, seeds, k = 500, 4000, 31
    rng = np.random.default_rng(1)
    g = rng.standard_t(3, numel)
    h = 0.3 * g + rng.standard_normal(numel)
    both = np.stack([g, h])
    found = [np.prod(Project(k, seed=seed).project(both, 3), axis=0).sum() for seed in range(seeds)]
    # Var y.z = sum over ordered pairs i != j of one bucket of (g_i h_j)^2 + g_i h_i g_j h_j.
    bucket = np.arange(numel) % Project(k).period % k
    g2, h2, gh = (np.bincount(bucket, each, minlength=k) for each in (g * g, h * h, g * h))
    variance = (g2 * h2 + gh**2).sum() - 2 * (g * g * h * h).sum()
    # Five standard errors; the kurtosis of a second-order chaos in signs is at most 9^2.
    assert abs(np.mean(found) - g @ h) < 5 * np.sqrt(variance / seeds)
    assert abs(np.var(found) / variance - 1) < 5 * np.sqrt(80 / seeds)
    # Its bound says about 2 / k of the product of the squared norms.
    assert variance < 2.5 / k * (g @ g) * (h @ h)


@pytest.mark.parametrize("k", [64, 256])
def test_outliers_in_columns_do_not_share_a_bucket(k: int) -> None:
    """Folded by k itself, a column of a matrix whose width k divides falls into one bucket."""
    rows, columns, seeds = 100, 512, 200
    layer = np.random.default_rng(2).standard_normal((rows, columns))
    layer[:, 5] *= 300
    layer /= np.linalg.norm(layer)
    flat = layer.ravel()

    def spread(bucket: np.ndarray) -> float:
        """The variance of the squared norm, from the definition."""
        energy = np.bincount(bucket, flat**2, minlength=k)
        return 2 * float((energy**2).sum() - (flat**4).sum())

    index = np.arange(flat.size)
    sketch = Project(k)
    ours, direct = spread(index % sketch.period % k), spread(index % k)
    # A column of nearly all of the squared norm: a relative error of sqrt(2), against sqrt(2 / k).
    assert np.sqrt(direct / ours) > 0.7 * np.sqrt(k)
    assert ours < 1.5 * 2 / k
    found = [(Project(k, seed=seed).project(flat, 0) ** 2).sum() - 1 for seed in range(seeds)]
    # A mean square of about `seeds` draws whose kurtosis is below 15.
    assert np.mean(np.square(found)) < ours * (1 + 5 * np.sqrt(14 / seeds))


def test_projections_hide_the_tails_of_coordinates() -> None:
    """Independent t3 coordinates: what is recorded beside projections, and why."""
    batches, numel, k = 150, 40_000, 40
    gradients = np.random.default_rng(3).standard_t(3, (batches, numel)).astype(np.float32)
    kept = gradients[:, Sample(k).indices("fc.weight", numel)].astype(float)
    directions = Project(k).project(gradients, 0).astype(float)
    coordinates = (normality.anderson(kept, axis=0).pvalue < 0.05).mean()
    projected = (normality.anderson(directions, axis=0).pvalue < 0.05).mean()
    # Of 40 independent tests each, whose power was 0.94 and 0.08 for 12 other seeds: five standard
    # errors.
    assert coordinates > 0.94 - 5 * np.sqrt(0.94 * 0.06 / k)
    assert projected < 0.08 + 5 * np.sqrt(0.08 * 0.92 / k)


def test_means_over_coordinates_are_unbiased() -> None:
    numel, k, seeds = 300, 20, 3000
    layer = np.random.default_rng(4).standard_t(3, numel)
    means = [layer[Sample(k, seed=seed).indices("a", numel)].mean() for seed in range(seeds)]
    # Drawn without replacement: Var = (1 - k / n) S^2 / k. Five standard errors.
    error = np.sqrt((1 - k / numel) * layer.var(ddof=1) / k / seeds)
    assert abs(np.mean(means) - layer.mean()) < 5 * error


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
    sketches = (Project(4, seed=2), Sample(3), Full(), Histogram())
    assert [sketch.describe() for sketch in sketches] == [
        {"kind": "project", "k": 4, "seed": 2},
        {"kind": "sample", "k": 3, "seed": 0},
        {"kind": "full", "k": 0, "seed": 0},
        {"kind": "histogram", "mantissa_bits": 6, "exponents": [-40, 8]},
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Project(0), "Project needs k to be an integer of at least 1, got 0"),
        (lambda: Sample(2.0), "Sample needs k to be an integer of at least 1, got 2.0"),
        (lambda: Project(4, seed=-1), "seed to be an integer of at least 0, got -1"),
        (lambda: validate([]), "sketch is empty"),
        (lambda: validate("full"), r"must be Project\(k\), Sample\(k\) or Full\(\), got 'f'"),
        (lambda: validate(3, histogram=True), r"Full\(\) or Histogram\(\), got 3"),
        (lambda: validate([], histogram=True), r"give Project.* or Histogram\(\)"),
        (lambda: validate([Project(3), Histogram()]), "is not recorded here; give Project"),
        (lambda: validate([Histogram(3), Histogram(4)], histogram=True), "two of one kind"),
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
    three = (Project(3), Sample(2), Histogram())
    assert validate(list(three), histogram=True) == three
