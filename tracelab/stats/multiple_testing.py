"""P-values of many tests, adjusted for their number."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from statsmodels.stats.multitest import multipletests

from tracelab.errors import UsageError
from tracelab.typing import FloatArray

__all__ = ["Method", "adjusted_pvalues"]

Method: TypeAlias = Literal["holm", "benjamini_hochberg", "benjamini_yekutieli"]

_STATSMODELS = {
    "holm": "holm",
    "benjamini_hochberg": "fdr_bh",
    "benjamini_yekutieli": "fdr_by",
}


def adjusted_pvalues(
    pvalue: npt.ArrayLike, method: Method = "benjamini_hochberg", axis: int | None = None
) -> FloatArray:
    """Return p-values adjusted for the number of tests, by statsmodels' ``multipletests``.

    Rejecting where the adjusted p-value is at most .05 bounds, at .05, the probability of any false
    rejection (``holm``), or the expected share of false ones among all rejections: of independent
    or positively dependent tests (``benjamini_hochberg``), of any (``benjamini_yekutieli``).

    Parameters
    ----------
    pvalue : array_like
        P-values in [0, 1]. NaN, of tests that could not be made, stays NaN and does not count.
    method : {"benjamini_hochberg", "holm", "benjamini_yekutieli"}
        The procedure.
    axis : int, optional
        Along which tests belong together; all of them by default.

    Returns
    -------
    ndarray of float64
        Of the shape of `pvalue`.

    Raises
    ------
    UsageError
        If the method or the axis is unknown, or a p-value is outside [0, 1].

    References
    ----------
    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6, 65-70 (1979). Y. Benjamini, Y. Hochberg, "Controlling the false discovery rate",
    Journal of the Royal Statistical Society B 57, 289-300 (1995). Y. Benjamini, D. Yekutieli, "The
    control of the false discovery rate in multiple testing under dependency", Annals of Statistics
    29, 1165-1188 (2001).

    Examples
    --------
    >>> import numpy as np
    >>> adjusted_pvalues([0.01, 0.04, np.nan, 0.5], "holm")
    array([0.03, 0.08,  nan, 0.5 ])
    """
    if method not in get_args(Method):
        raise UsageError(
            f"there is no method {method!r} of multiple testing; choose from "
            f"{', '.join(get_args(Method))}"
        )
    p = np.asarray(pvalue, dtype=np.float64)
    wrong = p[(p < 0) | (p > 1)]
    if wrong.size:
        raise UsageError(f"p-values must be in [0, 1], got {wrong[0]}; pass on tests' p-values")
    if axis is not None and not -p.ndim <= axis < p.ndim:
        raise UsageError(
            f"axis {axis} is not an axis of p-values with shape {p.shape}; "
            f"choose one of its {p.ndim} axes"
        )
    families = p.reshape(1, p.size) if axis is None else np.moveaxis(p, axis, -1)
    adjusted = np.full(families.shape, np.nan)
    for index in np.ndindex(*families.shape[:-1]):
        known = ~np.isnan(families[index])
        if known.any():
            adjusted[index][known] = multipletests(
                families[index][known], method=_STATSMODELS[method]
            )[1]
    return adjusted.reshape(p.shape) if axis is None else np.moveaxis(adjusted, -1, axis)
