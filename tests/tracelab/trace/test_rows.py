"""What a group refuses, each refusal in its words; and what it takes."""

import numpy as np
import pytest
from zarr.storage import MemoryStore

from tracelab.contracts import Variable
from tracelab.errors import UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace

LAYERS = {"fc.weight": (2, 3), "fc.bias": (3,)}
NUMEL = 9


@pytest.fixture
def writer():
    store = MemoryStore()
    with create(store, LAYERS) as writer:
        writer.store = store
        yield writer


def read(writer):
    writer.flush()
    return open_trace(writer.store)


def refuses(writer, words, group, **row):
    with pytest.raises(UsageError, match=words):
        writer.append(group, **({"step": 0} | row))


@pytest.mark.parametrize("step", [-1, 1.0, "1", None, True, 2**63])
def test_a_step_is_a_non_negative_integer(writer, step):
    refuses(writer, "step must be a non-negative integer, got", "steps", step=step, loss=1.0)


def test_steps_increase_within_a_group(writer):
    writer.append("steps", step=np.int64(5), loss=1.0)
    refuses(writer, "step 5 does not come after step 5; steps must inc", "steps", step=5, loss=1.0)
    refuses(writer, "step 4 does not come after step 5", "steps", step=4, loss=1.0)
    writer.append("gradients", step=0, full=np.zeros(NUMEL))
    assert read(writer).steps["step"].values.tolist() == [5]


def test_a_row_has_an_array(writer):
    refuses(writer, "a row of group 'steps' needs at least one array", "steps")


def test_unknown_arrays(writer):
    refuses(writer, "kind 'gradients' has no array 'loss'; it has: projected", "gradients", loss=1)
    refuses(writer, "an array cannot be called 'val/loss'", "steps", **{"val/loss": 1.0})
    refuses(writer, "an array cannot be called 'layer'", "steps", layer=1.0)


def test_shapes(writer):
    refuses(
        writer,
        r"a row of 'projected' has the dimensions \('layer', 'direction'\), got an array of "
        r"shape \(4,\)",
        "gradients",
        projected=np.zeros(4),
    )
    refuses(
        writer,
        "dimension 'layer' of 'projected' has size 3, and 2 in the group's layers",
        "gradients",
        projected=np.zeros((3, 4)),
    )
    refuses(
        writer,
        "dimension 'direction' of 'projected' is empty",
        "gradients",
        projected=np.zeros((2, 0)),
    )
    writer.append("gradients", step=0, projected=np.zeros((2, 4)))
    refuses(
        writer,
        r"'projected' has had rows of shape \(2, 4\), got \(2, 5\)",
        "gradients",
        step=1,
        projected=np.zeros((2, 5)),
    )


def test_arrays_of_a_group_share_their_dimensions(writer):
    refuses(
        writer,
        "dimension 'batch' of 'loss' has size 6, and 5 in 'projected'",
        "noise",
        projected=np.zeros((5, 2, 4)),
        loss=np.zeros(6),
    )
    # A refused row leaves nothing behind.
    writer.append("noise", step=0, projected=np.zeros((6, 2, 4)), loss=np.zeros(6))


def test_dtypes(writer):
    refuses(writer, "'loss' is stored as float64, got complex128; convert", "steps", loss=1j)
    refuses(writer, "'loss' is stored as float64, got <U1; convert", "steps", loss="1")
    refuses(writer, "'loss' is stored as float64, got object; convert", "steps", loss=object())
    refuses(writer, "'applied' is stored as bool, got float64", "steps", applied=1.0)
    refuses(writer, "'loss' is no array of numbers", "steps", loss=[[1.0], [1.0, 2.0]])


def test_sampled_and_full_do_not_share_a_group(writer):
    writer.append("gradients", step=0, full=np.zeros(NUMEL))
    refuses(
        writer,
        "group 'gradients' cannot hold 'sampled' and 'full': full holds every",
        "gradients",
        step=1,
        full=np.zeros(NUMEL),
        sampled=np.zeros(NUMEL),
    )


def test_full_holds_every_weight(writer):
    refuses(
        writer, "'full' must hold the 9 weights of its layers, got 8", "weights", full=[0.0] * 8
    )


def test_full_needs_no_coordinates(writer):
    tables = np.zeros(NUMEL, int), np.zeros(NUMEL, int)
    writer.define("weights", coordinates=tables)
    refuses(writer, "'full' holds every coordinate in order", "weights", full=np.zeros(NUMEL))


def test_sampled_coordinates_must_be_known(writer):
    refuses(
        writer,
        r"4 sampled coordinates of 9 weights: say which with define\('gradients', coordinates=",
        "gradients",
        sampled=np.zeros(4),
    )
    refuses(writer, "4 sampled coordinates of 9", "noise", mean_sampled=np.zeros(4))


def test_every_coordinate_sampled_is_known_without_saying(writer):
    writer.append("noise", step=0, sampled=np.zeros((5, NUMEL)))
    group = read(writer).groups["noise"]
    assert group["coordinate_layer"].values.tolist() == [0] * 6 + [1] * 3
    assert group["coordinate_index"].values.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_defined_coordinates_are_stored(writer):
    writer.define("gradients", layers=["fc.bias"], coordinates=([0, 0], [0, 2]))
    writer.append("gradients", step=0, sampled=[1.0, 2.0])
    group = read(writer).gradients
    assert group["layer"].values.tolist() == ["fc.bias"]
    assert group["coordinate_layer"].dtype == np.int32
    assert group["coordinate_index"].dtype == np.int64
    assert group["coordinate_index"].values.tolist() == [0, 2]
    assert set(group.coords) == {"step", "layer", "coordinate_layer", "coordinate_index"}


def test_sampled_has_as_many_coordinates_as_defined(writer):
    writer.define("gradients", coordinates=([0, 1], [0, 2]))
    refuses(
        writer,
        "dimension 'coordinate' of 'sampled' has size 3, and 2 in 'coordinate_layer'",
        "gradients",
        sampled=np.zeros(3),
    )


@pytest.mark.parametrize(
    ("coordinates", "words"),
    [
        (([0], [0, 1]), "two integer vectors of one length"),
        (([0.0], [0.0]), "two integer vectors of one length"),
        (([], []), "two integer vectors of one length"),
        (([[0]], [[0]]), "two integer vectors of one length"),
        (([0, [1]], [0, 1]), "two integer vectors of one length"),
        (([2], [0]), "point outside its 2 layers or beyond"),
        (([-1], [0]), "point outside its 2 layers or beyond"),
        (([1], [3]), "beyond a layer's last weight"),
        (([1], [-1]), "beyond a layer's last weight"),
    ],
)
def test_coordinate_tables_are_checked(writer, coordinates, words):
    with pytest.raises(UsageError, match=words):
        writer.define("gradients", coordinates=coordinates)


@pytest.mark.parametrize("name", ["layers", "results", "../x", "a/b", "", ".", 3])
def test_names_of_groups(writer, name):
    with pytest.raises(UsageError, match="a group cannot be called"):
        writer.define(name, kind="gradients")


@pytest.mark.parametrize("layers", [[], ["fc.weight", "fc.weight"], ["fc"]])
def test_layers_of_a_group(writer, layers):
    with pytest.raises(UsageError, match=r"group 'noise': layers must be different ones of fc\.we"):
        writer.define("noise", layers=layers)


@pytest.mark.parametrize("name", ["kind", "sketches", "complete", "coordinates"])
def test_attributes_that_tracelab_sets(writer, name):
    with pytest.raises(UsageError, match=f"the attribute '{name}' is set by tracelab"):
        writer.define("noise", attrs={name: 1})


def test_a_group_is_defined_once(writer):
    writer.define("noise")
    with pytest.raises(UsageError, match="group 'noise' exists already; define it once"):
        writer.define("noise")


def test_an_unknown_kind_says_what_it_holds(writer):
    refuses(writer, "'probe' is not one of the kinds steps, statistics", "probe", x=1.0)
    with pytest.raises(UsageError, match="the arrays of kind 'noise' are declared by tracelab"):
        writer.define("noise", variables=[Variable("x", ("step",))])
    with pytest.raises(UsageError, match="a kind cannot be called 'a/b'"):
        writer.define("probe", kind="a/b", variables=[Variable("x", ("step",))])


@pytest.mark.parametrize(
    "variable",
    [
        Variable("x", ("layer", "step")),
        Variable("x/y", ("step",)),
        Variable("step", ("step",)),
        Variable("x", ("step", "a", "a")),
        Variable("x", ("step", "a b")),
        Variable("x", ("step",), dtype="object"),
        Variable("x", ("step",), dtype="string"),
        Variable("x", ("step",), dtype="float16"),
    ],
)
def test_variables_that_cannot_be_stored(writer, variable):
    with pytest.raises(UsageError, match="cannot be stored; its name must be a plain one"):
        writer.define("probe", kind="mine", variables=[variable])


def test_a_kind_of_ones_own(writer):
    writer.define(
        "probe",
        kind="mine",
        layers=["fc.bias"],
        variables=[
            Variable("vhv", ("step", "vector"), "loss/weight^2", "float64", "curvature"),
            Variable("rank", ("step", "layer"), "1", "int64", "a count"),
        ],
        attrs={"vectors": 2},
    )
    writer.append("probe", step=3, vhv=[1.0, 2.0], rank=[7])
    with pytest.raises(UsageError, match=r"row of step 4 lacks 'rank', and its dtype int64 has no"):
        writer.append("probe", step=4, vhv=[1.0, 2.0])
    refuses(writer, "'rank' is stored as int64, got float64", "probe", step=4, rank=[1.0])
    group = read(writer).probe
    assert group.attrs["kind"] == "mine"
    assert group.attrs["vectors"] == 2
    assert group["vhv"].attrs == {"units": "loss/weight^2", "long_name": "curvature"}
    assert group["rank"].dtype == np.int64
    assert group["rank"].values.tolist() == [[7]]


def test_an_integer_array_cannot_come_late(writer):
    writer.define(
        "probe",
        kind="mine",
        variables=[Variable("a", ("step",)), Variable("n", ("step",), dtype="int32")],
    )
    writer.append("probe", step=0, a=1.0)
    refuses(
        writer,
        "'n' was not in the rows before, and its dtype int32 has no missing value",
        "probe",
        step=1,
        a=1,
        n=1,
    )


def test_sketches_are_named_in_the_group(writer):
    from tracelab.sketch import Project

    writer.define("gradients", sketches=[Project(4, seed=1), {"kind": "full"}])
    writer.append("gradients", step=0, projected=np.zeros((2, 4)))
    described = read(writer).gradients.attrs["sketches"]
    assert described == [{"kind": "project", "k": 4, "seed": 1}, {"kind": "full"}]
    with pytest.raises(UsageError, match="a sketch is a mapping with kind, k and seed"):
        writer.define("late", kind="gradients", sketches=["project"])
