"""A small problem whose every part is known, and how to read what was recorded of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import tracelab


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(48, 6)


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(0, 3, (48,))


@pytest.fixture
def data(inputs: Tensor, targets: Tensor) -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(inputs, targets)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def cross_entropy() -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    return lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


@pytest.fixture
def group(path: Path) -> Callable[[str], xr.Dataset]:
    """Read a group of the trace into memory."""

    def read(name: str) -> xr.Dataset:
        with tracelab.open(path) as trace:
            return trace.groups[name].load()

    return read


@pytest.fixture
def attrs(path: Path) -> Callable[[], dict]:
    def read() -> dict:
        with tracelab.open(path) as trace:
            return dict(trace.attrs)

    return read
