"""Bounds of the labels' probability, by hand, by orthants that are known, and of networks."""

import numpy as np
import pytest
import torch
import xarray as xr
from plans import computed
from scipy import stats
from torch import nn

import tracelab
from tracelab import planning
from tracelab.errors import UsageError
from tracelab.stats.gaussian_process import expectation_propagation, laplace
from tracelab.typing import Assumption, Status
from tracelab_analyses.marginal_likelihood import (
    ANALYSIS,
    ASSUMPTIONS,
    GAUSSIAN,
    marginal_likelihood,
)
from tracelab_collectors import PriorKernel

GROUPS = 5


def inputs(layers=1, outputs=400, root=None, seed=0, draw=None, **changed):
    """Moments of Gaussian functions of six examples, of classes 0 to 5."""
    rng = np.random.default_rng(seed)
    root = np.eye(6) + 0.3 if root is None else root
    drawn = (
        rng.standard_normal((GROUPS, outputs, len(root))) @ root.T if draw is None else draw(rng)
    )
    given = {
        "kernel": np.einsum("gmi,gmj->gij", drawn, drawn)[None] / drawn.shape[1],
        "mean": drawn.mean(axis=1)[None],
        "fourth": (drawn**4).mean(axis=1)[None],
        "label": np.arange(len(root))[None],
        "n_networks": np.asarray(GROUPS * outputs),
        "n_units": np.asarray(1),
        "seed": np.zeros((1, layers), np.uint64),
    }
    return given | changed


def found_by(positive="upper half", **changed):
    found = marginal_likelihood(**inputs(**changed), positive=positive)
    return {name: value[0, 0] for name, value in found.items()}


def test_numbers_by_hand():
    given = inputs()
    found = found_by()
    assert found["status"] == Status.OK
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}
    kernel, signs = given["kernel"][0].mean(axis=0), np.array([-1, -1, -1, 1, 1, 1])
    logs = [method(kernel, signs).log_evidence for method in (expectation_propagation, laplace)]
    np.testing.assert_array_equal(found["log_evidence"], logs)
    for place, log in enumerate(logs):
        np.testing.assert_allclose(
            found["bound"][place],
            [1 - np.exp((log + np.log(0.05)) / 6),
             1 - np.exp((log - 2 * np.log(6) - 1 + np.log(0.05)) / 6)],
        )  # fmt: skip
        np.testing.assert_allclose(found["evidence_term"][place], -log / 6)
        published = (np.log(20) + 2 * np.log(6) + 1) / 6
        np.testing.assert_allclose(found["price_term"][place], [np.log(20) / 6, published])
    # Six labels have less than a bit each, and a price of half a nat each is too much.
    assert (found["vacuous"] == 1).all()
    assert found["vacuous_term"].tolist() == [[1, 1], [1, 1]]
    assert (found["n_examples"], found["n_positive"], found["n_groups"]) == (6, 3, GROUPS)
    assert found["n_outputs"] == GROUPS * 400


def test_every_row_says_the_same():
    one, three = marginal_likelihood(**inputs()), marginal_likelihood(**inputs(layers=3))
    for name, value in three.items():
        np.testing.assert_array_equal(value, np.repeat(one[name], 3, axis=1))


def test_the_jackknife_is_what_other_networks_change():
    """Spread and shift of the evidence over samples of networks, against what one says of them."""
    root = np.eye(6) + 0.3
    exact = expectation_propagation(root @ root.T, [-1, -1, -1, 1, 1, 1]).log_evidence
    found = [found_by(outputs=20, seed=seed) for seed in range(100)]
    logs, errors, shifts = (
        np.array([each[name][0] for each in found])
        for name in ("log_evidence", "log_evidence_se", "log_evidence_bias")
    )
    # A variance by five groups has 4 degrees of freedom, and so a relative error of 1 / sqrt(2);
    # of the mean of 100 such, and of the variance of 100, 1 / sqrt(200) and 1 / sqrt(50).
    ratio = (errors**2).mean() / logs.var(ddof=1)
    assert abs(np.log(ratio)) < 4 * np.hypot(1 / np.sqrt(200), 1 / np.sqrt(50))
    # Without its bias the mean is that of the true kernel, to four standard errors.
    corrected = logs - shifts
    assert abs(corrected.mean() - exact) < 4 * corrected.std() / np.sqrt(100)


def test_equal_correlations_have_a_known_evidence():
    """At a correlation of a half all m signs are equal with probability 2 / (m + 1)."""
    m = 40
    root = np.linalg.cholesky(0.5 * np.eye(m) + 0.5)
    found = found_by(positive="77", root=root, outputs=4000)
    assert found["n_positive"] == 0
    exact = -np.log(m + 1)
    # Expectation propagation is within 6 %, and four standard errors of the kernel.
    error = 0.06 * abs(exact) + 4 * found["log_evidence_se"][0]
    assert found["log_evidence"][0] == pytest.approx(exact, abs=error)
    assert found["vacuous"][0].tolist() == [0, 0]
    bound = 1 - np.exp((found["log_evidence"][0] + np.log(0.05)) / m)
    assert found["bound"][0, 0] == pytest.approx(bound)


@pytest.mark.parametrize(
    ("positive", "expected"),
    [
        ("upper half", [0, 0, 0, 1, 1, 1]),
        ("1,3", [0, 1, 0, 1, 0, 0]),
        ("5", [0, 0, 0, 0, 0, 1]),
    ],
)
def test_two_classes_are_made_of_many(positive, expected):
    given = inputs()
    signs = np.where(expected, 1, -1)
    exact = expectation_propagation(given["kernel"][0].mean(axis=0), signs).log_evidence
    assert found_by(positive=positive)["log_evidence"][0] == exact
    assert found_by(positive=positive)["n_positive"] == sum(expected)


def test_the_upper_half_of_an_odd_number_and_of_signs():
    assert found_by(label=np.array([[3, 3, 5, 5, 9, 9]]))["n_positive"] == 2
    assert found_by(label=np.array([[-1, 1, 1, 1, 1, 1]]))["n_positive"] == 5
    assert found_by(label=np.array([[2, 2, 2, 2, 2, 2]]))["n_positive"] == 0


def test_classes_that_are_none():
    with pytest.raises(
        UsageError, match="must be 'upper half' or classes such as '5,6,7', got 'a'"
    ):
        found_by(positive="a")


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda rng: rng.standard_normal((GROUPS, 400, 6)), Assumption.HOLDS),
        (lambda rng: rng.standard_t(5, (GROUPS, 400, 6)), Assumption.FAILS),
        (lambda rng: 1 + rng.standard_normal((GROUPS, 400, 6)), Assumption.FAILS),
        (lambda rng: rng.standard_normal((GROUPS, 6, 6)), Assumption.UNCHECKED),
    ],
)
def test_gaussian_outputs_are_told_from_others(draw, expected):
    found = found_by(draw=draw)
    assert found["assumption_holds"][ASSUMPTIONS.index(GAUSSIAN)] == expected


def test_two_groups_leave_the_error_of_the_mean_unknown():
    """Without one of two there are no products of different groups."""
    given = inputs(draw=lambda rng: rng.standard_normal((GROUPS, 400, 6)))
    two = {name: given[name][:, :2] for name in ("kernel", "mean", "fourth")}
    found = found_by(**two)
    assert np.isfinite(found["mean_share"])
    assert np.isnan(found["mean_share_se"])
    assert found["assumption_holds"][ASSUMPTIONS.index(GAUSSIAN)] == Assumption.UNCHECKED


def test_kurtosis_and_mean_are_those_of_the_law():
    """Uniform numbers about one: excess -1.2 of the centred law, by the moments about zero."""
    found = found_by(draw=lambda rng: 1 + rng.uniform(-1, 1, (GROUPS, 4000, 6)))
    second, fourth = 1 + 1 / 3, 1 + 6 / 3 + 1 / 5
    error = 4 * found["excess_kurtosis_se"]
    assert found["mean_share_se"] < 0.01
    assert error < 0.1
    assert found["excess_kurtosis"] == pytest.approx(fourth / second**2 - 3, abs=error)
    assert found["mean_share"] == pytest.approx(1 / second, abs=4 * found["mean_share_se"])


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1e6, 1e70])
def test_the_sign_of_outputs_does_not_know_their_scale(scale):
    found = found_by(draw=lambda rng: scale * rng.standard_normal((GROUPS, 400, 6)))
    plain = found_by(draw=lambda rng: rng.standard_normal((GROUPS, 400, 6)))
    for name in ("log_evidence", "log_evidence_se"):
        assert found[name][0] == pytest.approx(plain[name][0], rel=1e-6)
    np.testing.assert_allclose(found["bound"][0], plain["bound"][0], rtol=1e-6)
    assert found["status"] == Status.OK
    # The fourth power is a number up to 1e77 and from 1e-81 on; beyond them nothing is claimed.
    if scale == 1e-150:
        assert np.isnan(found["excess_kurtosis"])
        assert found["assumption_holds"][ASSUMPTIONS.index(GAUSSIAN)] == Assumption.UNCHECKED
    else:
        assert found["excess_kurtosis"] == pytest.approx(plain["excess_kurtosis"], rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "status"),
    [([0, 0, 1, 0, 1, 0], Status.OK), ([0, 1, 1, 0, 1, 0], Status.NOT_CONVERGED)],
)
def test_an_example_drawn_twice(labels, status):
    """With one label it says nothing new; two labels of one example have a probability of 0."""
    root = np.eye(6) + 0.3
    root[1] = root[0]
    found = found_by(root=root, label=np.array([labels]))
    assert found["status"] == status
    assert np.isfinite(found["bound"]).all() == (status is Status.OK)
    if status is Status.OK:
        kept = [0, 2, 3, 4, 5]
        kernel = inputs(root=root)["kernel"][0].mean(axis=0)[np.ix_(kept, kept)]
        signs = np.where(np.array(labels)[kept] == 1, 1, -1)
        exact = expectation_propagation(kernel, signs).log_evidence
        # A second site for the same sign: expectation propagation is 3 % off for it.
        assert found["log_evidence"][0] == pytest.approx(exact, rel=0.06)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"kernel": np.full((1, GROUPS, 6, 6), np.nan)}, Status.NON_FINITE_INPUT),
        ({"kernel": np.zeros((1, GROUPS, 6, 6))}, Status.CONSTANT_INPUT),
        ({"kernel": np.eye(6)[None, None]}, Status.TOO_FEW_SAMPLES),
        ({"kernel": np.ones((1, GROUPS, 6, 6))}, Status.NOT_CONVERGED),
        ({"kernel": np.broadcast_to(1 - 2 * np.eye(6), (1, GROUPS, 6, 6))}, Status.CONSTANT_INPUT),
    ],
)
def test_what_is_missing_is_missing(changed, status):
    found = found_by(**changed)
    assert found["status"] == status
    assert np.isnan(found["bound"]).all()
    assert np.isnan(found["log_evidence"]).all()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Kernels of a small network on digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.as_tensor(digits.data / 16, dtype=torch.float32)
        data = torch.utils.data.TensorDataset(images, torch.as_tensor(digits.target))
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        path = tmp_path_factory.mktemp("kernel") / "run.zarr"
        collector = PriorKernel(networks=400, groups=8, examples=100)
        with tracelab.attach(net, optimizer, path, collectors=[collector], data=data):
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    with tracelab.open(path) as trace:
        kernel = trace.groups["prior_kernel"].load()
        results = []
        for given in ({}, {"positive": "1,3,5,7,9"}):
            plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve(given))
            result, failures = computed(plan, trace)
            assert failures == ()
            result.attrs["parameters"] = ANALYSIS.resolve(given)
            results.append(result)
    return kernel, results


def test_of_a_network_on_digits(recorded):
    kernel, (halves, _) = recorded
    assert (halves["status"] == Status.OK).all()
    assert halves["layer"].values.tolist() == ["network"]
    row = halves.isel(step=0, layer=0)
    assert int(row["n_outputs"]) == 4000
    # Better than labels without any relation, which have a log of 2 each.
    assert float(row["evidence_term"][0]) < np.log(2)
    # Shuffled labels are less probable than those of digits.
    rng = np.random.default_rng(0)
    shuffled = [
        marginal_likelihood(
            kernel["kernel"].values, kernel["mean"].values, kernel["fourth"].values,
            rng.permutation(kernel["label"].values[0])[None], np.asarray(400), np.asarray(10),
            np.zeros((1, 1), np.uint64),
        )["log_evidence"][0, 0, 0]
        for _ in range(5)
    ]  # fmt: skip
    assert float(row["log_evidence"][0]) > max(shuffled) + 5


def test_finding_and_figure(recorded):
    _, (halves, odd) = recorded
    found = ANALYSIS.finding(halves)
    row = halves.isel(step=0, layer=0)
    log = float(row["log_evidence"][0])
    assert (
        f"labels of 100 examples in two classes have a log probability of {log:.4g}"
        in found.sentence
    )
    assert f"at most {float(row['bound'][0, 0]):.3g} of new examples" in found.sentence
    expected = "vacuous by" if int(row["vacuous"][0, 0]) else "this bound is not vacuous"
    assert expected in found.sentence
    assert "not of the one that was trained" in found.warnings[0]
    figure = ANALYSIS.plot({"halves": halves, "odd": odd})
    assert figure.get_label().startswith("PAC-Bayes bounds by the probability")
    assert len(figure.axes) == 2
    nothing = halves.assign(status=halves["status"] * 0 + int(Status.NOT_CONVERGED))
    assert ANALYSIS.finding(nothing).sentence.startswith("No step had a kernel")
    assert ANALYSIS.plot({"run": nothing}).axes


def test_findings_say_what_is_wrong():
    def finding(**changed):
        found = marginal_likelihood(**inputs(**changed))
        dims = {variable.name: variable.dims for variable in ANALYSIS.outputs}
        coords = {"step": [0], "layer": ["network"], **ANALYSIS.coords}
        data = {name: (dims[name], value) for name, value in found.items()}
        return ANALYSIS.finding(xr.Dataset(data, coords={k: list(v) for k, v in coords.items()}))

    huge = finding(draw=lambda rng: 1e50 * rng.standard_normal((GROUPS, 400, 6)))
    assert any("Laplace did not converge" in text for text in huge.warnings)
    many = finding()
    assert any(
        "The 6 classes of the labels are made two by positive='upper half', 3 of 6" in text
        for text in many.warnings
    )
    assert not any("did not converge" in text for text in many.warnings)
    two = finding(label=np.array([[0, 0, 0, 1, 1, 1]]))
    assert not any("made two" in text for text in two.warnings)
    few = finding(outputs=4)
    assert any("of 20 outputs for 6 examples" in text for text in few.warnings)
    heavy = finding(draw=lambda rng: rng.standard_t(5, (GROUPS, 4000, 6)), outputs=4000)
    assert any("not Gaussian about zero" in text for text in heavy.warnings)
    assert "vacuous by the evidence" in heavy.sentence
    assert not any("one answer" in text for text in heavy.warnings)
    alike = finding(label=np.full((1, 6), 3))
    assert any("All 6 examples are of one of the two classes" in text for text in alike.warnings)


@pytest.mark.slow
def test_the_bound_lies_above_the_risk_of_two_hundred_targets():
    """By expectation propagation, of random functions on 30 points: risks by rejection."""
    rng = np.random.default_rng(3)
    x = np.linspace(0, 3, 30)
    root = np.linalg.cholesky(np.exp(-((x[:, None] - x) ** 2) / 2) + 1e-6 * np.eye(30))
    prior = rng.standard_normal((20_000, 30)) @ root.T > 0
    trials, crossed, careless = 200, 0, 0
    for target in rng.standard_normal((trials, 30)) @ root.T > 0:
        examples = rng.integers(30, size=8)
        fits = (prior[:, examples] == target[examples]).all(axis=1)
        half = root[examples]
        # Examples drawn twice make a singular kernel.
        kernel = np.broadcast_to(half @ half.T + 1e-9 * np.eye(8), (1, 2, 8, 8))
        found = marginal_likelihood(
            kernel, np.zeros((1, 2, 8)), np.ones((1, 2, 8)), target[examples][None].astype(int),
            np.asarray(2), np.asarray(1), np.zeros((1, 1), np.uint64), positive="1", confidence=0.8,
        )  # fmt: skip
        assert found["status"][0, 0] == Status.OK
        risk = (prior[fits] != target).mean() if fits.any() else 0.5
        crossed += found["bound"][0, 0, 0, 0] < risk
        careless += 1 - np.exp(np.log(0.8) / 8) < risk
    assert crossed <= stats.binom.ppf(0.999, trials, 0.2)
    assert careless > stats.binom.ppf(0.999, trials, 0.2)
