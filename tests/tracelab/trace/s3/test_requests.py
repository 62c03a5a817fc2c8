"""How many requests an operation needs: on a network they are the price.

A table of docs/object-storage.md says the same numbers.
"""

import numpy as np
import pytest
import xarray as xr
from traces import write_trace

import tracelab

LAYERS = {"w": (50, 3), "b": (3,)}


def row(step):
    return {"full": np.full(153, step, np.float32), "projected": np.full((2, 7), step)}


def fill(writer, first, last):
    for step in range(first, last):
        writer.append("gradients", step=step, **row(step))
        writer.append("steps", step=step, loss=step, learning_rate=0.1)


@pytest.fixture
def recorded(bucket, proxy):
    with tracelab.create(bucket.url(), LAYERS) as writer:
        fill(writer, 0, 100)
    proxy.clear()
    return tracelab.open(bucket.url())


def count(proxy, method="GET", containing=""):
    found = [r for r in proxy.requests if r.method == method and containing in str(r)]
    return len(found)


def test_opening_reads_one_object(recorded, proxy):
    assert count(proxy, containing="zarr.json") == len(proxy.requests) == 1


def test_a_group_costs_its_labels_and_a_part_its_index_and_its_chunks(recorded, proxy):
    proxy.clear()
    gradients = recorded.gradients
    # The names of the layers, the steps: small enough to come with their index.
    assert len(proxy.requests) == 2
    proxy.clear()
    np.testing.assert_array_equal(gradients["full"][5:7, 3].values, [5, 6])
    assert len(proxy.requests) == 1


@pytest.mark.slow
def test_an_index_is_read_once_and_chunks_side_by_side_together(bucket, proxy):
    with tracelab.create(bucket.url(), {"w": (16_384,)}, compression="none") as writer:
        for step in range(64):
            writer.append("gradients", step=step, full=np.full(16_384, step, np.float32))
    full = tracelab.open(bucket.url()).gradients["full"]
    proxy.clear()
    np.testing.assert_array_equal(full[20:22, 3].values, [20, 21])
    assert [bool(count(proxy, containing=of)) for of in ("bytes=-", "bytes=1048")] == [True, True]
    assert len(proxy.requests) == 2
    proxy.clear()
    np.testing.assert_array_equal(full[:, 3].values, np.arange(64))
    assert len(proxy.requests) == 1


@pytest.mark.slow
def test_chunks_far_apart_come_at_the_same_time(bucket, proxy):
    with tracelab.create(bucket.url(), {"w": (40, 16_384)}, compression="none") as writer:
        for step in range(32):
            writer.append("gradients", step=step, full=np.full(40 * 16_384, step, np.float32))
    gradients = tracelab.open(bucket.url()).gradients
    proxy.clear()
    proxy.delay = 0.2
    some = gradients["full"][3, :: 4 * 16_384].values
    assert some.tolist() == [3.0] * 10
    shards = len(bucket.keys("run.zarr/gradients/full/c."))
    assert count(proxy, containing="bytes=-") == shards
    assert len(proxy.requests) == shards + 10
    assert proxy.peak >= 8


def test_a_commit_sends_its_objects_at_the_same_time_and_the_root_last(bucket, proxy):
    names = [f"value_{number}" for number in range(40)]
    variables = [tracelab.contracts.Variable(name, ("step",)) for name in names]
    with tracelab.create(bucket.url(), LAYERS) as writer:
        writer.define("scalars", kind="scalars", variables=variables)
        writer.append("scalars", step=0, **dict.fromkeys(names, 1.0))
        proxy.clear()
        proxy.delay = 0.1
        writer.flush()
        proxy.delay = 0.0
        requests = [
            (request.method, request.key.partition("run.zarr/")[2]) for request in proxy.requests
        ]
    # Before anything is stored and before the root is replaced, and once a second: is it ours?
    look = ("GET", "zarr.json")
    assert (requests[0], requests[-2:]) == (look, [look, ("PUT", "zarr.json")])
    stored = [request for request in requests[:-1] if request != look]
    assert {method for method, _ in stored} == {"PUT"}
    keys = [key for _, key in stored]
    documents = [place for place, key in enumerate(keys) if key.endswith("/zarr.json")]
    shards = [place for place, key in enumerate(keys) if not key.endswith("zarr.json")]
    # 40 arrays and their steps; the group's own document.
    assert (len(shards), len(documents)) == (41, 42)
    assert max(shards) < min(documents)
    assert proxy.peak >= 12


@pytest.mark.slow
def test_replacing_and_measuring_are_a_few_requests(recorded, bucket, proxy):
    proxy.clear()
    recorded.summary()
    # Of two groups, and of the ranks that there may be.
    assert count(proxy, containing="list-type") == 3
    assert not any(request.method == "HEAD" for request in proxy.requests)
    proxy.clear()
    tracelab.create(bucket.url(), LAYERS, overwrite=True).close()
    assert count(proxy, "POST", "?delete") == 2
    # Is a trace there, or anything else; what is below; is it still ours.
    assert count(proxy) <= 8


@pytest.mark.slow
def test_a_large_root_document_is_not_downloaded(bucket, proxy):
    bucket.client.put_object(
        Bucket=bucket.name, Key="run.zarr/zarr.json", Body=b"[" + b" " * (2**26) + b"]"
    )
    location = tracelab.trace.places.locations.resolve(bucket.url())
    assert location.read("zarr.json", 1_000) == b"[" + b" " * 999
    assert sum(request.received for request in proxy.requests) <= 2_000


@pytest.mark.slow
def test_results_cost_few_requests(bucket, proxy):
    write_trace(bucket.url())
    trace = tracelab.open(bucket.url())
    proxy.clear()
    found = tracelab.analyze(trace, ["noise_scale"])["noise_scale"]
    assert len(proxy.requests) < 150
    proxy.clear()
    xr.testing.assert_equal(trace.results["noise_scale"].load(), found.load())
    assert len(proxy.requests) < 60
