import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import distance

import tracelab
from tracelab.typing import Status
from tracelab_analyses.worker_drift import ANALYSIS, finding, synchronization_period, worker_drift
from tracelab_collectors.workers import variables

N, K = 5, 32


def vectors(seed, workers=N, directions=K):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((workers, directions)) + rng.standard_normal(directions)


def run(weight, gradient, variance=None, **options):
    given_variance = None if variance is None else np.asarray(variance)[None, None]
    found = worker_drift(weight[None, None], gradient[None, None], given_variance, **options)
    return {name: array[0, 0] for name, array in found.items()}


def test_is_what_pairs_of_workers_say():
    """Consensus and scatter by pairwise distances, cosines by SciPy's."""
    x, g = vectors(0), vectors(1)
    found = run(x, g)
    for name, v in (("consensus", x), ("scatter", g)):
        pairs = distance.pdist(v, "sqeuclidean").sum() / N**2
        assert found[name] == pytest.approx(pairs, rel=1e-12)
    cosines = [1 - distance.cosine(g[i], g[j]) for i, j in combinations(range(N), 2)]
    assert found["cosine"] == pytest.approx(np.mean(cosines), rel=1e-12)
    assert found["cosine_min"] == pytest.approx(np.min(cosines), rel=1e-12)
    diversity = sum(np.dot(row, row) for row in g) / np.linalg.norm(g.sum(0)) ** 2
    assert found["diversity"] == pytest.approx(diversity, rel=1e-12)
    assert (found["n_workers"], found["n_missing"], found["synchronized"]) == (N, 0, False)


def test_jackknife_is_that_of_leaving_workers_out():
    x = vectors(0)

    def spread(v):
        return np.mean(np.sum((v - v.mean(0)) ** 2, axis=1))

    left = [spread(np.delete(x, i, axis=0)) for i in range(N)]
    expected = np.sqrt((N - 1) / N * np.sum((left - np.mean(left)) ** 2))
    assert run(x, x)["consensus_worker_se"] == pytest.approx(expected, rel=1e-10)


def test_standard_errors_are_those_of_projecting():
    """1,200 sets of signs: their mean square is that of the estimates within 10 %.

    A standard deviation of 1,200 has a relative error of 1 / sqrt(2,400) = 2 %; first order and
    the mean over 64 directions add a few percent more, as does the drift in the mean.
    """
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 4, 3_000)) + 0.5 * rng.standard_normal((2, 1, 3_000))
    names = ("consensus", "scatter", "diversity", "cosine")
    found = []
    for seed in range(1_200):
        sketch = tracelab.Project(64, seed=seed)
        found.append(run(sketch.project(x, 0), sketch.project(g, 0)))
    exact = run(x, g)
    for name in names:
        values = np.array([each[name] for each in found])
        errors = np.array([each[f"{name}_se"] for each in found])
        spread = np.sqrt(np.mean((values - exact[name]) ** 2))
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.1), name


def test_dissimilarity_is_that_of_expected_gradients():
    """Over 2,000 draws of noise whose variance is estimated as well: within 4 standard errors."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((N, K))
    truth = np.mean(np.sum((expected - expected.mean(0)) ** 2, axis=1))
    sigma = np.array([0.5, 1.0, 1.5, 2.0, 3.0])
    found = []
    for _ in range(2_000):
        # Two passes: the sum's noise, and twice the variance of one from their difference.
        passes = expected / 2 + sigma[:, None] / np.sqrt(2) * rng.standard_normal((2, N, K))
        variance = np.sum((passes[0] - passes[1]) ** 2, axis=1)
        found.append(run(vectors(0), passes.sum(0), variance))
    values = np.array([each["dissimilarity"] for each in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth) < 4 * error
    assert error < 0.05 * truth
    # What is not subtracted would show.
    scatter = np.mean([each["scatter"] for each in found])
    assert scatter - truth > 40 * error
    # Conservative, as it is said to be: workers are fixed here.
    assert np.mean([each["dissimilarity_se"] for each in found]) > values.std()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    factor=st.floats(0.01, 100),
    order=st.permutations(range(N)),
    missing=st.sets(st.integers(0, N - 1), max_size=3),
)
def test_invariances(seed, factor, order, missing):
    """Order of workers, a common shift, scale, and workers that are not there."""
    x, g = vectors([seed, 0]), vectors([seed, 1])
    base = run(x, g)
    shuffled = run(x[order], g[order])
    moved = run(factor * (x + x[0]), factor * g)
    powers = {"consensus": 2, "scatter": 2, "diversity": 0, "cosine": 0, "cosine_min": 0}
    for name, power in powers.items():
        for end in ("", "_se"):
            value = base[name + end]
            assert shuffled[name + end] == pytest.approx(value, rel=1e-9)
            assert moved[name + end] == pytest.approx(factor**power * value, rel=1e-9)
    gone = sorted(missing)
    x_without, g_without = x.copy(), g.copy()
    x_without[gone], g_without[gone] = np.nan, np.nan
    reduced, expected = run(x_without, g_without), run(np.delete(x, gone, 0), np.delete(g, gone, 0))
    assert (reduced["n_workers"], reduced["n_missing"]) == (N - len(gone), len(gone))
    for name in powers:
        assert reduced[name] == expected[name]


def test_same_weights_are_at_no_distance():
    x = np.repeat(1e6 * vectors(0)[:1], N, axis=0)
    found = run(x, vectors(1))
    assert (found["consensus"], found["synchronized"]) == (0.0, True)
    # Apart by float32's rounding of weights of this norm, and by more.
    apart = x + 1e-7 * np.linalg.norm(x[0]) / np.sqrt(K) * np.sign(vectors(2))
    assert run(apart, vectors(1))["synchronized"]
    assert not run(x + 10 * (apart - x), vectors(1))["synchronized"]


@pytest.mark.parametrize(
    ("steps", "together", "period"),
    [
        (range(12), [0, 4, 8], 4),
        (range(12), range(12), 1),
        (range(12), [5], None),
        (range(12), [], None),
        (range(0, 40, 2), range(0, 40, 6), 6),
        # Whether they met at 12 is not known in the first, and in the second they did not.
        ([0, 2, 6, 8, 18], [0, 6, 18], 6),
        (range(0, 20, 2), [0, 6, 18], None),
        (range(12), [2, 6], None),
    ],
)
def test_period_of_synchronization(steps, together, period):
    steps = np.array(steps)
    assert synchronization_period(steps, np.isin(steps, list(together))) == period


@pytest.mark.parametrize(
    ("workers", "fill", "status"),
    [
        (1, 1.0, Status.TOO_FEW_SAMPLES),
        (N, np.nan, Status.NON_FINITE_INPUT),
        (N, np.inf, Status.NON_FINITE_INPUT),
        (N, 0.0, Status.CONSTANT_INPUT),
    ],
)
def test_what_cannot_be_estimated_says_why(workers, fill, status):
    with np.errstate(invalid="ignore"):
        found = run(vectors(0, workers), fill * np.ones((workers, K)))
    assert found["status"] == status
    assert np.isnan(found["consensus"])


def test_one_worker_without_a_gradient_takes_only_its_cosines():
    """Distances and diversity with it, by pairs; cosines as if it were not there."""
    x, g = vectors(0), vectors(1)
    g[2] = 0
    found, others = run(x, g), run(np.delete(x, 2, 0), np.delete(g, 2, 0))
    assert (found["status"], found["n_workers"], found["n_still"]) == (Status.OK, N, 1)
    for name, v in (("consensus", x), ("scatter", g)):
        pairs = distance.pdist(v, "sqeuclidean").sum() / N**2
        assert found[name] == pytest.approx(pairs, rel=1e-12)
        assert np.isfinite(found[f"{name}_worker_se"])
    assert found["diversity"] == others["diversity"]
    for name in ("cosine", "cosine_se", "cosine_min", "cosine_min_se"):
        assert found[name] == others[name]
    # One that moves has no other to make a cosine with.
    g[1:] = 0
    alone = run(x, g)
    assert alone["status"] == Status.OK
    assert alone["diversity"] == 1
    assert np.isnan(alone["cosine"])
    assert np.isnan(alone["cosine_min_se"])


def test_two_workers_have_no_error_over_workers():
    """Leaving either out leaves no distance: the jackknife would say that there is no error."""
    x, g = vectors(0, 2), vectors(1, 2)
    found = run(x, g, np.ones(2))
    assert found["status"] == Status.OK
    scatter = np.sum((g[0] - g[1]) ** 2) / 4
    assert found["dissimilarity"] == pytest.approx(scatter - 0.5, rel=1e-12)
    for name in ("consensus_worker_se", "scatter_worker_se", "dissimilarity_se"):
        assert np.isnan(found[name])
    assert np.isfinite(found["scatter_se"])
    said = finding(by_step(worker_drift(x[None, None], g[None, None])))
    assert any("its error over workers takes three or more" in each for each in said.warnings)
    three = vectors(0, 3)[None, None]
    said = finding(by_step(worker_drift(three, three)))
    assert not any("takes three or more" in each for each in said.warnings)


def test_says_whose_gradient_is_zero():
    x, g = vectors(0)[None, None].repeat(2, 0), vectors(1)[None, None].repeat(2, 0)
    g[0, 0, 2] = 0
    said = finding(by_step(worker_drift(x, g)))
    assert any("Of up to 1 workers the gradient is zero" in each for each in said.warnings)
    g[1, 0, 1:] = 0
    said = finding(by_step(worker_drift(x, g)))
    assert "at step 1 no two workers have gradients other than zero, of 5" in said.sentence


def by_step(found):
    return xr.Dataset(
        {name: (("step", "layer"), array) for name, array in found.items()},
        {"step": range(len(found["status"])), "layer": ["network"]},
    )


@pytest.mark.parametrize(
    ("together", "said"),
    [
        ([], "and never meet;"),
        ([0], "and never meet again;"),
        ([3], "and are the same at 1 of 8 recorded steps;"),
        ([0, 2, 4], "and are the same at 3 of 8 recorded steps;"),
        ([0, 2, 4, 6], "and meet every 2 steps;"),
    ],
)
def test_says_when_weights_are_the_same(together, said):
    x, g = vectors(0), vectors(1)
    weight = np.stack([x[:1].repeat(N, 0) if step in together else x for step in range(8)])
    found = worker_drift(weight[:, None], np.stack([g] * 8)[:, None])
    sentence = finding(by_step(found)).sentence
    assert said in sentence
    # No cosine without its error.
    for name, which in (("cosine", "on average"), ("cosine_min", "at least")):
        value, error = found[name][7, 0], found[f"{name}_se"][7, 0]
        assert f"{value:.2f} ± {error:.2f} {which}" in sentence


def test_memory_is_bounded_for_many_workers_of_few_directions():
    """Cosines of 500 x 500 pairs take 2 MB a cell: of 64 cells at once they would take 128 MB."""
    x = np.random.default_rng(0).standard_normal((64, 1, 500, 2)).astype(np.float32)
    tracemalloc.start()
    worker_drift(x, x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32e6


@pytest.mark.parametrize("name", ["worker_drift", "byzantine"])
@pytest.mark.parametrize("begins", [True, False])
def test_a_rank_that_never_began_leaves_the_others(name, begins, tmp_path):
    """Dead before its first row, or before it made a trace: how many were used, and who lacks."""
    rng = np.random.default_rng(0)
    layers, world = {"a": (40,)}, 4
    with tracelab.create(tmp_path / "job", layers, run="job", world_size=world):
        pass
    (tmp_path / "job/workers/rank-001").mkdir(parents=True)
    for rank in range(world) if begins else (0, 2, 3):
        options = {"rank": rank, "world_size": world, "run": "job"}
        with tracelab.create(tmp_path / "job", layers, **options) as writer:
            writer.define("worker", kind="workers", variables=variables())
            for step in range(20 if rank != 1 else 0):
                row = {
                    each.name: rng.standard_normal((1, 1, 8)[: len(each.dims) - 1])
                    for each in variables()
                }
                writer.append("worker", step=step, **row)
    result = tracelab.analyze(str(tmp_path / "job"), name)[name]
    assert (result["status"] == Status.OK).all()
    assert (result["n_workers"] == 3).all()
    assert (result["n_missing"] == 1).all()
    words = (
        "Of rank 1 nothing is recorded in workers/worker: the result is of the other 3 of 4 ranks."
    )
    assert words in result.attrs["warnings"]


def test_declares_what_it_returns():
    assert set(run(vectors(0), vectors(1))) == {each.name for each in ANALYSIS.outputs}
