"""Reading a part of a file from a web server, whether or not it knows byte ranges."""

from __future__ import annotations

from typing import Any

__all__ = ["fetch"]

_NOT_SATISFIABLE = 416
_PARTIAL = 206
_PIECE = 2**18


async def fetch(fs: Any, url: str, start: int, end: int | None) -> bytes:
    """Return the bytes of a URL from `start` (from the end, if negative) to `end`.

    A server may ignore the range and send everything; then no more than what was asked for is
    kept, and nothing behind it is read.

    Parameters
    ----------
    fs : fsspec.implementations.http.HTTPFileSystem
        Holds the session.
    url : str
        Of the file.
    start, end : int, int or None
        First byte, and the one behind the last.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    aiohttp.ClientError
        If the server refuses or does not answer.
    """
    asked = f"{start}-{'' if end is None else end - 1}" if start >= 0 else f"{start}"
    session = await fs.set_session()
    headers = {"Range": f"bytes={asked}", "Accept-Encoding": "identity"}
    async with session.get(fs.encode_url(url), headers=headers) as answer:
        if answer.status == _NOT_SATISFIABLE:
            return b""
        fs._raise_not_found_for_status(answer, url)
        skip, wanted = 0, None if end is None or start < 0 else end - start
        if answer.status != _PARTIAL:
            skip = start if start >= 0 else max(0, int(answer.headers["Content-Length"]) + start)
        found = bytearray()
        async for piece in answer.content.iter_chunked(_PIECE):
            kept = piece[skip:]
            skip -= len(piece) - len(kept)
            found += kept
            if wanted is not None and len(found) >= wanted:
                break
        return bytes(found[:wanted])
