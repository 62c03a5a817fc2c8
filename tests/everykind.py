"""A trace with everything in it that a trace can hold."""

import numpy as np

import tracelab
from tracelab.contracts import Variable

LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,), "слой 重み/β": (3, 2)}
WEIGHTS = 34
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64"),
)
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


def begin(path, compression="none", **options):
    """Write every kind of group, and return the open writer."""
    rng = np.random.default_rng(0)
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
    for step in range(10):
        late = {"accuracy": step / 10} if step >= 6 else {}
        writer.append(
            "steps", step=step, loss=ODD[step % 7], applied=step % 3 > 0, learning_rate=0.1, **late
        )
    for step in range(0, 150, 2):
        late = {"update_norm": odd_values(rng, "float32", 3)} if step >= 100 else {}
        norm, zeros = odd_values(rng, "float32", 3), odd_values(rng, "float64", 3)
        writer.append("statistics", step=step, gradient_norm=norm, gradient_zeros=zeros, **late)
    for step in range(70):
        late = {"projected": odd_values(rng, "float32", (3, 5))} if step >= 20 else {}
        writer.append("gradients", step=step, full=odd_values(rng, "float32", WEIGHTS), **late)
    writer.define(
        "noise",
        layers=["fc.bias", "слой 重み/β"],
        sketches=[tracelab.Sample(4)],
        attrs={"batch_size": 8, "replacement": True, "n_data": 1000},
        coordinates=(np.repeat([0, 1], 4), np.tile([0, 3, 2, 1], 2)),
    )
    for step in (0, 7, 1000):
        writer.append(
            "noise",
            step=step,
            sampled=odd_values(rng, "float32", (6, 8)),
            projected=odd_values(rng, "float32", (6, 2, 5)),
            mean_sampled=odd_values(rng, "float32", 8),
            squared_norm=odd_values(rng, "float64", (6, 2)),
            loss=odd_values(rng, "float64", 6),
            mean_loss=1.5,
        )
    for step in range(20):
        writer.append("weights", step=step, norm=odd_values(rng, "float64", 3), distance=[1, 2, 3])
    writer.define(
        "every_dtype",
        kind="measurements",
        variables=[
            Variable(f"of_{dtype}", ("step", "probe", "k"), "1", dtype, f"values of {dtype}")
            for dtype in DTYPES
        ],
    )
    for step in range(300):
        row = {f"of_{dtype}": odd_values(rng, dtype, (2, 3)) for dtype in DTYPES}
        writer.append("every_dtype", step=step, **row)
    writer.define("none_yet", kind="weights")
    return writer


def write(path, compression="none"):
    """Write a complete trace with every kind of group."""
    begin(path, compression).close()
    return path
