"""Laws that every registered analysis obeys, ours and a third party's alike."""

import functools
import inspect
import math
import pickle
import tracemalloc

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from plans import computed
from traces import (
    define_averages,
    define_basin,
    define_complexity,
    define_hessian,
    define_perturbed_loss,
    define_prior_kernel,
    define_sharpness,
    define_smoothed_gradient,
    define_workers,
    write_averages,
    write_basin,
    write_complexity,
    write_hessian,
    write_perturbed_loss,
    write_prior_kernel,
    write_sharpness,
    write_smoothed_gradient,
    write_workers,
)

import tracelab
from tracelab import cells, cutting, engine, memory, planning, registry
from tracelab.contracts import NETWORK
from tracelab.errors import UsageError
from tracelab.noise import MODES
from tracelab.reporting.numbers import headline, table
from tracelab.typing import Status

ANALYSES = registry.analyses()
MODE_OF = [
    pytest.param(analysis, mode, id=f"{mode}-{name}" if mode else name)
    for name, analysis in ANALYSES.items()
    for mode in (MODES if "mode" in {p.name for p in analysis.parameters} else [None])
]
every = pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)


def plan(analysis, trace, **options):
    return planning.plan(analysis, trace, analysis.resolve({}), **options)


def compute(analysis, trace, execution=None, **options):
    return computed(plan(analysis, trace, **options), trace, execution)


@pytest.fixture
def trace(small):
    """Open the small trace: laws leave it as it is."""
    return tracelab.open(small)


@pytest.fixture(scope="module")
def whole(small):
    """Return what an analysis says of the small trace, computed once, and what failed."""

    @functools.cache
    def of(name):
        return compute(ANALYSES[name], tracelab.open(small))

    return lambda analysis: of(analysis.name)


@every
def test_planning_computes_nothing(analysis, trace):
    def refuse(*_, **__):
        raise AssertionError("a plan computed something")

    with dask.config.set(scheduler=refuse):
        made = plan(analysis, trace)
    assert 0 < len(made.blocks) <= planning.MAX_TASKS


@every
def test_returns_what_it_declares(analysis, whole):
    result, failures = whole(analysis)
    assert failures == ()
    assert set(result.data_vars) == {variable.name for variable in analysis.outputs}
    for variable in analysis.outputs:
        found = result[variable.name]
        assert found.dims == variable.dims
        assert found.dtype == variable.dtype
        if variable.name != "status":
            assert found.attrs["units"] == variable.units
            assert found.attrs["long_name"]
    assert (result["status"] == int(Status.OK)).all()
    assert str(result["layer"].values[-1]) == NETWORK


@every
def test_estimates_carry_uncertainty_sample_size_and_status(analysis):
    names = {variable.name for variable in analysis.outputs}
    assert "status" in names
    assert any(name.startswith("n_") for name in names)
    assert any(name.endswith(("_se", "_low")) for name in names)


@every
def test_same_bits_for_any_cutting(analysis, trace, whole, monkeypatch):
    result, _ = whole(analysis)
    monkeypatch.setattr(cutting, "MAX_TASKS", 1)
    coarse, _ = compute(analysis, trace)
    monkeypatch.setattr(cutting, "MAX_TASKS", 10_000)
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 1)
    monkeypatch.setattr(cutting, "SHARED_BYTES", 1)
    monkeypatch.setattr(planning, "PIECE_BYTES", 1)
    fine, _ = compute(analysis, trace)
    assert len(plan(analysis, trace).blocks) >= len(fine["layer"])
    xr.testing.assert_identical(result, coarse)
    xr.testing.assert_identical(result, fine)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@every
def test_same_bits_on_worker_processes(analysis, trace, whole, client):
    here, _ = whole(analysis)
    there, failures = compute(analysis, trace, engine.Execution(client=client))
    assert failures == ()
    xr.testing.assert_identical(here, there)


@every
def test_same_bits_for_a_selection(analysis, trace, whole):
    result, _ = whole(analysis)
    first = str(result["layer"].values[0])
    one, _ = compute(analysis, trace, layers=lambda name: name == first)
    xr.testing.assert_identical(one, result.sel(layer=[first]))
    if "step" in analysis.cell:
        late, _ = compute(analysis, trace, steps=slice(1, None))
        xr.testing.assert_identical(late, result.isel(step=slice(1, None)))


@every
def test_wrong_units_are_rejected(analysis, trace):
    trace.groups = {name: dataset.copy() for name, dataset in trace.groups.items()}
    for dataset in trace.groups.values():
        for array in dataset.variables.values():
            array.attrs = {**array.attrs, "units": "furlong"}
    with pytest.raises(UsageError, match="and the trace holds it in 'furlong'"):
        plan(analysis, trace)


@pytest.mark.parametrize(("analysis", "mode"), MODE_OF)
def test_a_cell_takes_no_more_memory_than_is_set_aside_for_it(analysis, mode):
    """What Python and NumPy allocate; numba's own are a few rows."""
    given = {"mode": mode} if mode else {}
    rng = np.random.default_rng(0)
    inputs = {}
    sizes = {"layer": 1, "batch": 400, "series": 500, "set": 2, "shape": 2, "sign": 2}
    sizes["step"] = 1
    if "step" not in analysis.cell:
        # A cell of a layer has all steps: as many as make no input larger than 100 MB.
        others = [
            [sizes.get(dim, 30) for dim in needed.variable.dims if dim != "step"]
            for needed in analysis.inputs
        ]
        sizes["step"] = min(100_000, 12_500_000 // max(map(math.prod, others)))
    for needed in analysis.inputs:
        shape = [sizes.get(dim, 30) for dim in needed.variable.dims]
        dtype = np.dtype(needed.variable.dtype)
        drawn = np.abs(rng.standard_normal(shape)) if shape else np.asarray(7)
        # Coordinates such as steps increase.
        inputs[needed.variable.name] = (
            np.arange(drawn.size).reshape(shape) if dtype.kind == "i" and shape else drawn
        ).astype(dtype)
    if "seed" in inspect.signature(analysis.kernel).parameters:
        inputs["seed"] = np.zeros([1] * len(analysis.cell), np.uint64)
    size = sum(array.nbytes for array in inputs.values())
    # The input is in memory besides; a cell of few numbers is not what fills it.
    bound = max(memory.PEAK * size, memory.READING_BYTES) - size

    def peak():
        tracemalloc.start()
        try:
            analysis.kernel(**inputs, **analysis.resolve(given))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The first call loads modules and machine code too, which are no cell's.
    assert peak() < bound or peak() < bound


@every
def test_kernel_and_analysis_pickle(analysis):
    assert pickle.loads(pickle.dumps(analysis.kernel)) is analysis.kernel
    assert pickle.loads(pickle.dumps(analysis)).name == analysis.name


@every
def test_cites_its_source_and_says_what_it_does(analysis):
    assert analysis.references
    assert all(reference.citation for reference in analysis.references)
    assert analysis.summary
    assert len(analysis.summary) < 80
    assert inspect.getdoc(analysis.kernel)


@every
def test_kernel_takes_every_parameter_by_its_default(analysis):
    taken = inspect.signature(analysis.kernel).parameters
    for parameter in analysis.parameters:
        assert taken[parameter.name].default == parameter.default
        assert parameter.parse(parameter.default) == parameter.default
        assert parameter.description


@every
def test_a_raising_cell_does_not_stop_the_others(analysis, trace, monkeypatch):
    def broken(plan, piece, trace, load=cells.load):
        if piece.left == 0 and piece.first == 0:
            raise RuntimeError("no such luck")
        return load(plan, piece, trace)

    monkeypatch.setattr(cells, "load", broken)
    result, failures = compute(analysis, trace)
    status = result["status"].values.ravel()
    assert status.size > 1 or analysis.cell == ("layer",)
    assert status[0] == int(Status.FAILED)
    assert (status[1:] == int(Status.OK)).all()
    assert len(failures) == 1
    assert f"{result['layer'].values[0]}: RuntimeError: no such luck" in failures[0]


def write_poor(path, bad):
    rng = np.random.default_rng(0)
    batches = 1 if bad == "one batch" else 64
    values = rng.standard_normal((batches, 28))
    if bad in ("nan", "inf"):
        values[0] = float(bad)
    if bad == "constant":
        values[:] = 0.25
    with tracelab.create(path, {"a": (4, 6), "b": (4,)}) as writer:
        writer.define("noise", attrs={"batch_size": 8, "replacement": True, "n_data": 99})
        define_hessian(writer)
        define_basin(writer)
        define_sharpness(writer)
        define_averages(writer)
        define_complexity(writer)
        define_smoothed_gradient(writer)
        define_perturbed_loss(writer)
        define_workers(writer)
        for step in range(20):
            forms = {"constant": 0.0, "nan": np.nan, "inf": np.inf}.get(bad, 1.0)
            write_workers(writer, step, rng, forms, 1 if bad == "one batch" else 4)
        define_prior_kernel(writer)
        for step in (0,) if bad == "one step" else (0, 1):
            # What is constant has no curvature either; of one batch there are no forms enough.
            forms = {"constant": 0.0, "nan": np.nan, "inf": np.inf}.get(bad, 1.0)
            write_hessian(writer, step, rng, forms, batches)
            write_basin(writer, step, rng, forms, batches)
            write_sharpness(writer, step, rng, forms, batches)
            write_averages(writer, step, rng, forms, batches)
            write_complexity(writer, step, rng, forms, batches)
            write_smoothed_gradient(writer, step, rng, forms, batches)
            write_perturbed_loss(writer, step, rng, forms, batches, min(batches, 8))
            write_prior_kernel(writer, step, rng, forms, min(batches, 4))
            writer.append("steps", step=step, learning_rate=0.1)
            writer.append("noise", step=step, sampled=values, mean_sampled=np.zeros(28))
            distance = np.full(2, np.nan if bad == "nan" else 1.0)
            writer.append(
                "weights",
                step=step,
                distance=distance,
                norm=distance,
                projected=distance[:, None] * np.ones(4),
            )
            writer.append("gradients", step=step, projected=forms * np.ones((2, 4)))
    return path


@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """Return the trace of a kind of poor data, written once."""
    folder = tmp_path_factory.mktemp("poor")
    written = functools.cache(lambda bad: write_poor(folder / f"{bad}.zarr", bad))
    return lambda bad: tracelab.open(written(bad))


@every
@pytest.mark.parametrize("bad", ["nan", "inf", "constant", "one batch", "one step"])
def test_poor_data_become_a_status(analysis, poor, bad):
    result, failures = compute(analysis, poor(bad))
    assert failures == ()
    if analysis.name == "curvature" and bad == "one batch":
        # The noise is that of all layers together; single ones have a trace.
        result = result.sel(layer=[NETWORK])
    status = result["status"].values
    if bad != "one step" or analysis.name == "weight_diffusion":
        assert (status != int(Status.OK)).all()
        assert (status != int(Status.FAILED)).all()
    result.attrs["parameters"] = analysis.resolve({})
    assert analysis.finding(result).sentence


@every
def test_plot_and_finding_take_its_results(analysis, whole):
    result = whole(analysis)[0].copy()
    result.attrs["parameters"] = analysis.resolve({})
    assert analysis.finding(result).sentence.endswith(".")
    told = table(result)
    assert all(len(row) == len(told.header) for row in told.rows)
    assert headline(result).values
    figure = analysis.plot({"one": result, "two": result})
    assert figure.axes
