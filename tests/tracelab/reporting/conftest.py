import numpy as np
import pytest

import tracelab
from tracelab.reporting import report

HOSTILE = '<script>alert("x")</script>'
LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,)}
STEPS = (0, 10, 100)


def write_run(path, *, seed=0, layers=LAYERS, steps=STEPS, spoil=False, **attributes):
    """Write a small run: Gaussian noise at first, heavy-tailed at last, and a diffusion."""
    rng = np.random.default_rng(seed)
    count, size = 40, 4
    coordinates = (np.repeat(np.arange(len(layers)), size), np.tile(np.arange(size), len(layers)))
    with tracelab.create(path, layers=layers, **attributes) as writer:
        writer.define(
            "noise",
            attrs={"batch_size": 8, "replacement": True, "n_data": 1_437},
            coordinates=coordinates,
        )
        for step in range(60):
            distance = np.sqrt(step) * np.linspace(1, 2, len(layers)) + 0.01 * rng.normal()
            writer.append("weights", step=step, distance=distance, norm=1 + distance)
            writer.append("steps", step=step, loss=2.3 * np.exp(-step / 20), batch_size=32)
        for index, step in enumerate(steps):
            sampled = rng.standard_t(30 / (1 + 9 * index), (count, size * len(layers)))
            if spoil and index == 1:
                sampled[0, 0] = np.inf
            writer.append(
                "noise",
                step=step,
                sampled=sampled,
                mean_sampled=np.zeros(sampled.shape[1]),
                squared_deviation=rng.chisquare(10, (count, len(layers))),
                mean_squared_norm=np.full(len(layers), 4.0 / (1 + step)),
            )
    return path


def analyse(path):
    tracelab.analyze(path, ["gaussianity", "noise_scale", "weight_diffusion"])
    tracelab.analyze(path, "gaussianity", mode="pooled")
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Locations of two analysed runs of different models; what the first says is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    sgd = write_run(
        folder / "sgd.zarr",
        metadata={"note": HOSTILE, "dataset": "digits"},
        attrs={"optimizer": {"name": "SGD", "lr": 0.1}, "model": HOSTILE},
        spoil=True,
    )
    adam = write_run(
        folder / "adam.zarr",
        seed=1,
        layers={"first": (8, 8), "second": (8, 3), "third": (4,)},
        attrs={"optimizer": {"name": "Adam", "betas": [0.9, 0.999]}, "seed": 7},
    )
    return [analyse(sgd), analyse(adam)]


@pytest.fixture(scope="session")
def page_path(runs, tmp_path_factory):
    return report(runs, tmp_path_factory.mktemp("page") / "both.html")
