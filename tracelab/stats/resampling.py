"""Resampling and controls: what the same estimator says about data whose law is known."""

from __future__ import annotations

import numba
import numpy as np

from tracelab.typing import FloatArray

__all__ = ["gaussian_control"]


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _mix(weights: FloatArray, x: FloatArray, out: FloatArray) -> None:
    # Plain loops, not BLAS: a threaded product differs in its last bits from machine to machine.
    for i in range(weights.shape[0]):
        for k in range(weights.shape[1]):
            w = weights[i, k]
            for j in range(x.shape[1]):
                out[i, j] += w * x[k, j]


def gaussian_control(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    r"""Return exactly Gaussian noise with the sample covariance of `x`.

    With ``K`` rows ``x_k`` (centred here) and independent standard normal ``w_ik``, the rows
    :math:`y_i = (K-1)^{-1/2} \sum_k w_{ik} x_k` are independent draws of ``N(0, S)``, where ``S``
    is the sample covariance: all scales and all correlations of the data, and no other property.
    An estimator that reads heavy tails in `x` and reads the same in its control has read the
    spread of scales, not the noise.

    Parameters
    ----------
    x : ndarray, shape (batch, series)
        Finite samples; rows are independent.
    rng : numpy.random.Generator
        Source of the weights.

    Returns
    -------
    ndarray of float64, shape (batch, series)
        Centred; the same bits for the same generator state on any machine and thread.

    References
    ----------
    The control of the pooled estimator of Simsekli, Sagun, Gurbuzbalaban, "A Tail-Index Analysis
    of Stochastic Gradient Noise in Deep Neural Networks", ICML 2019, after the criticism of
    Xie, Tang, Sun, "On the Overlooked Structure of Stochastic Gradients", NeurIPS 2023.
    """
    values = np.ascontiguousarray(x, dtype=np.float64)
    count = values.shape[0]
    if count < 2:
        return np.full_like(values, np.nan)
    centred: FloatArray = values - values.mean(axis=0)
    weights = rng.standard_normal((count, count)) / np.sqrt(count - 1)
    out: FloatArray = np.zeros_like(centred)
    _mix(weights, centred, out)
    return out
