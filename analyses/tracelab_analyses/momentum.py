"""What momentum makes of gradients and their noise, from an optimizer's hyper-parameters.

Without preconditioning an update is a sum over past gradients, ``u_t = -lr sum_k h_k g_{t-k}``.
Two sums of its weights say what it does to noise that is independent from step to step: a
constant gradient moves the weights by ``gain = sum h`` times the learning rate a step, and the
noise of one update has ``noise = sum h^2`` times the variance of a gradient's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Momentum", "momentum_of", "number"]


@dataclass(frozen=True, slots=True)
class Momentum:
    r"""How a momentum weighs past gradients.

    Parameters
    ----------
    gain : float
        :math:`\sum_k h_k`: steps of plain SGD that a gradient is worth in the long run. So many
        times is the stationary noise of plain SGD magnified at the same learning rate (the square
        of it in what the weights diffuse, once of it in what pulls them back).
    noise : float
        :math:`\sum_k h_k^2`: variance of one update's noise, over that of plain SGD's.
    magnification : float
        Of positive-negative momentum :math:`(1 + \beta_0)^2 + \beta_0^2`: by how much the ratio of
        an update's noise variance to its squared signal exceeds that of one moving average; 1
        for all others.
    """

    gain: float
    noise: float
    magnification: float = 1.0

    @property
    def update_noise(self) -> float:
        """Noise variance over squared signal of an update, relative to plain SGD's."""
        return self.noise / self.gain**2 if self.gain else math.nan


def momentum_of(optimizer: Any) -> Momentum | None:
    r"""Return what an optimizer's momentum does, or None where it is not known.

    Parameters
    ----------
    optimizer : mapping or sequence of mappings
        Name and default hyper-parameters, as a trace has them in its attributes ``optimizer`` and
        ``optimizers``. Several are known if all do the same.

    Notes
    -----
    ``SGD`` with momentum :math:`\mu` and dampening :math:`\tau` has
    :math:`h_0 = 1` at its first step, and :math:`h_k = (1 - \tau) \mu^k` in the long run, which is
    what is returned; Nesterov's form has :math:`h_0 = 1 + \mu`, :math:`h_k = \mu^{k+1}`.

    ``PNM`` of Xie, Yuan, Zhu, Sugiyama (2021), equations 7 and 8, has
    :math:`m_t = \beta_1^2 m_{t-2} + (1 - \beta_1^2) g_t` and the update
    :math:`[(1 + \beta_0) m_t - \beta_0 m_{t-1}] / \sqrt{(1 + \beta_0)^2 + \beta_0^2}`. Its gain is
    one over that root, and its noise :math:`(1 - \beta_1^2) / (1 + \beta_1^2)`, whatever
    :math:`\beta_0`: two updates in a row take noise back, so that in the long run it is plain SGD
    with a smaller rate. Preconditioned optimizers are not of this form.
    """
    if not isinstance(optimizer, Mapping):
        several = isinstance(optimizer, list | tuple) and len(optimizer) > 0
        found = {momentum_of(each) for each in optimizer} if several else {None}
        return found.pop() if len(found) == 1 else None
    name = optimizer.get("name")
    if name == "SGD":
        return _heavy_ball(
            number(optimizer.get("momentum", 0.0)),
            number(optimizer.get("dampening", 0.0)),
            nesterov=optimizer.get("nesterov") is True,
        )
    if name == "PNM":
        betas = optimizer.get("betas")
        pair = betas if isinstance(betas, list | tuple) and len(betas) == 2 else (None, None)
        first, zeroth = optimizer.get("beta1", pair[0]), optimizer.get("beta0", pair[1])
        return _positive_negative(number(first), number(zeroth))
    return None


def number(value: Any) -> float:
    """Return a hyper-parameter, NaN where it is no number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _heavy_ball(mu: float, dampening: float, *, nesterov: bool) -> Momentum | None:
    if not (0 <= mu < 1 and math.isfinite(dampening)):
        return None
    if mu == 0:
        # Without momentum there is no buffer to dampen.
        return Momentum(1.0, 1.0)
    if nesterov:
        return Momentum(1 / (1 - mu), (1 + mu) ** 2 + mu**4 / (1 - mu**2))
    return Momentum((1 - dampening) / (1 - mu), (1 - dampening) ** 2 / (1 - mu**2))


def _positive_negative(beta1: float, beta0: float) -> Momentum | None:
    if not (0 <= beta1 < 1 and math.isfinite(beta0)):
        return None
    magnification = (1 + beta0) ** 2 + beta0**2
    square = beta1**2
    return Momentum(1 / math.sqrt(magnification), (1 - square) / (1 + square), magnification)
