"""Sketches: how a vector with one entry per weight is kept small.

Nothing of a sketch but its size and seed is stored: signs and coordinates are regenerated, and
they are the same bits wherever they are computed. They depend on where a coordinate is in the whole
network or layer alone, so that the sketches of shards add up to that of the layer.

Each keeps something else. Projections hide the tails of coordinates: a direction sums over many of
them and is nearly Gaussian by the central limit theorem, whatever they are. So coordinates, or the
histogram, belong beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.histogram import Histogram
from tracelab.typing import FloatArray

__all__ = ["Full", "Histogram", "Project", "Sample", "Sketch", "splitmix64", "validate"]

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
# Bounds the uint64 temporaries of a hash: 2 MiB each.
_BLOCK = 1 << 18


def splitmix64(seed: int, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Return outputs ``start`` to ``start + count - 1`` of the SplitMix64 generator.

    The generator is counter-based: output ``i`` is a hash of ``seed + (i + 1) * gamma``, so any
    stretch can be computed alone.

    Parameters
    ----------
    seed : int
        Initial state, taken modulo 2^64.
    start, count : int
        The stretch.

    Returns
    -------
    ndarray of uint64, shape (count,)

    References
    ----------
    Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators", OOPSLA, Figure 17
    (`mix64variant13` of Stafford).
    """
    index = np.arange(start + 1, start + 1 + count, dtype=np.uint64)
    z = np.uint64(seed & _MASK) + index * np.uint64(GOLDEN_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Project:
    r"""Keep `k` seeded random projections per layer.

    Coordinate ``i`` of a layer falls into bucket ``(i mod p) mod k``, with ``p`` the smallest
    prime that is not below ``k``, and is added with a random sign :math:`s_i = \pm 1`:

    .. math:: y_j = \sum_{i \in \text{bucket } j} s_i\, g_i,

    so that :math:`E\|y\|^2 = \|g\|^2` over the signs, with variance
    :math:`2 \sum_{i \ne i'} g_i^2 g_{i'}^2` over pairs that share a bucket, about
    :math:`2\|g\|^4/k`. The sketch is linear. Signs depend on the seed and on the coordinate's
    index in the whole network, so that the sum of the layers' sketches is a sketch of the network.
    The prime keeps columns of a weight matrix whose width divides ``k`` from sharing a bucket.

    Preserved are squared norms and inner products, without bias: of two sketches,
    :math:`E\,y \cdot z = g \cdot h` with variance
    :math:`\sum_{i \ne i'} (g_i^2 h_{i'}^2 + g_i h_i g_{i'} h_{i'})` over the same pairs. Where
    buckets share the squares evenly, both err by about :math:`\sqrt{2/k}` of
    :math:`\|g\| \|h\|`; by more where a few coordinates carry most of the norm *and* share a
    bucket. Nothing is preserved of the distribution of single coordinates: directions of
    independent coordinates with three finite moments look Gaussian.

    Parameters
    ----------
    k : int
        Number of directions.
    seed : int
        Chooses the signs.

    References
    ----------
    Charikar, Chen, Farach-Colton (2004), "Finding frequent items in data streams" (count sketch;
    here with a fold in place of the bucket hash).
    """

    k: int
    seed: int = 0
    kind: ClassVar[str] = "project"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def period(self) -> int:
        """The smallest prime that is not below ``k``: the period of the fold."""
        candidate = self.k
        while candidate < 2 or any(
            candidate % factor == 0 for factor in range(2, int(candidate**0.5) + 1)
        ):
            candidate += 1
        return candidate

    def signs(self, start: int, count: int) -> npt.NDArray[np.float32]:
        """Return the signs of network coordinates ``start`` to ``start + count - 1``.

        The sign is +1 where the top bit of the coordinate's SplitMix64 output is 0, else -1.
        """
        signs = np.empty(count, dtype=np.float32)
        for begin in range(0, count, _BLOCK):
            end = min(begin + _BLOCK, count)
            hashed = splitmix64(self.seed, start + begin, end - begin)
            signs[begin:end] = np.where(hashed >> np.uint64(63), np.float32(-1), np.float32(1))
        return signs

    def project(self, values: FloatArray, offset: int) -> FloatArray:
        """Return the projections of one layer.

        Parameters
        ----------
        values : ndarray, shape (..., numel)
            The layer, flat, in row-major order.
        offset : int
            Network index of its first coordinate.

        Returns
        -------
        ndarray, shape (..., k)
            In the floating type and the unit of `values`.
        """
        numel = values.shape[-1]
        period = self.period
        padded = np.zeros((*values.shape[:-1], -(-numel // period) * period), dtype=values.dtype)
        np.multiply(values, self.signs(offset, numel), out=padded[..., :numel])
        residues = padded.reshape(*values.shape[:-1], -1, period).sum(axis=-2)
        projected: FloatArray = residues[..., : self.k].copy()
        # Bertrand's postulate: period < 2k, so that one wrap is enough.
        projected[..., : period - self.k] += residues[..., self.k :]
        return projected

    def sharing(self, numel: int) -> npt.NDArray[np.int64]:
        """Return how many coordinates of a layer each direction adds up, shape (k,)."""
        residues = np.zeros(2 * self.k, dtype=np.int64)
        whole, rest = divmod(numel, self.period)
        residues[: self.period] = whole
        residues[:rest] += 1
        return residues[: self.k] + residues[self.k :]

    def describe(self) -> dict[str, Any]:
        """Return the sketch as the trace stores it."""
        return {"kind": self.kind, "k": self.k, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Sample:
    """Keep `k` fixed random coordinates per layer, or all of a layer that has no more.

    Preserved are the values of these coordinates, exactly, and so their laws over steps or
    minibatches and the dependence among them. Means over them are unbiased for means over the
    layer. Norms are poorly kept where few coordinates carry them.

    Parameters
    ----------
    k : int
        Coordinates per layer.
    seed : int
        Chooses the coordinates, together with the layer's name.
    """

    k: int
    seed: int = 0
    kind: ClassVar[str] = "sample"

    def __post_init__(self) -> None:
        _check(self)

    def indices(self, layer: str, numel: int) -> npt.NDArray[np.int64]:
        """Return the coordinates kept of one layer: distinct, sorted, uniform over subsets.

        Parameters
        ----------
        layer : str
            Its name.
        numel : int
            Its number of weights.

        Returns
        -------
        ndarray of int64, shape (min(k, numel),)
            Flat row-major indices inside the layer.

        References
        ----------
        Bentley, Floyd (1987), "Programming pearls: a sample of brilliance", CACM 30(9).
        """
        if numel <= self.k:
            return np.arange(numel, dtype=np.int64)
        digest = hashlib.sha256(f"{self.seed}:{layer}".encode()).digest()
        draws = splitmix64(int.from_bytes(digest[:8], "little"), 0, self.k).tolist()
        chosen: set[int] = set()
        for draw, top in zip(draws, range(numel - self.k, numel), strict=True):
            # The high half of draw * (top + 1) is uniform on 0..top to within 2^-40.
            candidate = (draw * (top + 1)) >> 64
            chosen.add(top if candidate in chosen else candidate)
        return np.array(sorted(chosen), dtype=np.int64)

    def tables(
        self, layers: Mapping[str, int]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return which layer each kept coordinate belongs to, and its index inside that layer.

        Parameters
        ----------
        layers : mapping of str to int
            Number of weights by name, in the order of the group's layers.

        Returns
        -------
        coordinate_layer : ndarray of int32, shape (coordinate,)
        coordinate_index : ndarray of int64, shape (coordinate,)
        """
        kept = [self.indices(name, numel) for name, numel in layers.items()]
        sizes = [index.size for index in kept]
        return (
            np.repeat(np.arange(len(kept), dtype=np.int32), sizes),
            np.concatenate([np.empty(0, dtype=np.int64), *kept]),
        )

    def describe(self) -> dict[str, Any]:
        """Return the sketch as the trace stores it."""
        return {"kind": self.kind, "k": self.k, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Full:
    """Keep every coordinate."""

    kind: ClassVar[str] = "full"

    def describe(self) -> dict[str, Any]:
        """Return the sketch as the trace stores it; its size is that of the layers."""
        return {"kind": self.kind, "k": 0, "seed": 0}


Sketch: TypeAlias = Project | Sample | Full | Histogram


def validate(sketch: Sketch | Sequence[Sketch], *, histogram: bool = False) -> tuple[Sketch, ...]:
    """Return the sketches of one group as a tuple.

    Parameters
    ----------
    sketch : Sketch or sequence of Sketch
        As a user gives them.
    histogram : bool
        Whether the group can hold a `Histogram`.

    Raises
    ------
    UsageError
        If one is no sketch, or none for this group; if there is none, or if two would fill the
        same array: two of one kind, or `Sample` beside `Full`, which already holds every
        coordinate.
    """
    sketches: tuple[Any, ...] = tuple(sketch) if isinstance(sketch, Sequence) else (sketch,)
    kinds = "Project(k), Sample(k), Full() or Histogram()"
    if not histogram:
        kinds = "Project(k), Sample(k) or Full()"
    for each in sketches:
        if isinstance(each, Histogram) and not histogram:
            raise UsageError(
                f"a {each} is not recorded here; give {kinds}, and the histogram to Gradients or "
                "Weights"
            )
        if not isinstance(each, (Project, Sample, Full, Histogram)):
            raise UsageError(f"sketch must be {kinds}, got {each!r}")
    named = [each.kind for each in sketches]
    if not named:
        raise UsageError(f"sketch is empty; give {kinds}")
    if len(set(named)) < len(named):
        raise UsageError(
            f"sketch holds two of one kind ({', '.join(named)}); record the second with another "
            "collector under another name="
        )
    if {"full", "sample"} <= set(named):
        raise UsageError("Full() already holds every coordinate; leave Sample(k) out")
    return sketches


def _check(sketch: Project | Sample) -> None:
    for name, value, least in (("k", sketch.k, 1), ("seed", sketch.seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise UsageError(
                f"{type(sketch).__name__} needs {name} to be an integer of at least {least}, "
                f"got {value!r}"
            )
