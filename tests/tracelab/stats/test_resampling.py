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
