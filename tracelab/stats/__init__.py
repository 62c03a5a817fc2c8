"""Batched statistics: arrays in, arrays out, useful without any trace."""

from tracelab.stats import combination as combination
from tracelab.stats import normality as normality
from tracelab.stats import resampling as resampling
from tracelab.stats import stable as stable
