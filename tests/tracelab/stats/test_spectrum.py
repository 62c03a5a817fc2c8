import doctest
import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.stats import spectrum
from tracelab.typing import Status

D = 60


def symmetric(rng, eigenvalues):
    basis = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    return basis * eigenvalues @ basis.T


def lanczos(matrix, start, steps):
    """The recurrence with full re-orthogonalization, written out."""
    basis = [start / np.linalg.norm(start)]
    alphas, betas = np.full((2, steps), np.nan)
    for i in range(steps):
        w = matrix @ basis[-1]
        alphas[i] = w @ basis[-1]
        for _, v in itertools.product(range(2), basis):
            w = w - (w @ v) * v
        betas[i] = np.linalg.norm(w)
        if betas[i] < 1e-10:
            betas[i] = 0
            break
        basis.append(w / betas[i])
    return alphas, betas


@pytest.fixture(scope="module")
def spread():
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate([rng.normal(0, 0.1, D - 3), [2.0, 3.0, 5.0]])
    return np.sort(eigenvalues), symmetric(rng, eigenvalues)


def test_doctests():
    assert doctest.testmod(spectrum).failed == 0


def test_hutchinson_covers_and_has_the_variance_of_the_off_diagonal():
    rng = np.random.default_rng(1)
    matrix = symmetric(rng, rng.normal(1, 1, 20))
    signs = rng.choice([-1.0, 1.0], (4000, 30, 20))
    found = spectrum.trace(np.einsum("rvi,ij,rvj->rv", signs, matrix, signs))
    assert (found.status == Status.OK).all()
    covered = np.mean((found.low < np.trace(matrix)) & (np.trace(matrix) < found.high))
    # Three binomial standard deviations of 4,000 intervals.
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 4000)
    off = matrix - np.diag(np.diag(matrix))
    exact = np.sqrt(2 * np.sum(off**2) / 30)
    assert np.std(found.estimate) == pytest.approx(exact, rel=3 / np.sqrt(2 * 4000))


def test_captured_part_leaves_little_noise(spread):
    eigenvalues, matrix = spread
    rng = np.random.default_rng(2)
    signs = rng.choice([-1.0, 1.0], (2000, 24, D))
    basis = np.linalg.qr((signs[:, :12] @ matrix).swapaxes(1, 2))[0]
    captured = np.einsum("rik,ij,rjk->r", basis, matrix, basis)
    v = signs[:, 12:] - np.einsum("rik,rjk,rvj->rvi", basis, basis, signs[:, 12:])
    found = spectrum.trace(np.einsum("rvi,ij,rvj->rv", v, matrix, v), captured)
    whole = np.einsum("rvi,ij,rvj->rv", signs, matrix, signs)
    error = found.estimate - eigenvalues.sum()
    assert abs(np.mean(error)) < 4 * np.std(error) / np.sqrt(2000)
    assert np.std(error) < 0.5 * np.std(whole.mean(axis=1))
    assert np.mean(np.abs(error) < found.high - found.estimate) > 0.93


def test_trace_statuses():
    found = spectrum.trace([[1.0, 2, np.nan], [1, 2, 3], [4, 4, 4]], [0, np.inf, 1])
    assert found.status.tolist() == [Status.NON_FINITE_INPUT, Status.NON_FINITE_INPUT, Status.OK]
    assert found.estimate[2] == 5
    assert found.se[2] == 0
    assert np.isnan(found.low[:2]).all()
    assert spectrum.trace([3.0]).status == Status.TOO_FEW_SAMPLES
    assert spectrum.trace(np.zeros((0, 4))).estimate.shape == (0,)
    with pytest.raises(UsageError, match=r"captured must be of shape \(2,\)"):
        spectrum.trace(np.ones((2, 3)), np.ones(3))


def test_quadrature_is_exact_for_polynomials(spread):
    _, matrix = spread
    start = np.random.default_rng(3).standard_normal(D)
    start /= np.linalg.norm(start)
    alphas, betas = lanczos(matrix, start, 6)
    rule = spectrum.quadrature(alphas, betas)
    assert rule.weight.sum() == pytest.approx(1, abs=1e-12)
    power = start.copy()
    for degree in range(1, 12):
        power = matrix @ power
        assert rule.weight @ rule.node**degree == pytest.approx(start @ power, rel=1e-10)
    power = matrix @ power
    assert rule.weight @ rule.node**12 != pytest.approx(start @ power, rel=1e-10)


def test_residuals_are_those_of_ritz_vectors(spread):
    eigenvalues, matrix = spread
    start = np.random.default_rng(4).standard_normal(D)
    alphas, betas = lanczos(matrix, start, 10)
    rule = spectrum.quadrature(alphas, betas)
    distance = np.abs(eigenvalues - rule.node[:, None]).min(axis=1)
    assert (distance <= rule.residual + 1e-12).all()
    krylov = scipy.linalg.orth(
        np.stack([np.linalg.matrix_power(matrix, i) @ start for i in range(4)], axis=1)
    )
    values, vectors = np.linalg.eigh(krylov.T @ matrix @ krylov)
    vectors = krylov @ vectors
    short = spectrum.quadrature(alphas[:4], betas[:4])
    np.testing.assert_allclose(short.node, values, rtol=1e-8)
    expected = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    np.testing.assert_allclose(short.residual, expected, rtol=1e-6)


def test_a_recurrence_that_ends_early_is_complete():
    rng = np.random.default_rng(5)
    matrix = symmetric(rng, np.repeat([1.0, 4.0], 5))
    alphas, betas = lanczos(matrix, rng.standard_normal(10), 5)
    assert np.isnan(alphas[2:]).all()
    rule = spectrum.quadrature(np.stack([alphas, np.ones(5)]), np.stack([betas, np.ones(5)]))
    np.testing.assert_allclose(rule.node[0, :2], [1, 4], rtol=1e-10)
    assert np.isnan(rule.node[0, 2:]).all()
    np.testing.assert_allclose(rule.residual[0, :2], 0, atol=1e-10)
    found = spectrum.extremes(alphas, betas, 10)
    assert found.status == Status.OK
    assert found.bound == pytest.approx(4)


def test_quadrature_statuses():
    inf, nan = np.inf, np.nan
    rule = spectrum.quadrature(
        [[nan, nan], [1, nan], [1, inf], [nan, 1], [1, 2], [1, 2]],
        [[1, nan], [0, nan], [1, 1], [1, 1], [nan, 0], [1, inf]],
    )
    assert rule.status.tolist() == [
        Status.TOO_FEW_SAMPLES, Status.OK, Status.NON_FINITE_INPUT, Status.NON_FINITE_INPUT,
        Status.NON_FINITE_INPUT, Status.NON_FINITE_INPUT,
    ]  # fmt: skip
    assert rule.node[1, 0] == 1
    with pytest.raises(UsageError, match="same shape"):
        spectrum.quadrature([1.0, 2], [1.0])


def test_density_is_that_of_the_eigenvalues(spread):
    eigenvalues, matrix = spread
    rng = np.random.default_rng(6)
    runs = [lanczos(matrix, rng.standard_normal(D), 30) for _ in range(200)]
    alphas, betas = (np.array(each) for each in zip(*runs, strict=True))
    found = spectrum.density(alphas, betas, width=0.1)
    assert found.status == Status.OK
    assert np.trapezoid(found.density, found.eigenvalue) == pytest.approx(1, abs=1e-5)
    z = (found.eigenvalue - eigenvalues[:, None]) / 0.1
    exact = np.exp(-0.5 * z**2).mean(axis=0) / (0.1 * np.sqrt(2 * np.pi))
    deviation = (found.density - exact)[found.se > 1e-6] / found.se[found.se > 1e-6]
    # Of standard errors; neighbours on the grid depend on each other.
    assert np.abs(deviation).max() < 5
    assert np.sqrt(np.mean(deviation**2)) < 1.7
    alone = spectrum.density(alphas[:1], betas[:1])
    assert np.isnan(alone.se).all()
    assert alone.width == pytest.approx(0.01 * np.ptp(spectrum.quadrature(*runs[0]).node))


def test_density_statuses():
    found = spectrum.density(np.full((2, 3, 4), np.nan), np.ones((2, 3, 4)))
    assert (found.status == Status.TOO_FEW_SAMPLES).all()
    assert spectrum.density(np.ones((0, 4)), np.ones((0, 4))).status == Status.TOO_FEW_SAMPLES
    single = spectrum.density([[2.0]], [[0.0]])
    assert single.eigenvalue[single.density.argmax()] == pytest.approx(2, abs=1e-3)
    zero = spectrum.density([[0.0]], [[0.0]])
    assert np.isfinite(zero.density).all()
    for arguments, message in (
        ({"width": 0.0}, "width must be positive"),
        ({"points": 1}, "points must be an integer of at least 2"),
    ):
        with pytest.raises(UsageError, match=message):
            spectrum.density([[1.0]], [[0.0]], **arguments)
    with pytest.raises(UsageError, match=r"shape \(\.\.\., vector, m\)"):
        spectrum.density([1.0], [0.0])


@pytest.mark.parametrize("end", ["largest", "smallest"])
def test_extremes_are_bounded(spread, end):
    eigenvalues, matrix = spread
    rng = np.random.default_rng(7)
    sign = 1 if end == "largest" else -1
    top = np.sort(sign * eigenvalues)[::-1]
    runs = [lanczos(matrix, rng.standard_normal(D), 20) for _ in range(100)]
    alphas, betas = (np.array(each) for each in zip(*runs, strict=True))
    found = spectrum.extremes(alphas, betas, D, 3, end, 0.9)
    value, bound = sign * found.value, sign * found.bound
    # Cauchy interlacing: never beyond the eigenvalue of the same rank.
    assert (value <= top[:3] + 1e-10).all()
    near = np.abs(eigenvalues - found.value[..., None]).min(axis=-1)
    assert (near <= found.residual + 1e-10).all()
    # The theorem is conservative: none of a hundred may fail where ten are allowed.
    assert (top[0] <= bound + 1e-10).all()
    assert np.isfinite(bound).all()
    if end == "largest":
        assert (found.status == Status.OK).all()
        np.testing.assert_allclose(found.value, np.broadcast_to([5.0, 3, 2], (100, 3)), rtol=1e-6)
    few = spectrum.extremes(alphas[:, :3], betas[:, :3], D, 1, end)
    assert np.isinf(few.bound).all()


def test_far_from_eigenvalues_is_said():
    rng = np.random.default_rng(8)
    matrix = symmetric(rng, np.linspace(0, 1, D))
    found = spectrum.extremes(*lanczos(matrix, rng.standard_normal(D), 5), D)
    assert found.status == Status.NOT_CONVERGED
    assert 0.8 < found.value[0] < 1


def test_extremes_arguments():
    for arguments, message in (
        ({"size": 0}, "size must be an integer of at least 1"),
        ({"size": 5, "count": 3}, "count must be at most the 2 steps"),
        ({"size": 5, "count": 0}, "count must be an integer"),
        ({"size": 5, "end": "both"}, "end must be 'largest' or 'smallest'"),
        ({"size": 5, "confidence": 1}, "confidence must be"),
    ):
        with pytest.raises(UsageError, match=message):
            spectrum.extremes([1.0, 2.0], [1.0, 0.5], **arguments)
    nothing = spectrum.extremes([np.nan, np.nan], [np.nan, np.nan], 5)
    assert nothing.status == Status.TOO_FEW_SAMPLES
    assert np.isnan(nothing.bound)


@settings(max_examples=30)
@given(st.floats(1e-3, 1e3), st.floats(-10, 10), st.integers(0, 1000))
def test_scale_and_shift(scale, shift, seed):
    rng = np.random.default_rng(seed)
    alphas, betas = rng.standard_normal(6), rng.exponential(size=6)
    plain = spectrum.extremes(alphas, betas, 50, 2)
    moved = spectrum.extremes(scale * alphas + shift, scale * betas, 50, 2)
    atol = 1e-9 * (scale + abs(shift))
    np.testing.assert_allclose(moved.value, scale * plain.value + shift, atol=atol)
    np.testing.assert_allclose(moved.residual, scale * plain.residual, atol=atol)
    first = spectrum.density([alphas], [betas], points=50)
    second = spectrum.density([scale * alphas + shift], [scale * betas], points=50)
    np.testing.assert_allclose(second.density * scale, first.density, rtol=1e-5, atol=1e-9)
