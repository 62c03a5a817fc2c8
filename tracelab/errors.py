"""Errors that a user of tracelab can meet; each message names the thing, the value, the remedy."""

__all__ = [
    "DamagedError",
    "IncompleteTraceWarning",
    "MissingExtraError",
    "NotRecordedError",
    "StorageError",
    "TraceError",
    "TracelabError",
    "UsageError",
]


class TracelabError(Exception):
    """Base of every error raised on purpose by tracelab."""


class UsageError(TracelabError, ValueError):
    """An argument, option or name that cannot be used; exit code 2 at the command line."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'tracelab[{extra}]'"
        )


class NotRecordedError(UsageError, KeyError):
    """The trace does not hold what was asked for; the message lists what it holds.

    A `KeyError`, so that ``groups.get(name)`` and ``results.get(name)`` return None.
    """

    # A KeyError would show its message in quotes.
    __str__ = Exception.__str__


class TraceError(TracelabError):
    """A store that is no trace, or a trace that is unreadable or damaged; exit code 3."""


class IncompleteTraceWarning(UserWarning):
    """A collector failed and stopped recording; training went on."""


class DamagedError(TraceError):
    """Something that was recorded cannot be read: missing, truncated, or its checksum differs."""


class StorageError(TracelabError):
    """Something could not be written: the disk is full, or failed; exit code 1."""
