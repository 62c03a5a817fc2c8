"""verify() of a trace in a bucket: the same damage as in a folder, and no damage for a network."""

import os

import damage
import pytest
from objectstores import Reply

import tracelab
from tracelab import verify
from tracelab.errors import TraceError, UsageError
from tracelab.trace.places import remote
from tracelab.trace.places.remotefaults import RemoteError

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path):
    return damage.write(tmp_path / "a.zarr", rows=20)


def upload(bucket, path, prefix="run.zarr"):
    for key, content in damage.contents(path).items():
        bucket.client.put_object(Bucket=bucket.name, Key=f"{prefix}/{key}", Body=content)
    return bucket.url(prefix)


def test_the_damage_is_that_of_the_folder(bucket, path):
    assert verify(upload(bucket, path)).sound
    damage.flip(path / "gradients/full/c.1.0", 9)
    (path / "counts/bins/c.0.0.0").unlink()
    os.truncate(path / "noise/sampled/c.0.0.0", 100)
    (path / "counts/zarr.json").write_text("{")
    bucket.client.delete_object(Bucket=bucket.name, Key="run.zarr/counts/bins/c.0.0.0")
    found, wanted = verify(upload(bucket, path)), verify(path)
    assert len(wanted.damages) == 4
    assert found.damages == wanted.damages
    assert found.nbytes == wanted.nbytes


def test_a_damaged_root_document(bucket, path):
    url = upload(bucket, path)
    bucket.client.delete_object(Bucket=bucket.name, Key="run.zarr/zarr.json")
    report = verify(url)
    assert [each.path for each in report.damages] == ["zarr.json"]
    assert report.rows["gradients"] == 20


def test_while_it_is_recorded(bucket):
    with tracelab.create(bucket.url(), damage.LAYERS, queue_bytes=2**18) as writer:
        for step in range(6):
            writer.append("gradients", step=step, **damage.row(step)["gradients"])
            writer.flush()
            report = verify(bucket.url())
            assert report.sound, report
            assert report.rows == {"gradients": step + 1}


def test_it_is_repaired_in_a_folder(bucket, path):
    with pytest.raises(UsageError, match=r"is not in a folder, .*copy it to a folder, repair that"):
        tracelab.repair(upload(bucket, path))


def test_a_network_that_breaks_is_no_damage(bucket, proxy, path, monkeypatch):
    monkeypatch.setattr(remote, "READ_PATIENCE", 0.3)
    url = upload(bucket, path)
    assert verify(url).sound
    busy = Reply(503, "SlowDown", "Please reduce your request rate.")
    proxy.fault = lambda request: busy if "full/c.1.0" in request.path else None
    with pytest.raises(RemoteError, match="too busy"):
        verify(url)
    assert issubclass(RemoteError, TraceError)
