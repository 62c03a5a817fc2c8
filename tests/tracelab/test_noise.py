import itertools

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab import noise
from tracelab.errors import NotRecordedError, UsageError
from tracelab.series import usable_series
from tracelab.typing import Status

LAYERS = xr.Dataset({"numel": ("layer", [6, 4])}, coords={"layer": ["a", "b"]})
STEPS, BATCHES = 3, 12


def group(seed=0, *, exact=True, sampled=True, projected=True, batch_size=8):
    rng = np.random.default_rng(seed)
    full = rng.standard_normal((STEPS, BATCHES, 10)).astype(np.float32) + 3
    mean = np.full((STEPS, 10), 3, dtype=np.float32)
    data, coords = {}, {"step": [0, 10, 50], "layer": ["a", "b"]}
    if sampled:
        kept = [0, 2, 5, 7, 9]
        data["sampled"] = (("step", "batch", "coordinate"), full[..., kept])
        data["coordinate_layer"] = ("coordinate", [0, 0, 0, 1, 1])
        if exact:
            data["mean_sampled"] = (("step", "coordinate"), mean[..., kept])
    if projected:
        parts = np.stack([full[..., :6].sum(-1), full[..., 6:].sum(-1)], axis=-1)
        data["projected"] = (("step", "batch", "layer", "direction"), parts[..., None])
        if exact:
            data["mean_projected"] = (
                ("step", "layer", "direction"),
                np.broadcast_to(np.array([18.0, 12.0], np.float32)[:, None], (STEPS, 2, 1)),
            )
    attrs = {"kind": "noise"} | ({"batch_size": batch_size} if batch_size else {})
    return xr.Dataset(data, coords=coords, attrs=attrs), full


def test_noise_is_the_gradient_minus_the_full_data_gradient():
    dataset, full = group()
    found = noise.layer_samples(dataset, LAYERS, "b")
    np.testing.assert_array_equal(found, full[..., [7, 9]].astype(np.float64) - 3)
    assert found.dims == ("step", "batch", "series")
    assert found.attrs["centring"] == "full-data gradient"
    assert found.attrs["units"] == "loss/weight"


def test_without_a_full_data_gradient_the_middle_half_of_the_batches_is_the_centre():
    dataset, full = group(exact=False)
    found = noise.layer_samples(dataset, LAYERS, "b")
    ordered = np.sort(full[..., [7, 9]].astype(np.float64), axis=1)
    quarter = BATCHES // 4
    centre = ordered[:, quarter:-quarter].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, full[..., [7, 9]] - centre, atol=1e-12)
    assert found.attrs["centring"] == "midmean of the batches"


def test_the_network_has_all_coordinates_and_the_sum_of_projections():
    dataset, full = group()
    assert noise.layer_samples(dataset, LAYERS, "network").sizes["series"] == 5
    projected = noise.layer_samples(dataset, LAYERS, "network", sketch="projected")
    np.testing.assert_allclose(projected[..., 0], full.sum(-1) - 30, atol=1e-5)


def test_coordinates_come_before_projections():
    assert noise.sketch_of(group()[0], None) == "sampled"
    assert noise.sketch_of(group(sampled=False)[0], "auto") == "projected"


@given(times=st.integers(1, 6), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_synthetic_batches_are_means_of_disjoint_batches(times, seed):
    dataset, full = group(seed)
    found = noise.samples(dataset, LAYERS, layer="b", batch_size=8 * times)
    count = BATCHES // times
    wanted = (full[:, : count * times, [7, 9]] - 3.0).reshape(STEPS, count, times, 2).mean(2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.attrs["batch_size"] == 8 * times


def test_modes_arrange_the_same_values():
    dataset, _ = group()
    batches = noise.samples(dataset, LAYERS, mode="batches")
    pooled = noise.samples(dataset, LAYERS, mode="pooled")
    assert batches.dims == ("step", "batch", "series")
    assert pooled.dims == ("step", "sample")
    np.testing.assert_array_equal(pooled, batches.values.reshape(STEPS, -1))
    assert list(batches["layer"].values) == ["a"] * 3 + ["b"] * 2


def test_standardized_series_have_median_zero_and_interquartile_range_one():
    dataset, _ = group()
    cells = noise.standardize(noise.layer_samples(dataset, LAYERS, "network"))
    low, middle, high = np.quantile(cells, [0.25, 0.5, 0.75], axis=1)
    np.testing.assert_allclose(middle, 0, atol=1e-12)
    np.testing.assert_allclose(high - low, 1, atol=1e-12)


def test_a_series_without_spread_is_standardized_to_a_constant():
    dataset, _ = group()
    dataset["sampled"][:, :, 0] = 3.0
    dataset["sampled"][:, 0, 0] = 9.0
    cells = noise.standardize(noise.layer_samples(dataset, LAYERS, "a"))
    np.testing.assert_array_equal(cells[..., 0], 0)
    status, kept = usable_series(cells.values[0], 2)
    assert status is Status.OK
    assert kept.shape == (BATCHES, 2)


def test_non_finite_values_survive_standardizing():
    dataset, _ = group()
    dataset["sampled"][0, 0, 0] = np.nan
    cells = noise.standardize(noise.layer_samples(dataset, LAYERS, "a"))
    assert usable_series(cells.values[0], 2)[0] is Status.NON_FINITE_INPUT
    assert usable_series(cells.values[1], 2)[0] is Status.OK


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        (np.zeros((30, 3)), Status.CONSTANT_INPUT),
        (np.ones((5, 3)), Status.TOO_FEW_SAMPLES),
        (np.full((30, 3), np.inf), Status.NON_FINITE_INPUT),
        (np.arange(30.0)[:, None], Status.OK),
    ],
)
def test_a_cell_says_why_it_cannot_be_used(cell, status):
    assert usable_series(cell, 20)[0] is status


def test_lazy_stays_lazy():
    dataset, _ = group()
    lazy = dataset.chunk({"step": 1})
    with xr.set_options(keep_attrs=True):
        for mode in noise.MODES:
            found = noise.samples(lazy, LAYERS, mode=mode, batch_size=16)
            assert isinstance(found.data, dask.array.Array)
            eager = noise.samples(dataset, LAYERS, mode=mode, batch_size=16)
            np.testing.assert_allclose(found.values, eager.values, rtol=1e-12)


@pytest.mark.parametrize("mode", ["batches", "standardized"])
@pytest.mark.parametrize("batch_size", [None, 24])
@pytest.mark.parametrize("exact", [True, False])
def test_one_cell_is_what_the_whole_says(mode, batch_size, exact):
    """The engine's cells against the public arrangement of the same noise."""
    dataset, _ = group(exact=exact)
    values = dataset["sampled"].values[1][:, 3:]
    mean = dataset["mean_sampled"].values[1][3:] if exact else None
    times = noise.synthetic(8, batch_size)
    found = noise.cell(values, mean, times=times, standardized=mode == "standardized")
    wanted = noise.layer_samples(dataset, LAYERS, "b", batch_size=batch_size)
    wanted = noise.standardize(wanted) if mode == "standardized" else wanted
    np.testing.assert_allclose(found, wanted.values[1], rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 1000), pieces=st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_squared_norms_have_the_same_bits_from_pieces(seed, pieces):
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0], np.cumsum(pieces)]) * noise.RUN
    values = rng.standard_normal((2, edges[-1])).astype(np.float32)
    whole = noise.squared_norm(values, None, centred=False)
    total = np.zeros(2)
    for begin, end in itertools.pairwise(edges):
        for run in range(begin, end, noise.RUN):
            total += noise.squared_norm(values[:, run : run + noise.RUN], None, centred=False)
    np.testing.assert_array_equal(total, whole)
    np.testing.assert_allclose(whole, (values.astype(float) ** 2).sum(axis=1), rtol=1e-12)


def test_a_squared_deviation_is_unbiased_without_the_exact_mean():
    values = np.random.default_rng(0).standard_normal((50, 7)) + 3
    found = noise.squared_norm(values, None, centred=True)
    np.testing.assert_allclose(found.mean(), values.var(axis=0, ddof=1).sum())
    known = noise.squared_norm(values, np.full(7, 3.0), centred=True)
    np.testing.assert_allclose(known, ((values - 3) ** 2).sum(axis=1))
    assert np.isnan(noise.squared_norm(values[:1], None, centred=True)).all()


def test_the_signal_needs_the_full_data_gradient():
    assert noise.mean_of(group()[0]) == "mean_projected"
    assert noise.mean_of(group(projected=False)[0]) == "mean_sampled"
    with pytest.raises(NotRecordedError, match=r"NoiseProbe\(full_gradient=True\)"):
        noise.mean_of(group(exact=False)[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "mixed"}, UsageError, "mode must be one of batches, pooled, standardized, got"),
        ({"sketch": "folded"}, UsageError, "sketch must be one of auto, sampled, projected, full"),
        ({"sketch": "full"}, NotRecordedError, "no 'full' gradients; it holds: sampled, projected"),
        (
            {"layer": "c"},
            NotRecordedError,
            "no layer 'c' in the noise group; it has: a, b, network",
        ),
        ({"step": 11}, NotRecordedError, "was not recorded at step 11; the nearest is 10"),
        ({"step": [0, 49]}, NotRecordedError, "was not recorded at step 49"),
        (
            {"batch_size": 20},
            UsageError,
            "cannot be synthesised from batches of 8; take a multiple",
        ),
    ],
)
def test_bad_requests_name_the_remedy(options, error, words):
    with pytest.raises(error, match=words):
        noise.samples(group()[0], LAYERS, **options)


def test_batch_size_unknown_to_the_trace():
    with pytest.raises(UsageError, match="does not say at which batch size it was recorded"):
        noise.samples(group(batch_size=None)[0], LAYERS, batch_size=16)


def test_an_empty_group_has_no_gradients():
    with pytest.raises(NotRecordedError, match="holds no minibatch gradients"):
        noise.sketch_of(group(sampled=False, projected=False)[0], None)


def test_coordinates_without_a_table():
    dataset, full = group(projected=False)
    whole = dataset.drop_vars(["sampled", "mean_sampled", "coordinate_layer"])
    whole["full"] = (("step", "batch", "coordinate"), full)
    assert list(noise.coordinate_layers(whole, LAYERS)) == [0] * 6 + [1] * 4
    with pytest.raises(NotRecordedError, match="define it with coordinates="):
        noise.coordinate_layers(dataset.drop_vars("coordinate_layer"), LAYERS)


def test_a_slice_of_steps_includes_its_ends():
    assert list(noise.samples(group()[0], LAYERS, step=slice(0, 10))["step"].values) == [0, 10]
