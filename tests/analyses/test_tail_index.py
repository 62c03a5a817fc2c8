"""What the tail index says besides alpha: block profiles, and what findings make of them."""

import dataclasses

import numpy as np
import pytest

import tracelab
from tracelab import registry
from tracelab.reporting import report
from tracelab.stats import stable
from tracelab.stats.mohammadi_profile import BLOCKS, SHAPES, mohammadi_profile
from tracelab_analyses import tail_index_figures as figures
from tracelab_analyses.tail_index import ANALYSIS

BATCHES, SERIES = 500, 30


def analysed(path, values, **parameters):
    """Return the tail index of one layer's noise, (step, batch, coordinate)."""
    with tracelab.create(path, layers={"w": (values.shape[-1],)}) as writer:
        for step, probe in enumerate(values):
            mean = np.zeros(values.shape[-1])
            writer.append("noise", step=step, sampled=probe, mean_sampled=mean)
    return tracelab.analyze(tracelab.open(path), "tail_index", **parameters)["tail_index"]


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
def test_the_profile_tells_laws_apart(tmp_path, law, expected, words):
    rng = np.random.default_rng(11)
    size = (2, BATCHES, SERIES)
    values = {
        "laplace": lambda: rng.laplace(size=size),
        "stable": lambda: stable.rvs(1.5, size=size, rng=rng),
        "gaussian": lambda: rng.standard_normal(size),
        "mean": lambda: rng.standard_normal(size) + 0.15,
    }[law]()
    found = analysed(tmp_path / "a.zarr", values)
    assert found["m"].values.tolist() == list(BLOCKS)
    # A group of fifty batches has no block of a hundred.
    assert np.isfinite(found["alpha_profile"][0, 0]).values.tolist() == 5 * [True] + [False]
    assert shape(found, step=1) == expected
    assert words in found.attrs["finding"]
    assert not any("depend on their neighbours" in text for text in found.attrs["warnings"])
    again = mohammadi_profile(values[1].astype(np.float32))
    np.testing.assert_array_equal(found["alpha_profile_ordered"][1, 0], again.alpha)


def test_pooling_reads_a_mixture_of_scales_and_other_modes_do_not(tmp_path):
    rng = np.random.default_rng(12)
    values = rng.standard_normal((1, BATCHES, SERIES)) * np.exp(rng.standard_normal(SERIES))
    pooled = analysed(tmp_path / "a.zarr", values, mode="pooled")
    assert shape(pooled) == "rising"
    assert pooled["alpha_profile"][0, 0, 0] < 1.4
    for mode in ("batches", "standardized"):
        found = analysed(tmp_path / f"{mode}.zarr", values, mode=mode)
        assert shape(found) == "flat"
        # Ten groups: four errors, Student's t of nine degrees.
        error = found["alpha_profile_se"][0, 0, 0]
        assert abs(found["alpha_profile"][0, 0, 0] - 2) < 4 * error


def test_neighbours_that_depend_are_warned_of(tmp_path):
    rng = np.random.default_rng(13)
    values = rng.standard_normal((1, BATCHES, SERIES))
    for k in range(1, BATCHES):
        values[:, k] = 0.5 * values[:, k - 1] + np.sqrt(0.75) * values[:, k]
    found = analysed(tmp_path / "a.zarr", values)
    (warning,) = (text for text in found.attrs["warnings"] if "neighbours" in text)
    # Blocks of two: 1/2 + log(1.5) / (2 log 2) = 1 / 1.26.
    assert found["alpha_profile_ordered"][0, 0, 0] == pytest.approx(1.26, abs=0.05)
    assert "in the order of the data Mohammadi's estimate is 1." in warning


def test_shapes_are_not_read_out_of_noise():
    """Few batches have no slope; the finding says nothing of a shape."""
    rng = np.random.default_rng(14)
    noise = rng.standard_normal((1, 1, 30, 4))
    found = ANALYSIS.kernel(noise, np.zeros((1, 1), np.uint64))
    assert SHAPES[int(found["profile_shape"][0, 0])] == "none"
    assert np.isnan(found["profile_slope"]).all()


@pytest.fixture(scope="module")
def three_modes(tmp_path_factory):
    """Location of a trace of Gaussian noise of mixed scales, analysed in every mode."""
    rng = np.random.default_rng(15)
    path = tmp_path_factory.mktemp("modes") / "run.zarr"
    values = rng.standard_normal((2, 200, 40)) * np.exp(rng.standard_normal(40))
    for mode in ("batches", "standardized", "pooled"):
        if path.exists():
            tracelab.analyze(tracelab.open(path), "tail_index", mode=mode)
        else:
            analysed(path, values, mode=mode)
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
