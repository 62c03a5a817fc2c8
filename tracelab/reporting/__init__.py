"""The report: results of traces side by side, as one page that needs nothing else."""

from tracelab.reporting.page import report

__all__ = ["report"]
