from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import tracelab
from tracelab.cli import main

LAYERS = {"fc.weight": (3, 2), "fc.bias": (3,)}
WEIGHTS = 9


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run ``tracelab`` with these arguments; an exception no user should see fails the test."""

    def call(*arguments: object) -> Result:
        return CliRunner(catch_exceptions=False).invoke(main, list(map(str, arguments)))

    return call


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Write a trace of noise probes with known noise."""

    def write(
        name: str = "run",
        *,
        steps: int = 3,
        batches: int = 24,
        change: Callable[[np.ndarray], np.ndarray] = lambda gradients: gradients,
    ) -> Path:
        path = tmp_path / f"{name}.zarr"
        rng = np.random.default_rng(sum(map(ord, name)))
        with tracelab.create(path, LAYERS, metadata={"dataset": "none"}) as writer:
            writer.define(
                "noise",
                sketches=[{"kind": "full", "k": WEIGHTS, "seed": 0}],
                attrs={"batch_size": 8, "replacement": True, "n_data": 100},
            )
            for step in range(steps):
                mean = rng.standard_normal(WEIGHTS).astype(np.float32)
                gradients = mean + rng.standard_normal((batches, WEIGHTS)).astype(np.float32)
                writer.append("noise", step=10 * step, full=change(gradients), mean_full=mean)
        return path

    return write
