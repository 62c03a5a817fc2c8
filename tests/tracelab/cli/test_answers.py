import numpy as np
import pytest
import xarray as xr

from tracelab.cli.answers import STUDIES, answers
from tracelab.typing import Status

LAYERS = ["fc", "network"]


def by_step(status=Status.OK, **values):
    """A result whose row ``fc`` is misleading: the answers are about the network."""
    steps = len(next(iter(values.values())))
    variables = {
        name: (("step", "layer"), np.stack([np.full(steps, 99.0), column], axis=1))
        for name, column in values.items()
    }
    variables["status"] = (("step", "layer"), np.full((steps, 2), int(status), dtype=np.uint8))
    return xr.Dataset(variables, {"step": np.arange(steps) * 100, "layer": LAYERS})


def normality(rates, low, high, status=Status.OK):
    result = by_step(status, rejection_rate=rates, rejection_rate_low=low, rejection_rate_high=high)
    rest = xr.full_like(result, 77)
    return xr.concat([result, rest], xr.DataArray(["anderson", "shapiro"], dims="test")).assign(
        status=result["status"]
    )


def results(**changes):
    found = {
        ("gaussianity", "batches", "projected"): normality([0.04, 1], [0.01, 1], [0.1, 1]),
        ("gaussianity", "batches", "sampled"): normality([0.3, 0.9], [0, 1], [0, 1]),
        ("tail_index", "pooled", "sampled"): by_step(
            alpha=[0.5, 1.0], alpha_high=[0.6, 1.1], alpha_control=[0.5, 1.25]
        ),
        ("tail_index", "standardized", "sampled"): by_step(
            alpha=[1, 1.8], alpha_high=[1, 2], alpha_control=[2, 2]
        ),
        ("tail_index", "batches", "sampled"): by_step(
            alpha=[1, 1.9], alpha_high=[1, 2], alpha_control=[2, 1.99]
        ),
        ("noise_scale", None, None): by_step(noise_scale=[80, 1234.5]),
        ("weight_diffusion", None, None): by_step(
            preferred=[1],
            power_exponent=[0.4],
            power_exponent_low=[0.3],
            power_exponent_high=[0.5],
        ).isel(step=0, drop=True),
    }
    keyed = {study: found[study.analysis, study.mode, study.sketch] for study in STUDIES}
    for study in STUDIES:
        for name, change in changes.items():
            if name in ("_".join(filter(None, (study.analysis, study.mode, study.sketch)))):
                keyed[study] = change
    return keyed


def test_the_network_first_and_last():
    gaussian, tails, noise = answers({"run": results()}, {"run": 512})
    assert "run 4 % -> 100 % / 30 % -> 90 %" in gaussian
    assert "pooled 1.00 [1.25], standardized 1.80 [2.00], by coordinate 1.90 [1.99]" in tails
    assert "run 80 -> 1,234; log t, t^0.40 (0.30 to 0.50)" in noise


def test_panigrahi_is_judged_by_the_interval_of_large_batches_early():
    rejected = results(gaussianity_batches_projected=normality([0.2], [0.1], [0.3]))
    found = {"small": results(), "large": results(), "rejected": rejected}
    line = answers(found, {"small": 32, "large": 256, "rejected": 512})[0]
    assert "agrees here (batch 256 at step 0: 4 %, 95 % interval 1 to 10 %)" in line
    assert "disagrees here (batch 512 at step 0: 20 %, 95 % interval 10 to 30 %)" in line
    assert "batch 32" not in line.partition("Panigrahi")[2]
    assert "not tested here" in answers({"small": results()}, {"small": 32})[0]


def test_simsekli_is_judged_by_pooled_alpha_and_its_control():
    line = answers({"run": results()}, {"run": 32})[1]
    # The control covers (2 - 1.25) / (2 - 1.0) of the distance to 2.
    assert "agrees here, but pooling alone explains, of the distance to 2, run 75 %" in line
    gaussian = by_step(alpha=[1.98], alpha_high=[2.0], alpha_control=[2.0])
    line = answers({"run": results(tail_index_pooled=gaussian)}, {"run": 32})[1]
    assert line.endswith("read alpha < 2: disagrees here.")


@pytest.mark.parametrize("status", [Status.TOO_FEW_SAMPLES, Status.NON_FINITE_INPUT])
def test_cells_without_numbers_are_named_as_such(status):
    empty = by_step(status, alpha=[1.0], alpha_high=[1.0], alpha_control=[1.0])
    found = results(
        gaussianity=normality([0.2], [0.1], [0.3], status),
        tail_index=empty,
        noise_scale=by_step(status, noise_scale=[1.0]),
        weight_diffusion=by_step(status, preferred=[0]).isel(step=0, drop=True),
    )
    gaussian, tails, noise = answers({"run": found}, {"run": 512})
    assert "run no number / no number" in gaussian
    assert "not tested here" in gaussian
    assert "run no number" in tails
    assert "run no number; no number" in noise
