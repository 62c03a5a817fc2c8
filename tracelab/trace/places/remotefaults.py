"""What goes wrong with an object store, in a sentence; and what is worth another try.

Client libraries raise errors of their own. They are told apart by the names of their classes and
by the codes of the protocol, so that none of them is imported here.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from tracelab.errors import TraceError

__all__ = ["DeniedError", "RemoteError", "explained", "redacted", "transient"]


class RemoteError(TraceError):
    """An object store could not be read or written; the trace in it may be sound."""


class DeniedError(RemoteError):
    """An object store does not allow it."""


_UNREACHABLE = frozenset(
    {
        "ClientConnectorError",
        "ConnectTimeoutError",
        "ConnectionError",
        "EndpointConnectionError",
        "ProxyConnectionError",
        "ServerTimeoutError",
    }
)
_INTERRUPTED = frozenset(
    {
        "ClientPayloadError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "ServerDisconnectedError",
        "TimeoutError",
    }
)
_NO_CREDENTIALS = frozenset(
    {"CredentialRetrievalError", "NoCredentialsError", "PartialCredentialsError"}
)
_BUSY = frozenset(
    {"500", "502", "503", "504", "InternalError", "RequestTimeout", "ServiceUnavailable"}
    | {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "429"}
)
_SKEWED = "RequestTimeTooSkewed"
_DENIED_CODES = frozenset({"401", "403"})


def transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    return _matches(error, _UNREACHABLE | _INTERRUPTED) or bool(_codes(error) & _BUSY)


def explained(url: str, error: BaseException) -> RemoteError:
    """Return an error that says what happened and what to do; never with credentials."""
    denied = isinstance(error, PermissionError) or _codes(error) & _DENIED_CODES
    kind = DeniedError if denied and _SKEWED not in _codes(error) else RemoteError
    return kind(f"{url}: {_sentence(error)}")


def _sentence(error: BaseException) -> str:
    said = redacted(str(error)) or type(error).__name__
    codes = _codes(error)
    if _matches(error, _NO_CREDENTIALS):
        return (
            "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            f"~/.aws/credentials or a role ({said})"
        )
    if _SKEWED in codes:
        return f"this machine's clock differs too much from the server's; set the clock ({said})"
    if isinstance(error, PermissionError) or codes & _DENIED_CODES:
        return f"access is denied; check credentials and permissions ({said})"
    if codes & _BUSY:
        return f"the server was too busy, also when asked again; try later ({said})"
    if _matches(error, _UNREACHABLE):
        return f"the server cannot be reached; check the endpoint and the network ({said})"
    if _matches(error, _INTERRUPTED):
        return f"the connection broke, also when tried again; check the network ({said})"
    return f"{type(error).__name__}: {said}"


def redacted(text: str) -> str:
    """Return a text without users and passwords of URLs, and without their queries."""
    bare = re.sub(r"(\w://)[^/\s\"']*@", r"\1", text)
    return re.sub(r"(\w://[^\s\"'?]*)\?[^\s\"']*", r"\1", bare)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _matches(error: BaseException, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for link in _chain(error) for kind in type(link).__mro__)


def _codes(error: BaseException) -> frozenset[str]:
    """Return the codes of S3, HTTP and the operating system that an error carries."""
    found: set[str] = set()
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        found |= {str(getattr(link, name, "")) for name in ("status", "code", "status_code")}
        if isinstance(link, OSError) and link.errno in (errno.EBUSY, errno.EREMOTEIO):
            found.add("503")
    return frozenset(found)
