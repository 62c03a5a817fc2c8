"""Evidence of labels against scikit-learn, orthant probabilities and a slow, sequential version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from tracelab.errors import UsageError
from tracelab.stats.gaussian_process import expectation_propagation, laplace
from tracelab.typing import Status


def smooth(rng, m, length=1.0):
    """Return a squared-exponential kernel of m points in three dimensions."""
    x = rng.standard_normal((m, 3))
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * length**2))


def linear(rng, m):
    x = rng.standard_normal((m, 3))
    return x @ x.T + 0.1 * np.eye(m)


def equal(m, correlation=0.5):
    return np.full((m, m), correlation) + (1 - correlation) * np.eye(m)


def orthant(kernel, labels):
    """Return the log of the probability that f has the signs of the labels, by SciPy."""
    signed = kernel * labels * labels[:, None]
    zero = np.zeros(labels.size)
    return np.log(
        stats.multivariate_normal.cdf(
            zero, zero, signed, maxpts=10_000 * labels.size, abseps=1e-12, releps=1e-4
        )
    )


def sequential(kernel, labels, extra):
    """Return log Z by Rasmussen and Williams' algorithm 3.5, one site after the other.

    Moments of tilted laws, and what a site has with its cavity, by quadrature; sites in the
    parameters of moments, and the posterior by inversion.
    """
    m = labels.size
    tau, nu, sigma, mu = np.zeros(m), np.zeros(m), kernel.copy(), np.zeros(m)
    norm = np.zeros(m)
    nodes, weights = np.polynomial.legendre.leggauss(120)
    for _ in range(40):
        for i in range(m):
            precision = 1 / sigma[i, i] - tau[i]
            mean, deviation = (mu[i] / sigma[i, i] - nu[i]) / precision, precision**-0.5
            # In two parts that meet at zero, where the sign's likelihood jumps.
            far = abs(mean) + 10 * deviation
            f = np.concatenate([far * (nodes - 1) / 2, far * (nodes + 1) / 2])
            law = np.tile(weights, 2) * far / 2 * stats.norm.pdf(f, mean, deviation)
            tilted = law * (stats.norm.cdf(labels[i] * f) if extra else labels[i] * f > 0)
            z = tilted.sum()
            first = (tilted * f).sum() / z
            variance = (tilted * (f - first) ** 2).sum() / z
            tau[i] = 1 / variance - precision
            nu[i] = first / variance - mean * precision
            norm[i] = np.log(z / (law * np.exp(nu[i] * f - tau[i] * f**2 / 2)).sum())
            sigma = np.linalg.inv(np.linalg.inv(kernel) + np.diag(tau))
            mu = sigma @ nu
    determinant = np.linalg.slogdet(np.eye(m) + kernel * tau)[1]
    return norm.sum() - 0.5 * determinant + 0.5 * nu @ mu


def test_laplace_is_scikit_learns():
    rng = np.random.default_rng(0)
    for m, variance in ((2, 1.0), (15, 4.0), (40, 30.0)):
        x = rng.standard_normal((m, 3))
        labels = np.where(x[:, 0] + 0.5 * rng.standard_normal(m) > 0, 1, -1)
        labels[:2] = 1, -1
        kernel = ConstantKernel(variance) * RBF(1.5)
        other = GaussianProcessClassifier(kernel, optimizer=None, max_iter_predict=1000)
        other.fit(x, labels)
        found = laplace(kernel(x), labels)
        assert found.status is Status.OK
        # Both end where a step gains 1e-10 of the mode's height.
        assert found.log_evidence == pytest.approx(other.log_marginal_likelihood_value_, rel=1e-9)


def test_laplace_of_one_example_by_hand():
    found = laplace([[2.0]], [1])
    mode = 0.0
    for _ in range(200):
        mode = 2.0 / (1 + np.exp(mode)) * 0.5 + 0.5 * mode
    p = 1 / (1 + np.exp(-mode))
    by_hand = -(mode**2) / 4 + np.log(p) - 0.5 * np.log1p(2 * p * (1 - p))
    assert found.log_evidence == pytest.approx(by_hand, rel=1e-12)


def test_laplace_is_newtons_way_out_of_steep_kernels():
    """A kernel so large that the mode is where the likelihood is flat."""
    rng = np.random.default_rng(1)
    kernel = 1e6 * smooth(rng, 30)
    found = laplace(kernel, np.where(rng.random(30) < 0.5, 1, -1))
    assert found.status is Status.OK
    assert -60 < found.log_evidence < 0


@pytest.mark.parametrize("link", ["heaviside", "probit"])
@pytest.mark.parametrize("make", [smooth, linear])
def test_expectation_propagation_is_the_slow_one(link, make):
    rng = np.random.default_rng(2)
    kernel = make(rng, 4)
    labels = np.array([1, -1, 1, 1])
    found = expectation_propagation(kernel, labels, link)
    assert found.status is Status.OK
    slow = sequential(kernel, labels, link == "probit")
    # Sites are converged to 1e-9, at which the evidence is stationary; quadrature to 1e-10.
    assert found.log_evidence == pytest.approx(slow, abs=1e-7)


def test_orthants_that_are_known():
    """One, independent, two and three examples: arcsines (Sheppard 1898)."""
    assert expectation_propagation([[3.0]], [-1]).log_evidence == pytest.approx(np.log(0.5))
    found = expectation_propagation(np.diag([1.0, 4.0, 0.1]), [1, -1, 1])
    assert found.log_evidence == pytest.approx(3 * np.log(0.5), abs=1e-12)
    for correlation in (-0.4, 0.1, 0.5, 0.9):
        two = 0.25 + np.arcsin(correlation) / (2 * np.pi)
        found = expectation_propagation(equal(2, correlation), [1, 1])
        # The approximation itself: documented to be within 6 % of the logarithm.
        assert found.log_evidence == pytest.approx(np.log(two), rel=0.06)
        three = 0.125 + 3 * np.arcsin(correlation) / (4 * np.pi)
        found = expectation_propagation(equal(3, correlation), [1, 1, 1])
        assert found.log_evidence == pytest.approx(np.log(three), rel=0.06)
    # Its error is of higher order in the correlation than the probability's own change.
    two = 0.25 + np.arcsin(0.01) / (2 * np.pi)
    found = expectation_propagation(equal(2, 0.01), [1, 1])
    assert abs(found.log_evidence - np.log(two)) < 0.01 * (np.log(two) - np.log(0.25))


@pytest.mark.parametrize("m", [5, 8])
def test_orthants_by_integration(m):
    """Within 6 % of the logarithm, as documented; SciPy's are good to 1e-4."""
    rng = np.random.default_rng(m)
    for kernel in (smooth(rng, m), linear(rng, m)):
        f = np.linalg.cholesky(kernel + 1e-10 * np.eye(m)) @ rng.standard_normal(m)
        for labels in (np.sign(f), np.where(rng.random(m) < 0.5, 1.0, -1.0)):
            found = expectation_propagation(kernel, labels)
            assert found.status is Status.OK
            assert found.log_evidence == pytest.approx(orthant(kernel, labels), rel=0.06)


@pytest.mark.parametrize("m", [5, 20, 100])
@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.8])
def test_orthants_of_equal_correlations(m, correlation):
    """One integral (Dunnett and Sobel 1955); at a half it is 1 / (m + 1)."""
    ratio = np.sqrt(correlation / (1 - correlation))
    exact = integrate.quad(
        lambda t: stats.norm.pdf(t) * stats.norm.cdf(ratio * t) ** m, -9, 9, epsrel=1e-10
    )[0]
    if correlation == 0.5:
        assert exact == pytest.approx(1 / (m + 1), rel=1e-8)
    found = expectation_propagation(equal(m, correlation), np.ones(m))
    assert found.status is Status.OK
    assert found.log_evidence == pytest.approx(np.log(exact), rel=0.06)


def test_the_probit_link_is_a_sign_under_noise():
    """E prod Phi(y f) is the orthant of f plus a standard normal, and so in the approximation."""
    rng = np.random.default_rng(4)
    kernel, labels = 3 * smooth(rng, 12), np.where(rng.random(12) < 0.5, 1, -1)
    probit = expectation_propagation(kernel, labels, "probit")
    signs = expectation_propagation(kernel + np.eye(12), labels)
    assert probit.log_evidence == pytest.approx(signs.log_evidence, abs=1e-7)


def test_probabilities_of_all_labellings_add_up():
    """To one, but for the approximation: within 3 % of the largest log."""
    kernel = smooth(np.random.default_rng(5), 6, 2.0)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    logs = np.array([expectation_propagation(kernel, each).log_evidence for each in signs])
    assert np.exp(logs).sum() == pytest.approx(1, abs=0.1)
    kernel = 5 * kernel
    logs = np.array(
        [expectation_propagation(kernel, each, "probit").log_evidence for each in signs]
    )
    assert np.exp(logs).sum() == pytest.approx(1, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_signs_have_no_scale_and_no_order(seed):
    rng = np.random.default_rng(seed)
    kernel, labels = smooth(rng, 7) + 0.01 * np.eye(7), np.where(rng.random(7) < 0.5, 1, -1)
    found = expectation_propagation(kernel, labels).log_evidence
    scale, order = np.exp(rng.standard_normal(7)), rng.permutation(7)
    scaled = expectation_propagation(kernel * scale * scale[:, None], labels).log_evidence
    assert scaled == pytest.approx(found, abs=1e-7)
    for method in (laplace, expectation_propagation):
        plain = method(kernel, labels).log_evidence
        turned = method(kernel[np.ix_(order, order)], labels[order]).log_evidence
        assert turned == pytest.approx(plain, abs=1e-7)
        assert method(kernel, -labels).log_evidence == pytest.approx(plain, abs=1e-7)


def test_many_examples_of_a_network_without_hidden_units():
    """Labels of the process itself are likelier than labels without any relation."""
    rng = np.random.default_rng(6)
    kernel = smooth(rng, 150, 3.0) + 1e-6 * np.eye(150)
    f = np.linalg.cholesky(kernel) @ rng.standard_normal(150)
    own = expectation_propagation(kernel, np.sign(f))
    other = expectation_propagation(
        kernel + 0.1 * np.eye(150), np.where(rng.random(150) < 0.5, 1, -1)
    )
    assert own.status is Status.OK
    assert other.status is Status.OK
    assert own.log_evidence > other.log_evidence + 50


@pytest.mark.parametrize("method", [laplace, expectation_propagation])
def test_what_cannot_be_is_a_status(method):
    labels = [1, -1]
    assert method([[1, np.nan], [np.nan, 1]], labels).status is Status.NON_FINITE_INPUT
    assert method(np.zeros((2, 2)), labels).status is Status.CONSTANT_INPUT
    found = method([[1, 2], [2, 1]], labels)
    assert found.status is Status.NOT_CONVERGED
    assert np.isnan(found.log_evidence)


def test_labels_of_probability_zero_are_not_given_one():
    """Two examples that are one and the same, with two labels."""
    found = expectation_propagation(np.ones((2, 2)), [1, -1])
    assert found.status is Status.NOT_CONVERGED
    assert np.isnan(found.log_evidence)
    assert laplace(np.ones((2, 2)), [1, -1]).status is Status.OK


@pytest.mark.parametrize("method", [laplace, expectation_propagation])
def test_bad_input(method):
    with pytest.raises(UsageError, match=r"kernel must be of shape .* got \(2, 3\) and \(2,\)"):
        method(np.ones((2, 3)), [1, 1])
    with pytest.raises(UsageError, match="labels must be -1 or 1, got 0"):
        method(np.eye(2), [1, 0])
    with pytest.raises(UsageError, match="link must be one of heaviside, probit, got 'tanh'"):
        expectation_propagation(np.eye(2), [1, 1], "tanh")
