import numpy as np
import pytest

from tracelab.typing import Status
from tracelab_analyses.noise_scale import ANALYSIS, noise_scale

N, B, D = 400, 16, 5


def population(seed=0):
    rng = np.random.default_rng(seed)
    gradients = rng.standard_t(4, (N, D)) * np.array([1, 2, 3, 0.1, 1]) + 0.5
    mean = gradients.mean(axis=0)
    # Population covariance: what one example drawn at random varies by.
    return gradients, mean, np.sum((gradients - mean) ** 2) / N


def probe(gradients, batches, replacement, rng):
    draws = np.stack([rng.choice(N, B, replace=replacement) for _ in range(batches)])
    return gradients[draws].mean(axis=1)


def run(batch_gradients, mean, replacement, **options):
    deviation = np.sum((batch_gradients - mean) ** 2, axis=1)
    return noise_scale(
        deviation[None, None],
        np.array([[np.sum(mean**2)]]),
        np.array(B),
        np.array(replacement),
        np.array(N),
        **options,
    )


@pytest.mark.parametrize("replacement", [True, False])
def test_recovers_the_covariance_of_one_example(replacement):
    """Within 4 standard errors of the truth with 4,000 batches, both ways of drawing."""
    gradients, mean, trace = population()
    batch = probe(gradients, 4_000, replacement, np.random.default_rng(1))
    found = run(batch, mean, replacement)
    assert abs(found["trace_cov"][0, 0] - trace) < 4 * found["trace_cov_se"][0, 0]
    assert found["trace_cov_se"][0, 0] < 0.03 * trace
    assert found["noise_scale"][0, 0] == pytest.approx(
        found["trace_cov"][0, 0] / np.sum(mean**2), rel=1e-12
    )


@pytest.mark.parametrize("replacement", [True, False])
def test_interval_covers_the_truth_at_its_rate(replacement):
    """1,000 probes of 100 batches: 95 %, less a skewness loss known to stay under 2 %, 4 sd."""
    gradients, mean, trace = population()
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(1_000):
        found = run(probe(gradients, 100, replacement, rng), mean, replacement)
        inside += found["trace_cov_low"][0, 0] <= trace <= found["trace_cov_high"][0, 0]
    assert abs(inside / 1_000 - 0.95) < 0.02 + 4 * np.sqrt(0.95 * 0.05 / 1_000)


def test_batch_of_all_examples_without_replacement_has_no_noise_to_measure():
    found = noise_scale(
        np.zeros((1, 1, 10)), np.ones((1, 1)), np.array(N), np.array(False), np.array(N)
    )
    assert np.isnan(found["trace_cov"][0, 0])
    assert found["status"][0, 0] == Status.CONSTANT_INPUT


@pytest.mark.parametrize(
    ("deviation", "signal", "status"),
    [
        (np.ones(1), 1.0, Status.TOO_FEW_SAMPLES),
        (np.zeros(50), 1.0, Status.CONSTANT_INPUT),
        (np.ones(50), 0.0, Status.CONSTANT_INPUT),
        (np.r_[np.ones(49), np.nan], 1.0, Status.NON_FINITE_INPUT),
        (np.ones(50), np.inf, Status.NON_FINITE_INPUT),
    ],
)
def test_what_cannot_be_estimated_says_why(deviation, signal, status):
    found = noise_scale(
        deviation[None, None], np.array([[signal]]), np.array(B), np.array(True), np.array(N)
    )
    assert found["status"][0, 0] == status
    if status is not Status.TOO_FEW_SAMPLES and signal != 1.0:
        assert np.isnan(found["noise_scale"][0, 0])


def test_declares_what_it_returns():
    gradients, mean, _ = population()
    found = run(probe(gradients, 50, True, np.random.default_rng(1)), mean, True)
    assert set(found) == {variable.name for variable in ANALYSIS.outputs}
