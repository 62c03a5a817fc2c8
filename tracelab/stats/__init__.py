"""Batched statistics: arrays in, arrays out, useful without any trace."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracelab.stats import bootstrap as bootstrap
    from tracelab.stats import characteristic as characteristic
    from tracelab.stats import combination as combination
    from tracelab.stats import dependence as dependence
    from tracelab.stats import histograms as histograms
    from tracelab.stats import models as models
    from tracelab.stats import mohammadi as mohammadi
    from tracelab.stats import mohammadi_profile as mohammadi_profile
    from tracelab.stats import multiple_testing as multiple_testing
    from tracelab.stats import multivariate as multivariate
    from tracelab.stats import normality as normality
    from tracelab.stats import panel_dependence as panel_dependence
    from tracelab.stats import resampling as resampling
    from tracelab.stats import stable as stable
    from tracelab.stats import tails as tails

__all__ = [
    "bootstrap",
    "characteristic",
    "combination",
    "dependence",
    "histograms",
    "models",
    "mohammadi",
    "mohammadi_profile",
    "multiple_testing",
    "multivariate",
    "normality",
    "panel_dependence",
    "resampling",
    "stable",
    "tails",
]


def __getattr__(name: str) -> ModuleType:
    # Compiled kernels and tables are loaded by those who use them.
    if name in __all__:
        return import_module(f"tracelab.stats.{name}")
    raise AttributeError(f"module 'tracelab.stats' has no attribute {name!r}")
