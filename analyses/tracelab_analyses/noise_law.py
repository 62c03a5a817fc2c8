"""Which law gradient noise follows: six laws fitted to the same values, and a verdict by cell.

A tail index below 2 is what a stable law has, and what Student's t, Laplace and scale-mixture noise
of finite variance read as. Here these laws compete. Series (coordinates, directions) are brought to
median 0 and interquartile range 1 each, so that differences of scale between them are no evidence;
all values of a cell are then fitted together by maximum likelihood. Values of one minibatch depend
on each other: tests of two laws take minibatches as the independent units, and add up the
differences of log-densities within them.

The verdict of a cell is

``gaussian``
    No other law has the better criterion and is preferred more than on the control, exactly
    Gaussian noise of the same covariance. `detectable_df` says what would have been seen: Student's
    law of that many degrees of freedom, were values independent.
``stable``
    The symmetric stable law is significantly closer than every law of finite variance tried.
``scale_mixture``
    A mixture of two Gaussians is closest, and significantly closer than the stable law.
``finite_variance``
    Laplace, the generalized normal law or Student's (with more than two degrees of freedom) is.
``undecided``
    It is not Gaussian, and neither a stable law nor one of finite variance is significantly
    closer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from tracelab.stats import models
from tracelab.stats.resampling import gaussian_control
from tracelab.typing import Array, FloatArray, IntArray, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAWS = tuple(models.FAMILIES)
FINITE = ("laplace", "student_t", "generalized_normal", "scale_mixture")
VERDICTS = ("none", "gaussian", "stable", "scale_mixture", "finite_variance", "undecided")
MIN_BATCHES = 20
MIN_BATCHES_FOR_FINDING = 100
# Values of a cell that are fitted; of more, some series are drawn.
MOST_VALUES = 16_384
POWER = 0.8

_CELL = ("step", "layer")
_BY_LAW = ("step", "layer", "law")
_ERROR = "its standard error, with the design effect of minibatches"


def noise_law(
    noise: FloatArray,
    seed: IntArray,
    *,
    significance: float = 0.01,
    sketch: str = "auto",
    group: str = "auto",
    batch_size: int | None = None,
    batches: int | None = None,
    replacement: bool = True,
) -> dict[str, Array]:
    """Return the criteria of six laws, tests between them and the verdict, by cell.

    Parameters
    ----------
    noise : ndarray, shape (step, layer, batch, series)
        Noise samples.
    seed : ndarray of uint64, shape (step, layer)
        Seeds of the choice of series, where there are too many.
    significance, sketch, group, batch_size, batches, replacement
        See ``ANALYSIS.parameters``; the last five have been applied to `noise`.

    Returns
    -------
    dict of str to ndarray
        See ``ANALYSIS.outputs``.
    """
    shape = noise.shape[:2]
    sizes = dict(zip(_BY_LAW, (*shape, len(LAWS)), strict=True))
    out = blank(ANALYSIS.outputs, sizes)
    for cell in np.ndindex(*shape):
        x = noise[cell]
        status, series = usable_series(x, MIN_BATCHES)
        if status is Status.OK:
            series = series[:, dense(series)]
            status = Status.OK if series.shape[1] else Status.CONSTANT_INPUT
        rng = np.random.default_rng(int(seed[cell]))
        most = max(1, MOST_VALUES // max(len(series), 1))
        out["n_dropped"][cell] = x.shape[1] - series.shape[1]
        if series.shape[1] > most:
            series = series[:, np.sort(rng.choice(series.shape[1], most, replace=False))]
        out["n_batches"][cell], out["n_series"][cell] = series.shape
        out["status"][cell] = int(status)
        if status is Status.OK:
            found = {**_compared(series, significance, rng), **independence(series)}
            for name, value in found.items():
                out[name][cell] = value
    return out


@dataclass(frozen=True, slots=True)
class _Compared:
    """Laws fitted to series, and what every minibatch says for each law, (law, batch)."""

    fits: Mapping[str, models.Fit]
    said: FloatArray
    effects: FloatArray

    @classmethod
    def of(cls, series: FloatArray) -> _Compared:
        scaled = by_quartiles(series)
        values = scaled.ravel()
        fits = models.fit(values)
        logs = np.stack([models.logpdf(law, values, fits[law].parameters) for law in LAWS])
        said = logs.reshape(len(LAWS), *scaled.shape).sum(axis=-1)
        # How much more sums over minibatches vary than if their values were independent.
        apart = scaled.shape[1] * logs.var(axis=1)
        return cls(fits, said, np.maximum(said.var(axis=1) / apart, 1.0))

    def estimate(self, law: str, name: str) -> tuple[float, float]:
        """Return a parameter and its standard error, with the design effect of minibatches."""
        fit = self.fits[law]
        error = float(fit.errors[name]) * math.sqrt(self.effects[LAWS.index(law)])
        return float(fit.parameters[name]), error

    def gains(self, law: str) -> FloatArray:
        """Return by how much minibatches prefer each law to one, (law, batch)."""
        found: FloatArray = self.said - self.said[LAWS.index(law)]
        return found


def _compared(
    series: FloatArray, significance: float, rng: np.random.Generator
) -> dict[str, Array | float | int]:
    here, control = _Compared.of(series), _Compared.of(gaussian_control(series, rng))
    batches, fits = series.shape[0], here.fits
    bic = np.array([float(fits[law].bic) for law in LAWS])
    gains, usual = here.gains("gaussian"), control.gains("gaussian")
    spread = gains.var(axis=1, ddof=1) + usual.var(axis=1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        preference = (gains - usual).mean(axis=1) / np.sqrt(spread / batches)
    finite = min(FINITE, key=lambda law: bic[LAWS.index(law)])
    d = here.gains(finite)[LAWS.index("stable")]
    stable = math.sqrt(batches) * float(d.mean()) / float(d.std(ddof=1))
    alpha, alpha_se = here.estimate("stable", "alpha")
    df, df_se = here.estimate("student_t", "df")
    shape, shape_se = here.estimate("generalized_normal", "shape")
    wide, wide_se = here.estimate("scale_mixture", "wide")
    # One of five laws may be preferred by chance.
    strict = float(special.ndtri(1 - significance / (len(LAWS) - 1)))
    level = float(special.ndtri(1 - significance))
    difference = bic - bic[LAWS.index("gaussian")]
    # A law that is the Gaussian one at its end gains what rounding leaves.
    if not ((preference > strict) & (difference < 0)).any():
        verdict = "gaussian"
    elif stable > level:
        verdict = "stable"
    elif stable < -level and finite == "scale_mixture":
        verdict = "scale_mixture"
    elif stable < -level and (finite != "student_t" or df > 2):
        verdict = "finite_variance"
    else:
        verdict = "undecided"
    mixture = fits["scale_mixture"].parameters
    # The information of 1 / df at the Gaussian end is 3/2 a value (the score is the fourth Hermite
    # polynomial over 4); of a gain of Z^2 / 2 the statistic is Z / 2.
    needed = 2 * strict + float(special.ndtri(POWER))
    return {
        "bic_difference": difference,
        "preference": preference,
        "stable_preference": stable,
        "detectable_df": math.sqrt(1.5 * series.size) / needed,
        "verdict": VERDICTS.index(verdict),
        "alpha": alpha,
        "alpha_se": alpha_se,
        "df": df,
        "df_se": df_se,
        "shape": shape,
        "shape_se": shape_se,
        "wide_share": wide,
        "wide_share_se": wide_se,
        "wide_ratio": float(mixture["wide_scale"] / mixture["scale"]),
    }


def finding(result: xr.Dataset) -> Finding:
    """Return the verdict on the network, or one layer, at the first and the last probe."""
    good = shown(result)
    if good.sizes["step"] == 0:
        return Finding("No cell had enough finite, varying noise samples to be compared with laws.")

    def describe(row: xr.Dataset) -> str:
        step, verdict = int(row["step"]), VERDICTS[int(row["verdict"])]
        closest = str(row["law"].values[np.argmin(row["bic_difference"].values)])
        if verdict == "gaussian":
            return (
                f"at step {step} the Gaussian law is not rejected (Student's law of "
                f"{float(row['detectable_df']):.0f} degrees of freedom would be, if values were "
                "independent)"
            )
        return f"at step {step} the verdict is {verdict.replace('_', ' ')} (closest: {closest})"

    parts = at_ends(good, describe)
    where = subject(good)
    warnings = [
        *independence_warnings(good),
        "Six laws were tried: the closest of them need not be close. Noise of finitely many "
        "examples has a finite variance whatever law fits it.",
    ]
    if int(good["n_batches"].min()) < MIN_BATCHES_FOR_FINDING:
        warnings.append(
            f"With fewer than {MIN_BATCHES_FOR_FINDING} minibatches a probe, series are scaled by "
            "quartiles that are themselves uncertain, which looks like a mixture of scales."
        )
    return Finding(f"For {where}, {'; '.join(parts)}.", tuple(warnings))


def plot(results: Mapping[str, xr.Dataset]) -> Figure:
    """Return how much closer each law is than the Gaussian one over training, a panel a trace."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(results) + 2.2, 3.6), layout="constrained")
    figure.set_label("Schwarz's criterion of six laws over training, against the Gaussian law.")
    axes = figure.subplots(1, len(results), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (label, result) in zip(axes, results.items(), strict=True):
        # Before anything is drawn: limits are found on the scale that is then in force.
        axis.set_xscale("symlog", linthresh=10)
        axis.set_yscale("symlog", linthresh=10)
        rows = shown(result)
        for index, law in enumerate(LAWS[1:]):
            axis.plot(
                rows["step"], -rows["bic_difference"].sel(law=law), "o-", color=f"C{index}", ms=3,
                label=law.replace("_", " "),
            )  # fmt: skip
        axis.axhline(0, color="0.4", linestyle=":", label="gaussian")
        axis.set(xlabel="step", title=label)
    axes[0].set_ylabel("BIC of Gaussian less that of law")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, frameon=False, loc="outside right upper")
    return figure


ANALYSIS = Analysis(
    name="noise_law",
    summary="Which law does gradient noise follow? Six laws compared, with a verdict",
    version=2,
    inputs=(NOISE,),
    outputs=(
        Variable(
            "verdict",
            _CELL,
            dtype="int64",
            description=", ".join(f"{code}: {name}" for code, name in enumerate(VERDICTS)),
        ),
        Variable(
            "bic_difference", _BY_LAW, description="Schwarz's criterion, less that of the Gaussian"
        ),
        Variable(
            "preference",
            _BY_LAW,
            description="how much more than on the Gaussian control it is preferred to the "
            "Gaussian, in standard errors with minibatches as units",
        ),
        Variable(
            "stable_preference",
            _CELL,
            description="Vuong's statistic of the stable law against the closest of finite "
            "variance, minibatches as units",
        ),
        Variable("alpha", _CELL, description="of the stable law"),
        Variable("alpha_se", _CELL, description=_ERROR),
        Variable("df", _CELL, description="degrees of freedom of Student's law"),
        Variable("df_se", _CELL, description=_ERROR + "; missing where df is infinite"),
        Variable("shape", _CELL, description="exponent of the generalized normal law"),
        Variable("shape_se", _CELL, description=_ERROR),
        Variable("wide_share", _CELL, description="share of the wider Gaussian of the mixture"),
        Variable("wide_share_se", _CELL, description=_ERROR),
        Variable("wide_ratio", _CELL, description="its standard deviation over the narrower one's"),
        Variable(
            "detectable_df",
            _CELL,
            description="degrees of freedom of Student's law that are told from Gaussian with a "
            "power of .8, were values independent",
        ),
        Variable("n_batches", _CELL, dtype="int64", description="minibatches: the sample size"),
        *INDEPENDENCE,
        Variable("n_series", _CELL, dtype="int64", description="series whose values were fitted"),
        Variable(
            "n_dropped",
            _CELL,
            dtype="int64",
            description="series left out: constant, or more than half of their values repeat",
        ),
        Variable("status", _CELL, dtype="uint8"),
    ),
    cell=_CELL,
    kernel=noise_law,
    finding=finding,
    plot=plot,
    parameters=(
        SKETCH,
        Parameter("significance", 0.01, "one-sided level of the tests", low=1e-6, high=0.5),
        *SELECTION,
    ),
    references=(
        Reference(
            "Vuong, Likelihood ratio tests for model selection and non-nested hypotheses, "
            "Econometrica 57 (1989) 307-333"
        ),
        Reference(
            "Xie, Tang, Sun, On the Overlooked Structure of Stochastic Gradients, NeurIPS 2023",
            "https://arxiv.org/abs/2212.02083",
        ),
        Reference("Schwarz, Estimating the dimension of a model, Annals of Statistics 6 (1978)"),
    ),
    coords={"law": LAWS},
)
