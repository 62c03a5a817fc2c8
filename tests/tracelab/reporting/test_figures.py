import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

import tracelab
from tracelab.reporting.distance import _distance, _fit, _laws
from tracelab.reporting.quantiles import _band, _chosen, _noise_group, _positions
from tracelab.reporting.style import picture, plain_text, styled


def test_distance_of_the_network_is_the_root_sum_of_squares(runs):
    step, distance = _distance(tracelab.open(runs[1]))
    assert step[0] == 1
    assert step[-1] == 59
    # The run was written as sqrt(t) (1, 1.5, 2) up to noise of 0.01 a layer.
    expected = np.sqrt(step) * np.linalg.norm([1, 1.5, 2])
    np.testing.assert_allclose(distance, expected, atol=5 * 0.01 * np.sqrt(3))


def test_fitted_laws_are_drawn_from_the_stored_result(runs):
    trace = tracelab.open(runs[0])
    fit = _fit(trace)
    assert str(fit["layer"].values) == "network"
    axes = Figure().subplots()
    t = np.array([1.0, 10.0, 50.0])
    assert _laws(axes, trace, t, "C0")
    # From the step on from which they were fitted.
    t = t[t >= int(fit["start"])]
    log, power, *saturation = (line.get_ydata() for line in axes.lines)
    np.testing.assert_allclose(
        log, float(fit["log_intercept"]) + float(fit["log_slope"]) * np.log(t)
    )
    # The run diffuses like sqrt(t) sqrt(1 + 4), which the power law must find.
    np.testing.assert_allclose(power, np.sqrt(5 * t), rtol=0.02)
    level, amplitude, time = (
        float(fit[f"saturation_{name}"]) for name in ("level", "amplitude", "time")
    )
    assert len(saturation) == np.isfinite(time)
    for curve in saturation:
        np.testing.assert_allclose(curve, level - amplitude * np.exp(-t / time))


def test_nothing_recorded_is_no_curve(tmp_path):
    with tracelab.create(tmp_path / "bare.zarr", layers={"w": (2,)}) as writer:
        writer.append("steps", step=0, loss=1.0)
    trace = tracelab.open(tmp_path / "bare.zarr")
    assert _distance(trace) is None
    assert _noise_group(trace) is None


def test_the_band_is_that_of_an_order_statistic():
    ranks = np.array([0, 3, 9])
    low, high = _band(ranks, 10)
    law = stats.beta(ranks + 1, 10 - ranks)
    np.testing.assert_allclose(low, law.ppf(0.025), rtol=1e-10)
    np.testing.assert_allclose(high, law.ppf(0.975), rtol=1e-10)


def test_thinning_keeps_every_extreme():
    ranks, probability = _positions(10_000, 120)
    assert ranks.size == 120
    np.testing.assert_array_equal(ranks[:25], np.arange(25))
    np.testing.assert_array_equal(ranks[-25:], np.arange(9_975, 10_000))
    np.testing.assert_allclose(probability, (ranks + 0.5) / 10_000)


def test_few_points_are_all_shown():
    assert _positions(40, 120)[0].size == 40


def test_chosen_series_span_the_kurtosis():
    rng = np.random.default_rng(0)
    series = np.stack([rng.standard_t(df, 2_000) for df in (200, 5, 30, 4, 100)], axis=1)
    found = stats.kurtosis(_chosen(series))
    every = np.sort(stats.kurtosis(series))
    np.testing.assert_allclose(found, every[[0, 2, 4]])


def test_one_series_is_chosen_once():
    assert _chosen(np.random.default_rng(0).standard_normal((50, 1))).shape == (50, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fc.weight", "fc.weight"),
        ("_hidden", " _hidden"),
        ("$x_1$", r"\$x_1\$"),
        ("a\nb\x00", "a�b�"),
        ("x" * 100, "x" * 24 + "…" + "x" * 24),
    ],
)
def test_plain_text_is_what_matplotlib_shows_as_it_stands(text, shown):
    assert plain_text(text) == shown


def test_an_inline_figure_names_nothing_as_another_does():
    with styled():
        drawn = []
        for name in ("a", "b"):
            figure = Figure(figsize=(2, 2))
            axes = figure.subplots()
            axes.plot([0, 1], label='"quoted" <&')
            axes.legend()
            drawn.append(picture(figure, name, '<caption> & "quotes"').inline)
    for name, text in zip("ab", drawn, strict=True):
        assert text.startswith("<svg")
        assert 'aria-label="&lt;caption&gt; &amp; &quot;quotes&quot;"' in text
        assert "<metadata" not in text
        assert "&lt;&amp;" in text
        identifiers = re.findall(r' id="([^"]*)"', text)
        assert identifiers
        assert all(identifier.startswith(f"{name}-") for identifier in identifiers)
        used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
        assert {a or b for a, b in used} <= set(identifiers)
