"""Compile every kernel once: ``python -m tracelab.stats``; numba keeps the machine code.

An installation does this as its last step, so that the first analysis need not.
"""

import numpy as np

from tracelab.histogram import Histogram
from tracelab.stats import (
    dependence,
    descent,
    histograms,
    levy,
    models,
    mohammadi,
    mohammadi_profile,
    multivariate,
    normality,
    panel_dependence,
    resampling,
    stable,
    tails,
    trajectory_information,
)

rng = np.random.default_rng(0)
x = stable.rvs(1.7, size=(64, 4), rng=rng)
for values in (x, x.astype(np.float32)):
    normality.battery(values, normality.TESTS, axis=0)
multivariate.mardia(x, "published")
multivariate.henze_zirkler(x, "published")
multivariate.energy(x, replicates=19)
fits = stable.fit(x, axis=0)
stable.goodness_of_fit(x, fits.alpha, fits.loc, fits.scale, axis=0)
for fit in (stable.fit_skewed, stable.fit_ecf, stable.fit_quantile, stable.fit_log_moments):
    fit(x, axis=0)
for beta in (0.0, 0.5):
    stable.rvs(1.7, beta, size=200_000, rng=rng)
large = stable.rvs(1.7, size=20_000, rng=rng)
stable.fit(large)
stable.fit_skewed(large)
histogram = Histogram()
for method in ("symmetric", "skewed", "quantile"):
    stable.fit_histogram(histogram.count(large), histogram, method)
histograms.battery(histogram.count(large), histogram)
histograms.values(histogram.count(large), histogram)
stable.score(x[:, 0], 1.7, 0.5)
stable.information(1.7)
for scales in ("each", "shared"):
    for law in (x, rng.standard_normal((64, 4))):
        stable.fit_common(law, scales)
for beta in (0.0, 0.5):
    stable.logpdf(x[:, 0], 1.7, beta)
    stable.ppf(stable.cdf(x[:, 0], 1.7, beta), 1.7, beta)
mohammadi.mohammadi(x, axis=0)
mohammadi_profile.mohammadi_profile(x)
resampling.gaussian_control(x, rng)
models.fit(x, axis=0)
tails.pot(x, axis=0)
for name in ("hill", "moment", "pickands"):
    tails.stability(x, name, axis=0)
tails.threshold(x, axis=0)
dependence.dependence(x, axis=0)
panel_dependence.panel_dependence(x)
for dim in (1, 2):
    levy.exit_times(1.7, replicas=2, dim=dim)
descent.exit_steps([0.5], 1.0, descent.GaussianNoise([[1.0]]), replicas=2)
one, none, table = np.ones(2), np.zeros(2, np.int64), np.ones((1, 2))
steps = trajectory_information.Steps(one, one, one, one, one, none, one, table, np.arange(2.0))
trajectory_information.least(
    [steps], 2, np.ones(1), np.ones(1), n_weights=1, scale=1.0, constant=2.0
)
trajectory_information.information(steps, 2, "minkowski", 1.0, n_weights=1, constant=2.0)
