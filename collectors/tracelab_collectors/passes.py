"""How many backward passes a step's gradient is made of, heard from as few layers as possible."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Passes"]


class Passes:
    """Backward passes since the last step, by optimizer.

    At first every layer is watched; a step has then shown which few layers together hear every
    pass, and these are enough until a step comes without a word from them. Of several it is those
    that a pass reaches first, so that what they say of it is known when others are reached.

    Parameters
    ----------
    owners : sequence of int
        The optimizer that trains each layer.
    optimizers : int
        How many there are.

    Attributes
    ----------
    needs_ends : bool
        Whether `ended` must be called: where one layer hears every pass, that layer counts them.
    """

    def __init__(self, owners: Sequence[int], optimizers: int) -> None:
        self._owners = owners
        self._all = [
            [layer for layer, owner in enumerate(owners) if owner == which]
            for which in range(optimizers)
        ]
        self._watched = list(self._all)
        self.needs_ends = any(len(layers) > 1 for layers in self._all)
        self._counts = [0] * optimizers
        self._skipped = [0] * optimizers
        # In the order in which they were reached: of the pass under way, and of those that ended.
        self._reached: dict[int, None] = {}
        self._passes: list[list[list[int]]] = [[] for _ in range(optimizers)]
        self._heard: set[int] = set()
        # Layers that a pass is about to reach, and those whose optimizer stepped before it has:
        # a hook of the user's may step inside the pass.
        self._arriving: set[int] = set()
        self._consumed: set[int] = set()

    @property
    def watched(self) -> list[int]:
        """Layers to hear from."""
        return [layer for layers in self._watched for layer in layers]

    @property
    def begun(self) -> bool:
        """Whether a pass has reached a layer since the last step."""
        return bool(self._heard)

    def arriving(self, layer: int, *, first: bool) -> None:
        """Note that a gradient arrives; `first` says that the layer has none yet.

        Gradients that were there and are gone without a step were thrown away, as after an
        overflow under a gradient scaler.
        """
        self._arriving.add(layer)
        self._consumed.discard(layer)
        if first and layer in self._heard:
            which = self._owners[layer]
            self._forget(which)
            self._skipped[which] += 1

    def accumulated(self, layer: int, *, ends: bool) -> None:
        """Note that a gradient was added to a layer's; `ends` says that `ended` will be called."""
        self._arriving.discard(layer)
        if layer in self._consumed:
            self._consumed.discard(layer)
            return
        self._heard.add(layer)
        if ends:
            self._reached[layer] = None
        else:
            self._counts[self._owners[layer]] += 1

    def ended(self) -> None:
        """Note the end of a pass."""
        for which, owned in enumerate(self._all):
            reached = [layer for layer in self._reached if self._owners[layer] == which]
            if reached:
                self._counts[which] += 1
                if self._watched[which] is owned:
                    self._passes[which].append(reached)
        self._reached = {}

    def before(self, layer: int) -> int:
        """Return how many passes had ended before the one that reaches a layer now."""
        return self._counts[self._owners[layer]]

    def count(self, which: int) -> int:
        """Return how many passes have reached an optimizer's layers since its last step."""
        under_way = any(self._owners[layer] == which for layer in self._arriving)
        return self._counts[which] or int(under_way)

    def skipped(self, which: int) -> int:
        """Return how many gradients were thrown away since the optimizer's last step."""
        return self._skipped[which]

    def stepped(self, which: int) -> bool:
        """Begin anew after an optimizer's step; return whether other layers are to be watched."""
        watched = self._watched[which]
        if self._arriving:
            stepping = {layer for layer in self._arriving if self._owners[layer] == which}
            self._consumed |= stepping
            self._arriving -= stepping
        if not self._counts[which]:
            self._watched[which] = self._all[which]
        elif watched is self._all[which] and self._passes[which]:
            self._watched[which] = _cover(self._passes[which])
        self._forget(which)
        self._skipped[which] = 0
        if self._watched[which] is watched:
            return False
        self.needs_ends = any(len(layers) > 1 for layers in self._watched)
        return True

    def _forget(self, which: int) -> None:
        self._counts[which] = 0
        self._passes[which] = []
        if len(self._watched) == 1:
            self._heard.clear()
        else:
            self._heard.difference_update(self._all[which])


def _cover(passes: Sequence[Sequence[int]]) -> list[int]:
    """Return layers of which every pass reaches one, by Chvatal's greedy cover: few, early ones."""
    chosen: list[int] = []
    left = [list(each) for each in passes]
    while left:
        candidates = dict.fromkeys(layer for each in left for layer in each)
        best = max(candidates, key=lambda layer: sum(layer in each for each in left))
        chosen.append(best)
        left = [each for each in left if best not in each]
    return chosen
