"""Dimensions of recorded paths of known dimension, bounds by hand, and what is assumed."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from traces import walk

import tracelab
from tracelab import engine, planning
from tracelab.errors import NotRecordedError
from tracelab.sketch import Project
from tracelab.stats import covering, levy
from tracelab.stats.dimension import persistent_homology_dimension
from tracelab.typing import Assumption, Status
from tracelab_analyses.dimension_assumptions import ASSUMPTIONS, NEEDS, drift
from tracelab_analyses.dimension_bound import ANALYSIS, dimension_bound, last_run
from tracelab_analyses.projection_error import projection_error

N = 400
NAMES = list(ASSUMPTIONS)
# More dimensions than points can show.
CLOUD = np.random.default_rng(0).standard_normal((150, 300))


def path(alpha=2.0, directions=12, n=N, seed=0):
    rng = np.random.default_rng(seed)
    return levy.draws(alpha, directions, (n,), "isotropic", rng).cumsum(axis=0)


def bounds(*paths, step=None, seed=0, **options):
    weights = np.stack(paths)
    steps = np.arange(weights.shape[1]) if step is None else step
    given = {"gradient_norm": np.full(weights.shape[:2], 2.0), "recorded_n_data": np.array(5_000.0)}
    given["sharing"] = np.full((len(paths), weights.shape[2]), 10**6)
    seeds = np.full(len(paths), seed, np.uint64)
    return dimension_bound(weights, steps, seeds, **given | options)


def verdict(found, name, layer=0):
    return Assumption(found["assumption_holds"][layer, NAMES.index(name)])


@pytest.mark.parametrize("alpha", [1.3, 1.7])
def test_stable_paths_have_their_index_and_what_is_assumed_of_them_holds(alpha):
    """Of 8 paths the interval of 95 % holds alpha, but with a chance of 1e-4, in 4 at least."""
    found = bounds(*(path(alpha, seed=seed) for seed in range(8)))
    inside = (found["alpha_low"] <= alpha) & (alpha <= found["alpha_high"])
    assert inside.sum() >= stats.binom.ppf(1e-4, 8, 0.95)
    assert (found["status"] == Status.OK).all()
    # Gaussian increments of the same covariance are told apart.
    assert (found["alpha_control"] > found["alpha_high"]).all()
    assert (found["alpha_max"] >= found["alpha_median"]).all()
    stable = found["assumption_holds"][:, NAMES.index("stable")]
    # Tests of 5 %: not more than 4 of 8 reject but with a chance of 4e-4.
    assert (stable == Assumption.HOLDS).sum() >= 4


def test_the_ph_dimension_is_that_of_the_statistic():
    found = bounds(path(), seed=9, power=0.7, repeats=3)
    alone = persistent_homology_dimension(path(), power=0.7, repeats=3, seed=9)
    assert found["ph_dimension"][0] == alone.dimension
    assert found["ph_dimension_se"][0] == alone.dimension_se
    assert found["ph_curvature"][0] == alone.curvature
    even = persistent_homology_dimension(path()[:, ::2], power=0.7, repeats=3, seed=9)
    assert found["ph_dimension_half"][0, 0] == even.dimension


def test_the_error_of_projections_is_what_other_signs_change():
    """Of squared distances over seeds: two layers of 40 weights and one of 5, in 8 directions.

    Squares that are even, at each layer of its own size, so that the upper bound is reached but
    where a small layer meets a large one, in 5 of 8 directions.
    """
    numel, k, seeds = (40, 40, 5), 8, 800
    rng = np.random.default_rng(0)
    sizes = (1.0, 0.5, 0.8)
    steps = [
        size * rng.choice([-1.0, 1.0], (200, each)) for size, each in zip(sizes, numel, strict=True)
    ]
    offsets = np.r_[0, np.cumsum(numel)]
    sketches = [Project(k, seed) for seed in range(seeds)]
    by_layer = np.array([
        [sketch.project(each, begin) for each, begin in zip(steps, offsets[:-1], strict=True)]
        for sketch in sketches
    ])  # fmt: skip
    sharing = np.array([sketches[0].sharing(each) for each in numel])
    # Which coordinates meet, by the definition of the fold.
    for each, counts in zip(numel, sharing, strict=True):
        np.testing.assert_array_equal(counts, np.bincount(np.arange(each) % 11 % k, minlength=k))
    for layer in range(len(numel)):
        exact = np.square(steps[layer]).sum(axis=-1)
        squares = np.square(by_layer[:, layer]).sum(axis=-1)
        spread = np.sqrt(np.mean((squares / exact - 1) ** 2))
        said = np.mean([
            projection_error(each, sharing[layer]) for each in by_layer[:, layer]
        ])  # fmt: skip
        assert said == pytest.approx(spread, rel=0.05, abs=1e-7)
    network = by_layer.sum(axis=1)
    exact = sum(np.square(each).sum(axis=-1) for each in steps)
    spread = np.sqrt(np.mean((np.square(network).sum(axis=-1) / exact - 1) ** 2))
    said = np.mean([projection_error(each, sharing.sum(axis=0)) for each in network])
    assert said == pytest.approx(spread, rel=0.05)


def test_layers_that_are_kept_exactly_have_no_error_and_the_network_has(record):
    """Layers of 24 and 4 weights in 8 directions: 24 share them, 4 do not, and the network all."""
    _, found = computed(record(n_data=99), lipschitz=2.0)
    assert found["projection_error"][1] == 0
    assert 0.3 < found["projection_error"][0] < 0.7
    assert found["projection_error"][2] > 0


def test_the_finding_is_silent_about_projections_where_there_are_none():
    exact = bounds(path(), sharing=np.ones((1, 12), np.int64))
    assert exact["projection_error"] == 0
    assert "projections" not in " ".join(told(exact).warnings)


def test_bounds_are_those_of_the_covering_argument():
    found = bounds(path(), loss_range=2.0, delta=0.1)
    centred = path() - path().mean(axis=0)
    diameter = 2 * np.linalg.norm(centred, axis=1).max()
    assert found["diameter"][0] == pytest.approx(diameter)
    for index, name in enumerate(("alpha", "ph_dimension")):
        log_balls = found[name][0] / 2 * math.log(5_000 * diameter**2)
        wanted = 2 * math.sqrt((log_balls + math.log(10)) / 1e4) + 4 / math.sqrt(5_000)
        assert found["bound"][0, index] == pytest.approx(wanted)
        assert found["bound_low"][0, index] <= wanted <= found["bound_high"][0, index]
    assert found["finite_bound"][0] == pytest.approx(2 * math.sqrt(math.log(N * 10) / 1e4))


def test_vacuous_bounds_name_their_term():
    found = bounds(path(), recorded_n_data=np.array(3.0))
    assert found["vacuous"].all()
    # 2 / sqrt(3) of the radius against sqrt(log N / 6) of the cover, larger.
    assert (found["largest_term"] == covering.TERMS.index("cover")).all()
    still = bounds(path(), recorded_n_data=np.array(3.0), lipschitz=1e-9)
    assert (still["largest_term"] == covering.TERMS.index("radius")).all()
    assert not bounds(path(), n_data=10**6)["vacuous"].any()


def test_what_is_given_counts_for_what_is_recorded():
    found = bounds(path(), n_data=77, lipschitz=0.5)
    assert found["n_data"][0] == 77
    assert found["lipschitz"][0] == 0.5
    assert verdict(found, "lipschitz") is Assumption.UNCHECKED
    recorded = bounds(path())
    assert recorded["lipschitz"][0] == 2
    assert verdict(recorded, "lipschitz") is Assumption.FAILS
    norms = np.full((1, N), np.nan)
    norms[0, [3, 9]] = 1.0, 4.0
    assert bounds(path(), gradient_norm=norms)["lipschitz"][0] == 4
    # The largest of the iterates that are used.
    assert np.isnan(bounds(path(), gradient_norm=norms, iterates=300)["lipschitz"][0])


@pytest.mark.parametrize("missing", ["gradient_norm", "recorded_n_data"])
def test_without_a_constant_there_are_dimensions_and_no_bound(missing):
    found = bounds(path(), **{missing: None})
    assert np.isfinite(found["ph_dimension"]).all()
    assert np.isnan(found["bound"]).all()
    assert not found["vacuous"].any()
    assert found["status"] == Status.OK


def test_what_never_holds_and_what_is_never_checked():
    found = bounds(path())
    assert verdict(found, "constants") is Assumption.FAILS
    assert verdict(found, "fixed") is Assumption.FAILS
    assert verdict(found, "bounded") is Assumption.UNCHECKED
    assert {name for needs in NEEDS.values() for name in needs} == set(ASSUMPTIONS)


def test_drift_dependence_and_other_laws_are_noticed():
    rng = np.random.default_rng(3)
    steps = rng.standard_normal((N, 12))
    drifting = (steps + 0.5).cumsum(axis=0)
    growing = (steps * np.linspace(0.2, 2, N)[:, None]).cumsum(axis=0)
    returning = steps.copy()
    for t in range(1, N):
        returning[t] += 0.3 * returning[t - 1]
    mixture = (steps * rng.choice([0.1, 3.0], (N, 12), p=[0.7, 0.3])).cumsum(axis=0)
    found = bounds(steps.cumsum(axis=0), drifting, growing, returning, mixture)
    for name, layer in (
        ("stationary", 1), ("stationary", 2), ("independent", 3), ("stable", 4)
    ):  # fmt: skip
        assert verdict(found, name) is Assumption.HOLDS
        assert verdict(found, name, layer) is Assumption.FAILS


@pytest.mark.parametrize("shape", [(300, 5), (60, 200)])
def test_drift_rejects_walks_at_its_level(shape):
    """Of 300 Gaussian walks, of unequal scales: 5 %, and 5 binomial standard errors of .0126.

    The law of the ratio is matched in mean and variance alone: one percent more is allowed for it.
    """
    scales = np.geomspace(0.1, 1, shape[1])
    found = [
        drift(np.random.default_rng(seed).standard_normal(shape) * scales) for seed in range(300)
    ]
    for values in ([each.pvalue for each in found], [each.scale_pvalue for each in found]):
        assert abs(np.mean(np.array(values) < 0.05) - 0.05) < 5 * 0.0126 + 0.01
    # E ratio = 1, variance 2 tr S^2 / (tr S)^2.
    variance = 2 * np.sum(scales**4) / np.sum(scales**2) ** 2
    ratios = [each.ratio for each in found]
    assert abs(np.mean(ratios) - 1) < 5 * math.sqrt(variance / 300)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (np.arange(2_000), slice(1_000, 2_000)),
        (np.r_[np.arange(0, 5_000, 10), 4_995], slice(0, 500)),
        (np.r_[np.arange(0, 500, 5), np.arange(500, 800)], slice(100, 400)),
        (np.r_[np.arange(300), np.arange(400, 5_000, 100)], slice(0, 300)),
        (np.arange(7), slice(0, 7)),
        (np.array([3]), slice(0, 1)),
    ],
)
def test_the_last_records_of_equal_spacing(step, wanted):
    found = last_run(step, 1_000)
    assert step[found].tolist() == step[wanted].tolist()


def test_only_the_last_records_count():
    late = path(n=600)
    early = late.copy()
    early[:200] = np.random.default_rng(1).standard_normal((200, 12))
    one, other = (bounds(each, iterates=400) for each in (late, early))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    assert one["n_iterates"][0] == 400


def test_layers_do_not_know_each_other():
    together = bounds(path(), path(1.5, seed=4))
    for layer, each in enumerate((path(), path(1.5, seed=4))):
        alone = bounds(each)
        for name, value in together.items():
            np.testing.assert_array_equal(value[layer], alone[name][0])


def test_the_unit_of_weight_does_not_matter():
    one = bounds(path(1.6))
    other = bounds(1e-3 * path(1.6), gradient_norm=np.full((1, N), 2e3))
    for name in ("ph_dimension", "alpha", "bound", "assumption_holds"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "status"),
    [
        (np.ones((N, 3)), Status.CONSTANT_INPUT),
        (np.arange(N)[:, None] * np.ones(3), Status.CONSTANT_INPUT),
        (np.full((N, 3), np.nan), Status.NON_FINITE_INPUT),
        (np.r_[np.full((1, 3), np.inf), path(directions=3)[1:]], Status.NON_FINITE_INPUT),
        (path(directions=3)[:60], Status.TOO_FEW_SAMPLES),
        (np.eye(N), Status.CONSTANT_INPUT),
        (CLOUD, Status.NOT_CONVERGED),
    ],
)
def test_what_has_no_dimension_says_why(weights, status):
    found = bounds(weights)
    assert found["status"] == status
    assert np.isnan(found["ph_dimension"]).all()
    assert np.isnan(found["bound"][0, 1])


def test_a_direction_that_never_moves_takes_no_part():
    still = np.c_[path(1.5), np.full(N, 3.0)]
    one, other = bounds(path(1.5)), bounds(still)
    for name in ("ph_dimension", "alpha", "gof_pvalue"):
        assert other[name] == one[name]


@pytest.fixture
def record(tmp_path):
    def written(**attributes):
        with tracelab.create(tmp_path / "walk.zarr", {"a": (4, 6), "b": (4,)}) as writer:
            if attributes:
                writer.define("noise", attrs={"batch_size": 8, "replacement": True} | attributes)
                writer.append("noise", step=0, sampled=np.ones((2, 28)), mean_sampled=np.ones(28))
            for step, projected in enumerate(walk(np.random.default_rng(0), 150)):
                writer.append(
                    "weights",
                    step=step,
                    distance=np.ones(2),
                    norm=np.ones(2),
                    projected=projected,
                )
        return tracelab.open(tmp_path / "walk.zarr")

    return written


def computed(trace, **given):
    plan = planning.plan(ANALYSIS, trace, ANALYSIS.resolve(given))
    ((_, outputs, failures),) = engine.stream(plan, trace, engine.Execution())
    assert failures == ()
    return plan, outputs


def test_of_a_trace(record):
    trace = record(n_data=99)
    plan, found = computed(trace)
    assert plan.labels == ("a", "b", "network")
    assert (found["status"] == Status.OK).all()
    assert (found["n_data"] == 99).all()
    assert (found["n_directions"] == 8).all()
    # Nobody recorded a gradient.
    assert np.isnan(found["bound"]).all()
    _, given = computed(trace, lipschitz=2.0)
    assert np.isfinite(given["bound"]).all()


def test_of_a_trace_without_the_number_of_examples(record):
    trace = record()
    _, found = computed(trace, lipschitz=2.0)
    assert np.isnan(found["n_data"]).all()
    assert (computed(trace, lipschitz=2.0, n_data=50)[1]["n_data"] == 50).all()


@pytest.mark.parametrize(("sizes", "known"), [((99, 99), 99), ((99, 60), np.nan)])
def test_of_a_trace_with_two_groups_of_noise(tmp_path, sizes, known):
    """What they agree on is known, and what they do not is not."""
    with tracelab.create(tmp_path / "two.zarr", {"a": (4, 6)}) as writer:
        for name, size in zip(("first", "second"), sizes, strict=True):
            attributes = {"batch_size": 8, "replacement": True, "n_data": size}
            writer.define(name, kind="noise", attrs=attributes)
            writer.append(name, step=0, sampled=np.ones((2, 24)), mean_sampled=np.ones(24))
        for step, projected in enumerate(walk(np.random.default_rng(0), 150)):
            writer.append("weights", step=step, projected=projected[:1])
    _, found = computed(tracelab.open(tmp_path / "two.zarr"))
    np.testing.assert_array_equal(found["n_data"], known)


def test_a_trace_without_projections_names_what_records_them(tmp_path):
    with tracelab.create(tmp_path / "none.zarr", {"a": (4, 6)}) as writer:
        writer.append("weights", step=0, distance=np.ones(1), norm=np.ones(1))
    trace = tracelab.open(tmp_path / "none.zarr")
    with pytest.raises(NotRecordedError, match=r"Weights\(sketch=Project\(256\), every=1\)"):
        planning.plan(ANALYSIS, trace, ANALYSIS.resolve({}))


def told(found, **changes):
    sizes = {dim: list(labels) for dim, labels in ANALYSIS.coords.items()}
    variables = {
        each.name: (each.dims, changes.get(each.name, found[each.name]))
        for each in ANALYSIS.outputs
    }
    return ANALYSIS.finding(xr.Dataset(variables, coords=sizes | {"layer": ["network"]}))


def test_finding_says_dimensions_bounds_and_what_fails():
    said = told(bounds(path(1.5)))
    assert "Hausdorff dimension (tail index) of 1.48" in said.sentence
    assert "bounds the gap by" in said.sentence
    assert "vacuous" not in said.sentence
    text = " ".join(said.warnings)
    assert ASSUMPTIONS["fixed"] in text
    assert "adversarial initializations" in text
    error = 100 * float(bounds(path(1.5))["projection_error"][0])
    assert f"squares to within {error:.2g} %" in text
    assert "it sees one path" in text
    assert "Hoeffding's bound is" in text
    vacuous = told(bounds(path(), recorded_n_data=np.array(3.0)))
    assert "vacuous by its cover term" in vacuous.sentence
    assert "it sees one path" not in " ".join(vacuous.warnings)
    assert "Exactly Gaussian increments read alpha = 2.00" in " ".join(vacuous.warnings)


def test_finding_without_bounds_or_dimension():
    assert "give n_data=" in " ".join(told(bounds(path(), recorded_n_data=None)).warnings)
    assert "give lipschitz=" in " ".join(told(bounds(path(), gradient_norm=None)).warnings)
    assert "trees grow as fast" in told(bounds(CLOUD)).sentence
    assert "non finite input" in told(bounds(np.full((N, 2), np.nan))).sentence
