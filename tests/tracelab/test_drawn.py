"""Batches drawn from the gradients of single examples, against enumerations of all batches."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import tracelab
from tracelab import drawing
from tracelab.errors import UsageError

LAYERS = {"a": (2, 3), "b": (4,)}


def examples(count, series=3, steps=(0,), seed=0):
    """Return gradients of examples with skewed, dependent coordinates and a mean that is not 0."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(len(steps), count, series)) @ rng.standard_normal((series,) * 2)
    return xr.DataArray(values, dims=("step", "batch", "series"), coords={"step": list(steps)})


def covariance(samples):
    centred = samples - samples.mean(axis=0)
    return centred.T @ centred / len(samples)


def every_batch(values, size, replacement):
    """Return the mean of each batch that can be drawn, all equally likely."""
    choose = itertools.product if replacement else itertools.combinations
    repeat = {"repeat": size} if replacement else {"r": size}
    return np.array(
        [values[list(held)].mean(axis=0) for held in choose(range(len(values)), **repeat)]
    )


CASES = [(5, 1, True), (5, 3, True), (5, 1, False), (5, 3, False), (5, 4, False)]


@pytest.mark.parametrize(("count", "size", "replacement"), CASES)
def test_the_covariance_is_that_of_all_batches_there_are(count, size, replacement):
    values = examples(count)
    batches = 20_000
    drawn = drawing.drawn(values, batch_size=size, batches=batches, replacement=replacement)
    found = drawn.values[0]
    expected = covariance(every_batch(values.values[0], size, replacement))
    # The noise is centred exactly, so its products are unbiased for the covariance; five standard
    # errors of their mean. Third moments show the shape: they are of order 1/size^2 in the mean.
    products = found[:, :, None] * found[:, None, :]
    error = products.std(axis=0) / np.sqrt(batches)
    assert (np.abs(products.mean(axis=0) - expected) < 5 * error).all()
    assert (np.abs(found.mean(axis=0)) < 5 * found.std(axis=0) / np.sqrt(batches)).all()
    exact = every_batch(values.values[0], size, replacement)
    cubes = ((exact - exact.mean(axis=0)) ** 3).mean(axis=0)
    error = (found**3).std(axis=0) / np.sqrt(batches)
    assert (np.abs((found**3).mean(axis=0) - cubes) < 5 * error).all()


@pytest.mark.parametrize(("size", "replacement"), [(1, True), (3, True), (1, False), (3, False)])
def test_the_covariance_is_the_formula(size, replacement):
    """Sigma with divisor n; the second factor is that of a finite population."""
    values = examples(6).values[0]
    sigma = covariance(values)
    factor = 1 / size if replacement else (6 - size) / (6 - 1) / size
    found = covariance(every_batch(values, size, replacement))
    np.testing.assert_allclose(found, sigma * factor, atol=1e-13)


@pytest.mark.parametrize(("size", "replacement"), [(2, True), (7, True), (2, False), (3, False)])
def test_part_of_the_data_has_the_covariance_of_all_of_it_on_average(size, replacement):
    """Over every part of 4 of 7 examples; `drawn` says by what it multiplies."""
    n, m = 7, 4
    values = examples(n)
    found = []
    for part in itertools.combinations(range(n), m):
        own = values.isel(batch=list(part))
        scale = drawing.drawn(
            own, batch_size=size, batches=1, replacement=replacement, n_data=n
        ).attrs["scale"]
        factor = 1 / size if replacement else (m - size) / (m - 1) / size
        found.append(scale**2 * factor * covariance(own.values[0]))
    factor = 1 / size if replacement else (n - size) / (n - 1) / size
    expected = factor * covariance(values.values[0])
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=1e-13)
    plain = drawing.drawn(values.isel(batch=slice(m)), batch_size=size, replacement=replacement)
    scaled = drawing.drawn(
        values.isel(batch=slice(m)), batch_size=size, replacement=replacement, n_data=n
    )
    np.testing.assert_allclose(scaled, plain * scaled.attrs["scale"], rtol=1e-12)


def test_a_batch_of_all_the_data_has_no_noise():
    drawn = drawing.drawn(examples(6), batch_size=6, batches=3, replacement=False)
    np.testing.assert_allclose(drawn, 0, atol=1e-14)


@given(st.integers(1, 6), st.integers(1, 9), st.booleans(), st.integers(0, 2**40))
def test_noise_is_linear_in_the_gradients(size, batches, replacement, seed):
    """Shifts do nothing, factors come out: so the noise of a sketch is the sketch of the noise."""
    values = examples(6, series=4, steps=(3, 8))
    options = {"batch_size": size, "batches": batches, "replacement": replacement, "seed": seed}
    mixing = np.random.default_rng(1).standard_normal((4, 3))
    sketched = values.dot(xr.DataArray(mixing, dims=("series", "direction"))) + 5
    sketched = sketched.rename({"direction": "series"})
    found = drawing.drawn(sketched, **options)
    expected = drawing.drawn(values, **options).values @ mixing
    assert found.shape == (2, batches, 3)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_draws_depend_on_the_seed_and_the_step_and_not_on_how_arrays_are_cut():
    values = examples(30, series=10, steps=(0, 5, 6))
    found = drawing.drawn(values, batch_size=4, seed=1)
    lazy = drawing.drawn(values.chunk({"step": 2, "batch": 7, "series": 3}), batch_size=4, seed=1)
    assert lazy.chunks is not None
    # Products of matrices may be summed in another order.
    np.testing.assert_allclose(lazy, found, atol=1e-14)
    for step in range(3):
        alone = drawing.drawn(values.isel(step=step), batch_size=4, seed=1)
        assert alone.dims == ("batch", "series")
        np.testing.assert_allclose(alone, found.isel(step=step), atol=1e-14)
    same = examples(30, steps=(0, 1)).isel(step=[0, 0]).assign_coords(step=[0, 1])
    first, second = drawing.drawn(same, batch_size=4).values
    assert not np.allclose(first, second)
    assert not np.allclose(found, drawing.drawn(values, batch_size=4, seed=2))


def write(path, *, n_data=40, **attrs):
    rng = np.random.default_rng(0)
    sketch = tracelab.Project(5)
    with tracelab.create(path, layers=LAYERS) as writer:
        given = {"n_data": n_data, **attrs}
        writer.define("examples", sketches=[sketch], attrs=given)
        writer.define("full_examples", kind="examples", attrs=given)
        for step in (0, 10):
            full = rng.standard_normal((20, 10)).astype(np.float32) + 2
            parts = [sketch.project(full[:, :6], 0), sketch.project(full[:, 6:], 6)]
            mean = full.mean(axis=0)
            writer.append("full_examples", step=step, full=full, mean_full=mean + 1)
            writer.append("examples", step=step, projected=np.stack(parts, 1), index=np.arange(20))
    return tracelab.open(path)


def test_noise_of_a_trace_of_examples(tmp_path):
    trace = write(tmp_path / "a.zarr")
    full = trace.groups["full_examples"]["full"].values.astype(np.float64)
    single = trace.noise(group="full_examples", step=10)
    np.testing.assert_allclose(single, full[1] - full[1].mean(axis=0) - 1, atol=1e-6)
    assert (single.attrs["centring"], single.attrs["batch_size"]) == ("full-data gradient", 1)
    without = trace.noise(group="examples", layer="a")
    np.testing.assert_allclose(without.mean("batch"), 0, atol=1e-6)
    assert without.attrs["centring"] == "mean of the examples"
    drawn = trace.noise(group="full_examples", step=10, batch_size=7, batches=4, seed=3)
    assert drawn.sizes == {"batch": 4, "series": 10}
    counts = np.random.default_rng([3, 10]).multinomial(7, np.full(20, 1 / 20), size=4)
    expected = counts @ (full[1] - full[1].mean(axis=0)) / 7 * np.sqrt(20 / 19 * 39 / 40)
    np.testing.assert_allclose(drawn, expected, atol=1e-12)
    assert drawn.attrs["centring"] == "mean of the examples"
    assert list(drawn["layer"].values) == ["a"] * 6 + ["b"] * 4


def test_all_sketches_and_layers_are_of_the_same_batches(tmp_path):
    trace = write(tmp_path / "a.zarr")
    options = {"batch_size": 8, "batches": 6, "replacement": False}
    full = trace.noise(group="full_examples", **options)
    sketch = tracelab.Project(5)
    parts = [sketch.project(full.values[..., :6], 0), sketch.project(full.values[..., 6:], 6)]
    for layer, part in zip(("a", "b"), parts, strict=True):
        found = trace.noise(group="examples", layer=layer, **options)
        np.testing.assert_allclose(found, part, atol=1e-5)
    network = trace.noise(group="examples", layer="network", **options)
    np.testing.assert_allclose(network, sum(parts), atol=1e-5)
    pooled = trace.noise(group="examples", mode="pooled", **options)
    assert pooled.sizes == {"step": 2, "sample": 6 * 2 * 5}


def test_refusals(tmp_path):
    values = examples(6)
    for words, options in {
        "batch_size must be an integer of at least 1, got 0": {"batch_size": 0},
        "batches must be an integer of at least 1, got 2.5": {"batch_size": 1, "batches": 2.5},
        "seed must be an integer of at least 0, got -1": {"batch_size": 1, "seed": -1},
        "n_data must be an integer of at least 1, got 'x'": {"batch_size": 1, "n_data": "x"},
        "6 examples cannot be drawn from data of 5": {"batch_size": 1, "n_data": 5},
        "batch_size=7 without replacement exceeds the 6 recorded examples": {
            "batch_size": 7,
            "replacement": False,
        },
        "batch_size=6 of 6 recorded examples out of 9: batches do not differ": {
            "batch_size": 6,
            "replacement": False,
            "n_data": 9,
        },
    }.items():
        with pytest.raises(UsageError, match=words):
            drawing.drawn(values, **options)
    with pytest.raises(UsageError, match="batch_size=2 of 1 recorded examples out of 9"):
        drawing.drawn(examples(1), batch_size=2, n_data=9)
    trace = write(tmp_path / "a.zarr", mean_over_examples=False)
    assert trace.noise(group="examples").sizes["batch"] == 20
    with pytest.raises(UsageError, match="recorded with mean_over_examples=False"):
        trace.noise(group="examples", batch_size=2)
    with tracelab.create(tmp_path / "b.zarr", layers=LAYERS) as writer:
        writer.append("noise", step=0, full=np.ones((3, 10)))
    with pytest.raises(UsageError, match="batches=4, seed=1: batches are drawn from the gradients"):
        tracelab.open(tmp_path / "b.zarr").noise(batches=4, seed=1)
