r"""Which law: several fitted to the same samples, compared, and each tested for fit.

A tail index says nothing unless the stable law is a better description than the laws of finite
variance that look like it: Student's t, Laplace and the generalized normal, a mixture of two
Gaussians. All are fitted here by maximum likelihood to the same batch, so that their criteria
compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._laws import FAMILIES, Family
from tracelab.stats._samples import as_rows
from tracelab.typing import Array, FloatArray, IntArray, Status

__all__ = [
    "FAMILIES",
    "Fit",
    "FitTest",
    "Vuong",
    "cdf",
    "fit",
    "goodness_of_fit",
    "logpdf",
    "vuong",
]

MIN_SAMPLES = 8
"""Fewer values than this are not fitted."""

Parameters: TypeAlias = Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Fit:
    """One law fitted to every sample; arrays have the leading shape of the data.

    Parameters
    ----------
    family : str
        Its name, a key of `FAMILIES`.
    parameters, errors : mapping of str to ndarray of float64
        Estimates and their standard errors, by name; see `fit`.
    loglik : ndarray of float64
        Log-likelihood.
    n_parameters : int
        How many were estimated.
    aic, bic : ndarray of float64
        Akaike's and Schwarz's criterion; the law with the smallest is preferred.
    iterations : ndarray of int64
        Of the search; 0 where there is a formula.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN unless it is ``OK`` or ``NOT_CONVERGED``.
    """

    family: str
    parameters: Parameters
    errors: Parameters
    loglik: FloatArray
    n_parameters: int
    iterations: IntArray
    n_samples: int
    status: npt.NDArray[np.uint8]

    @property
    def aic(self) -> FloatArray:
        """Akaike's information criterion."""
        return 2 * self.n_parameters - 2 * self.loglik

    @property
    def bic(self) -> FloatArray:
        """Schwarz's (Bayesian) information criterion."""
        return self.n_parameters * math.log(max(self.n_samples, 1)) - 2 * self.loglik


def fit(x: npt.ArrayLike, families: Sequence[str] | None = None, axis: int = -1) -> dict[str, Fit]:
    r"""Return laws fitted to every sample by maximum likelihood, by name.

    With :math:`z = (x - loc) / scale` the densities are, up to a factor,

    ``gaussian``
        :math:`e^{-z^2/2}`; parameters ``loc``, ``scale``.
    ``laplace``
        :math:`e^{-|z|}`; ``loc``, ``scale``.
    ``student_t``
        :math:`(1 + z^2/df)^{-(df+1)/2}`; ``df``, ``loc``, ``scale``.
    ``generalized_normal``
        :math:`e^{-|z|^{shape}}`; ``shape``, ``loc``, ``scale``.
    ``stable``
        symmetric, with :math:`E e^{iuz} = e^{-|u|^\alpha}`; ``alpha``, ``loc``, ``scale``.
    ``scale_mixture``
        two Gaussians about one location: a share ``wide`` of standard deviation ``wide_scale``,
        the rest of ``scale``; ``wide``, ``loc``, ``scale``, ``wide_scale``.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`; the other axes are kept. Computed in float64.
    families : sequence of str, optional
        Which laws. Default: all of `FAMILIES`.
    axis : int
        Axis of the samples.

    Returns
    -------
    dict of str to Fit
        In the order of `families`. Status ``TOO_FEW_SAMPLES`` below 8 values,
        ``NON_FINITE_INPUT``, ``CONSTANT_INPUT`` where the middle half of the values is equal,
        ``NOT_CONVERGED`` where the search ended at an edge: a mixture of a component with fewer
        than two values is none. Student's law is given as ``df = inf``, with the Gaussian's
        numbers, where the sample has no excess kurtosis: its likelihood is then largest there.

    Raises
    ------
    UsageError
        If a name, the dtype or the axis cannot be used.

    Notes
    -----
    The likelihood of the generalized normal law has no maximum in the location for
    ``shape <= 1``, where it grows without bound in slope at every value; the median is taken.
    That of the mixture has none at all, as one component may shrink to a point: what is found is
    the maximum that EM reaches from a wide component of a tenth.

    References
    ----------
    Lange, Little, Taylor, "Robust statistical modeling using the t distribution", JASA 84 (1989);
    Nadarajah, "A generalized normal distribution", Journal of Applied Statistics 32 (2005);
    Dempster, Laird, Rubin, "Maximum likelihood from incomplete data via the EM algorithm", JRSS B
    39 (1977); Berndt, Hall, Hall, Hausman, "Estimation and inference in nonlinear structural
    models", Annals of Economic and Social Measurement 3 (1974).

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_t(3, (2, 5000))
    >>> found = fit(x, ("gaussian", "student_t"))
    >>> found["student_t"].parameters["df"].round(1)
    array([2.9, 3. ])
    >>> found["gaussian"].aic > found["student_t"].aic
    array([ True,  True])
    """
    chosen = list(FAMILIES) if families is None else list(families)
    for name in chosen:
        _known(name)
    rows, lead = as_rows(x, axis)
    rows = rows.astype(np.float64)
    n = rows.shape[1]
    ordered = np.sort(rows, axis=-1)
    status = np.full(len(rows), Status.OK, dtype=np.uint8)
    if n < MIN_SAMPLES:
        status[:] = Status.TOO_FEW_SAMPLES
        ordered = np.zeros((len(rows), 1))
    centre, spread = _middle(ordered)
    if n >= MIN_SAMPLES:
        status[~(spread > 0)] = Status.CONSTANT_INPUT
    status[~np.isfinite(rows).all(axis=-1)] = Status.NON_FINITE_INPUT
    good = status == Status.OK
    unit = (ordered[good] - centre[good, None]) / spread[good, None]
    return {
        name: _scaled(name, unit, centre[good], spread[good], status, lead, n) for name in chosen
    }


def logpdf(family: str, x: npt.ArrayLike, parameters: Parameters) -> FloatArray:
    """Return the log-density of a law.

    Parameters
    ----------
    family : str
        A key of `FAMILIES`.
    x : array_like
        Where; samples along the last axis.
    parameters : mapping of str to ndarray
        As `fit` gives them: of the shape of `x` without its last axis.

    Returns
    -------
    ndarray of float64
        In the shape of `x`.

    Raises
    ------
    UsageError
        If there is no such law.
    """
    own = _known(family)
    values = np.asarray(x, dtype=np.float64)
    return own.logpdf(values, *(np.asarray(parameters[each])[..., None] for each in own.names))


def cdf(family: str, x: npt.ArrayLike, parameters: Parameters) -> FloatArray:
    """Return the distribution function of a law; arguments as of `logpdf`."""
    own = _known(family)
    values = np.asarray(x, dtype=np.float64)
    return own.cdf(values, *(np.asarray(parameters[each])[..., None] for each in own.names))


@dataclass(frozen=True, slots=True)
class Vuong:
    """Which of two laws is closer to the truth, for every sample.

    Parameters
    ----------
    statistic : ndarray of float64
        Standard normal where both are as close; large where the first is closer.
    pvalue : ndarray of float64
        Two-sided.
    difference : ndarray of float64
        Mean difference of the log-densities, with the correction.
    difference_se : ndarray of float64
        Its standard error.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`: ``CONSTANT_INPUT`` where the densities are the same everywhere.
    """

    statistic: FloatArray
    pvalue: FloatArray
    difference: FloatArray
    difference_se: FloatArray
    n_samples: int
    status: npt.NDArray[np.uint8]


def vuong(
    x: npt.ArrayLike,
    first: Fit,
    second: Fit,
    axis: int = -1,
    *,
    correction: Literal["none", "aic", "bic"] = "none",
) -> Vuong:
    r"""Return Vuong's test of two fitted laws that do not contain each other.

    .. math:: V = \frac{\sqrt n\, \bar d}{s_d}, \quad
        d_i = \log f_1(x_i) - \log f_2(x_i) - c / n

    Parameters
    ----------
    x : array_like
        The samples that both were fitted to.
    first, second : Fit
        From `fit`.
    axis : int
        Axis of the samples.
    correction : {"none", "aic", "bic"}
        ``c``: 0, the difference of the numbers of parameters, or that times half of log n.

    Returns
    -------
    Vuong

    Raises
    ------
    UsageError
        If the fits are of other samples, or the correction is none of these.

    Notes
    -----
    Of laws that contain each other (the Gaussian one is Student's of infinite `df`, the stable one
    of alpha 2, the generalized normal one of shape 2) twice the difference of log-likelihoods has
    another null distribution, and V is not normal where the smaller law holds.

    References
    ----------
    Vuong, "Likelihood ratio tests for model selection and non-nested hypotheses", Econometrica 57
    (1989), theorem 5.1, equation 5.9.
    """
    rows, lead = as_rows(x, axis)
    rows = rows.astype(np.float64)
    n = rows.shape[1]
    for each in (first, second):
        if each.loglik.shape != lead or each.n_samples != n:
            raise UsageError(
                f"the fit of {each.family} is of {each.loglik.shape} samples of {each.n_samples}, "
                f"and x of {lead} samples of {n}; give the data that it was fitted to"
            )
    extra = first.n_parameters - second.n_parameters
    penalties = {"none": 0.0, "aic": float(extra), "bic": 0.5 * extra * math.log(max(n, 1))}
    if correction not in penalties:
        raise UsageError(f"correction must be 'none', 'aic' or 'bic', got {correction!r}")
    shaped = rows.reshape(*lead, n)
    d = logpdf(first.family, shaped, first.parameters)
    d = d - logpdf(second.family, shaped, second.parameters)
    status = np.maximum(first.status, second.status)
    usable = np.isin(status, (Status.OK, Status.NOT_CONVERGED))
    spread, mean = np.full(lead, np.nan), np.full(lead, np.nan)
    spread[usable], mean[usable] = d[usable].std(axis=-1), d[usable].mean(axis=-1)
    same = usable & (spread <= 1e-12 * np.abs(mean))
    status[same] = Status.CONSTANT_INPUT
    spread[same] = mean[same] = np.nan
    difference = mean - penalties[correction] / max(n, 1)
    error = spread / math.sqrt(max(n, 1))
    statistic = difference / error
    return Vuong(
        statistic=statistic,
        pvalue=2 * special.ndtr(-np.abs(statistic)),
        difference=difference,
        difference_se=error,
        n_samples=n,
        status=status,
    )


@dataclass(frozen=True, slots=True)
class FitTest:
    """Whether a fitted law could have made the samples.

    Parameters
    ----------
    statistic, pvalue : dict of str to ndarray of float64
        Of ``"anderson_darling"`` and ``"kolmogorov_smirnov"``. P-values are multiples of
        ``1 / (n_boot + 1)``, at least one.
    n_boot : int
        Samples simulated for each.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    """

    statistic: dict[str, FloatArray]
    pvalue: dict[str, FloatArray]
    n_boot: int
    n_samples: int
    status: npt.NDArray[np.uint8]


def goodness_of_fit(
    x: npt.ArrayLike,
    family: str,
    axis: int = -1,
    *,
    n_boot: int = 199,
    seed: int | IntArray = 0,
) -> FitTest:
    """Return tests of fit by the parametric bootstrap: p-values that know of the estimation.

    As many samples are drawn from each fitted law, fitted again, and their statistics compared
    with that of the data. Tables for known parameters would hardly ever reject.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`; the other axes are kept.
    family : str
        A key of `FAMILIES`.
    axis : int
        Axis of the samples.
    n_boot : int
        Samples drawn for each, at least 19.
    seed : int or ndarray of int
        Of the draws: one for each sample, or one from which those of the samples follow by their
        place.

    Returns
    -------
    FitTest
        Status as of `fit`; samples whose law was not found have no p-value.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Stute, Gonzales Manteiga, Presedo Quindimil, "Bootstrap based goodness-of-fit tests", Metrika
    40 (1993); Davison, Hinkley, "Bootstrap Methods and their Application" (1997), equation 4.11.
    """
    own = _known(family)
    if n_boot < 19:
        raise UsageError(f"n_boot must be at least 19, for a p-value of .05, got {n_boot}")
    rows, lead = as_rows(x, axis)
    rows = rows.astype(np.float64)
    n = rows.shape[1]
    given = np.asarray(seed)
    if given.dtype.kind not in "iu" or given.shape not in ((), lead):
        raise UsageError(
            f"seed must be one whole number, or one for each of the {lead} samples, got "
            f"{given.dtype} of shape {given.shape}"
        )
    seeds = (
        given.reshape(-1)
        if given.shape == lead and given.ndim
        else given + np.arange(len(rows), dtype=np.int64)
    )
    found = fit(rows, (family,))[family]
    names = ("anderson_darling", "kolmogorov_smirnov")
    statistic = {name: np.full(len(rows), np.nan) for name in names}
    pvalue = {name: np.full(len(rows), np.nan) for name in names}
    for row in np.flatnonzero(found.status == Status.OK):
        numbers = {name: found.parameters[name][row] for name in own.names}
        observed = _distances(cdf(family, np.sort(rows[row]), numbers))
        rng = np.random.default_rng(int(seeds[row]))
        drawn = np.sort(own.draw(rng, (n_boot, n), *numbers.values()), axis=-1)
        again = fit(drawn, (family,))[family]
        simulated = _distances(cdf(family, drawn, again.parameters))
        # What could not be fitted counts as far away: the p-value is the larger for it.
        lost = ~np.isin(again.status, (Status.OK, Status.NOT_CONVERGED))
        for name, mine, theirs in zip(names, observed, simulated, strict=True):
            statistic[name][row] = mine
            beyond = np.count_nonzero((theirs >= mine) | lost)
            pvalue[name][row] = (1 + beyond) / (n_boot + 1)
    return FitTest(
        statistic={name: each.reshape(lead) for name, each in statistic.items()},
        pvalue={name: each.reshape(lead) for name, each in pvalue.items()},
        n_boot=n_boot,
        n_samples=n,
        status=found.status.reshape(lead),
    )


def _distances(f: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return Anderson and Darling's A^2 and Kolmogorov's D of ordered probabilities."""
    n = f.shape[-1]
    # Probabilities of the far tails are rounded to 0 and 1.
    clipped = np.clip(f, 1e-300, 1 - 1e-16)
    odd = np.arange(1, 2 * n, 2)
    terms = odd * (np.log(clipped) + np.log1p(-clipped[..., ::-1]))
    ranks = np.arange(n + 1) / n
    below, above = f - ranks[:-1], ranks[1:] - f
    return -n - terms.sum(axis=-1) / n, np.maximum(below, above).max(axis=-1)


def _known(family: str) -> Family:
    if family not in FAMILIES:
        raise UsageError(f"there is no law {family!r}; choose from {', '.join(FAMILIES)}")
    return FAMILIES[family]


def _middle(ordered: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return median and interquartile range of sorted rows."""
    n = ordered.shape[1]
    found = []
    with np.errstate(invalid="ignore", over="ignore"):
        for q in (0.25, 0.5, 0.75):
            i, w = int(q * (n - 1)), q * (n - 1) % 1
            found.append(ordered[:, i] * (1 - w) + ordered[:, min(i + 1, n - 1)] * w)
        return found[1], found[2] - found[0]


def _scaled(
    name: str,
    unit: FloatArray,
    centre: FloatArray,
    spread: FloatArray,
    status: Array,
    lead: tuple[int, ...],
    n: int,
) -> Fit:
    """Fit standardised rows, and return the result in the units of the data."""
    own = FAMILIES[name]
    values, errors, loglik, iterations, converged = own.fit(unit)
    found = {key: (values[:, i], errors[:, i]) for i, key in enumerate(own.names)}
    for key, (estimate, error) in found.items():
        if key == "loc":
            found[key] = centre + spread * estimate, spread * error
        elif key.endswith("scale"):
            found[key] = spread * estimate, spread * error
    own_status = status.copy()
    good = status == Status.OK
    own_status[good] = np.where(converged, Status.OK, Status.NOT_CONVERGED)

    def placed(values: FloatArray) -> FloatArray:
        whole = np.full(len(status), np.nan)
        whole[good] = values
        return whole.reshape(lead)

    counted = np.zeros(len(status), dtype=np.int64)
    counted[good] = iterations
    return Fit(
        family=name,
        parameters=MappingProxyType({key: placed(each) for key, (each, _) in found.items()}),
        errors=MappingProxyType({key: placed(each) for key, (_, each) in found.items()}),
        loglik=placed(loglik - n * np.log(spread)),
        n_parameters=len(own.names),
        iterations=counted.reshape(lead),
        n_samples=n,
        status=own_status.reshape(lead),
    )
