"""A trace with everything in it that a trace can hold."""

from functools import cache

import numpy as np

import tracelab
from tracelab.contracts import Variable

LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,), "слой 重み/β": (3, 2)}
WEIGHTS = 34
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64"),
)
COORDINATES = (np.repeat([0, 1], 4), np.tile([0, 3, 2, 1], 2))
METADATA = {
    "dataset": "cifar-10 ☃",
    "empty": "",
    "nothing": None,
    "flag": True,
    "count": 3,
    "huge": 2**80,
    "unsigned": 2**63 + 1,
    "rate": 0.1,
    "whole": 1.0,
    "infinite": float("inf"),
    "nested": {"betas": [0.9, 0.999], "deeper": {"none": None, "text": "a\0b"}},
    "lines": "x" * 100_000,
}
ODD = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 5e-324]


def odd_values(rng, dtype, shape):
    """Return random bits: of floats NaNs with payloads, infinities and subnormal numbers too."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    count = int(np.prod(shape))
    values = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()
    if dtype.kind == "f" and count:
        with np.errstate(over="ignore", under="ignore"):
            odd = np.array(ODD).astype(dtype)
        places = rng.random(count) < 0.3
        values[places] = rng.choice(odd, places.sum())
    return values.reshape(shape)


NOISE_LAYERS = ("fc.bias", "слой 重み/β")
MEASUREMENTS = [
    Variable(f"of_{dtype}", ("step", "probe", "k"), "1", dtype, f"values of {dtype}")
    for dtype in (*DTYPES, "bfloat16")
]


def rows():
    """Yield group, step and arrays of every row; some arrays come late, and are missing before."""
    rng = np.random.default_rng(0)
    for step in range(10):
        late = {"accuracy": step / 10} if step >= 6 else {}
        yield (
            "steps",
            step,
            {"loss": ODD[step % 7], "applied": step % 3 > 0, "learning_rate": 0.1, **late},
        )
    for step in range(0, 150, 2):
        late = {"update_norm": odd_values(rng, "float32", 3)} if step >= 100 else {}
        norm, zeros = odd_values(rng, "float32", 3), odd_values(rng, "float64", 3)
        yield "statistics", step, {"gradient_norm": norm, "gradient_zeros": zeros, **late}
    for step in range(70):
        late = {"projected": odd_values(rng, "float32", (3, 5))} if step >= 20 else {}
        yield "gradients", step, {"full": odd_values(rng, "float32", WEIGHTS), **late}
    for step in (0, 7, 1000):
        arrays = {
            "sampled": odd_values(rng, "float32", (6, 8)),
            "projected": odd_values(rng, "float32", (6, 2, 5)),
            "mean_sampled": odd_values(rng, "float32", 8),
            "squared_norm": odd_values(rng, "float64", (6, 2)),
            "loss": odd_values(rng, "float64", 6),
            "mean_loss": 1.5,
        }
        yield "noise", step, arrays
    for step in range(20):
        yield "weights", step, {"norm": odd_values(rng, "float64", 3), "distance": [1, 2, 3]}
    for step in range(0, 60, 3):
        counts = rng.integers(0, 2**32, (3, 1300), dtype=np.uint32)
        yield "counted", step, {"histogram": np.where(rng.random(counts.shape) < 0.9, 0, counts)}
    for step in range(300):
        row = {f"of_{dtype}": odd_values(rng, dtype, (2, 3)) for dtype in DTYPES}
        # Numbers that bfloat16 has, so that what is stored is their upper half.
        row["of_bfloat16"] = (rng.integers(-128, 128, (2, 3)) / 64).astype(np.float32)
        yield "every_dtype", step, row
    for step in range(3000):
        yield "long", step, {"norm": np.full(3, step / 7)}


def begin(path, compression="none", **options):
    """Write every kind of group, and return the open writer."""
    writer = tracelab.create(
        path,
        layers=LAYERS,
        metadata=METADATA,
        kinds={"fc.weight": "Linear"},
        attrs={
            "model": "MLP",
            "optimizer": {"name": "SGD", "lr": 0.1},
            "seed": 7,
            "CLASS": "a name that HDF5 keeps for itself",
            "odd/name with ünicode": [1, 2.5, "three", None],
        },
        compression=compression,
        **options,
    )
    writer.define(
        "noise",
        layers=NOISE_LAYERS,
        sketches=[tracelab.Sample(4)],
        attrs={"batch_size": 8, "replacement": True, "n_data": 1000},
        coordinates=COORDINATES,
    )
    writer.define("counted", kind="gradients", sketches=[tracelab.Histogram(4, (-20, 0))])
    writer.define("every_dtype", kind="measurements", variables=MEASUREMENTS)
    writer.define("long", kind="weights")
    writer.define("none_yet", kind="weights")
    for group, step, arrays in rows():
        writer.append(group, step=step, **arrays)
    return writer


def write(path, compression="none"):
    """Write a complete trace with every kind of group."""
    begin(path, compression).close()
    return path


@cache
def expected():
    """Return every array that the trace must hold, by path; nothing of it was read."""
    found = {
        "layers/layer": list(LAYERS),
        "layers/kind": ["Linear", "parameter", "parameter"],
        "layers/shape": ["[4, 6]", "[4]", "[3, 2]"],
        "layers/numel": np.array([24, 4, 6]),
        "layers/offset": np.array([0, 24, 28]),
        "noise/layer": list(NOISE_LAYERS),
        "noise/coordinate_layer": COORDINATES[0].astype(np.int32),
        "noise/coordinate_index": COORDINATES[1],
        "none_yet/layer": list(LAYERS),
        "none_yet/step": np.empty(0, np.int64),
    }
    columns, steps = {}, {}
    for group, step, arrays in rows():
        steps.setdefault(group, []).append(step)
        for name, values in arrays.items():
            columns.setdefault(f"{group}/{name}", {})[step] = values
    for group, numbers in steps.items():
        found[f"{group}/step"] = np.array(numbers)
        if group in ("statistics", "gradients", "weights", "counted", "long"):
            found[f"{group}/layer"] = list(LAYERS)
    for path, values in columns.items():
        group, name = path.split("/")
        dtype = np.dtype(_dtype(group, name))
        shape = np.shape(next(iter(values.values())))
        # Never through another dtype: that would change the bits of some NaNs.
        column = np.full((len(steps[group]), *shape), np.nan if dtype.kind == "f" else 0, dtype)
        for row, step in enumerate(steps[group]):
            if step in values:
                column[row] = values[step]
        found[path] = column
    upper = found["every_dtype/of_bfloat16"].view(np.uint32) >> 16
    found["every_dtype/of_bfloat16"] = upper.astype(np.uint16)
    return found


def _dtype(group, name):
    if group == "every_dtype":
        return "float32" if name == "of_bfloat16" else name.removeprefix("of_")
    if name == "applied":
        return "bool"
    if name == "histogram":
        return "uint32"
    wide = group in ("steps", "weights", "long") or "loss" in name
    return "float64" if wide or name in ("squared_norm", "gradient_zeros") else "float32"
