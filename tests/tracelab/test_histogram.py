"""The float-bit histogram: against a slow definition, its edges, and what it preserves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracelab
from tracelab.errors import UsageError
from tracelab.histogram import Histogram

ODD = np.array(
    [
        *(0.0, -0.0, 1.0, -1.0, np.inf, -np.inf),
        *(np.nan, -np.nan, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38),
        *(-1.1754944e-38, 3.4028235e38, -3.4028235e38, 255.99998, 256.0),
    ],
    dtype=np.float32,
)
HISTOGRAMS = [
    Histogram(),
    Histogram(0),
    Histogram(3, (-2, 3)),
    Histogram(2, (5, 5)),
    Histogram(1, (-126, 128)),
    Histogram(10, (0, 1)),
    Histogram(4, (-126, -100)),
    Histogram(4, (120, 128)),
]


@st.composite
def sketches(draw) -> Histogram:
    low = draw(st.integers(-126, 128))
    return Histogram(draw(st.integers(0, 10)), (low, draw(st.integers(low, 128))))


@st.composite
def float32s(draw, most: int = 60) -> np.ndarray:
    """Any bits, and numbers of usual sizes, and odd ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, most))
    bits = rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    usual = rng.standard_normal(count).astype(np.float32)
    return rng.choice(np.concatenate([bits, usual, ODD]), count)


def slow_bin(value: float, sketch: Histogram) -> int:
    """The definition, in Python's numbers."""
    bits, (low, high) = 2**sketch.mantissa_bits, sketch.exponents
    each = 127 + low + (high - low) * bits + 128 - high
    zero = each + 1
    if math.isnan(value):
        return 2 * each + 3
    if value == 0:
        return zero
    if math.isinf(value):
        return 0 if value < 0 else 2 * each + 2
    half, exponent = math.frexp(abs(value))
    octave = exponent - 1
    if octave < -126:
        place = 0
    elif octave < low:
        place = octave + 127
    elif octave < high:
        place = 127 + low + (octave - low) * bits + math.floor((2 * half - 1) * bits)
    else:
        place = 127 + low + (high - low) * bits + octave - high
    return zero + 1 + place if value > 0 else zero - 1 - place


@given(float32s(), sketches())
def test_bins_are_those_of_the_definition(values: np.ndarray, sketch: Histogram) -> None:
    values = np.concatenate([values, ODD])
    expected = [slow_bin(float(value), sketch) for value in values]
    assert sketch.index(values).tolist() == expected
    counts = sketch.count(values)
    assert counts.dtype == np.int64
    assert counts.shape == (sketch.bins,)
    np.testing.assert_array_equal(counts, np.bincount(expected, minlength=sketch.bins))
    # Every value is counted, and once.
    assert counts.sum() == values.size


def test_default_has_the_bins_that_the_formula_says() -> None:
    sketch = tracelab.Histogram()
    # 126 octaves below 1 and 128 above, 48 of them in the window; subnormals, a bin of each sign.
    assert sketch.bins == 2 * (1 + 254 - 48 + 48 * 64) + 4 == 6562
    assert (sketch.infinite, sketch.nan) == ((0, 6560), 6561)
    assert sketch.index(np.zeros(1))[0] == sketch.zero


@pytest.mark.parametrize("sketch", HISTOGRAMS)
def test_edges_are_exact(sketch: Histogram) -> None:
    edges, centres = sketch.edges(), sketch.centres()
    assert edges.shape == centres.shape == (sketch.bins,)
    assert (np.diff(edges) >= 0).all()
    # The middle of each bin is in it.
    np.testing.assert_array_equal(sketch.index(centres), np.arange(sketch.bins))
    # Of positive edges, the number itself begins a bin and the one before ends another.
    positive = np.arange(sketch.zero + 2, sketch.bins - 2)
    floats = edges[positive].astype(np.float32)
    np.testing.assert_array_equal(floats, edges[positive])
    np.testing.assert_array_equal(sketch.index(floats), positive)
    before = np.nextafter(floats, np.float32(0))
    np.testing.assert_array_equal(sketch.index(before), positive - 1)
    np.testing.assert_array_equal(sketch.index(-floats), 2 * sketch.zero - positive)
    np.testing.assert_array_equal(sketch.index(-before), 2 * sketch.zero - positive + 1)
    top = np.finfo(np.float32).max
    assert sketch.index(np.array([top, -top])).tolist() == [sketch.bins - 3, 1]


@pytest.mark.parametrize("sketch", HISTOGRAMS)
def test_bins_of_the_window_are_narrow(sketch: Histogram) -> None:
    edges, (low, high) = sketch.edges(), sketch.exponents
    inside = (edges[:-1] >= 2.0**low) & (edges[1:] <= 2.0**high)
    assert inside.sum() == (high - low) << sketch.mantissa_bits
    relative = np.diff(edges)[inside] / edges[:-1][inside]
    assert (relative <= 2.0**-sketch.mantissa_bits).all()


@given(float32s(), sketches(), st.integers(0, 2**32 - 1))
def test_order_does_not_matter(values: np.ndarray, sketch: Histogram, seed: int) -> None:
    """Nor does which coordinate had which value: nothing is kept of dependence."""
    shuffled = np.random.default_rng(seed).permutation(values)
    np.testing.assert_array_equal(sketch.count(shuffled), sketch.count(values))


@given(float32s(), sketches(), st.lists(st.floats(0, 1), max_size=4))
def test_parts_add_up(values: np.ndarray, sketch: Histogram, cuts: list[float]) -> None:
    parts = np.split(values, sorted(int(cut * values.size) for cut in cuts))
    merged = sketch.merge(*(sketch.count(part) for part in parts))
    np.testing.assert_array_equal(merged, sketch.count(values))


@given(float32s(), sketches())
def test_changing_signs_mirrors(values: np.ndarray, sketch: Histogram) -> None:
    counts, mirrored = sketch.count(values), sketch.count(-values)
    np.testing.assert_array_equal(mirrored[:-1], counts[-2::-1])
    assert mirrored[sketch.nan] == counts[sketch.nan]


@given(st.integers(0, 10), st.integers(-30, 30), st.integers(0, 2**32 - 1))
def test_powers_of_two_move_bins(bits: int, power: int, seed: int) -> None:
    """Octaves of the window are alike: a factor of 2^p moves every count by p octaves of bins."""
    sketch = Histogram(bits, (-60, 60))
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.uniform(1, 2, 80), rng.integers(-30, 30, 80)).astype(np.float32)
    values *= rng.choice([-1, 1], 80)
    counts, scaled = sketch.count(values), sketch.count(np.ldexp(values, power))
    move, zero = power << bits, sketch.zero
    np.testing.assert_array_equal(scaled[zero:], np.roll(counts[zero:], move))
    np.testing.assert_array_equal(scaled[: zero + 1], np.roll(counts[: zero + 1], -move))


@given(float32s(200), st.integers(3, 10))
def test_order_statistics_are_known_to_one_bin(values: np.ndarray, bits: int) -> None:
    sketch = Histogram(bits)
    values = np.sort(values[np.isfinite(values)])
    counts, edges = sketch.count(values), sketch.edges()
    # The bin where the cumulative count reaches rank + 1 holds the order statistic.
    bins = np.searchsorted(np.cumsum(counts), np.arange(values.size) + 1)
    assert (edges[bins] <= values).all()
    assert (values <= edges[bins + 1]).all()
    usual = (np.abs(values) >= 2.0**-40) & (np.abs(values) < 2.0**8)
    error = np.abs(sketch.centres()[bins] - values)[usual]
    # The middle of a bin is half a bin away at most.
    assert (error <= 2.0 ** -(bits + 1) * np.abs(values[usual])).all()


def test_other_types_are_rounded_to_float32_first() -> None:
    sketch = Histogram(3)
    wide = np.array([1e300, -1e300, 1e-50, 0.9999999999, 1 / 3, np.nan, np.inf])
    expected = np.zeros(sketch.bins, dtype=int)
    np.add.at(expected, [slow_bin(value, sketch) for value in (np.inf, -np.inf, 0, 1.0)], 1)
    np.add.at(expected, [slow_bin(value, sketch) for value in (1 / 3, np.nan, np.inf)], 1)
    np.testing.assert_array_equal(sketch.count(wide), expected)
    half = np.random.default_rng(0).standard_normal(100).astype(np.float16)
    np.testing.assert_array_equal(sketch.count(half), sketch.count(half.astype(np.float32)))
    assert sketch.count(np.array([3, -2])).sum() == 2


def test_leading_dimensions_pass_through() -> None:
    sketch = Histogram(2, (-4, 4))
    values = np.random.default_rng(1).standard_normal((2, 3, 50))
    counts = sketch.count(values)
    assert counts.shape == (2, 3, sketch.bins)
    np.testing.assert_array_equal(counts[1, 2], sketch.count(values[1, 2]))
    strided = np.asfortranarray(values)[..., ::2]
    np.testing.assert_array_equal(sketch.count(strided), sketch.count(values[..., ::2].copy()))
    assert sketch.index(np.float64(1.0)).shape == ()


def test_merging_does_not_overflow() -> None:
    sketch = Histogram(0)
    half = np.full(sketch.bins, 2**31, dtype=np.uint32)
    assert sketch.merge(half, half, half)[0] == 3 * 2**31


def test_a_group_says_what_it_holds() -> None:
    sketch = Histogram(4, (-20, 2))
    described = sketch.describe()
    assert described == {"kind": "histogram", "mantissa_bits": 4, "exponents": [-20, 2]}
    assert Histogram.of({"sketches": [tracelab.Project(3).describe(), described]}) == sketch
    assert Histogram(np.int64(4), [np.int32(-20), 2]) == sketch
    assert hash(Histogram(4, [-20, 2])) == hash(sketch)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Histogram(11), "mantissa_bits to be an integer from 0 to 10, got 11"),
        (lambda: Histogram(True), "mantissa_bits to be an integer from 0 to 10, got True"),
        (lambda: Histogram(2.0), "got 2.0"),
        (lambda: Histogram(3, (4, 3)), r"-126 <= low <= high <= 128, got \(4, 3\)"),
        (lambda: Histogram(3, (-127, 3)), r"got \(-127, 3\)"),
        (lambda: Histogram(3, (0, 129)), r"got \(0, 129\)"),
        (lambda: Histogram(3, 7), "exponents=.*, got 7"),
        (lambda: Histogram(3, (0, 1, 2)), r"got \(0, 1, 2\)"),
        (lambda: Histogram.of({"sketches": [{"kind": "project"}]}), "name no histogram"),
        (lambda: Histogram.of({"sketches": 3}), "name no histogram"),
        (lambda: Histogram.of({"sketches": [{"kind": "histogram"}]}), "got -1"),
        (lambda: Histogram(3).merge(np.zeros(4)), r"bins, got counts of shape \(4,\); merge"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
