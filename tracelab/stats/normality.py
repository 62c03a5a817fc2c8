r"""Batched tests of normality: arrays in, statistic, p-value and status of every row out.

Tests that read sorted rows share one sort in `battery`; those of moments need none. A row's
numbers do not depend, in any bit, on the rows beside it; kernels run on one thread and release the
interpreter lock, so callers parallelise over rows.

P-values are the published ones where their size holds at every sample size. Where it does not,
null distributions were simulated (``data/make_normality_table.py``) and are the default.
"""

from __future__ import annotations

import numpy.typing as npt

from tracelab.stats._battery import TESTS, NormalityResult, PValue, battery

__all__ = [
    "TESTS",
    "NormalityResult",
    "anderson",
    "battery",
    "cramer_von_mises",
    "dagostino",
    "epps_pulley",
    "jarque_bera",
    "lilliefors",
    "shapiro",
]


def shapiro(x: npt.ArrayLike, axis: int = -1, pvalue: PValue = "simulated") -> NormalityResult:
    r"""Return Shapiro and Wilk's test of normality of every row, for 3 to 1,000,000 samples.

    .. math:: W = \Big(\sum_i a_i x_{(i)}\Big)^2 \Big/ \sum_i (x_i - \bar x)^2

    with Royston's weights.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.
    pvalue : {"simulated", "published"}
        Up to 3,000 samples both are Royston's p-value, exact for three. Above, where its 5 % test
        rejects ever less (4.3 % at 5,000, 2 % at 2e4, 0.2 % at 1e5), it is from a simulated null
        distribution; or Royston's, up to 5,000.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 3 samples all have ``TOO_FEW_SAMPLES``.
        Simulated p-values below 1e-4, where the simulation ends, are given as 1e-4.

    Raises
    ------
    UsageError
        With more than 1,000,000 samples, up to which the null distribution was simulated, or more
        than 5,000 for the published p-value.

    References
    ----------
    P. Royston, "Remark AS R94: A remark on algorithm AS 181: The W-test for normality", Applied
    Statistics 44, 547-551 (1995); https://doi.org/10.2307/2986146. S. S. Shapiro, M. B. Wilk,
    "An analysis of variance test for normality", Biometrika 52, 591-611 (1965).

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_normal((3, 200))
    >>> normality.shapiro(sample).pvalue.round(3)
    array([0.126, 0.018, 0.057])
    """
    return battery(x, ("shapiro",), axis, pvalue)["shapiro"]


def anderson(x: npt.ArrayLike, axis: int = -1) -> NormalityResult:
    r"""Return Anderson and Darling's test of normality of every row, for 8 samples or more.

    .. math:: A^2 = -n - \frac1n \sum_i (2i - 1)
        \big[\log \Phi(z_{(i)}) + \log \Phi(-z_{(n+1-i)})\big], \quad z = (x - \bar x) / s

    with mean and variance estimated. Its size holds at every sample size, and outliers of any
    magnitude have a finite statistic, since the upper tail is ``log Phi(-z)``, never
    ``log(1 - Phi(z))``.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 8 samples all have ``TOO_FEW_SAMPLES``.
        p-values below 3.7e-24, where their formula ends, are given as 3.7e-24.

    References
    ----------
    T. W. Anderson, D. A. Darling, "A test of goodness of fit", Journal of the American Statistical
    Association 49, 765-769 (1954); https://doi.org/10.2307/2281537. p-value: R. B. D'Agostino,
    M. A. Stephens (eds.), "Goodness-of-Fit Techniques", Marcel Dekker 1986, table 4.9.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.anderson(sample).pvalue.max() < 1e-6
    np.True_
    """
    return battery(x, ("anderson",), axis)["anderson"]


def cramer_von_mises(x: npt.ArrayLike, axis: int = -1) -> NormalityResult:
    r"""Return Cramer and von Mises' test of normality of every row, for 8 samples or more.

    .. math:: W^2 = \frac{1}{12 n} + \sum_i \Big(\Phi(z_{(i)}) - \frac{2i - 1}{2n}\Big)^2,
        \quad z = (x - \bar x) / s

    with mean and variance estimated.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 8 samples all have ``TOO_FEW_SAMPLES``.
        P-values below 7.37e-10, where their formula ends, are given as 7.37e-10.

    References
    ----------
    R. B. D'Agostino, M. A. Stephens (eds.), "Goodness-of-Fit Techniques", Marcel Dekker 1986,
    section 4.8; p-value: table 4.9.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.cramer_von_mises(sample).pvalue.max() < 1e-6
    np.True_
    """
    return battery(x, ("cramer_von_mises",), axis)["cramer_von_mises"]


def lilliefors(x: npt.ArrayLike, axis: int = -1, pvalue: PValue = "simulated") -> NormalityResult:
    r"""Return Lilliefors' test of normality of every row, for 5 samples or more.

    .. math:: D = \max_i \max\Big(\frac in - \Phi(z_{(i)}), \Phi(z_{(i)}) - \frac{i - 1}n\Big),
        \quad z = (x - \bar x) / s

    Kolmogorov's distance with mean and variance estimated.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.
    pvalue : {"simulated", "published"}
        From a null distribution simulated at every sample size; or Dallal and Wilkinson's formula
        (Stephens' modified statistic for p > .1), made for up to 100 samples.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 5 samples all have ``TOO_FEW_SAMPLES``.
        P-values below 1e-4, where the simulation ends, are given as 1e-4.

    References
    ----------
    H. W. Lilliefors, "On the Kolmogorov-Smirnov test for normality with mean and variance
    unknown", Journal of the American Statistical Association 62, 399-402 (1967);
    https://doi.org/10.2307/2283970. G. E. Dallal, L. Wilkinson, "An analytic approximation to the
    distribution of Lilliefors's test statistic for normality", The American Statistician 40,
    294-296 (1986); https://doi.org/10.2307/2684607.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.lilliefors(sample).pvalue.max() < 1e-3
    np.True_
    """
    return battery(x, ("lilliefors",), axis, pvalue)["lilliefors"]


def dagostino(x: npt.ArrayLike, axis: int = -1, pvalue: PValue = "simulated") -> NormalityResult:
    r"""Return D'Agostino and Pearson's test of normality of every row, for 8 samples or more.

    .. math:: K^2 = Z(\sqrt{b_1})^2 + Z(b_2)^2

    with D'Agostino's normal approximation of the skewness and that of Anscombe and Glynn of the
    kurtosis. It needs no sort; the order of samples changes no more than its last digits.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.
    pvalue : {"simulated", "published"}
        From a null distribution simulated at every sample size; or the chi-square law with two
        degrees of freedom, made for 20 samples or more.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 8 samples all have ``TOO_FEW_SAMPLES``.
        P-values below 1e-4, where the simulation ends, are given as 1e-4.

    References
    ----------
    R. D'Agostino, E. S. Pearson, "Tests for departure from normality", Biometrika 60, 613-622
    (1973); https://doi.org/10.1093/biomet/60.3.613. R. B. D'Agostino, "Transformation to normality
    of the null distribution of g1", Biometrika 57, 679-681 (1970). F. J. Anscombe, W. J. Glynn,
    "Distribution of the kurtosis statistic b2 for normal samples", Biometrika 70, 227-234 (1983).

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.dagostino(sample).pvalue.max() < 1e-3
    np.True_
    """
    return battery(x, ("dagostino",), axis, pvalue)["dagostino"]


def jarque_bera(x: npt.ArrayLike, axis: int = -1, pvalue: PValue = "simulated") -> NormalityResult:
    r"""Return Jarque and Bera's test of normality of every row, for 8 samples or more.

    .. math:: JB = \frac n6 \Big(b_1 + \frac{(b_2 - 3)^2}4\Big), \quad
        b_1 = m_3^2 / m_2^3, \quad b_2 = m_4 / m_2^2

    with central moments of divisor n. It needs no sort; the order of samples changes no more than
    its last digits.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.
    pvalue : {"simulated", "published"}
        From a null distribution simulated at every sample size; or the limiting chi-square law with
        two degrees of freedom, whose 5 % test rejects less at small sample sizes.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 8 samples all have ``TOO_FEW_SAMPLES``.
        P-values below 1e-4, where the simulation ends, are given as 1e-4.

    References
    ----------
    C. M. Jarque, A. K. Bera, "A test for normality of observations and regression residuals",
    International Statistical Review 55, 163-172 (1987); https://doi.org/10.2307/1403192.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.jarque_bera(sample).pvalue.max() < 1e-3
    np.True_
    """
    return battery(x, ("jarque_bera",), axis, pvalue)["jarque_bera"]


def epps_pulley(x: npt.ArrayLike, axis: int = -1) -> NormalityResult:
    r"""Return Epps and Pulley's test of normality of every row, for 8 samples or more.

    .. math:: T = n \int \Big|\frac1n \sum_j e^{itz_j} - e^{-t^2/2}\Big|^2 \varphi(t)\,dt,
        \quad z = (x - \bar x) / \sqrt{m_2}

    with the standard normal density as weight and the variance of divisor n: the statistic of
    Baringhaus, Henze, Epps and Pulley with beta = 1 in one dimension. The integral is the
    Gauss-Hermite sum over 24 nodes, which is within a hundredth of it and never negative.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, any unit: the test does not depend on location or scale. float32 is
        computed in float64.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    NormalityResult
        Arrays with `axis` removed. Rows with NaN or inf have status ``NON_FINITE_INPUT``, rows of
        equal values ``CONSTANT_INPUT``; with fewer than 8 samples all have ``TOO_FEW_SAMPLES``.
        From a null distribution simulated at every sample size;
        p-values below 1e-4, where the simulation ends, are given as 1e-4.

    References
    ----------
    T. W. Epps, L. B. Pulley, "A test for normality based on the empirical characteristic
    function", Biometrika 70, 723-726 (1983); https://doi.org/10.1093/biomet/70.3.723. L.
    Baringhaus, N. Henze, "A consistent test for multivariate normality based on the empirical
    characteristic function", Metrika 35, 339-348 (1988); https://doi.org/10.1007/BF02613322.

    Examples
    --------
    >>> import numpy as np
    >>> from tracelab.stats import normality
    >>> sample = np.random.default_rng(0).standard_t(2, (3, 200))
    >>> normality.epps_pulley(sample).pvalue.max() < 1e-3
    np.True_
    """
    return battery(x, ("epps_pulley",), axis)["epps_pulley"]
