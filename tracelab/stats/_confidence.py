"""Levels of intervals."""

from __future__ import annotations

from scipy import special

from tracelab.errors import UsageError

__all__ = ["check_confidence", "normal_quantile"]


def check_confidence(confidence: float) -> None:
    """Raise a UsageError if a level is not in (0, 1)."""
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must be in (0, 1), got {confidence!r}")


def normal_quantile(confidence: float) -> float:
    """Return how many standard errors a two-sided normal interval reaches.

    Raises
    ------
    UsageError
        If the level is not in (0, 1).
    """
    check_confidence(confidence)
    return float(special.ndtri(0.5 + 0.5 * confidence))
