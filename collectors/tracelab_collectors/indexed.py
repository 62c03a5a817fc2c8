"""Batches of the user's data by index, on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from tracelab.errors import UsageError
from tracelab_collectors.collector import Loss, Run

__all__ = ["Indexed"]


@dataclass(frozen=True, slots=True)
class Indexed:
    """Examples that can be drawn by index.

    Parameters
    ----------
    batch : callable
        Indices, an int64 tensor on the CPU, to the batch that the loss takes.
    size : int
        Number of examples.
    by_item : bool
        Whether a batch is its items, collated: then those of several batches are these batches
        in a row.
    """

    batch: Callable[[Tensor], Any]
    size: int
    by_item: bool = False

    @classmethod
    def of_run(cls, run: Run, whose: str) -> tuple[Indexed, Loss]:
        """Return the data of a run and its loss, for a collector that needs both.

        Raises
        ------
        UsageError
            If one is missing, the data cannot be indexed, or weights are sharded.
        """
        if run.loss is None or run.data is None:
            missing = "loss" if run.loss is None else "data"
            raise UsageError(
                f"{whose} measures gradients by itself and needs {missing}; "
                f"give attach(..., {missing}=...)"
            )
        if run.layout.shards is not None:
            raise UsageError(
                f"{whose} evaluates the model by itself, which one process cannot do with weights "
                "that are sharded over several; leave it out"
            )
        return cls.of(run.data, run.data_size, run.device), run.loss

    def drawn(self, count: int | None, seed: int) -> Tensor:
        """Return the indices of so many examples, drawn once; of all, in order, if None."""
        if count is None or count >= self.size:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(self.size, generator=generator)[:count]

    @classmethod
    def of(cls, data: Any, size: int | None, device: torch.device) -> Indexed:
        """Return the examples of a map-style dataset or of a callable.

        Parameters
        ----------
        data : Dataset or callable
            A dataset's items are collated as a ``DataLoader`` does and moved to `device`; what a
            callable returns for a tensor of indices is taken as it is.
        size : int, optional
            Number of examples; needed for a callable without ``len``.
        device : torch.device
            Where the model is.

        Raises
        ------
        UsageError
            If `data` is neither, or its size is unknown, 0 or more than it has.
        """
        indexed = hasattr(data, "__getitem__") and not isinstance(data, IterableDataset)
        if not indexed and not callable(data):
            raise UsageError(
                f"data must be a map-style dataset or a callable of indices, got {data!r}; "
                "an iterable cannot be drawn from at random"
            )
        if size is None and not hasattr(data, "__len__"):
            raise UsageError(f"data={data!r} has no length; give data_size=")
        if size is not None and (isinstance(size, bool) or not isinstance(size, Integral)):
            raise UsageError(f"data_size must be a number of examples, got {size!r}")
        count = len(data) if size is None else int(size)
        if hasattr(data, "__len__") and count > len(data):
            raise UsageError(
                f"data_size={count}, and data has {len(data)} examples; leave data_size= out"
            )
        if count < 1:
            raise UsageError("data holds no example; give a dataset that does")
        if not indexed:
            return cls(data, count)
        by_item = type(data) is TensorDataset or not hasattr(data, "__getitems__")
        return cls(lambda indices: _to(_items(data, indices), device), count, by_item)


def _items(data: Any, indices: Tensor) -> Any:
    if type(data) is TensorDataset:
        # What collating the items one by one gives, without doing so.
        return [tensor[indices] for tensor in data.tensors]
    positions = indices.tolist()
    if hasattr(data, "__getitems__"):
        return default_collate(data.__getitems__(positions))
    return default_collate([data[position] for position in positions])


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_to(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to(value, device) for value in batch)
    return batch
