"""What bounds by information take for granted, and what of it a trace can tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tracelab.typing import Assumption, IntArray
from tracelab_analyses.information_theories import VIRTUAL

__all__ = ["ASSUMPTIONS", "NEEDS", "PROVED", "THEORIES", "assumed"]

THEORIES = (*VIRTUAL, "pensia", "negrea")
ASSUMPTIONS = {
    "plain_sgd": "steps are gradients times one rate: no momentum, weight decay or adaptive steps, "
    "by the optimizers' settings at each of them (what is done to gradients is not seen)",
    "all_layers": "noise was added to all that training changes, running statistics included",
    "bounded": "what is bounded has a bounded range, of every example",
    "held_out": "the gradient of the expected loss was measured on held-out data",
    "expectation": "one run stands for the mean over training sets",
    "scale_fixed": "the scale of the noise was fixed before the data were seen",
    "gradients_bounded": "no gradient is larger than the largest that was seen",
    "full_batch": "every step uses all of the data",
    "proof": "every step of the proof holds",
}
_COMMON = ("plain_sgd", "all_layers", "bounded")
NEEDS = {
    "neu": (*_COMMON, "held_out", "expectation", "scale_fixed"),
    "minkowski": (*_COMMON, "held_out", "expectation", "scale_fixed"),
    "wang_mao": (*_COMMON, "held_out", "expectation", "scale_fixed", "proof"),
    "pensia": (*_COMMON, "gradients_bounded"),
    "negrea": (*_COMMON, "expectation", "full_batch"),
}
PROVED = tuple(theory for theory in THEORIES if "proof" not in NEEDS[theory])


def assumed(facts: Mapping[str, bool | None]) -> IntArray:
    """Return what holds of each theory's assumptions, shape (theory, assumption).

    Parameters
    ----------
    facts : mapping of str to bool or None
        By assumption: whether it holds; None, or nothing, where a trace cannot tell.

    Returns
    -------
    ndarray of uint8
        `tracelab.typing.Assumption`; ``NOT_NEEDED`` where a theory does without.
    """
    values = {None: Assumption.UNCHECKED, True: Assumption.HOLDS, False: Assumption.FAILS}
    return np.array(
        [
            [
                values[facts.get(name)] if name in NEEDS[theory] else Assumption.NOT_NEEDED
                for name in ASSUMPTIONS
            ]
            for theory in THEORIES
        ],
        dtype=np.uint8,
    )
