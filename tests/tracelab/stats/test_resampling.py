import numpy as np
import pytest
from scipy import stats

from tracelab.stats.resampling import gaussian_control


def heavy(seed, batches=400, series=3):
    rng = np.random.default_rng(seed)
    mixing = np.array([[1.0, 0.5, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 1e-3]])
    return rng.standard_t(3, (batches, series)) @ mixing


def test_control_has_the_covariance_of_the_sample():
    """Mean of 400 controls' covariances; entry (i, j) has sd sqrt((S_ii S_jj + S_ij^2) / (K R))."""
    x = heavy(1)
    rng = np.random.default_rng(2)
    wanted = np.cov(x.T)
    found = np.mean([np.cov(gaussian_control(x, rng).T) for _ in range(400)], axis=0)
    sd = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / (x.shape[0] * 400))
    assert np.all(np.abs(found - wanted) < 5 * sd)


def test_control_of_heavy_tails_is_gaussian():
    """Each of 200 columns passes a Shapiro-Wilk test at its level: 5 sd of the binomial."""
    rng = np.random.default_rng(3)
    x = rng.standard_t(2, (300, 200))
    p = np.array([stats.shapiro(column).pvalue for column in gaussian_control(x, rng).T])
    assert np.mean(p < 0.05) < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 200)
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_same_generator_state_gives_the_same_bits():
    x = heavy(4)
    first, second = (gaussian_control(x, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_memory_order_and_dtype_do_not_matter():
    x = heavy(4).astype(np.float32)
    wanted = gaussian_control(x, np.random.default_rng(9))
    np.testing.assert_array_equal(
        gaussian_control(np.asfortranarray(x), np.random.default_rng(9)), wanted
    )


def test_one_row_has_no_covariance():
    assert np.isnan(gaussian_control(np.ones((1, 2)), np.random.default_rng(0))).all()


def test_scale_of_a_column_is_kept():
    x = heavy(6)
    control = gaussian_control(x, np.random.default_rng(1))
    assert control.std(axis=0) == pytest.approx(x.std(axis=0), rel=0.2)


def test_both_routes_have_the_covariance_of_dependent_series():
    """More series than rows, or fewer, one of them a combination of others and one constant."""
    rng = np.random.default_rng(7)
    tall = rng.standard_normal((60, 5)) * np.array([1.0, 1e-160, 1e160, 3.0, 0.0])
    tall[:, 3] = 2 * tall[:, 0]
    unit = np.array([1.0, 1e-160, 1e160, 1.0, 1.0])
    wide = rng.standard_normal((20, 3)) @ rng.standard_normal((3, 40))
    for x, scale in ((tall, unit), (wide, np.ones(40))):
        wanted = np.cov((x / scale).T)
        found = np.mean([np.cov((gaussian_control(x, rng) / scale).T) for _ in range(400)], axis=0)
        variance = np.diag(wanted)
        sd = np.sqrt((np.outer(variance, variance) + wanted**2) / (len(x) * 400))
        # 1,600 entries: five standard deviations once in a thousand times.
        assert np.all(np.abs(found - wanted) <= 5 * sd + 1e-12)
    control = gaussian_control(tall, rng)
    np.testing.assert_allclose(control[:, 3], 2 * control[:, 0], rtol=1e-6)
    assert (control[:, 4] == 0).all()
