"""PAC-Bayes bounds by hand, and above the risk of networks of one layer over many data sets."""

import numpy as np
import pytest
import torch
from scipy import stats

import tracelab
from tracelab import planning
from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.stats.divergence import bernoulli_kl_inverse, gaussian_kl
from tracelab.typing import Assumption, Status
from tracelab_analyses.pac_bayes import (
    ANALYSIS,
    ASSUMPTIONS,
    DRAWS,
    EMPIRICAL,
    KL,
    PRICE,
    THEORIES,
    pac_bayes,
)
from tracelab_analyses.pac_bayes_figures import BOUNDED, COVERED
from tracelab_collectors import PerturbedLoss, misclassified

from plans import computed  # isort: skip

SIGMA = np.array([0.01, 0.1])


def inputs(layers=1, **changed):
    """Errors of .1 in training and .2 held out at every draw, but for a part that cancels."""
    odd = 0.05 * np.linspace(-1, 1, 50)
    error = np.array([0.1, 0.2])[:, None, None, None, None] + np.zeros((2, 2, 2, 2, 50))
    error[:, :, :, 0] += odd
    error[:, :, :, 1] -= odd
    given = {
        "sigma": SIGMA[None],
        "distance": np.array([0.3]),
        "noise_error": error[None],
        "noise_loss": 2 * error[None],
        "noise_variance": np.array([[1.0, 0.5]]),
        "noise_log_det": np.array([[0.0, -6.0]]),
        "n_weights": np.asarray(10),
        "n_examples": np.asarray(2000),
        "n_held_out": np.asarray(500),
        "all_layers": np.asarray(1.0),
        "error_low": np.zeros(1),
        "error_high": np.ones(1),
        "seed": np.zeros((1, layers), np.uint64),
    }
    return given | changed


def found_by(**changed):
    options = {name: changed.pop(name) for name in list(changed) if name in PARAMETERS}
    return {name: value[0, 0] for name, value in pac_bayes(**inputs(**changed), **options).items()}


PARAMETERS = {parameter.name for parameter in ANALYSIS.parameters}


def test_numbers_by_hand():
    found = found_by()
    assert found["status"] == Status.OK
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}
    # A half of .05 over four noises; a quarter each for two theorems.
    high = bernoulli_kl_inverse(0.1, np.log(4 / 0.025) / 50)
    np.testing.assert_allclose(found["empirical"], 0.1)
    np.testing.assert_allclose(found["empirical_se"], 0, atol=1e-15)
    np.testing.assert_allclose(found["bound_se"], 0, atol=1e-12)
    np.testing.assert_allclose(found["empirical_high"], high)
    j = np.arange(1, 2000)
    prior = np.exp(-j / 100)
    totals = []
    for variance, det in ((1.0, 0.0), (0.5, -6.0)):
        each = [
            gaussian_kl(0.09, 10 * s**2 * variance, 20 * np.log(s) + det, 10, prior)
            + 2 * np.log(j) + np.log(np.pi**2 / 6)
            for s in SIGMA
        ]  # fmt: skip
        totals.append(np.min(each, axis=1))
    theorem, slopes = np.log(2 * np.sqrt(2000) / 0.0125), np.log(24 / 0.0125)
    for number, theory in enumerate(THEORIES):
        total = totals[number % 2] + (slopes if theory.startswith("catoni") else theorem)
        best = total.min() / 2000
        assert found["sigma"][number] == 0.1
        assert found["kl"][number] + found["price"][number] == pytest.approx(total.min())
        exact = {
            "mcallester": high + np.sqrt(best / 2),
            "seeger": bernoulli_kl_inverse(high, best),
        }.get(theory.split(",")[0])
        if exact is None:
            b = found["beta"][number]
            exact = (1 - np.exp(-b * high - best)) / (1 - np.exp(-b))
        assert found["bound"][number] == pytest.approx(exact, rel=1e-10)
        assert found["penalty"][number] == pytest.approx(exact - high, rel=1e-9)
    assert (found["bound"] == found["bound_by_level"].min(axis=1)).all()
    assert not found["vacuous"].any()
    np.testing.assert_allclose(found["gap"], 0.1)
    # Draws all give the same gap; 500 examples of risk .2.
    np.testing.assert_allclose(found["gap_se"], np.sqrt(0.2 * 0.8 / 500))
    reach = stats.t.ppf(0.975, 49) * np.sqrt(0.2 * 0.8 / 500)
    np.testing.assert_allclose(found["gap_high"], 0.1 + reach)
    assert found["assumption_holds"].tolist() == [0, 0, Assumption.HOLDS, Assumption.HOLDS]
    assert (found["n_draws"], found["n_examples"], found["n_weights"]) == (50, 2000, 10)


def test_every_row_says_the_same():
    one, three = pac_bayes(**inputs()), pac_bayes(**inputs(layers=3))
    for name, value in three.items():
        np.testing.assert_array_equal(value, np.repeat(one[name], 3, axis=1))


def test_the_error_of_draws_is_what_other_draws_change():
    """The spread of the bound over samples of draws, against what one sample says of it."""
    rng = np.random.default_rng(0)
    bounds, errors = [], []
    for _ in range(250):
        given = inputs()["noise_error"] + 0.05 * rng.uniform(-1, 1, (1, 2, 2, 2, 1, 50))
        found = found_by(noise_error=given)
        bounds.append(found["bound"][0])
        errors.append(found["bound_se"][0])
    # A standard deviation of 250 has a relative standard error of 1 / sqrt(498); the smaller of
    # two noises is the same one at nearly all, since their divergences differ by more.
    assert np.std(bounds) == pytest.approx(np.mean(errors), rel=4 / np.sqrt(498))


def test_the_term_that_makes_it_vacuous():
    error = inputs()["noise_error"]
    cases = {
        EMPIRICAL: {"noise_error": np.full_like(error, 0.995)},
        KL: {"distance": np.array([1e4])},
        PRICE: {"n_examples": np.asarray(9), "distance": np.array([0.05]),
                "vacuous_from": 0.93},
        DRAWS: {"noise_error": error[..., :2], "vacuous_from": 0.6},
    }  # fmt: skip
    for term, changed in cases.items():
        found = found_by(**changed)
        assert found["vacuous"][0] == 1
        assert found["vacuous_term"][0] == term
    assert (found_by()["vacuous_term"] == 0).all()


def test_draws_are_what_is_lacking_where_there_are_few():
    few, many = found_by(noise_error=inputs()["noise_error"][..., ::10]), found_by()
    np.testing.assert_allclose(few["bound_many_draws"], many["bound_many_draws"], rtol=1e-12)
    assert (few["bound"] > many["bound"]).all()
    assert (many["bound"] > many["bound_many_draws"]).all()


def test_losses_are_taken_where_they_are_bounded():
    nothing = np.full((1, 2, 2, 2, 2, 50), np.nan)
    assert found_by(noise_error=nothing)["status"] == Status.NON_FINITE_INPUT
    found = found_by(noise_error=nothing, loss_bound=2.0)
    assert found["of_loss"] == 1
    np.testing.assert_allclose(found["bound"], found_by()["bound"], rtol=1e-12)
    bounded = ASSUMPTIONS.index(BOUNDED)
    assert found["assumption_holds"][bounded] == Assumption.UNCHECKED
    # One noise under which the loss once exceeds its bound has none, and the other has.
    loss = inputs()["noise_loss"].copy()
    loss[0, 0, :, 1, 0, 0] = 2.5
    found = found_by(noise_error=nothing, noise_loss=loss, loss_bound=2.0)
    assert found["assumption_holds"][bounded] == Assumption.FAILS
    assert (found["sigma"] == SIGMA[0]).all()
    assert np.isnan(found["bound_by_level"][:, 1]).all()
    # Which noises remain is known from the draws alone: the others keep their share.
    high = bernoulli_kl_inverse(0.1, np.log(4 / 0.025) / 50)
    np.testing.assert_allclose(found["empirical_high"], high)


def test_errors_that_are_none():
    bounded = ASSUMPTIONS.index(BOUNDED)
    for value in (2.5, -0.1, np.inf):
        error = inputs()["noise_error"].copy()
        error[0, 0, :, 1, 0, 0] = value
        found = found_by(noise_error=error)
        assert found["assumption_holds"][bounded] == Assumption.FAILS
        assert (found["sigma"] == SIGMA[0]).all()
    # All wrong, by pieces: 1/49 is added 49 times, and so on; some sums exceed 1 by rounding.
    error = inputs()["noise_error"].copy()
    error[0, 0, :, 1] = np.nextafter(1.0, 2.0)
    found = found_by(noise_error=error)
    assert found["assumption_holds"][bounded] == Assumption.HOLDS
    np.testing.assert_array_equal(found["bound_by_level"][2:4, 1], 1.0)


@pytest.mark.parametrize("place", [(0, 0, 0, 1, 0, 0), (0, 1, 1, 1, 1, 3)])
def test_one_error_that_is_no_number(place):
    error = inputs()["noise_error"].copy()
    error[place] = np.nan
    found = found_by(noise_error=error)
    assert found["assumption_holds"][ASSUMPTIONS.index(BOUNDED)] == Assumption.FAILS


@pytest.mark.parametrize(
    ("low", "high", "state"),
    [
        (0.0, 1.0, Assumption.HOLDS),
        (-0.1, 1.0, Assumption.FAILS),
        (0.0, 3.0, Assumption.FAILS),
        (np.nan, np.nan, Assumption.UNCHECKED),
    ],
)
def test_errors_of_examples_say_what_their_means_do_not(low, high, state):
    found = found_by(error_low=np.array([low]), error_high=np.array([high]))
    assert found["assumption_holds"][ASSUMPTIONS.index(BOUNDED)] == state
    without = found_by(error_low=None, error_high=None)
    assert without["assumption_holds"][ASSUMPTIONS.index(BOUNDED)] == Assumption.UNCHECKED


def test_any_grid_of_priors_has_a_bound_and_no_other_is_taken():
    fine = found_by(prior_precision=10**12)
    assert fine["status"] == Status.OK
    assert (fine["bound"] > found_by()["bound"]).all()
    for value in (0, 10**13, "many"):
        with pytest.raises(UsageError, match="parameter 'prior_precision' must be an integer in"):
            ANALYSIS.resolve({"prior_precision": value})


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"noise_error": np.full((1, 2, 2, 2, 2, 50), np.inf)}, Status.NON_FINITE_INPUT),
        ({"distance": np.array([np.nan])}, Status.NON_FINITE_INPUT),
        ({"noise_error": np.full((1, 2, 2, 2, 2, 1), 0.1)}, Status.TOO_FEW_SAMPLES),
        ({"noise_loss": np.full((1, 2, 2, 2, 2, 50), 0.3)}, Status.CONSTANT_INPUT),
        ({"n_examples": np.asarray(-5)}, Status.TOO_FEW_SAMPLES),
        ({"n_weights": np.asarray(0)}, Status.TOO_FEW_SAMPLES),
        ({"n_held_out": np.asarray(0)}, Status.OK),
        ({"distance": np.array([0.0])}, Status.OK),
    ],
)
def test_what_is_missing_is_missing(changed, status):
    found = found_by(**changed)
    assert found["status"] == status
    assert np.isfinite(found["bound"]).all() == (status is Status.OK)
    if "n_held_out" in changed:
        assert np.isnan(found["gap"]).all()


def test_noise_of_one_shape():
    error = inputs()["noise_error"].copy()
    error[:, :, 1] = np.nan
    found = found_by(noise_error=error)
    assert np.isfinite(found["bound"][::2]).all()
    assert np.isnan(found["bound"][1::2]).all()
    # Two noises share what four did.
    high = bernoulli_kl_inverse(0.1, np.log(2 / 0.025) / 50)
    np.testing.assert_allclose(found["empirical_high"][::2], high)


def trained(rng, n=200, d=4, draws=40, sigmas=(0.1, 0.3, 1.0)):
    """Return what a trace would hold of logistic regression, and the true risk under each noise.

    Labels are random at the rate of a logistic model; the prior's mean is drawn without them.
    """
    truth = rng.standard_normal(d) * 2

    def sample(size):
        x = rng.standard_normal((size, d))
        return x, rng.random(size) < 1 / (1 + np.exp(-x @ truth))

    x, y = sample(n)
    start = 0.1 * rng.standard_normal(d)
    w = start.copy()
    for _ in range(200):
        w -= 1.0 * x.T @ (1 / (1 + np.exp(-x @ w)) - y) / n
    p = 1 / (1 + np.exp(-x @ w))
    values, vectors = np.linalg.eigh((x.T * (p * (1 - p))) @ x / n)
    shape = values / (values + 0.05)
    root = [np.eye(d), vectors * np.sqrt(1 - shape)]
    xi = rng.standard_normal((draws, d))
    sets = [(x, y), sample(100)]
    # The risk of a linear classifier, over 1000 fresh examples and the draws of another sample.
    fresh, fresh_xi = sample(1000), rng.standard_normal((100, d))

    def errors(data, weights):
        return ((data[0] @ weights.T > 0) != data[1][:, None]).mean(axis=0)

    sign = np.array([1, -1])
    noisy = np.array([
        [[[errors(data, w + each * s * xi @ half.T) for each in sign] for s in sigmas]
         for half in root]
        for data in sets
    ])  # fmt: skip
    risk = np.array(
        [[errors(fresh, w + s * fresh_xi @ half.T).mean() for s in sigmas] for half in root]
    )
    given = {
        "sigma": np.array([sigmas]),
        "distance": np.array([np.linalg.norm(w - start)]),
        "noise_error": noisy[None],
        "noise_loss": noisy[None],
        "noise_variance": np.array([[1.0, (1 - shape).mean()]]),
        "noise_log_det": np.array([[0.0, np.log(1 - shape).sum()]]),
        "n_weights": np.asarray(d),
        "n_examples": np.asarray(n),
        "n_held_out": np.asarray(100),
        "seed": np.zeros((1, 1), np.uint64),
    }
    return given, risk


@pytest.mark.slow
def test_of_a_network_that_was_recorded(tmp_path):
    """Divergences are those of the weights themselves, and the bound of digits is not vacuous."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.as_tensor(digits.data / 16, dtype=torch.float32)
        chosen = torch.randperm(len(images)).split(1400)
        data, held = (
            torch.utils.data.TensorDataset(images[each], torch.as_tensor(digits.target)[each])
            for each in chosen
        )
        net = torch.nn.Linear(64, 10)
        start = [parameter.detach().clone() for parameter in net.parameters()]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)

        def loss(model, batch):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

        collector = PerturbedLoss(
            every=1000, held_out=held, error=misclassified, draws=50, sigmas=(0.1, 0.2),
            batches=2, curvature=4,
        )  # fmt: skip
        path = tmp_path / "digits.zarr"
        with tracelab.attach(net, optimizer, path, collectors=[collector], loss=loss, data=data):
            for _ in range(300):
                optimizer.zero_grad()
                loss(net, data[torch.randint(1400, (64,))]).backward()
                optimizer.step()
    with tracelab.open(path) as trace:
        row, failures = computed(planning.plan(ANALYSIS, trace, ANALYSIS.resolve({})), trace)
    assert failures == ()
    last = row.isel(step=-1, layer=0).sel(theory="seeger, isotropic")
    assert last["status"] == Status.OK
    pairs = zip(net.parameters(), start, strict=True)
    squared = sum(float((w.detach() - w0).double().square().sum()) for w, w0 in pairs)
    sigma, deviation = float(last["sigma"]), float(last["prior_deviation"])
    kl = gaussian_kl(squared, 650 * sigma**2, 1300 * np.log(sigma), 650, deviation**2)
    # Distances are summed in float32's differences.
    assert float(last["kl"]) == pytest.approx(float(kl), rel=1e-4)
    assert float(last["held_out"]) < float(last["bound"]) < 0.9
    assert (row["assumption_holds"].sel(assumption=COVERED) == Assumption.HOLDS).all()


@pytest.mark.slow
def test_bounds_lie_above_the_risk_of_two_hundred_data_sets():
    """Any of six, at the noise that was chosen, is crossed by the risk as often as allowed."""
    trials, crossed, careless, nonvacuous = 200, 0, 0, 0
    for seed in range(trials):
        given, risk = trained(np.random.default_rng(seed))
        found = {name: value[0, 0] for name, value in pac_bayes(**given).items()}
        levels = np.searchsorted(given["sigma"][0], found["sigma"])
        truth = risk[np.tile([0, 1], 3), levels]
        # The risk itself is known to the error of 1000 examples, at most .5 / sqrt(1000): its
        # lower end, so that chance does not count as a crossing.
        crossed += (found["bound"] < truth - 3 * 0.5 / np.sqrt(1000)).any()
        careless += (found["empirical"] < truth).mean() / trials
        nonvacuous += (found["bound"].min() < 0.9) / trials
    # A rate of 5 % gives more than that with probability 1e-3.
    assert crossed <= stats.binom.ppf(0.999, trials, 0.05)
    # What is without allowance is crossed by most, and the bounds say something.
    assert careless > 0.5
    assert nonvacuous > 0.9


def define(writer):
    """Declare the part of a group of perturbed losses that is read."""
    noise = ("step", "set", "shape", "level", "sign", "draw")
    units = {"sigma": "weight", "distance": "weight", "noise_loss": "loss"}
    dims = {
        "sigma": ("step", "level"),
        "distance": ("step",),
        "error_low": ("step",),
        "error_high": ("step",),
        "noise_error": noise,
        "noise_loss": noise,
        "noise_variance": ("step", "shape"),
        "noise_log_det": ("step", "shape"),
    }
    writer.define(
        "perturbed_loss",
        kind="perturbed_loss",
        variables=[Variable(name, dims[name], units.get(name, "1")) for name in dims],
        attrs={"n_weights": 10, "n_examples": 2000, "n_held_out": 500, "all_layers": False},
    )


@pytest.fixture
def result(tmp_path):
    given = inputs()
    with tracelab.create(tmp_path / "run.zarr", {"fc": (10,)}) as writer:
        define(writer)
        for step, distance in ((0, 0.0), (100, 0.3)):
            row = {
                name: value[0] for name, value in given.items() if np.ndim(value) and name != "seed"
            }
            writer.append("perturbed_loss", step=step, **row | {"distance": distance})
    with tracelab.open(tmp_path / "run.zarr") as trace:
        plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))
        result, failures = computed(plan, trace)
    assert failures == ()
    result.attrs["parameters"] = ANALYSIS.resolve({})
    return result


def test_of_a_trace(result):
    assert result["layer"].values.tolist() == ["network"]
    assert result["bound"].dims == ("step", "layer", "theory")
    np.testing.assert_array_equal(result["bound"][1, 0], found_by()["bound"])
    # The nearer to the start, the smaller the divergence.
    assert (result["kl"][0] < result["kl"][1]).all()
    assert int(result["assumption_holds"].sel(assumption=COVERED)[0, 0]) == Assumption.FAILS


def test_finding_and_figure(result):
    found = ANALYSIS.finding(result)
    best = result.isel(step=1, layer=0)
    name = THEORIES[int(best["bound"].values.argmin())]
    assert f"at most {float(best['bound'].min()):.3g} ({name}) at step 100" in found.sentence
    assert "0.1 in training, held-out 0.2" in found.sentence
    # A layer was left out.
    assert "would be at most" in found.sentence
    assert f"this is no bound, for it takes for granted: {COVERED}" in found.sentence
    result["assumption_holds"][:] = Assumption.HOLDS
    held = ANALYSIS.finding(result)
    assert "the error is at most" in held.sentence
    assert "this bound is not vacuous" in held.sentence
    assert any("weights at the start do not depend" in text for text in found.warnings)
    assert any("Some of what training changes" in text for text in found.warnings)
    assert any("Endless draws" in text for text in found.warnings)
    figure = ANALYSIS.plot({"run": result})
    assert figure.get_label().startswith("PAC-Bayes bounds")
    assert len(figure.axes) == 3
    nothing = result.assign(status=result["status"] * 0 + int(Status.NON_FINITE_INPUT))
    assert ANALYSIS.finding(nothing).sentence.startswith("No step had errors")
    assert ANALYSIS.plot({"run": nothing}).axes


def test_the_finding_says_vacuous_and_why(result):
    result["assumption_holds"][:] = Assumption.HOLDS
    result["vacuous"][:] = 1
    result["vacuous_term"][:] = KL
    sentence = ANALYSIS.finding(result).sentence
    assert "this bound is vacuous by the divergence from the prior" in sentence
