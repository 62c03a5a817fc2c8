"""The three lines in which ``tracelab demo`` answers its questions, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from tracelab.outcomes import shown
from tracelab.typing import Status

__all__ = ["MORE_STUDIES", "STUDIES", "Study", "answers"]


@dataclass(frozen=True, slots=True)
class Study:
    """An analysis of the demonstration, in one mode on one sketch where it has them."""

    analysis: str
    mode: str | None = None
    sketch: str | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What `tracelab.analyze` is given."""
        given = {"mode": self.mode, "sketch": self.sketch}
        return {key: item for key, item in given.items() if item is not None}


_DIRECTIONS = Study("gaussianity", "batches", "projected")
_COORDINATES = Study("gaussianity", "batches", "sampled")
_POOLED = Study("tail_index", "pooled", "sampled")
_STANDARDIZED = Study("tail_index", "standardized", "sampled")
_BY_COORDINATE = Study("tail_index", "batches", "sampled")
_NOISE = Study("noise_scale")
_WEIGHTS = Study("weight_diffusion")

STUDIES = (
    _DIRECTIONS,
    _COORDINATES,
    _POOLED,
    _STANDARDIZED,
    _BY_COORDINATE,
    _NOISE,
    _WEIGHTS,
)
"""What the answers rest on."""

MORE_STUDIES = (
    Study("gaussianity", "standardized", "sampled"),
    Study("tail_index", "batches", "projected"),
    Study("noise_law", sketch="sampled"),
)
"""What the report of the full demonstration shows besides."""

# From this batch size on Panigrahi et al. find gradient noise Gaussian early in training.
_LARGE_BATCH = 256
_EXPECTED = 0.05
# What the variable `preferred` of weight_diffusion says.
_LAWS = ("undecided", "log t", "a power of t", "saturation")

Found = Mapping[str, Mapping[Study, xr.Dataset]]


def answers(found: Found, batch_sizes: Mapping[str, int]) -> list[str]:
    """Return one line each on Gaussianity, on tails, and on the size and the path of the noise.

    Parameters
    ----------
    found : mapping of str to mapping of Study to xarray.Dataset
        Results of `STUDIES`, by run.
    batch_sizes : mapping of str to int
        Examples in a minibatch, by run.
    """
    return [_gaussianity(found, batch_sizes), _tails(found), _noise_and_weights(found)]


def _gaussianity(found: Found, batch_sizes: Mapping[str, int]) -> str:
    parts, verdicts = [], []
    for run, results in found.items():
        shares = []
        for study in (_DIRECTIONS, _COORDINATES):
            cells = shown(results[study]).sel(test="anderson")
            shares.append(_first_to_last(100 * cells["rejection_rate"], "{:.0f} %"))
        parts.append(f"{run} {' / '.join(shares)}")
        early = shown(results[_DIRECTIONS]).sel(test="anderson").isel(step=slice(0, 1))
        if batch_sizes[run] >= _LARGE_BATCH and early.sizes["step"]:
            rate, low, high = (
                float(early[f"rejection_rate{end}"].item()) for end in ("", "_low", "_high")
            )
            agrees = "agrees" if low <= _EXPECTED <= high else "disagrees"
            verdicts.append(
                f"{agrees} here (batch {batch_sizes[run]} at step {int(early['step'].item())}: "
                f"{100 * rate:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
            )
    return (
        "1. Gaussian? Anderson-Darling at 5 % rejects, at the first -> last probe, of random "
        f"directions / of coordinates: {'; '.join(parts)}. Panigrahi et al. (2019), that on random "
        f"directions batches of {_LARGE_BATCH} and more are Gaussian early: "
        f"{'; '.join(verdicts) or 'not tested here'}."
    )


def _tails(found: Found) -> str:
    modes = {"pooled": _POOLED, "standardized": _STANDARDIZED, "by coordinate": _BY_COORDINATE}
    parts, verdicts = [], []
    for run, results in found.items():
        readings = []
        for name, study in modes.items():
            last = shown(results[study]).isel(step=slice(-1, None))
            if last.sizes["step"]:
                alpha, control = (last[each].item() for each in ("alpha", "alpha_control"))
                readings.append(f"{name} {alpha:.2f} [{control:.2f}]")
        parts.append(f"{run} {', '.join(readings) or 'no number'}")
        pooled = shown(results[_POOLED]).isel(step=slice(-1, None))
        if pooled.sizes["step"]:
            alpha, high, control = (
                pooled[each].item() for each in ("alpha", "alpha_high", "alpha_control")
            )
            if high < 2:
                verdicts.append(f"{run} {100 * min((2 - control) / (2 - alpha), 1):.0f} %")
    verdict = (
        f"agrees here, but pooling alone explains, of the distance to 2, {', '.join(verdicts)}"
        if verdicts
        else "disagrees here"
    )
    return (
        "2. Heavy tails? alpha at the last probe [exactly Gaussian noise of the same covariance]: "
        f"{'; '.join(parts)}. Simsekli et al. (2019), that pooled coordinates read alpha < 2: "
        f"{verdict}."
    )


def _noise_and_weights(found: Found) -> str:
    parts = []
    for run, results in found.items():
        scale = _first_to_last(shown(results[_NOISE])["noise_scale"], "{:,.0f}")
        path = shown(results[_WEIGHTS])
        if int(path["status"]) == int(Status.OK):
            exponent, low, high = (
                float(path[f"power_exponent{end}"]) for end in ("", "_low", "_high")
            )
            walk = f"{_LAWS[int(path['preferred'])]}, t^{exponent:.2f} ({low:.2f} to {high:.2f})"
        else:
            walk = "no number"
        parts.append(f"{run} {scale}; {walk}")
    return (
        "3. How large, and where to? Noise scale (examples) at the first -> last probe; whether "
        "the distance from the initial weights grows like log t or a power of t, or saturates: "
        f"{'. '.join(parts)}."
    )


def _first_to_last(values: xr.DataArray, form: str) -> str:
    if values.size == 0:
        return "no number"
    ends = [float(values.isel(step=index)) for index in (0, -1)][: values.sizes["step"]]
    return " -> ".join(form.format(end) for end in ends)
