"""Several batches as one whose tensors have a leading dimension, for `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

__all__ = ["Listed", "Stacked"]


@dataclass(frozen=True, slots=True)
class Listed:
    """Batches that cannot be stacked, one after the other."""

    batches: Sequence[Any]

    def one(self, index: int) -> Any:
        """Return one of the batches."""
        return self.batches[index]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Batches of one structure.

    Parameters
    ----------
    tensors : mapping of int to Tensor, shape (batch, ...)
        What differs from batch to batch, by its place among `leaves`.
    leaves : sequence
        What one batch holds.
    structure : TreeSpec
        How.
    """

    tensors: Mapping[int, Tensor]
    leaves: Sequence[Any]
    structure: trees.TreeSpec

    @classmethod
    def of(cls, batches: Sequence[Any]) -> Stacked:
        """Return several batches, side by side.

        Raises
        ------
        ValueError
            If they differ in structure, in shapes or in what is no tensor.
        """
        flat = [trees.tree_flatten(batch) for batch in batches]
        leaves, structure = flat[0]
        stacked: dict[int, Tensor] = {}
        for place, column in enumerate(zip(*(found for found, _ in flat), strict=True)):
            if all(isinstance(leaf, Tensor) for leaf in column):
                if len({(leaf.shape, leaf.dtype) for leaf in column}) > 1:
                    raise ValueError("batches differ in shape")
                stacked[place] = torch.stack(column)
            elif any(isinstance(leaf, Tensor) or leaf != column[0] for leaf in column):
                raise ValueError("batches differ in what is no tensor")
        if any(other != structure for _, other in flat):
            raise ValueError("batches differ in structure")
        return cls(stacked, leaves, structure)

    @classmethod
    def cut(cls, batch: Any, count: int) -> Stacked:
        """Return the parts of a batch whose examples are those of several, in order.

        Raises
        ------
        ValueError
            If it holds something else than tensors.
        """
        leaves, structure = trees.tree_flatten(batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise ValueError("a batch holds something else than tensors")
        cut = {place: leaf.unflatten(0, (count, -1)) for place, leaf in enumerate(leaves)}
        return cls(cut, leaves, structure)

    @classmethod
    def shared(cls, batch: Any) -> Stacked:
        """Return one batch in place of any number of equal ones."""
        return cls({}, *trees.tree_flatten(batch))

    def batch(self, tensors: Mapping[int, Tensor]) -> Any:
        """Return a batch that has these tensors in the places of those that differ."""
        own = [tensors.get(place, leaf) for place, leaf in enumerate(self.leaves)]
        return trees.tree_unflatten(own, self.structure)

    def one(self, index: int) -> Any:
        """Return one of the batches."""
        return self.batch({place: each[index] for place, each in self.tensors.items()})
