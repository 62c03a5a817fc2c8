"""Every fault a few times; all of them as often as the table says with ``-m slow``."""

import pytest

from faults.scenarios import SCENARIOS

FEW = {
    "SIGKILL of the writer": 10,
    "SIGKILL of a rank": 1,
    "disk full while recording": 1,
    "a truncated shard": 2,
    "a flipped bit": 2,
    "a missing shard": 2,
    "two writers on one trace": 1,
}


def check(name, folder, trials, seed):
    scenario, _ = SCENARIOS[name]
    try:
        found = scenario(folder, trials, seed)
    except PermissionError as error:
        pytest.skip(str(error))
    assert found.tried == trials
    assert found.committed > 0 or name in ("a future format version", "hostile metadata")
    assert found.lost == 0


@pytest.mark.parametrize("name", FEW)
def test_committed_rows_survive(tmp_path, name):
    check(name, tmp_path, FEW[name], seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCENARIOS)
def test_committed_rows_survive_many_times(tmp_path, name):
    check(name, tmp_path, SCENARIOS[name][1], seed=2)
