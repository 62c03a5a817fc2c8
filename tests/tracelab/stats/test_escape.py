import doctest
import json
from pathlib import Path

import mpmath
import numpy as np
import pytest
from quadrature import mean_by_quadrature
from scipy import stats

from tracelab.errors import UsageError
from tracelab.stats import escape, levy

REFERENCE = json.loads(
    (Path(__file__).parents[3] / "data" / "reference" / "exit_times.json").read_text()
)
# Standard errors: an unbiased mean of one test of ten thousand lies farther.
FAR = 4.0


def test_doctests():
    assert doctest.testmod(escape).failed == 0


@pytest.mark.parametrize("z", [0.0, 1e-9, 0.3, 5.0, 39.9, 40.1, 300.0, 5000.0])
def test_diffusion_against_mpmath(z):
    curvature, width = 0.7, 1.3
    diffusion = 1.0 if z == 0 else curvature * width**2 / (2 * z)
    h = 0.0 if z == 0 else curvature
    with mpmath.workdps(40):
        exact = mpmath.log(width**2 / (2 * mpmath.mpf(diffusion))) + mpmath.log(
            mpmath.hyp2f2(1, 1, mpmath.mpf(3) / 2, 2, mpmath.mpf(z))
        )
    found = escape.log_diffusion_exit_time(h, diffusion, width)
    assert float(found) == pytest.approx(float(exact), rel=1e-13, abs=1e-13)


def test_diffusion_against_simulation():
    found = levy.exit_times(2.0, 1.0, 4000, 1, levy.Quadratic(2.0), scale=0.7, refine=False)
    # E exp(iuL) = exp(-t |scale u|^2): a variance of 2 scale^2, D = scale^2.
    exact = float(np.exp(escape.log_diffusion_exit_time(2.0, 0.49, 1.0)))
    assert abs(found.mean - exact) < FAR * found.mean_se


@pytest.mark.parametrize("height", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(("h", "off"), [(0.001, 0.005), (0.01, 0.005), (0.1, 0.03), (0.3, 0.13)])
def test_descent_against_its_integral_equation(h, off, height):
    """What the docstring says of its error."""
    # Temperature .2: a variance of .4, whatever the curvature.
    exact = mean_by_quadrature(stats.norm(scale=np.sqrt(0.4)).pdf, h, 0.2 * height)
    found = float(np.exp(escape.log_descent_exit_time(h, 0.4, np.sqrt(0.4 * height / h))))
    assert found == pytest.approx(exact, rel=off)
    # A step over the bottom is as good as one short of it.
    width = np.sqrt(0.4 * height / h)
    over = escape.log_descent_exit_time(2 - h, 0.4, width)
    assert float(over) == pytest.approx(np.log(found), rel=1e-9)


@pytest.mark.parametrize("row", REFERENCE["imkeller_pavlyukevich"], ids=lambda r: str(r["eps"]))
def test_jumps_against_the_reference(row):
    found = escape.jump_exit_time([row["alpha"]], [row["eps"]], [row["b"]], [row["a"]])
    assert float(found) == pytest.approx(row["Etau_asymptotic"], rel=1e-12)


def test_jumps_of_many_coordinates_against_simulation():
    alpha, scale = np.array([1.2, 1.6, 1.8]), np.array([0.02, 0.05, 0.08])
    low, high = np.array([1.0, 2.0, 1.0]), np.array([1.5, 1.0, 1.0])
    found = levy.exit_times(
        alpha, replicas=1500, seed=2, potential=levy.Quadratic(1.0), dim=3, scale=scale,
        region=levy.Box(-low, high), refine=False,
    )  # fmt: skip
    exact = float(escape.jump_exit_time(alpha, scale, low, high))
    # The next order is a power of the scale: 6 % here at most.
    assert found.mean == pytest.approx(exact, rel=0.06 + FAR / np.sqrt(1500))
    # The shares of the coordinates are those of their rates.
    which = np.argmax(np.where(found.places < 0, -found.places / low, found.places / high), axis=1)
    rates = 1 / escape.jump_exit_time(alpha[:, None], scale[:, None], low[:, None], high[:, None])
    share = np.bincount(which, minlength=3) / 1500
    np.testing.assert_allclose(share, rates / rates.sum(), atol=0.06)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_isotropic_jumps_over_an_ellipsoid_against_simulation(dim):
    alpha, scale, barrier = 1.4, 0.03, 0.5
    curvature = np.array([1.0, 4.0, 0.5])[:dim]
    found = levy.exit_times(
        alpha, replicas=1500, seed=3, potential=levy.Quadratic(curvature), dim=dim, scale=scale,
        noise="isotropic", region=levy.Ball(np.sqrt(2 * barrier), curvature**-0.5), refine=False,
    )  # fmt: skip
    unit = np.random.default_rng(4).standard_normal((200_000, dim))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    exact = float(escape.ellipsoid_exit_time(alpha, scale * unit, curvature, barrier))
    assert found.mean == pytest.approx(exact, rel=0.06 + FAR / np.sqrt(1500))


def test_ellipsoid_of_axes_is_the_box_of_one_direction():
    both = escape.ellipsoid_exit_time(1.5, [[0.1], [-0.1]], [2.0], 1.0)
    assert float(both) == pytest.approx(float(escape.jump_exit_time([1.5], [0.1], [1.0], [1.0])))
    assert np.isinf(escape.ellipsoid_exit_time(1.5, [[0.1]], [-2.0], 1.0))
    heights = escape.ellipsoid_exit_time(1.5, [[0.1]], [2.0], [1.0, 4.0])
    assert heights[1] / heights[0] == pytest.approx(4**0.75)


def test_tail_constant_in_one_dimension():
    alpha = np.array([0.5, 1.0, 1.5, 1.9])
    exact = [2 * mpmath.gamma(a) * mpmath.sin(mpmath.pi * a / 2) / mpmath.pi for a in alpha]
    np.testing.assert_allclose(escape.tail_constant(alpha), [float(e) for e in exact], rtol=1e-13)
    assert escape.tail_constant(2.0) == 0


def test_truncation():
    found = escape.truncated_order(1.5, [1.0, 1.0, 1.0, 3.0], [np.inf, 1.0, 0.5, 0.3])
    assert found.jumps.tolist() == [1, 1, 2, 10]
    np.testing.assert_allclose(found.exponent, [1.5, 1.5, 2.0, 6.0])


def test_units():
    plain = escape.log_diffusion_exit_time(1.0, 0.2, 1.0)
    # Time, then space.
    assert float(escape.log_diffusion_exit_time(3.0, 0.6, 1.0)) == pytest.approx(plain - np.log(3))
    assert float(escape.log_diffusion_exit_time(1.0, 0.8, 2.0)) == pytest.approx(float(plain))
    jump = escape.jump_exit_time([1.3], [0.1], [1.0], [2.0])
    assert escape.jump_exit_time([1.3], [0.3], [3.0], [6.0]) == pytest.approx(jump)


def test_bad_input():
    for call, message in (
        (lambda: escape.log_diffusion_exit_time(-1.0, 1.0, 1.0), "curvature must not be negative"),
        (lambda: escape.log_descent_exit_time(2.0, 1.0, 1.0), "curvature must be between 0 and 2"),
        (lambda: escape.log_descent_exit_time(0.5, 0.0, 1.0), "variance must be positive"),
        (lambda: escape.log_diffusion_exit_time(1.0, 0.0, 1.0), "diffusion must be positive"),
        (lambda: escape.jump_exit_time([2.0], [1.0], [1.0], [1.0]), r"alpha must be in \(0, 2\)"),
        (lambda: escape.jump_exit_time([1.5], [1.0], [-1.0], [1.0]), "low must be positive"),
        (lambda: escape.tail_constant(2.1), r"alpha must be in \(0, 2\]"),
        (lambda: escape.tail_constant(1.5, 0), "dim must be"),
        (lambda: escape.ellipsoid_exit_time(1.5, [1.0], [1.0], 1.0), "of shape"),
        (lambda: escape.truncated_order(0.9, 1.0, 1.0), r"alpha must be in \(1, 2\)"),
        (lambda: escape.truncated_order(1.5, np.inf, 1.0), "width must be finite"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert np.isnan(escape.log_diffusion_exit_time(np.nan, 1.0, 1.0))
