"""Every analysis that takes minibatches as independent says where they are not."""

import math

import numpy as np
import pytest

import tracelab

BATCHES, SERIES = 300, 16
ANALYSES = ("gaussianity", "noise_law", "tail_index")


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Two probes of independent minibatches, and two of which the second is autoregressive."""
    found = {}
    for name, rho in (("independent", 0.0), ("dependent", 0.5)):
        rng = np.random.default_rng(int(10 * rho))
        path = tmp_path_factory.mktemp(name) / "run.zarr"
        with tracelab.create(path, layers={"w": (SERIES,)}) as writer:
            for step in (0, 10):
                x = rng.standard_normal((BATCHES, SERIES))
                for k in range(1, BATCHES) if step else ():
                    x[k] = rho * x[k - 1] + math.sqrt(1 - rho**2) * x[k]
                writer.append("noise", step=step, sampled=x, mean_sampled=np.zeros(SERIES))
        found[name] = tracelab.open(path)
    return found


@pytest.mark.parametrize("name", ANALYSES)
def test_dependent_minibatches_are_warned_of(traces, name):
    quiet = tracelab.analyze(traces["independent"], name)[name]
    assert not any("Successive" in text for text in quiet.attrs["warnings"])
    assert quiet["n_effective"].values == pytest.approx(BATCHES, rel=0.15)
    found = tracelab.analyze(traces["dependent"], name)[name]
    (warning,) = (text for text in found.attrs["warnings"] if "Successive" in text)
    rho = float(found["autocorrelation"][1, 0])
    assert f"at step 10 their correlation is {rho:.2f}" in warning
    effective = float(found["n_effective"][1, 0])
    # (1 - rho) / (1 + rho); 16 series of 300: sqrt(2 * 13 / 4800) of it, four times.
    assert effective == pytest.approx(BATCHES / 3, rel=0.3)
    assert f"{BATCHES} are worth {effective:.0f} independent ones" in warning
    assert found["independence_pvalue"][1, 0] < 1e-6
    # Of one series sqrt((1 - rho^2) / n), of 16 a quarter.
    assert abs(rho - 0.5) < 4 * math.sqrt(0.75 / BATCHES) / 4
