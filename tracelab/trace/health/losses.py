"""What a repair dropped, and what it made anew."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Loss", "Mended"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that a repair dropped.

    Parameters
    ----------
    group, array : str
        Where it was; no array if it is about the whole group.
    rows : int
        Rows it touched.
    steps : tuple of int or None
        First and last step it touched.
    layers : tuple of str
        Layers it touched.
    sentence : str
        In words.
    """

    group: str
    array: str
    rows: int
    steps: tuple[int, int] | None
    layers: tuple[str, ...]
    sentence: str


@dataclass(slots=True)
class Mended:
    """What was done to a trace.

    Parameters
    ----------
    dropped : list of Loss
        What is gone.
    restored : list of str
        What was made anew without loss, in sentences.
    """

    dropped: list[Loss] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)

    def lose(self, group: str, sentence: str, array: str = "") -> None:
        """Note that something of a group, or all of it, is gone."""
        self.dropped.append(Loss(group, array, 0, None, (), sentence))
