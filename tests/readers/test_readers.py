"""Readers that we did not write find in a trace, and in its export, what was written."""

import numpy as np
import pytest

from readers import comparing
from readers.comparing import COMPRESSIONS, READERS, STATES
from readers.digests import digest


@pytest.fixture(scope="module", params=[(c, s) for c in COMPRESSIONS for s in STATES])
def traces(request, tmp_path_factory):
    with comparing.trace(tmp_path_factory.mktemp("readers"), *request.param) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_finds_what_was_written(reader, traces):
    missing = comparing.absent(reader)
    if missing:
        pytest.skip(f"{reader.name}: {missing}")
    outcome = comparing.compare(reader, *traces)
    assert outcome.mismatches == ()
    assert outcome.groups == 10
    assert outcome.arrays == (54 if reader.texts else 44)
    assert outcome.values > 30_000


@pytest.mark.parametrize("reader", [r for r in READERS if r.name in ("xarray", "h5py")])
def test_quick_readers(reader, tmp_path):
    with comparing.trace(tmp_path, "lz4", "recording") as found:
        assert len(list((found[0] / "long" / "norm").glob("c.*"))) > 1
        assert comparing.compare(reader, *found).mismatches == ()


def test_every_kind_of_difference_counts(monkeypatch, tmp_path):
    real = comparing.everykind.expected

    def other():
        found = dict(real())
        found["weights/norm"] = found["weights/norm"].copy()
        found["weights/norm"].view(np.uint64)[3, 1] ^= 1
        found["gradients/more"] = np.zeros(1)
        del found["steps/loss"]
        return found

    monkeypatch.setattr(comparing.everykind, "expected", other)
    (reader,) = (reader for reader in READERS if reader.name == "h5py")
    with comparing.trace(tmp_path, "none", "complete") as found:
        outcome = comparing.compare(reader, *found)
    assert set(outcome.mismatches) == {"weights/norm", "gradients/more", "steps/loss"}


def test_a_reader_that_fails_is_a_mismatch(tmp_path):
    (reader,) = (reader for reader in READERS if reader.name == "h5py")
    (outcome,) = comparing.compare(reader, tmp_path, tmp_path / "none.h5").mismatches
    assert "it failed" in outcome


def test_digests_tell_bits_apart():
    zeros = np.array([0.0, -0.0])
    assert digest(zeros[:1]) != digest(zeros[1:])
    assert digest(zeros.astype(">f8")) == digest(zeros)
    assert digest(np.array([True, False])) == digest(np.array([1, 0], np.uint8))
    assert digest(["é"])["digest"] != digest(["e"])["digest"]
