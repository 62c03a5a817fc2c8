"""Projections from both sides, against their formulas and simulated moments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracelab
from tracelab.errors import UsageError


def test_it_is_the_product_of_a_matrix_and_two_matrices_of_signs():
    sketch = tracelab.Kronecker(3, 2, seed=5)
    left, right = sketch.sides("fc.weight", 7, 4)
    assert (left.shape, right.shape) == ((3, 7), (4, 2))
    np.testing.assert_allclose(np.abs(left), 3**-0.5, rtol=1e-15)
    np.testing.assert_allclose(np.abs(right), 2**-0.5, rtol=1e-15)
    values = np.random.default_rng(0).standard_normal((5, 7, 4))
    found = sketch.project(values, "fc.weight")
    expected = np.einsum("ai,nij,jb->nab", left, values, right).reshape(5, 6)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_signs_depend_on_seed_layer_and_side():
    pairs = [
        tracelab.Kronecker(8, 8).sides("a", 8, 8),
        tracelab.Kronecker(8, 8).sides("b", 8, 8),
        tracelab.Kronecker(8, 8, seed=1).sides("a", 8, 8),
    ]
    halves = np.sign([side.ravel() for pair in pairs for side in pair])
    agree = halves @ halves.T / 64
    # Of 64 independent signs each, five standard deviations of their correlation.
    assert (np.abs(agree[~np.eye(6, dtype=bool)]) < 5 / 8).all()
    again = tracelab.Kronecker(8, 8).sides("a", 8, 8)
    np.testing.assert_array_equal(np.sign(again[0].ravel()), halves[0])


@pytest.mark.parametrize(("p", "q"), [(8, 8), (2, 5), (1, 1)])
@pytest.mark.parametrize("rank", [1, 3])
def test_the_squared_norm_is_kept_on_average_and_its_variance_is_bounded(p, q, rank):
    rng = np.random.default_rng(0)
    g, a = rng.standard_normal((6, rank)), rng.standard_normal((9, rank))
    matrix = g @ a.T
    seeds = 4000
    kept = np.array(
        [(tracelab.Kronecker(p, q, seed).project(matrix, "w") ** 2).sum() for seed in range(seeds)]
    )
    exact = (matrix**2).sum()
    # Five standard errors of the mean of independent draws.
    assert abs(kept.mean() - exact) < 5 * kept.std() / np.sqrt(seeds)
    fourth = kept**2
    error = 5 * fourth.std() / np.sqrt(seeds)
    assert fourth.mean() - error < (1 + 2 / p) * (1 + 2 / q) * exact**2
    if rank == 1:
        # E (s'x)^4 = 3 |x|^4 - 2 sum x^4 for signs s.
        factors = [
            1 + 2 / k * (1 - (x**4).sum() / (x**2).sum() ** 2)
            for k, x in ((p, g[:, 0]), (q, a[:, 0]))
        ]
        assert abs(fourth.mean() - np.prod(factors) * exact**2) < error


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**60), st.floats(-3, 3))
def test_it_is_linear(p, q, seed, factor):
    sketch = tracelab.Kronecker(p, q, seed)
    x, y = np.random.default_rng(1).standard_normal((2, 4, 6))
    combined = sketch.project(x + factor * y, "w")
    expected = sketch.project(x, "w") + factor * sketch.project(y, "w")
    np.testing.assert_allclose(combined, expected, atol=1e-12)


def test_description_and_refusals():
    described = tracelab.Kronecker(3, 4, 5).describe()
    assert described == {"kind": "kronecker", "k": 12, "p": 3, "q": 4, "seed": 5}
    for arguments, words in {
        (0, 8): "Kronecker needs p to be an integer of at least 1, got 0",
        (8, 2.5): "Kronecker needs q to be an integer of at least 1, got 2.5",
        (8, 8, -1): "Kronecker needs seed to be an integer of at least 0, got -1",
    }.items():
        with pytest.raises(UsageError, match=words):
            tracelab.Kronecker(*arguments)
