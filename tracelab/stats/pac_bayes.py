"""PAC-Bayes bounds on the risk of a Gibbs classifier, and what a prior chosen on a grid costs.

A Gibbs classifier draws its weights anew, from a law Q, for every example. Over the draw of n
independent examples, with probability 1 - delta, each bound holds for all Q at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import lambertw

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.stats.divergence import bernoulli_kl_inverse, gaussian_kl
from tracelab.typing import Array, FloatArray

__all__ = [
    "BETAS",
    "PricedPrior",
    "catoni",
    "catoni_price",
    "draws_limit",
    "mcallester",
    "priced_prior",
    "realizable",
    "realizable_published",
    "seeger",
    "seeger_price",
]

BETAS = np.geomspace(0.01, 10.0, 24)
"""Among which `catoni` chooses, at a price of log 24."""

# Of Newton's method: even at a double root the distance halves with every step.
_NEWTON, _LAST = 60, 1e-15


def seeger_price(n_examples: int, delta: float) -> float:
    r"""Return what `seeger` and `mcallester` add to the divergence, :math:`\log(2\sqrt n/\delta)`.

    The mean of :math:`e^{n\,kl(\hat p \| p)}` is at most :math:`2\sqrt n` (Maurer 2004, of eight
    examples on; of fewer it is so by computing it).
    """
    check_confidence(1.0 - delta)
    return float(np.log(2.0 * np.sqrt(n_examples) / delta))


def catoni_price(delta: float) -> float:
    r"""Return what `catoni` adds to the divergence, :math:`\log(K/\delta)` for K values of beta."""
    check_confidence(1.0 - delta)
    return float(np.log(len(BETAS) / delta))


def seeger(empirical: npt.ArrayLike, complexity: npt.ArrayLike, n_examples: int) -> FloatArray:
    r"""Return the bound by the inverse of the Bernoulli divergence, elementwise.

    .. math:: R(Q) \le kl^{-1}\left(\hat R(Q) \;\middle|\; \frac{KL(Q \| P)
       + \log(2\sqrt n/\delta)}{n}\right)

    Parameters
    ----------
    empirical : array_like
        :math:`\hat R(Q)`, of losses in [0, 1], or an upper limit of it. NaN stays.
    complexity : array_like
        The numerator, in nats: divergence and prices.
    n_examples : int
        n.

    References
    ----------
    Langford, Seeger, "Bounds for averaging classifiers", 2001; Maurer, "A note on the PAC Bayesian
    theorem", 2004, theorem 5.
    """
    return bernoulli_kl_inverse(empirical, np.asarray(complexity) / n_examples)


def mcallester(empirical: npt.ArrayLike, complexity: npt.ArrayLike, n_examples: int) -> FloatArray:
    r"""Return the bound by a square root, elementwise: that of `seeger` by Pinsker's inequality.

    .. math:: R(Q) \le \hat R(Q) + \sqrt{\frac{KL(Q \| P) + \log(2\sqrt n/\delta)}{2 n}}

    It holds whenever that of `seeger` does, and can exceed 1. Parameters are those of `seeger`.

    References
    ----------
    McAllester, "Some PAC-Bayesian theorems", Machine Learning 1999, with the constant of Maurer,
    "A note on the PAC Bayesian theorem", 2004.
    """
    return np.asarray(empirical) + np.sqrt(0.5 * np.asarray(complexity) / n_examples)


def catoni(
    empirical: npt.ArrayLike, complexity: npt.ArrayLike, n_examples: int
) -> tuple[FloatArray, FloatArray]:
    r"""Return the bound that is linear in the empirical risk, and its beta, elementwise.

    .. math:: R(Q) \le \min_{\beta} \frac{1 - \exp\left(-\beta \hat R(Q) - \frac{KL(Q \| P)
       + \log(K/\delta)}{n}\right)}{1 - e^{-\beta}}

    over K fixed values of beta. Of one beta: a loss X in [0, 1] has
    :math:`E e^{-\beta X} \le 1 - (1 - e^{-\beta}) E X`, so that
    :math:`e^{-\beta n \hat R - n \log(1 - (1 - e^{-\beta}) R)}` has mean 1 at most for every
    classifier; change of measure and Markov's inequality follow. That holds for all K at once with
    delta / K each.

    Parameters
    ----------
    empirical, complexity, n_examples
        As for `seeger`, the price being that of `catoni_price`.

    References
    ----------
    Catoni, "PAC-Bayesian supervised classification", 2007, theorem 1.2.6.
    """
    beta = BETAS.reshape(-1, *[1] * np.ndim(np.asarray(empirical) + np.asarray(complexity)))
    exponent = beta * np.asarray(empirical) + np.asarray(complexity) / n_examples
    bounds = np.expm1(-exponent) / np.expm1(-beta)
    lost = np.isnan(bounds).any(axis=0)
    best = np.where(np.isnan(bounds), np.inf, bounds).argmin(axis=0)
    chosen = np.take_along_axis(bounds, best[None], axis=0)[0]
    return np.where(lost, np.nan, chosen), np.where(lost, np.nan, BETAS[best])


def realizable(log_evidence: npt.ArrayLike, n_examples: int, delta: float) -> FloatArray:
    r"""Return the bound on the risk of the prior given that it fits all labels, elementwise.

    .. math:: -\log(1 - R(Q)) \le \frac{\log\frac{1}{P(U)} + \log\frac{1}{\delta}}{n},
       \qquad Q = P(\,\cdot \mid U)

    with probability 1 - delta, U being the classifiers without an error on n examples. One of risk
    r is without an error with probability :math:`(1 - r)^n`, so that
    :math:`E_{h \sim P}\, 1[h \in U] (1 - r(h))^{-n}` has mean 1 over the examples, and is at most
    :math:`1/\delta` by Markov's inequality; it is :math:`P(U)\, E_Q (1 - r)^{-n}`, at least
    :math:`P(U) (1 - R(Q))^{-n}` by Jensen's.

    Parameters
    ----------
    log_evidence : array_like
        log P(U), in nats. NaN stays.
    n_examples : int
        n.
    delta : float
        How often the bound may fail.

    References
    ----------
    McAllester, "Some PAC-Bayesian theorems", Machine Learning 1999, theorem 1, of which this is
    the form without the terms of `realizable_published`.
    """
    check_confidence(1.0 - delta)
    nats = np.asarray(log_evidence, dtype=np.float64) + np.log(delta)
    return np.asarray(-np.expm1(nats / n_examples))


def realizable_published(log_evidence: npt.ArrayLike, n_examples: int, delta: float) -> FloatArray:
    r"""Return the bound of `realizable` as published, looser by :math:`(2 \log n + 1) / n`.

    .. math:: -\log(1 - R(Q)) \le \frac{\log\frac{1}{P(U)} + 2 \log n + 1
       + \log\frac{1}{\delta}}{n}

    Parameters are those of `realizable`.

    References
    ----------
    Valle-Perez, Louis, "Generalization bounds for deep learning", 2020, after McAllester 1999.
    """
    extra = 2.0 * np.log(n_examples) + 1.0
    return realizable(np.asarray(log_evidence, dtype=np.float64) - extra, n_examples, delta)


def draws_limit(mean: npt.ArrayLike, n_draws: int, delta: npt.ArrayLike) -> FloatArray:
    r"""Return an upper confidence limit of a mean in [0, 1] from independent draws, elementwise.

    .. math:: p \le kl^{-1}\left(\bar X_M \;\middle|\; \frac{\log(1/\delta)}{M}\right)

    with probability 1 - delta, whatever the law on [0, 1] (Chernoff; Hoeffding 1963, theorem 1).
    Dziugaite and Roy have log(2 / delta), which also bounds from below.

    Parameters
    ----------
    mean : array_like
        Of the draws. NaN stays.
    n_draws : int
        M.
    delta : array_like
        How often the limit may fail.
    """
    shares = np.asarray(delta, dtype=np.float64)
    for share in (shares.min(), shares.max()):
        check_confidence(1.0 - float(share))
    return bernoulli_kl_inverse(mean, -np.log(shares) / n_draws)


@dataclass(frozen=True, slots=True)
class PricedPrior:
    """The variance of an isotropic Gaussian prior, chosen on a grid, and what it costs.

    Parameters
    ----------
    variance : ndarray of float64
        The variance of which divergence and price together are least.
    kl : ndarray of float64
        Divergence from the prior of this variance, in nats.
    price : ndarray of float64
        Of choosing it, in nats.
    """

    variance: FloatArray
    kl: FloatArray
    price: FloatArray


def priced_prior(
    squared_distance: npt.ArrayLike,
    trace: npt.ArrayLike,
    log_det: npt.ArrayLike,
    dimension: int,
    *,
    largest: float = 1.0,
    precision: int = 100,
) -> PricedPrior:
    r"""Return the prior :math:`N(w_0, \lambda I)` of the least divergence and price, elementwise.

    The bound holds of all :math:`\lambda_j = c\,e^{-j/b}, j = 1, 2, \ldots` at once with
    :math:`\delta_j = 6 \delta / (\pi j)^2`, which add up to delta; so :math:`\lambda_j` costs

    .. math:: \log(\delta / \delta_j) = 2 \log j + \log\frac{\pi^2}{6}
       = 2 \log\left(b \log\frac{c}{\lambda}\right) + \log\frac{\pi^2}{6}.

    Parameters
    ----------
    squared_distance, trace, log_det : array_like
        Of the posterior's mean from w_0, and of its covariance; see `divergence.gaussian_kl`.
    dimension : int
        Number of weights.
    largest : float
        c, chosen without the data.
    precision : int
        b: neighbours differ by one part in b. However fine the grid, only its best point is looked
        for: where the derivative of the sum by :math:`x = j / b`,
        :math:`\tfrac12 (T e^x / c - d) + 2 / x`, comes from below to 0, T being squared distance
        and trace, or at j = 1.

    Raises
    ------
    UsageError
        If c or b is not positive and finite.

    References
    ----------
    Langford, Caruana, "(Not) bounding the true error", 2002; Dziugaite, Roy 2017, section 3.1.
    """
    if not (0 < largest < np.inf and 0 < precision < np.inf):
        raise UsageError(
            f"largest and precision must be positive numbers, got {largest!r} and {precision!r}"
        )
    given: list[Array] = [
        np.asarray(each, dtype=np.float64) for each in (squared_distance, trace, log_det)
    ]
    distances, traces, dets = np.broadcast_arrays(*given)
    total = distances + traces
    known = np.isfinite(total) & np.isfinite(dets) & (total > 0)
    log_ratio = np.log(np.where(known, total, 1.0)) - np.log(largest)
    near = np.floor(precision * _turning(log_ratio, dimension))
    places = np.stack([np.ones_like(near), *(near + shift for shift in range(-1, 3))])
    places = np.maximum(places, 1.0)
    variance = np.exp(np.log(largest) - places / precision)
    # What is below every number is not a variance.
    there = variance > 0
    kl = gaussian_kl(distances, traces, dets, dimension, np.where(there, variance, 1.0))
    price = 2.0 * np.log(places) + np.log(np.pi**2 / 6.0)
    best = np.where(there, kl + price, np.inf).argmin(axis=0)[None]
    found = (np.take_along_axis(each, best, axis=0)[0] for each in (variance, kl, price))
    return PricedPrior(*(np.where(known, each, np.nan) for each in found))


def _turning(log_ratio: FloatArray, dimension: int) -> FloatArray:
    r"""Return the x > 0 where divergence and price together are least, elementwise, or 0.

    Their derivative, :math:`\tfrac12 (r e^x - d) + 2 / x`, falls to a least value and rises,
    convex, behind it; so Newton's method comes down to its upper root from any point above.

    Parameters
    ----------
    log_ratio : ndarray
        log r, of squared distance and trace to c.
    dimension : int
        d.
    """

    def slope(x: FloatArray) -> FloatArray:
        return np.asarray(0.5 * (np.exp(log_ratio + x) - dimension) + 2.0 / x)

    # The divergence is least here, and the price rises everywhere.
    x = np.asarray(np.log(dimension) - log_ratio)
    # The derivative is least where e^x x^2 = 4 / r.
    middle = np.asarray(2.0 * lambertw(np.exp(-0.5 * log_ratio)).real)
    inside = (middle > 0) & (middle < x)
    middle, x = (np.where(inside, each, 1.0) for each in (middle, x))
    inside &= slope(middle) < 0
    open_ = inside.copy()
    for _ in range(_NEWTON):
        if not open_.any():
            break
        rise = 0.5 * np.exp(log_ratio + x) - 2.0 / x**2
        step = np.where(open_, slope(x) / rise, 0.0)
        open_ &= step > _LAST * x
        x = x - np.where(step > 0, step, 0.0)
    return np.where(inside, x, 0.0)
