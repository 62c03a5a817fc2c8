"""Gaussianity of gradient noise: normality tests by coordinate or direction, with their control.

Panigrahi, Somani, Goyal, Netrapalli (2019) test minibatch gradients at frozen weights, one
direction at a time, by Shapiro-Wilk and Anderson-Darling; here by all seven tests of
`tracelab.stats.normality`, whose sizes hold at every number of minibatches, since they are powerful
against different departures. Each mode answers its own question:

``batches``
    Is each series (coordinate, direction) Gaussian over minibatches? The rejection rate is the
    share of series rejected at the nominal level: 5 % of them are if all are Gaussian.
``pooled``
    Are all values together one Gaussian sample? They are not as soon as scales differ between
    coordinates, which says nothing about the noise: the same test on the Gaussian control (exactly
    Gaussian noise with the measured covariance) shows how much of a rejection that explains.
``standardized``
    Are all series, each brought to mean 0 and variance 1, together one Gaussian sample? The null
    distribution is simulated with the Gaussian control, so that neither the estimated scales nor
    the dependence between coordinates of one minibatch counts as evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tracelab.contracts import (
    Analysis,
    Finding,
    Parameter,
    Reference,
    Variable,
)
from tracelab.independence import INDEPENDENCE, independence, independence_warnings
from tracelab.outcomes import at_ends, blank, shown, subject
from tracelab.series import NOISE, SELECTION, SKETCH, usable_series
from tracelab.stats import normality
from tracelab.stats.combination import cauchy_combination
from tracelab.stats.resampling import gaussian_control
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TESTS = normality.TESTS
TITLES = {
    "anderson": "Anderson-Darling",
    "shapiro": "Shapiro-Wilk",
    "cramer_von_mises": "Cramer-von Mises",
    "lilliefors": "Lilliefors",
    "dagostino": "D'Agostino K2",
    "jarque_bera": "Jarque-Bera",
    "epps_pulley": "Epps-Pulley",
}
MIN_BATCHES = 20
MIN_BATCHES_FOR_FINDING = 100
SHAPIRO_MAX = 1_000_000

_CELL = ("step", "layer")
_BY_TEST = ("step", "layer", "test")


def gaussianity(
    noise: FloatArray,
    seed: IntArray,
    *,
    mode: str = "batches",
    significance: float = 0.05,
    correction: str = "fdr_bh",
    replicates: int = 19,
    sketch: str = "auto",
    group: str = "auto",
    batch_size: int | None = None,
    batches: int | None = None,
    replacement: bool = True,
) -> dict[str, Array]:
    """Return test statistics, p-values and rejection rates by cell and test.

    Parameters
    ----------
    noise : ndarray, shape (step, layer, batch, series)
        Noise samples; standardized ones where the mode says so.
    seed : ndarray of uint64, shape (step, layer)
        Seeds of the controls.
    mode, significance, correction, replicates, sketch, group, batch_size, batches, replacement
        See ``ANALYSIS.parameters``; the last five have been applied to `noise`.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    shape = noise.shape[:2]
    sizes = dict(zip(_BY_TEST, (*shape, len(TESTS)), strict=True))
    out = blank(ANALYSIS.outputs, sizes)
    for cell in np.ndindex(*shape):
        x = noise[cell]
        out["n_batches"][cell] = x.shape[0]
        status, series = usable_series(x, MIN_BATCHES)
        out["n_series"][cell] = series.shape[1]
        out["n_dropped"][cell] = x.shape[1] - series.shape[1]
        out["status"][cell] = int(status)
        if status is not Status.OK:
            continue
        rng = np.random.default_rng(int(seed[cell]))
        found = (
            _by_series(series, significance, correction, rng)
            if mode == "batches"
            else _together(series, mode, significance, replicates, rng)
        )
        for index, by_name in enumerate(found):
            for key, value in by_name.items():
                out[key][(*cell, index)] = value
        for key, number in independence(series).items():
            out[key][cell] = number
        squares = np.square(series - series.mean(axis=0))
        variance = squares.mean(axis=0)
        fourth = np.square(squares, out=squares).mean(axis=0)
        out["excess_kurtosis"][cell] = np.median(fourth / variance**2 - 3)
    return out


def _battery(
    x: FloatArray, axis: int, rng: np.random.Generator
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return statistic and p-value by test, from one sort."""
    names, found = TESTS, {}
    if x.shape[axis] > SHAPIRO_MAX:
        # Beyond what its null was simulated for, by a random subsample.
        part = np.take(x, rng.choice(x.shape[axis], SHAPIRO_MAX, replace=False), axis=axis)
        found["shapiro"] = normality.shapiro(part, axis=axis)
        names = tuple(name for name in TESTS if name != "shapiro")
    found |= normality.battery(x, names, axis=axis)
    return {name: (found[name].statistic, found[name].pvalue) for name in TESTS}


def _by_series(
    series: FloatArray, significance: float, correction: str, rng: np.random.Generator
) -> list[dict[str, float]]:
    tested = _battery(series, 0, rng)
    control = _battery(gaussian_control(series, rng), 0, rng)
    counts = np.array([int((pvalue < significance).sum()) for _, pvalue in tested.values()])
    ends = proportion_confint(counts, series.shape[1], method="wilson")
    found = []
    for (name, (statistic, pvalue)), low, high in zip(tested.items(), *ends, strict=True):
        rejected = pvalue < significance
        corrected = (
            rejected
            if correction == "none"
            else multipletests(pvalue, alpha=significance, method=correction)[0]
        )
        found.append(
            {
                "statistic": float(np.median(statistic)),
                "pvalue": float(cauchy_combination(pvalue)),
                "rejection_rate": float(rejected.mean()),
                "rejection_rate_low": float(low),
                "rejection_rate_high": float(high),
                "rejection_rate_corrected": float(np.mean(corrected)),
                "rejection_rate_control": float(np.mean(control[name][1] < significance)),
            }
        )
    return found


def _together(
    series: FloatArray, mode: str, significance: float, replicates: int, rng: np.random.Generator
) -> list[dict[str, float]]:
    standardized = mode == "standardized"

    def observe(x: FloatArray) -> list[tuple[float, float]]:
        if standardized:
            x = (x - x.mean(axis=0)) / x.std(axis=0)
        pairs = _battery(x.ravel(), 0, rng).values()
        return [(float(statistic), float(pvalue)) for statistic, pvalue in pairs]

    observed = observe(series)
    controls = [
        observe(gaussian_control(series, rng)) for _ in range(replicates if standardized else 1)
    ]
    found = []
    for index, name in enumerate(TESTS):
        statistic, pvalue = observed[index]
        drawn = np.array([control[index][0] for control in controls])
        control_rejected = float(controls[0][index][1] < significance)
        if standardized:
            # All reject where the statistic is large, but Shapiro-Wilk where W is small.
            extreme = drawn <= statistic if name == "shapiro" else drawn >= statistic
            pvalue = (1 + int(extreme.sum())) / (1 + replicates)
            control_rejected = np.nan
        rejected = float(pvalue <= significance)
        found.append(
            {
                "statistic": statistic,
                "pvalue": pvalue,
                "rejection_rate": rejected,
                # One test: its p-value is the evidence, a rate of one has no interval.
                "rejection_rate_low": np.nan,
                "rejection_rate_high": np.nan,
                "rejection_rate_corrected": rejected,
                "rejection_rate_control": control_rejected,
            }
        )
    return found


def finding(result: xr.Dataset) -> Finding:
    """Return what the tests say about the first and the last step, for the network or one layer."""
    mode = dict(result.attrs["parameters"])["mode"]
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No cell had enough finite, varying noise samples to be tested.")

    def describe(row: xr.Dataset) -> str:
        row = row.sel(test="anderson")
        step, pvalue = int(row["step"]), float(row["pvalue"])
        if mode != "batches":
            verdict = "rejects" if float(row["rejection_rate"]) else "does not reject"
            return f"at step {step} Anderson-Darling {verdict} Gaussianity (p = {pvalue:.2g})"
        rate, low, high = (
            100 * float(row[name])
            for name in ("rejection_rate", "rejection_rate_low", "rejection_rate_high")
        )
        return (
            f"at step {step} Anderson-Darling rejects {rate:.0f} % of {int(row['n_series'])} "
            f"series (95 % interval {low:.0f} to {high:.0f} %; 5 % expected if all are Gaussian)"
        )

    parts = at_ends(good, describe)
    where = subject(good)
    warnings = independence_warnings(good)
    if mode == "pooled":
        warnings.append(
            "Pooling coordinates of different scales is rejected as Gaussian even when each is "
            "exactly Gaussian; compare rejection_rate_control and the other modes."
        )
    elif dict(result.attrs["parameters"])["sketch"] not in ("sampled", "full"):
        warnings.append(
            "Projections average many coordinates and look Gaussian by the central limit theorem; "
            "read coordinate-wise tests beside them."
        )
    if mode == "batches":
        warnings.append(
            "The interval of the rejection rate takes series as independent; coordinates of one "
            "minibatch are not, so it is too narrow."
        )
    if int(good["n_batches"].min()) < MIN_BATCHES_FOR_FINDING:
        warnings.append(
            f"With fewer than {MIN_BATCHES_FOR_FINDING} minibatches a probe, departures from "
            "Gaussianity may go unseen."
        )
    return Finding(f"For {where}, {'; '.join(parts)}.", tuple(warnings))


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return the rejection rate over training, one line a trace, and that of every test at the end.

    Where the tests of moments and those of the distribution function disagree, it is the tails, or
    the centre, that is not Gaussian.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    figure.set_label(
        "Share of series rejected as Gaussian: over training by Anderson-Darling, with 95 % "
        "intervals, and by every test at the last step."
    )
    over, last = figure.subplots(1, 2, sharey=True)
    nominal = float(dict(next(iter(results.values())).attrs["parameters"])["significance"])
    # Before anything is drawn: limits are found on the scale that is then in force.
    over.set_xscale("symlog", linthresh=10)
    for index, (label, result) in enumerate(results.items()):
        rows = shown(result)
        row, color = rows.sel(test="anderson"), f"C{index}"
        over.fill_between(
            row["step"], row["rejection_rate_low"], row["rejection_rate_high"],
            color=color, alpha=0.2, linewidth=0,
        )  # fmt: skip
        over.plot(row["step"], row["rejection_rate"], "o-", color=color, label=label, ms=4)
        if np.isfinite(row["rejection_rate_control"]).any():
            over.plot(row["step"], row["rejection_rate_control"], "x--", color=color, ms=4, lw=1)
        if rows.sizes["step"]:
            end = rows.isel(step=-1)
            places = np.arange(len(TESTS)) + 0.15 * (index - 0.5 * (len(results) - 1))
            reach = [
                np.nan_to_num(np.abs(end["rejection_rate"] - end[f"rejection_rate_{side}"]))
                for side in ("low", "high")
            ]
            last.errorbar(places, end["rejection_rate"], reach, fmt="o", color=color, ms=4, lw=1)
            last.plot(places, end["rejection_rate_control"], "x", color=color, ms=4)
    over.plot([], [], "x--", color="0.4", ms=4, lw=1, label="its Gaussian control")
    for axis in (over, last):
        axis.axhline(
            nominal, color="0.4", linestyle=":", label=f"{100 * nominal:g} %: expected if Gaussian"
        )
        axis.set_ylim(-0.03, 1.03)
    over.set(xlabel="step", ylabel="share of series rejected", title="Anderson-Darling")
    last.set(title="every test, last step")
    last.set_xticks(range(len(TESTS)), [TITLES[name] for name in TESTS], rotation=30, ha="right")
    handles, names = over.get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, frameon=False, loc="outside right upper")
    return figure


ANALYSIS = Analysis(
    name="gaussianity",
    summary="Is gradient noise Gaussian? Normality tests by coordinate or direction",
    version=3,
    inputs=(NOISE,),
    outputs=(
        Variable("rejection_rate", _BY_TEST, description="share of series rejected at the level"),
        Variable("rejection_rate_low", _BY_TEST, description="95 % Wilson interval, lower end"),
        Variable("rejection_rate_high", _BY_TEST, description="95 % Wilson interval, upper end"),
        Variable(
            "rejection_rate_corrected",
            _BY_TEST,
            description="share rejected after correction for multiple testing",
        ),
        Variable(
            "rejection_rate_control",
            _BY_TEST,
            description="the same on exactly Gaussian noise of the measured covariance",
        ),
        Variable(
            "pvalue",
            _BY_TEST,
            description="of the cell: Cauchy combination (batches), naive (pooled), "
            "simulated with the Gaussian control (standardized)",
        ),
        Variable("statistic", _BY_TEST, description="test statistic; median over series"),
        Variable("excess_kurtosis", _CELL, description="median over series"),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches: the sample size"),
        *INDEPENDENCE,
        Variable("n_series", _CELL, dtype="int64", description="series tested"),
        Variable("n_dropped", _CELL, dtype="int64", description="series left out: they never vary"),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=gaussianity,
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
        Parameter("significance", 0.05, "nominal level of each test", low=1e-6, high=0.5),
        Parameter(
            "correction",
            "fdr_bh",
            "correction for multiple testing over the series of a cell",
            choices=("fdr_bh", "fdr_by", "holm", "bonferroni", "none"),
        ),
        Parameter(
            "replicates", 19, "Gaussian controls that calibrate standardized", low=19, high=9999
        ),
        *SELECTION,
    ),
    references=(
        Reference(
            "Panigrahi, Somani, Goyal, Netrapalli, Non-Gaussianity of Stochastic Gradient Noise, "
            "2019",
            "https://arxiv.org/abs/1910.09626",
        ),
        Reference("Royston, Remark AS R94, Applied Statistics 44 (1995) 547-551"),
        Reference("Stephens, in D'Agostino, Stephens, Goodness-of-Fit Techniques, 1986, ch. 4"),
        Reference("Epps, Pulley, A test for normality, Biometrika 70 (1983) 723-726"),
        Reference(
            "Liu, Xie, Cauchy Combination Test, Journal of the American Statistical Association "
            "115 (2020) 393-402"
        ),
        Reference(
            "Benjamini, Hochberg, Controlling the False Discovery Rate, Journal of the Royal "
            "Statistical Society B 57 (1995) 289-300"
        ),
    ),
    coords={"test": TESTS},
)
