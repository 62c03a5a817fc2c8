"""What the tail index says besides alpha: block profiles, and what findings make of them."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import tracelab
from tracelab import noise, registry
from tracelab.covariates import with_covariates
from tracelab.reporting import report
from tracelab.stats import stable
from tracelab.stats.mohammadi_profile import BLOCKS, SHAPES, mohammadi_profile
from tracelab_analyses import tail_index_figures as figures
from tracelab_analyses.tail_index import ANALYSIS

BATCHES, SERIES = 500, 30


def analysed(values, **parameters):
    """Return the tail index of one layer's noise, (step, batch, coordinate), by seeds that stay."""
    given = ANALYSIS.resolve(parameters)
    standardized = given["mode"] == "standardized"
    centre = np.zeros(values.shape[-1])
    cells = np.stack([noise.cell(probe, centre, standardized=standardized) for probe in values])
    seeds = np.arange(len(values), dtype=np.uint64)[:, None]
    found = ANALYSIS.kernel(cells[:, None], seeds, **given)
    result = xr.Dataset(
        {variable.name: (variable.dims, found[variable.name]) for variable in ANALYSIS.outputs},
        coords={"step": np.arange(len(values)), "layer": ["w"], "m": list(BLOCKS)},
        attrs={"parameters": given},
    )
    said = ANALYSIS.finding(result)
    result.attrs |= {"finding": said.sentence, "warnings": said.warnings}
    return result


def shape(found, step=0):
    return SHAPES[int(found["profile_shape"][step, 0])]


@pytest.mark.parametrize(
    ("law", "expected", "words"),
    [
        ("laplace", "rising", "not that of a stable law"),
        ("stable", "flat", "is not told from the flat one of a stable law"),
        ("gaussian", "flat", "is not told from the flat one of a stable law"),
        ("mean", "falling", "the mean of the noise is not 0"),
    ],
)
def test_the_profile_tells_laws_apart(law, expected, words):
    rng = np.random.default_rng(11)
    size = (2, BATCHES, SERIES)
    values = {
        "laplace": lambda: rng.laplace(size=size),
        "stable": lambda: stable.rvs(1.5, size=size, rng=rng),
        "gaussian": lambda: rng.standard_normal(size),
        "mean": lambda: rng.standard_normal(size) + 0.15,
    }[law]()
    found = analysed(values)
    assert found["m"].values.tolist() == list(BLOCKS)
    # A group of fifty batches has no block of a hundred.
    assert np.isfinite(found["alpha_profile"][0, 0]).values.tolist() == 5 * [True] + [False]
    assert shape(found, step=1) == expected
    assert words in found.attrs["finding"]
    assert not any("depend on their neighbours" in text for text in found.attrs["warnings"])
    again = mohammadi_profile(values[1])
    np.testing.assert_array_equal(found["alpha_profile_ordered"][1, 0], again.alpha)


def test_pooling_reads_a_mixture_of_scales_and_other_modes_do_not():
    rng = np.random.default_rng(12)
    values = rng.standard_normal((1, BATCHES, SERIES)) * np.exp(rng.standard_normal(SERIES))
    pooled = analysed(values, mode="pooled")
    assert shape(pooled) == "rising"
    assert pooled["alpha_profile"][0, 0, 0] < 1.4
    for mode in ("batches", "standardized"):
        found = analysed(values, mode=mode)
        assert shape(found) == "flat"
        # Ten groups: four errors, Student's t of nine degrees.
        error = found["alpha_profile_se"][0, 0, 0]
        assert abs(found["alpha_profile"][0, 0, 0] - 2) < 4 * error


def test_neighbours_that_depend_are_warned_of():
    rng = np.random.default_rng(13)
    values = rng.standard_normal((1, BATCHES, SERIES))
    for k in range(1, BATCHES):
        values[:, k] = 0.5 * values[:, k - 1] + np.sqrt(0.75) * values[:, k]
    found = analysed(values)
    (warning,) = (text for text in found.attrs["warnings"] if "neighbours" in text)
    # Blocks of two: 1/2 + log(1.5) / (2 log 2) = 1 / 1.26.
    assert found["alpha_profile_ordered"][0, 0, 0] == pytest.approx(1.26, abs=0.05)
    assert "in the order of the data Mohammadi's estimate is 1." in warning


def test_shapes_are_not_read_out_of_noise():
    """Few batches have no slope; the finding says nothing of a shape."""
    rng = np.random.default_rng(14)
    found = ANALYSIS.kernel(rng.standard_normal((1, 1, 30, 4)), np.zeros((1, 1), np.uint64))
    assert SHAPES[int(found["profile_shape"][0, 0])] == "none"
    assert np.isnan(found["profile_slope"]).all()


@pytest.fixture(scope="module")
def three_modes(tmp_path_factory):
    """Location of a trace of Gaussian noise of mixed scales, analysed in every mode."""
    rng = np.random.default_rng(15)
    path = tmp_path_factory.mktemp("modes") / "run.zarr"
    values = rng.standard_normal((2, 200, 40)) * np.exp(rng.standard_normal(40))
    with tracelab.create(path, layers={"w": (40,)}) as writer:
        for step, probe in enumerate(values):
            writer.append("noise", step=step, sampled=probe, mean_sampled=np.zeros(40))
    for mode in ("batches", "standardized", "pooled"):
        tracelab.analyze(tracelab.open(path), "tail_index", mode=mode)
    return path


def test_modes_are_drawn_side_by_side_with_their_controls(three_modes):
    results = list(tracelab.open(three_modes).results.all("tail_index").values())
    figure = figures.by_mode({"run": results})
    (axis,) = figure.axes
    drawn = {tuple(np.round(line.get_ydata(), 9)) for line in axis.lines}
    for result in results:
        for name in ("alpha", "alpha_control"):
            assert tuple(np.round(result[name].isel(layer=-1).values, 9)) in drawn
    assert "exactly Gaussian noise" in figure.get_label()
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["pooled", "its Gaussian control", "standardized", "batches"]
    # Nothing to compare, or nothing that is comparable, is no figure.
    assert figures.by_mode({"run": results[:1]}) is None
    other = results[1].copy()
    other.attrs = {**other.attrs, "parameters": {**other.attrs["parameters"], "sketch": "full"}}
    assert figures.by_mode({"run": [results[0], other]}) is None


def test_the_report_shows_the_contrast(three_modes, tmp_path, monkeypatch):
    page = report(three_modes, tmp_path / "page.html").read_text()
    assert "Tail index by mode over training" in page
    assert (tmp_path / "page_figures" / "tail_index-contrast-1.svg").is_file()

    def broken(results):
        raise RuntimeError("no such luck")

    analysis = dataclasses.replace(ANALYSIS, contrasts=(broken,))
    monkeypatch.setattr(registry, "analyses", lambda: {"tail_index": analysis})
    page = report(three_modes, tmp_path / "page.html").read_text()
    assert "Tail index by mode over training" not in page
    assert "tail_index (mode" in page or "mode=pooled" in page


def test_alpha_is_drawn_against_what_differs(tmp_path):
    rng = np.random.default_rng(16)
    table = (np.repeat([0, 1], 6), np.tile(np.arange(6), 2))
    results = {}
    for name, rate in (("sgd", 0.1), ("adam", 0.001)):
        path = tmp_path / f"{name}.zarr"
        with tracelab.create(path, layers={"a": (6,), "b": (6,)}) as writer:
            writer.define("examples", coordinates=table)
            for step in (0, 10):
                writer.append("steps", step=step, loss=1.0, learning_rate=rate)
                writer.append("examples", step=step, sampled=rng.standard_t(3, (60, 12)))
        trace = tracelab.open(path)
        for size in (4, 16):
            tracelab.analyze(trace, "tail_index", batch_size=size)
        tracelab.analyze(trace, "tail_index", mode="pooled")
        results[name] = [
            with_covariates(result, trace) for result in trace.results.all("tail_index").values()
        ]
    figure = figures.against(results)
    titles = [axis.get_xlabel() for axis in figure.axes]
    assert titles == ["layer, by depth", "step", "learning rate", "batch size of the noise"]
    small, large = (
        next(r for r in results["sgd"] if r.attrs["parameters"]["batch_size"] == size)
        for size in (4, 16)
    )
    drawn = [{tuple(line.get_ydata()) for line in axis.lines} for axis in figure.axes]
    assert tuple(small["alpha"].isel(step=-1).sel(layer=["a", "b"]).values) in drawn[0]
    whole = small["alpha"].sel(layer="network").values
    assert tuple(whole) in drawn[1]
    assert tuple(whole) in drawn[2]
    ends = (float(r["alpha"].isel(step=-1).sel(layer="network")) for r in (small, large))
    assert tuple(ends) in drawn[3]
    # One layer at one batch size and one rate: only the step differs, which `plot` shows.
    alone = small.sel(layer=["a"])
    assert figures.against({"sgd": [alone]}) is None
    assert figures.against({}) is None
