"""Finds the bytes of a damaged chunk again where its checksum leaves no doubt about them.

A crc32c says whether a guess is right, and wrongly so once in 2^32 guesses. So few are made:

- that only the checksum has a flipped bit;
- that only what lies beyond the last row or the array's edge is damaged, where there are zeros;
- of step labels, which increase, and of names of layers, which are texts, that a single bit is
  flipped.

Values are never guessed: of chunks that are damaged in more than one bit, the third would find
something wrong in one of some thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np

from tracelab.trace.health.damage import region
from tracelab.trace.health.integrity import CRC_BYTES
from tracelab.trace.places.sources import Bytes
from tracelab.trace.reading.shardform import Form
from tracelab.trace.writing.shards import checksummed
from tracelab.typing import Array

__all__ = ["recovered", "recovered_names"]


# A model of a thousand layers; more would take seconds.
_NAMES_BYTES = 2**16


def recovered(
    form: Form, shard: Sequence[int], chunk: int, content: Bytes, *, labels: bool
) -> bytes | None:
    """Return a chunk as it was written, with its checksum, or None where there is doubt.

    Parameters
    ----------
    form : Form
        How its array is stored.
    shard : sequence of int
        The shard it is in.
    chunk : int
        Its position in the shard's index.
    content : ndarray of uint8
        Its bytes, with a checksum that is not theirs.
    labels : bool
        Whether it holds step labels.
    """
    body = content[:-CRC_BYTES]
    wanted = int.from_bytes(content[-CRC_BYTES:].tobytes(), "little")
    if (google_crc32c.value(body) ^ wanted).bit_count() == 1:
        return checksummed(body.tobytes())
    if form.compressed:
        return None
    spans = region(form, shard, chunk)
    inside = tuple(
        slice(0, last + 1 - place * whole - cell * part)
        for (_, last), place, whole, cell, part in zip(
            spans, shard, form.shard, np.unravel_index(chunk, form.cells), form.chunk, strict=True
        )
    )
    values = body.view(form.dtype).reshape(form.chunk)
    edged = np.zeros_like(values)
    edged[inside] = values[inside]
    if _crc(edged) == wanted:
        return checksummed(edged.tobytes())
    if labels:
        for bases in (edged, values.copy()):
            for guess in _flipped(bases, int(inside[0].stop)):
                if _crc(guess) == wanted and _increases(guess[inside]):
                    return checksummed(guess.tobytes())
    return None


def recovered_names(content: bytes) -> tuple[str, ...] | None:
    """Return the texts in a damaged chunk of names, or None where there is doubt.

    Parameters
    ----------
    content : bytes
        The chunk's bytes, with a checksum that is not theirs.
    """
    body = np.frombuffer(content[:-CRC_BYTES], dtype=np.uint8).copy()
    if not 4 <= body.size <= _NAMES_BYTES:
        return None
    wanted = int.from_bytes(content[-CRC_BYTES:], "little")
    if (google_crc32c.value(body) ^ wanted).bit_count() == 1:
        return _texts(body.tobytes())
    for guess in _flipped(body, body.size):
        if _crc(guess) == wanted and (names := _texts(guess.tobytes())) is not None:
            return names
    return None


def _texts(body: bytes) -> tuple[str, ...] | None:
    """Return the texts of the ``vlen-utf8`` codec's bytes, or None if they are none."""
    found, place = [], 4
    try:
        while place < len(body):
            length = int.from_bytes(body[place : place + 4], "little")
            found.append(body[place + 4 : place + 4 + length].decode())
            place += 4 + length
    except UnicodeDecodeError:
        return None
    whole = place == len(body) and len(found) == int.from_bytes(body[:4], "little")
    printable = all(text and text.isprintable() for text in found)
    return tuple(found) if whole and printable and len(set(found)) == len(found) else None


def _crc(values: Array) -> int:
    return int(google_crc32c.value(values.view(np.uint8).reshape(-1)))


def _flipped(values: Array, count: int) -> Iterator[Array]:
    """Yield an array with each bit of its first numbers flipped; the same memory every time."""
    raw = values.view(np.uint8).reshape(-1)
    for place in range(count * values.itemsize):
        for bit in range(8):
            raw[place] ^= 1 << bit
            yield values
            raw[place] ^= 1 << bit


def _increases(steps: Array) -> bool:
    return bool(steps[0] >= 0 and (np.diff(steps) > 0).all())
