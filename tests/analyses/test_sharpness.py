"""Sharpness and noise withstood, from known losses and from a trained network."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import tracelab
from tracelab.typing import Status
from tracelab_analyses.sharpness import ANALYSIS, sharpness
from tracelab_collectors import Sharpness, misclassified

SIGMA = np.geomspace(0.01, 1, 7)


def inputs(pairs=None, draws=8, layers=1, **changed):
    """Losses of a quadratic of trace 1 at w, of norm of gradient 2, without noise of draws."""
    rises = SIGMA[:, None] ** 2 / 2 * np.ones(draws) if pairs is None else pairs
    odd = 0.3 * SIGMA[:, None] * np.linspace(-1, 1, rises.shape[-1])
    noisy = np.stack([rises + odd, rises - odd], axis=1)
    epsilon = np.array([1e-3, 1e-2])
    given = {
        "loss": np.array([0.25]),
        "gradient_norm": np.array([2.0]),
        "epsilon": epsilon[None],
        "box_gradient": np.array([[4.0, 3.0]]),
        "max_loss": 0.25
        + np.array([[[0.005, 0.006], [0.14, 0.13]], [[0.01] * 2, [0.2] * 2]])[None],
        "evaluations": np.full((1, 2, 2, 2), 11),
        "converged": np.array([[False, True], [False, False]])[None, None].repeat(2, 1),
        "sigma": SIGMA[None],
        "noise_loss": 0.25 + np.stack([noisy, 4 * noisy])[None],
        "noise_error": 0.05 + np.stack([noisy / 2, noisy])[None],
        "error": np.array([0.05]),
        "radius": np.array([[0.05]]),
        "ascent_loss": np.array([[[0.35], [0.3]]]),
        "seed": np.zeros((1, layers), np.uint64),
    }
    return given | changed


def test_numbers_by_hand():
    found = {name: value[0, 0] for name, value in sharpness(**inputs()).items()}
    assert found["status"] == Status.OK
    # 100 (max - L) / (1 + L), the larger of two searches.
    np.testing.assert_allclose(found["phi"], 80 * np.array([[0.006, 0.14], [0.01, 0.2]]))
    linear = np.array([[4e-3, 4e-2], [3e-3, 3e-2]])
    np.testing.assert_allclose(found["phi_linear"], 80 * linear)
    np.testing.assert_allclose(found["phi_curved"], found["phi"] - 80 * linear)
    assert found["converged"].tolist() == [[True, False], [True, False]]
    assert (found["n_evaluations"] == 22).all()
    np.testing.assert_allclose(found["expected_rise"][0], SIGMA**2 / 2, rtol=1e-12)
    np.testing.assert_allclose(found["expected_rise_se"], 0, atol=1e-15)
    # sigma^2 tr / 2 = rise, exactly, for traces 1 and 4 of the loss, 1/2 and 1 of the error.
    exact = np.sqrt(2 * 0.1 / np.array([[1, 4], [0.5, 1]]))
    np.testing.assert_allclose(found["sigma"], exact, rtol=1e-12)
    np.testing.assert_allclose(found["flatness"], exact**-2, rtol=1e-12)
    np.testing.assert_allclose(found["ascent_rise"], [[0.1], [0.05]])
    assert found["n_draws"] == 8
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}


def test_every_row_says_the_same():
    one, three = sharpness(**inputs()), sharpness(**inputs(layers=3))
    for name, value in three.items():
        assert value.shape[:2] == (1, 3)
        np.testing.assert_array_equal(value, np.repeat(one[name], 3, axis=1))


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_powers_are_interpolated_exactly(power):
    pairs = SIGMA[:, None] ** power * np.ones(8)
    found = sharpness(**inputs(pairs), rise=0.037)
    assert found["sigma"][0, 0, 0, 0] == pytest.approx(0.037 ** (1 / power), rel=1e-12)


def test_a_rise_that_noise_hides_at_first_is_met_on_a_line_in_the_variance():
    rises = np.array([-1e-3, -1e-3, 0, 0.1, 0.4, 1, 2])
    found = sharpness(**inputs(rises[:, None] * np.ones(8)), rise=0.05)
    exact = np.sqrt((SIGMA[2] ** 2 + SIGMA[3] ** 2) / 2)
    assert found["sigma"][0, 0, 0, 0] == pytest.approx(exact, rel=1e-12)


def test_the_interval_covers_at_its_level():
    """A normal rise at every sigma, common to all: Student's interval is exact.

    Of five draws: one degree of freedom more, and the other divisor, would cover .85.
    """
    rng = np.random.default_rng(0)
    trials, truth = 2000, np.sqrt(2 * 0.1)
    inside = 0
    for _ in range(trials):
        pairs = SIGMA[:, None] ** 2 / 2 * (1 + 0.3 * rng.standard_normal(5))
        found = sharpness(**inputs(pairs), confidence=0.9)
        low, high = (float(found[f"sigma_{end}"][0, 0, 0, 0]) for end in ("low", "high"))
        inside += low <= truth <= high
    assert inside / trials == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / trials))


def test_the_interval_surrounds_the_estimate_and_turns_over_for_its_inverse():
    rng = np.random.default_rng(1)
    pairs = SIGMA[:, None] ** 2 / 2 * (1 + 0.3 * rng.standard_normal(8))
    found = {name: value[0, 0, 0, 0] for name, value in sharpness(**inputs(pairs)).items()
             if name.startswith(("sigma", "flatness"))}  # fmt: skip
    assert found["sigma_low"] < found["sigma"] < found["sigma_high"]
    assert found["flatness_low"] == found["sigma_high"] ** -2
    assert found["flatness_low"] < found["flatness"] < found["flatness_high"]


def test_noise_that_is_not_recorded_is_not_guessed():
    for rise in (1e-5, 10.0):
        found = sharpness(**inputs(), rise=rise)
        assert np.isnan(found["sigma"][0, 0, 0, 0])
        assert found["status"][0, 0] == Status.OK
    # The upper end of the interval lies beyond what was recorded, the estimate does not.
    rng = np.random.default_rng(0)
    pairs = SIGMA[:, None] ** 2 / 2 * (1 + 0.3 * rng.standard_normal(8))
    found = sharpness(**inputs(pairs), rise=0.99 * pairs[-1].mean())
    assert np.isfinite(found["sigma"][0, 0, 0, 0])
    assert np.isnan(found["sigma_high"][0, 0, 0, 0])


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"loss": np.array([np.nan])}, Status.NON_FINITE_INPUT),
        ({"max_loss": np.full((1, 2, 2, 2), np.inf)}, Status.NON_FINITE_INPUT),
        ({"noise_loss": np.full((1, 2, 7, 2, 8), np.nan)}, Status.NON_FINITE_INPUT),
        (
            {
                "max_loss": np.full((1, 2, 2, 2), 0.25),
                "noise_loss": np.full((1, 2, 7, 2, 8), 0.25),
            },
            Status.CONSTANT_INPUT,
        ),
        ({"noise_loss": np.full((1, 2, 7, 2, 4), 0.3)}, Status.TOO_FEW_SAMPLES),
        ({"noise_loss": np.full((1, 2, 7, 2, 1), 0.3)}, Status.TOO_FEW_SAMPLES),
        ({"noise_error": np.full((1, 2, 7, 2, 8), np.nan)}, Status.OK),
        ({"loss": np.array([-1.5])}, Status.OK),
    ],
)
def test_what_is_missing_is_missing(changed, status):
    found = sharpness(**inputs(**changed))
    assert found["status"][0, 0] == status
    if "noise_error" in changed:
        assert np.isnan(found["sigma"][0, 0, 1]).all()
        assert np.isfinite(found["sigma"][0, 0, 0]).all()
    if "noise_loss" in changed and changed["noise_loss"].shape[-1] == 1:
        assert np.isnan(found["expected_rise_se"]).all()
        assert np.isnan(found["sigma_low"][0, 0, 0]).all()
    if changed.get("loss", [0])[0] == -1.5:
        assert np.isnan(found["phi"]).all()


def test_no_subspace_was_recorded():
    given = inputs()
    given["max_loss"][:, 1] = np.nan
    given["box_gradient"][:, 1] = np.nan
    found = sharpness(**given)
    assert found["status"][0, 0] == Status.OK
    assert np.isnan(found["phi"][0, 0, 1]).all()
    assert np.isfinite(found["phi"][0, 0, 0]).all()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A network trained on digits, and itself at the end."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.as_tensor(digits.data[:600] / 16, dtype=torch.float32)
        data = torch.utils.data.TensorDataset(images, torch.as_tensor(digits.target[:600]))
        net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)

        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        path = tmp_path_factory.mktemp("sharpness") / "run.zarr"
        collector = Sharpness(every=400, error=misclassified, draws=8)
        with tracelab.attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
            for step in range(401):
                if step == 400:
                    weights = [parameter.detach().clone() for parameter in net.parameters()]
                optimizer.zero_grad()
                loss(net, data[torch.randint(600, (32,))]).backward()
                optimizer.step()
    with tracelab.open(path) as trace:
        result = tracelab.analyze(trace, ["sharpness"])["sharpness"].load()
    return result, (images, data.tensors[1], weights)


def test_the_noise_that_a_trained_network_withstands(recorded):
    """At the noise found, losses of fresh draws, computed by hand, have risen by the target."""
    result, (images, labels, weights) = recorded
    row = result.isel(step=-1).sel(layer="network")
    assert (result["status"] == Status.OK).all()
    rng = np.random.default_rng(5)
    a, b, c, d = (each.double().numpy() for each in weights)

    def values(a, b, c, d):
        scores = np.maximum(images.double().numpy() @ a.T + b, 0) @ c.T + d
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        chosen = logs[np.arange(600), labels.numpy()]
        return -chosen.mean(), np.mean(scores.argmax(1) != labels.numpy())

    at = np.array(values(a, b, c, d))
    # The trace takes 512 of these 600 examples: their loss is that of all to its standard error.
    assert float(row["loss"]) == pytest.approx(at[0], rel=0.2)
    for geometry in range(2):
        for measure in range(2):
            low, high = (float(row[f"sigma_{end}"][measure, geometry]) for end in ("low", "high"))
            means = []
            for sigma in (low, high):
                moved = [
                    values(*(
                        w + sigma * (np.abs(w) if geometry else 1) * rng.standard_normal(w.shape)
                        for w in (a, b, c, d)
                    ))[measure] - at[measure]
                    for _ in range(300)
                ]  # fmt: skip
                means.append((np.mean(moved), np.std(moved) / np.sqrt(300)))
            # 95 % intervals of sigma hold the truth, so the rise is below at one end and above at
            # the other, by four standard errors of the fresh draws at most the other way.
            (below, below_se), (above, above_se) = means
            assert below - 4 * below_se < 0.1 < above + 4 * above_se


def test_profiles_rise_and_exceed_the_gradients_promise(recorded):
    result, _ = recorded
    network = result.sel(layer="network")
    assert (network["phi"].diff("box") > 0).all()
    # In a box of 1e-4 the loss is its gradient, but for that times the curvature.
    ratio = network["phi"][:, 0, 0] / network["phi_linear"][:, 0, 0]
    np.testing.assert_allclose(ratio, 1, rtol=0.1)
    assert (network["expected_rise"][:, :, -1] > network["expected_rise"][:, :, 0]).all()


def test_finding_and_figure(recorded):
    result, _ = recorded
    result.attrs["parameters"] = ANALYSIS.resolve({})
    found = ANALYSIS.finding(result)
    assert "The loss of the network has a sharpness of" in found.sentence
    assert "at step 400" in found.sentence
    assert "raises the expected loss by 0.1" in found.sentence
    assert "not invariant" in found.warnings[0]
    assert any("the gradient alone makes half" in text for text in found.warnings)
    figure = ANALYSIS.plot({"run": result})
    assert figure.get_label().startswith("Sharpness by size of the box")
    assert len(figure.axes) == 3
    nothing = result.assign(status=result["status"] * 0 + int(Status.NON_FINITE_INPUT))
    assert ANALYSIS.finding(nothing).sentence.startswith("No step had finite")
    assert ANALYSIS.plot({"run": nothing}).axes


def test_findings_say_what_is_wrong():
    given = inputs(**{"loss": np.array([-2.0])})
    outputs = sharpness(**given)
    dims = {variable.name: variable.dims for variable in ANALYSIS.outputs}
    result = xr.Dataset(
        {name: (dims[name], value) for name, value in outputs.items()},
        coords={"step": [0], "layer": ["network"]},
    )
    texts = ANALYSIS.finding(result).warnings
    assert any("none at losses of -1" in text for text in texts)
    assert any("used up their iterations" in text for text in texts)
    assert any("no recorded standard deviation" in text for text in texts)


@pytest.mark.slow
def test_large_batches_are_sharper_at_equal_loss_in_large_boxes_alone(tmp_path):
    """Keskar et al. 2017 on digits: at 1e-2 large batches are sharper, and at 1e-4 small ones.

    In boxes so small the gradient decides, whose noise small batches leave larger.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.as_tensor(digits.data[:1200] / 16, dtype=torch.float32)
    data = torch.utils.data.TensorDataset(images, torch.as_tensor(digits.target[:1200]))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def profile(batch_size, rate, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=rate)

        def step():
            optimizer.zero_grad()
            loss(net, data[torch.randint(1200, (batch_size,))]).backward()
            optimizer.step()

        with torch.no_grad():
            reached = float(loss(net, data[:]))
        while reached > 0.01:
            for _ in range(20):
                step()
            with torch.no_grad():
                reached = float(loss(net, data[:]))
        path = tmp_path / f"{batch_size}-{seed}.zarr"
        collector = Sharpness(every=1, examples=None, draws=5, sigmas=(0.1, 0.3))
        with tracelab.attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
            step()
        with tracelab.open(path) as trace:
            row = tracelab.analyze(trace, ["sharpness"])["sharpness"].sel(layer="network").load()
        assert 0.007 < float(row["loss"][0]) <= 0.01
        return row["phi"].values[0, 0]

    with torch.random.fork_rng(devices=[]):
        small = np.array([profile(8, 0.2, seed) for seed in range(4)])
        large = np.array([profile(600, 0.5, seed) for seed in range(4)])
    # The order alone is claimed; it is that of every pair of seeds in the smallest box.
    assert np.median(large[:, -1]) > np.median(small[:, -1])
    assert large[:, 0].max() < small[:, 0].min()
