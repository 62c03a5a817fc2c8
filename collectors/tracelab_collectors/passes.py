"""How many backward passes a step's gradient is made of, heard from as few layers as possible."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Passes"]


class Passes:
    """Backward passes since the last step, by optimizer.

    At first every layer is watched; once a step has shown which layer hears every pass, that one
    is enough, until a step comes without a word from it.

    Parameters
    ----------
    owners : sequence of int
        The optimizer that trains each layer.
    optimizers : int
        How many there are.
    """

    def __init__(self, owners: Sequence[int], optimizers: int) -> None:
        self._owners = owners
        self._fires = [0] * len(owners)
        self._all: list[list[int]] = [
            [layer for layer, owner in enumerate(owners) if owner == which]
            for which in range(optimizers)
        ]
        self._watched = list(self._all)
        self._skipped = [0] * optimizers
        self._ended = [0] * optimizers

    @property
    def watched(self) -> list[int]:
        """Layers to hear from."""
        return [layer for layers in self._watched for layer in layers]

    @property
    def begun(self) -> bool:
        """Whether a pass has reached a layer since the last step."""
        return any(self._fires)

    def arriving(self, layer: int, *, first: bool) -> None:
        """Note that a gradient arrives; `first` says that the layer has none yet.

        Gradients that were there and are gone without a step were thrown away, as after an
        overflow under a gradient scaler.
        """
        if first and self._fires[layer]:
            which = self._owners[layer]
            self._forget(which)
            self._skipped[which] += 1

    def accumulated(self, layer: int) -> None:
        """Note that a gradient was added to a layer's."""
        self._fires[layer] += 1

    def ended(self) -> None:
        """Note the end of a pass."""
        self._ended = [self.count(which) for which in range(len(self._watched))]

    def before(self, layer: int) -> int:
        """Return how many passes had ended before the one that reaches a layer now."""
        return self._ended[self._owners[layer]]

    def count(self, which: int) -> int:
        """Return how many passes have reached an optimizer's layers since its last step."""
        return max((self._fires[layer] for layer in self._watched[which]), default=0)

    def skipped(self, which: int) -> int:
        """Return how many gradients were thrown away since the optimizer's last step."""
        return self._skipped[which]

    def stepped(self, which: int) -> bool:
        """Begin anew after an optimizer's step; return whether other layers are to be watched."""
        watched, fires = self._watched[which], self._fires
        if not self.count(which):
            chosen = self._all[which]
        elif len(watched) > 1:
            chosen = [max(watched, key=lambda layer: fires[layer])]
        else:
            chosen = watched
        self._forget(which)
        self._skipped[which] = 0
        self._watched[which] = chosen
        return chosen != watched

    def _forget(self, which: int) -> None:
        for layer in self._all[which]:
            self._fires[layer] = 0
        self._ended[which] = 0
