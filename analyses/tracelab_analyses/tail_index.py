"""Tail index of gradient noise: alpha of a symmetric stable law, with interval and goodness of fit.

Simsekli, Sagun, Gurbuzbalaban (2019) throw all coordinates of the noise together and read
``alpha < 2``, which coordinates of different scales mimic even if each is exactly Gaussian. Each
mode here is a maximum-likelihood fit of one alpha to a cell:

``batches``
    Location and scale of every series (coordinate, direction) are its own; minibatches are the
    samples.
``pooled``
    One location and scale for all values: what the papers did.
``standardized``
    Series centred by median and scaled by interquartile range, then pooled.

Intervals take minibatches, not values, as independent. ``alpha_control`` is the same estimate on
exactly Gaussian noise with the measured covariance: an alpha that the control shows too is an
artefact of pooling. ``alpha_mohammadi`` is the estimator of the papers, for comparison, and
``alpha_profile`` how it depends on the length of blocks: flat for a stable law, rising for noise of
finite variance that is not Gaussian and for mixtures of scales.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import special

from tracelab.contracts import (
    Analysis,
    Finding,
    Parameter,
    Reference,
    Variable,
)
from tracelab.independence import INDEPENDENCE, independence, independence_warnings
from tracelab.outcomes import at_ends, blank, shown, subject
from tracelab.series import NOISE, SELECTION, SKETCH, by_quartiles, dense, usable_series
from tracelab.stats import stable
from tracelab.stats.combination import cauchy_combination
from tracelab.stats.mohammadi import mohammadi
from tracelab.stats.mohammadi_profile import BLOCKS, GROUPS, SHAPES, mohammadi_profile
from tracelab.stats.resampling import gaussian_control
from tracelab.typing import Array, FloatArray, IntArray, Status
from tracelab_analyses.tail_index_figures import against, by_mode, plot

MIN_BATCHES = 20
MIN_BATCHES_FOR_FINDING = 100
# Of the tests of single series.
LEVEL = 0.05
# Of the comparison of profiles in the two orders, all block lengths together.
ORDER_LEVEL = 0.01
_CELL = ("step", "layer")
_BY_BLOCK = ("step", "layer", "m")


def tail_index(
    noise: FloatArray,
    seed: IntArray,
    *,
    mode: str = "batches",
    confidence: float = 0.95,
    sketch: str = "auto",
    group: str = "auto",
    batch_size: int | None = None,
    batches: int | None = None,
    replacement: bool = True,
) -> dict[str, Array]:
    """Return alpha, its interval, its control and the goodness of fit, by cell.

    Parameters
    ----------
    noise : ndarray, shape (step, layer, batch, series)
        Noise samples; standardized ones where the mode says so.
    seed : ndarray of uint64, shape (step, layer)
        Seeds of the controls.
    mode, confidence, sketch, group, batch_size, batches, replacement
        See ``ANALYSIS.parameters``; the last five have been applied to `noise`.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    shape = noise.shape[:2]
    out = blank(ANALYSIS.outputs, dict(zip(_BY_BLOCK, (*shape, len(BLOCKS)), strict=True)))
    for cell in np.ndindex(*shape):
        x = noise[cell]
        status, series = usable_series(x, MIN_BATCHES)
        if status is Status.OK:
            series = series[:, dense(series)]
            status = Status.OK if series.shape[1] else Status.CONSTANT_INPUT
        out["n_batches"][cell], out["n_series"][cell] = series.shape
        out["n_dropped"][cell] = x.shape[1] - series.shape[1]
        out["status"][cell] = int(status)
        if status is Status.OK:
            rng = np.random.default_rng(int(seed[cell]))
            for name, value in _cell(series, mode, confidence, rng).items():
                out[name][cell] = value
    return out


def _cell(
    series: FloatArray, mode: str, confidence: float, rng: np.random.Generator
) -> dict[str, Array | float]:
    each = None if mode == "pooled" else stable.fit(series, axis=0, confidence=None)
    fitted_alpha, fit = _fit(series, mode, confidence, each)
    found: dict[str, Array | float] = {
        **fitted_alpha,
        **_profiles(series, mode, confidence, rng),
        **independence(series),
    }
    found["alpha_control"] = _fit(gaussian_control(series, rng), mode, None)[0]["alpha"]
    if each is None:
        # As in the papers: flattened minibatch by minibatch, blocks of about the root of n.
        pooled = series.ravel()
        block = largest_divisor(pooled.size, int(np.sqrt(pooled.size)))
        found["alpha_mohammadi"] = float(mohammadi(pooled, m=max(block, 2)).alpha)
        fitted = stable.goodness_of_fit(pooled, fit.alpha, fit.loc, fit.scale)
        gaussian = stable.likelihood_ratio_pvalue(found["likelihood_ratio"], pooled.size)
    else:
        found["alpha_mohammadi"] = float(np.median(mohammadi(series, axis=0).alpha))
        fitted = stable.goodness_of_fit(series, each.alpha, each.loc, each.scale, axis=0)
        gaussian = stable.likelihood_ratio(each).pvalue
    statistic, pvalue = np.atleast_1d(fitted.statistic), np.atleast_1d(fitted.pvalue)
    found["gof_statistic"] = float(np.median(statistic))
    found["gof_pvalue"] = float(cauchy_combination(pvalue))
    found["gof_rejection_rate"] = float(np.mean(pvalue < LEVEL))
    # Too few values are left of a series beside its atoms, or too few of all of them.
    tested = gaussian[np.isfinite(gaussian)]
    if tested.size:
        found["gaussian_pvalue"] = float(cauchy_combination(tested))
        found["gaussian_rejection_rate"] = float(np.mean(tested < LEVEL))
    return found


def _profiles(
    series: FloatArray, mode: str, confidence: float, rng: np.random.Generator
) -> dict[str, Array | float]:
    """Return Mohammadi's estimate by block length in random order and in that of the data."""
    pooled = mode == "pooled"
    ordered = mohammadi_profile(series, together=pooled, confidence=confidence)
    shuffled = mohammadi_profile(series, together=pooled, rng=rng, confidence=confidence)
    return {
        "alpha_profile": shuffled.alpha,
        "alpha_profile_se": shuffled.alpha_se,
        "alpha_profile_ordered": ordered.alpha,
        "alpha_profile_ordered_se": ordered.alpha_se,
        "profile_slope": float(shuffled.slope),
        "profile_slope_low": float(shuffled.slope_low),
        "profile_slope_high": float(shuffled.slope_high),
        "profile_shape": int(shuffled.shape),
    }


def _fit(
    series: FloatArray,
    mode: str,
    confidence: float | None,
    each: stable.StableFit | None = None,
) -> tuple[dict[str, float], stable.CommonFit]:
    """Return alpha with its interval for one cell, as the mode treats it, and the fit behind it.

    Without a level there is no interval; from the fits of `each` series the one of all is found
    sooner.
    """
    if mode == "standardized":
        series, halves = by_quartiles(series), (series[::2], series[1::2])
    if mode == "batches":
        fit = stable.fit_common(series, "each", confidence, start=each)
    else:
        fit = stable.fit_common(series, "shared", confidence)
    alpha, low, high = float(fit.alpha), float(fit.alpha_low), float(fit.alpha_high)
    bias = 0.0
    if mode == "standardized":
        # Scales estimated from K batches mix Gaussians of slightly different scales, a bias of
        # order 1/K: twice as large in halves, which removes it (Quenouille's jackknife).
        parts = [stable.fit_common(by_quartiles(half), "shared", None).alpha for half in halves]
        bias = float(np.mean(parts)) - alpha
        bias = bias if np.isfinite(bias) else 0.0
    found = {
        "alpha": min(alpha - bias, 2.0),
        "alpha_se": float(fit.alpha_se),
        "alpha_low": min(low - bias, 2.0),
        "alpha_high": min(high - bias, 2.0),
        "likelihood_ratio": 2 * float(fit.loglik - fit.loglik_gaussian),
        "status": int(fit.status),
    }
    return found, fit


def largest_divisor(n: int, bound: int) -> int:
    """Return the largest divisor of `n` that is at most `bound`."""
    return max(d for d in range(1, bound + 1) if n % d == 0)


def finding(result: xr.Dataset) -> Finding:
    """Return alpha of the network (or one layer) at the first and the last probe."""
    parameters = dict(result.attrs["parameters"])
    mode = parameters["mode"]
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No cell had enough finite, varying noise samples for a tail index.")

    def describe(row: xr.Dataset) -> str:
        alpha, low, high, control = (
            float(row[name]) for name in ("alpha", "alpha_low", "alpha_high", "alpha_control")
        )
        return (
            f"alpha = {alpha:.3f} ({low:.3f} to {high:.3f}) at step {int(row['step'])}, "
            f"where exactly Gaussian noise of the same covariance reads {control:.3f}"
        )

    parts = at_ends(good, describe)
    where = subject(good)
    last = good.isel(step=-1)
    warnings = [*independence_warnings(good), *_order_warnings(last)]
    if mode == "pooled":
        warnings.append(
            "Coordinates of different scales thrown together mimic heavy tails: heterogeneous "
            "scales alone give the alpha of the Gaussian control. Only what lies below the "
            "control can be a property of the noise."
        )
    if float(good["gof_pvalue"].min()) < LEVEL:
        warnings.append(
            "The stable law itself is rejected in some cells (gof_pvalue below "
            f"{LEVEL:g}): there alpha describes a law that the noise does not follow."
        )
    warnings.append(
        "alpha < 2 is also what Laplace, Student-t and scale-mixture noise read as; minibatch "
        "noise of finitely many examples has finite variance."
    )
    if int(good["n_batches"].min()) < MIN_BATCHES_FOR_FINDING:
        warnings.append(
            f"With fewer than {MIN_BATCHES_FOR_FINDING} minibatches a probe, intervals are wide "
            "and rest on few independent samples."
        )
    return Finding(
        f"For {where} ({mode}), {', and '.join(parts)}.{_shape_sentence(last)}", tuple(warnings)
    )


_READINGS = {
    "flat": "is not told from the flat one of a stable law (of the Gaussian, at 2)",
    "rising": "rises, as that of a law of finite variance that is not Gaussian or of a mixture of "
    "scales does, and not that of a stable law",
    "falling": "falls, as where the mean of the noise is not 0",
}


def _shape_sentence(row: xr.Dataset) -> str:
    """Return what the block profile of one probe says, or nothing where it has no shape."""
    shape = SHAPES[int(row["profile_shape"])]
    if shape not in _READINGS:
        return ""
    there = row.isel(m=np.flatnonzero(np.isfinite(row["alpha_profile"].values)))
    ends = " to ".join(
        f"{float(end['alpha_profile']):.2f} ± {float(end['alpha_profile_se']):.2f} "
        f"in blocks of {int(end['m'])}"
        for end in (there.isel(m=0), there.isel(m=-1))
    )
    return (
        f" At step {int(row['step'])} Mohammadi's estimate by block length, {ends}, "
        f"{_READINGS[shape]}."
    )


def _order_warnings(row: xr.Dataset) -> list[str]:
    """Return a warning where the order of the data matters to Mohammadi's estimate."""
    ordered, shuffled = (row[name].values for name in ("alpha_profile_ordered", "alpha_profile"))
    # In 1 / alpha, in which both have Student's t.
    difference = 1 / ordered - 1 / shuffled
    error = np.hypot(
        row["alpha_profile_ordered_se"].values / ordered**2,
        row["alpha_profile_se"].values / shuffled**2,
    )
    level = 1 - 0.5 * ORDER_LEVEL / max(int(np.isfinite(difference).sum()), 1)
    score = np.nan_to_num(difference / error)
    worst = int(np.argmax(np.abs(score)))
    if abs(score[worst]) < float(special.stdtrit(GROUPS - 1.0, level)):
        return []
    return [
        f"Values depend on their neighbours: in the order of the data Mohammadi's estimate is "
        f"{ordered[worst]:.2f} in blocks of {int(row['m'][worst])}, in random order "
        f"{shuffled[worst]:.2f}."
    ]


ANALYSIS = Analysis(
    name="tail_index",
    summary="How heavy are the tails of gradient noise? Stable index alpha with its control",
    version=2,
    inputs=(NOISE,),
    outputs=(
        Variable("alpha", _CELL, description="maximum-likelihood stable index"),
        Variable("alpha_se", _CELL, description="standard error, minibatches as clusters"),
        Variable("alpha_low", _CELL, description="interval, lower end"),
        Variable("alpha_high", _CELL, description="interval, upper end"),
        Variable("alpha_control", _CELL, description="alpha of the Gaussian control"),
        Variable(
            "alpha_mohammadi", _CELL, description="the estimator of the papers; median over series"
        ),
        Variable(
            "alpha_profile",
            _BY_BLOCK,
            description="the papers' estimator by block length, batches in random order (pooled: "
            "values); its mean over series in 1 / alpha",
        ),
        Variable(
            "alpha_profile_se",
            _BY_BLOCK,
            description="standard error, from ten groups of minibatches",
        ),
        Variable(
            "alpha_profile_ordered", _BY_BLOCK, description="the same in the order of the data"
        ),
        Variable("alpha_profile_ordered_se", _BY_BLOCK, description="its standard error"),
        Variable(
            "profile_slope",
            _CELL,
            description="fall of 1 / alpha_profile per tenfold block length; 0 for a stable law",
        ),
        Variable("profile_slope_low", _CELL, description="interval, lower end"),
        Variable("profile_slope_high", _CELL, description="interval, upper end"),
        Variable(
            "profile_shape",
            _CELL,
            dtype="uint8",
            description=", ".join(f"{code}: {name}" for code, name in enumerate(SHAPES)),
        ),
        Variable(
            "likelihood_ratio", _CELL, description="twice the log-likelihood gain over Gaussian"
        ),
        Variable(
            "gaussian_pvalue",
            _CELL,
            description="of Gaussian against stable noise, by the likelihood ratio of each series: "
            "Cauchy combination; pooled: of all values, taken as independent",
        ),
        Variable(
            "gaussian_rejection_rate",
            _CELL,
            description="share of series whose likelihood ratio rejects the Gaussian at 5 %",
        ),
        Variable(
            "gof_statistic", _CELL, description="Anderson-Darling of the fit; median over series"
        ),
        Variable(
            "gof_pvalue",
            _CELL,
            description="of the fit: Cauchy combination over series; pooled: of all values, "
            "taken as independent",
        ),
        Variable(
            "gof_rejection_rate", _CELL, description="share of series whose stable fit is rejected"
        ),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches: the sample size"),
        *INDEPENDENCE,
        Variable("n_series", _CELL, dtype="int64", description="series fitted"),
        Variable(
            "n_dropped",
            _CELL,
            dtype="int64",
            description="series left out: constant, or more than half of their values repeat",
        ),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=tail_index,
    finding=finding,
    plot=plot,
    parameters=(
        Parameter(
            "mode",
            "batches",
            "what is one i.i.d. sample",
            choices=("batches", "pooled", "standardized"),
        ),
        SKETCH,
        Parameter("confidence", 0.95, "level of the intervals", low=0.5, high=0.9999),
        *SELECTION,
    ),
    references=(
        Reference(
            "Simsekli, Sagun, Gurbuzbalaban, A Tail-Index Analysis of Stochastic Gradient Noise in "
            "Deep Neural Networks, ICML 2019",
            "https://arxiv.org/abs/1901.06053",
        ),
        Reference(
            "Nolan, Maximum Likelihood Estimation and Diagnostics for Stable Distributions, in "
            "Levy Processes, Birkhauser 2001"
        ),
        Reference(
            "Mohammadi, Mohammadpour, Ogata, On Estimating the Tail Index and the Spectral Measure "
            "of Multivariate alpha-Stable Distributions, Metrika 78 (2015), corollary 2.4"
        ),
        Reference(
            "Xie, Tang, Sun, On the Overlooked Structure of Stochastic Gradients, NeurIPS 2023",
            "https://arxiv.org/abs/2212.02083",
        ),
    ),
    coords={"m": BLOCKS},
    contrasts=(by_mode, against),
)
