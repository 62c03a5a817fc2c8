"""How a URL is reached: which it may be, the client library behind it, and forks."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from tracelab.errors import MissingExtraError, UsageError
from tracelab.trace.places.remotefaults import redacted

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem

__all__ = ["CONNECTIONS", "READ_ONLY", "S3", "check_url", "file_system", "remember"]

S3 = ("s3", "s3a")
READ_ONLY = ("http", "https")
CONNECTIONS = 32

# What names the bucket before the host is no secret: abfs://container@account.dfs...
_CONTAINER_AT_HOST = ("abfs", "abfss", "az", "adl", "wasb", "wasbs")
# Without an answer for so long, a request is repeated.
_ANSWER_SECONDS = 20


def check_url(url: str) -> None:
    """Refuse a URL that carries credentials; the message does not repeat them.

    Raises
    ------
    UsageError
        If there are a user and a password, or a query, in it, or it names no place.
    """
    parts = urlsplit(url)
    scheme = parts.scheme or "URL"
    if "::" in url.replace(parts.netloc, "", 1):
        raise UsageError("a trace is at one plain URL; a chain of them ('::') cannot be used")
    if _holds_user(parts):
        raise UsageError(
            f"the {scheme} URL of a trace holds a user name or password; leave them out and give "
            "credentials in the usual places (environment variables, ~/.aws, roles)"
        )
    if "?" in url:
        raise UsageError(
            f"the {scheme} URL of a trace has a query ('?...'), where keys and signatures are "
            "often put; leave it out and give credentials in the usual places (environment "
            "variables, ~/.aws, roles)"
        )
    if not (parts.netloc or parts.path.strip("/")):
        raise UsageError(f"{url!r} names no bucket or host")


def _holds_user(parts: SplitResult) -> bool:
    user = parts.netloc.rpartition("@")[0]
    if ":" in user or (user and parts.scheme not in _CONTAINER_AT_HOST):
        return True
    if parts.scheme in READ_ONLY and "@" in parts.path:
        return True
    # A password with a slash in it ends up where a port would be; so does an ARN of S3.
    port = parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    return bool(port) and not port.isdigit() and not parts.netloc.startswith("arn:")


def file_system(url: str, scheme: str) -> tuple[AsyncFileSystem, str]:
    """Return the file system of a URL, for use in an event loop, and the path in it.

    Raises
    ------
    UsageError
        If nothing is known about the URL's scheme.
    MissingExtraError
        If the client library for S3 is not installed.
    """
    import fsspec

    try:
        if scheme in S3:
            fs = _s3(fsspec.get_filesystem_class(scheme))
            path = fs._strip_protocol(url)
        else:
            fs, path = fsspec.url_to_fs(url, asynchronous=True, use_listings_cache=False)
    except ImportError as error:
        if scheme in S3:
            raise MissingExtraError("s3fs", "s3", f"reading {url!r}") from None
        raise UsageError(
            f"reading {url!r} needs a package that is not installed: {error}"
        ) from None
    except ValueError as error:
        raise UsageError(f"no trace can be opened at {url!r}: {redacted(str(error))}") from None
    if not fs.async_impl:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    return fs, str(path)


_clients: dict[tuple[int, int], AsyncFileSystem] = {}


def _s3(kind: Any) -> AsyncFileSystem:
    """Return the client for what the environment says now; s3fs would keep the first for ever."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    key = (os.getpid(), hash(tuple(settings)))
    if key not in _clients:
        config = {"read_timeout": _ANSWER_SECONDS, "max_pool_connections": CONNECTIONS}
        fs = kind(
            asynchronous=True,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs=config,
        )
        # Repeating is botocore's business, and after it `_try`'s; each on top of the other would
        # take minutes to find that nothing listens.
        fs.retries = 1
        _clients[key] = fs
    return _clients[key]


_EPOLL: Any = getattr(selectors, "EpollSelector", ())
_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def remember(loop: asyncio.AbstractEventLoop) -> None:
    """Note an event loop that has connections, for the case of a fork."""
    if loop not in _loops:
        _loops.add(loop)


def _part_from_parent() -> None:
    """Give event loops that a fork copied a selector of their own.

    Linux shares an epoll instance between parent and child: a connection that the child's garbage
    collector closes would be forgotten by the parent's loop, which then waits for it in vain.
    """
    for loop in list(_loops):
        selector: Any = getattr(loop, "_selector", None)
        if isinstance(selector, _EPOLL):
            fresh = select.epoll()
            os.dup2(fresh.fileno(), selector.fileno())
            fresh.close()
    _loops.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part_from_parent)
