"""What operations on a trace in S3 cost: requests, bytes, and seconds at 50 ms a request.

moto's server on loopback behind a proxy that counts and delays: the two are in tests/.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tracelab

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

LAYERS = {f"layer{number}.weight": (100,) for number in range(100)}
STEPS = 100_000
LATENCY = 0.05


def main() -> None:
    """Print the table."""
    import boto3
    from objectstores import Proxy, moto, settings

    with moto() as port, Proxy(port).running() as proxy:
        os.environ.update(settings(port))
        boto3.Session().client("s3").create_bucket(Bucket="traces")
        _record("s3://traces/run.zarr")
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        print("| operation | requests | at a time | MB up | MB down | s, 50 ms a request |")
        print("|---|---|---|---|---|---|")

        def measure(what: str, act: Callable[[], Any]) -> Any:
            proxy.clear()
            proxy.delay = LATENCY
            started = time.perf_counter()
            found = act()
            seconds = time.perf_counter() - started
            proxy.delay = 0.0
            sent = sum(request.sent for request in proxy.requests) / 1e6
            received = sum(request.received for request in proxy.requests) / 1e6
            print(
                f"| {what} | {len(proxy.requests)} | {proxy.peak} | {sent:.2f} | {received:.2f} "
                f"| {seconds:.2f} |"
            )
            return found

        # Clients are made, and modules imported, outside of what is measured.
        tracelab.open("s3://traces/run.zarr").noise(step=0, layer="layer3.weight").compute()
        trace = measure("open", lambda: tracelab.open("s3://traces/run.zarr"))
        measure("labels of a group of 1e5 steps, 100 layers", lambda: trace.statistics)
        noise = measure("labels of a group of 50 probes", lambda: trace.groups["noise"])
        cell = noise["projected"][30, :, 40]
        measure("one cell: 256 batches x 64 directions", lambda: cell.values)
        norms = trace.statistics["gradient_norm"]
        measure("one statistic of one layer, 1e5 steps", lambda: norms[:, 7].values)
        measure("one statistic of all layers at one step", lambda: norms[50_000].values)
        measure("one result computed and stored", lambda: _analyse(trace))
        measure("the same again: read", lambda: _analyse(trace))
        _record_more(measure)


def _analyse(trace: tracelab.Trace) -> None:
    tracelab.analyze(trace, ["noise_scale"], steps=slice(0, 2))["noise_scale"].load()


def _record(url: str) -> None:
    rng = np.random.default_rng(0)
    with tracelab.create(url, LAYERS, queue_bytes=2**30) as writer:
        norms = rng.random((1_000, len(LAYERS)))
        for step in range(STEPS):
            writer.append("statistics", step=step, gradient_norm=norms[step % len(norms)])
        writer.define("noise", attrs={"batch_size": 32, "replacement": True, "n_data": 10_000})
        for step in range(0, STEPS, STEPS // 50):
            projected = rng.standard_normal((256, len(LAYERS), 64), dtype=np.float32)
            writer.append(
                "noise",
                step=step,
                projected=projected,
                squared_deviation=np.square(projected).sum(-1),
                mean_squared_norm=np.ones(len(LAYERS)),
            )


def _record_more(measure: Callable[[str, Callable[[], Any]], Any]) -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((64, 10_000), dtype=np.float32)
    writer = measure(
        "create", lambda: tracelab.create("s3://traces/b.zarr", LAYERS, flush_seconds=1e6)
    )
    for first in (0, 64):
        for step in range(first, first + 64):
            writer.append("gradients", step=step, full=full[step - first])
            writer.append("statistics", step=step, gradient_norm=np.ones(len(LAYERS)))
            writer.append("steps", step=step, loss=1.0, learning_rate=0.1)
        what = "first commit" if first == 0 else "a later commit"
        measure(f"{what}: 64 steps of 4 arrays in 3 groups", writer.flush)
    measure("close", writer.close)


if __name__ == "__main__":
    main()
