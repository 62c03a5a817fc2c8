"""Minibatches drawn from the gradients of single examples: which examples each holds, its noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import UsageError
from tracelab.typing import Array, FloatArray, IntArray

__all__ = ["Draws", "Held", "check_mean", "drawn", "draws_of"]

# Counts of examples that are in memory at a time.
COUNTS = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Which examples the batches of a step hold, batch after batch; see `Draws.at`.

    Parameters
    ----------
    ends : ndarray of int64, shape (batch,)
        Where the entries of each batch end.
    places : ndarray of int32, shape (entry,)
        An example that the batch holds.
    weights : ndarray of float64, shape (entry,)
        What its gradient is multiplied by.
    """

    ends: IntArray
    places: Array
    weights: FloatArray

    @property
    def nbytes(self) -> int:
        """Return the bytes of its arrays."""
        return self.ends.nbytes + self.places.nbytes + self.weights.nbytes


@dataclass(frozen=True, slots=True)
class Draws:
    """How batches are drawn from single examples; see `drawn` for what the numbers mean.

    Parameters
    ----------
    count : int
        Examples that were recorded.
    batch_size, batches, replacement, seed
        See `drawn`.
    scale : float
        By what their noise is multiplied to be that of batches of all the data.
    """

    count: int
    batch_size: int
    batches: int
    replacement: bool
    seed: int
    scale: float

    @classmethod
    def checked(
        cls,
        count: int,
        *,
        batch_size: int,
        batches: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        n_data: int | None = None,
    ) -> Draws:
        """Return draws from `count` examples of `n_data`, or raise a UsageError."""
        batches = count if batches is None else batches
        n_data = count if n_data is None else n_data
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("batches", batches, 1),
            ("seed", seed, 0),
            ("n_data", n_data, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")
        scale = _rescaling(count, n_data, batch_size, replacement)
        return cls(count, int(batch_size), int(batches), replacement, int(seed), scale)

    @property
    def held_bytes(self) -> int:
        """Return the most bytes that a step's `Held` takes."""
        return self.batches * (8 + 12 * min(self.batch_size, self.count))

    def counts(self, step: int) -> FloatArray:
        """Return how often each batch of a step holds each example, shape (batch, example)."""
        return np.concatenate(list(self._counts(step)))

    def at(self, step: int) -> Held:
        """Return what the batches of a step hold."""
        ends, places, weights = [], [], []
        for counts in self._counts(step):
            here = np.nonzero(counts)
            ends.append(np.count_nonzero(counts, axis=1))
            places.append(here[1].astype(np.int32))
            weights.append(counts[here] * (self.scale / self.batch_size))
        return Held(
            np.cumsum(np.concatenate(ends)), np.concatenate(places), np.concatenate(weights)
        )

    def _counts(self, step: int) -> Iterator[FloatArray]:
        """Yield the counts of some batches after the other: they are not held in a table."""
        generator = np.random.default_rng([self.seed, int(step)])
        rows = max(1, COUNTS // self.count)
        for begin in range(0, self.batches, rows):
            size = min(rows, self.batches - begin)
            if self.replacement:
                shares = np.full(self.count, 1 / self.count)
                held = generator.multinomial(self.batch_size, shares, size=size)
            else:
                ones = np.ones(self.count, dtype=np.int64)
                held = generator.multivariate_hypergeometric(
                    ones, self.batch_size, size=size, method="marginals"
                )
            yield held.astype(np.float64)


def draws_of(
    count: int,
    attrs: Mapping[Any, Any],
    *,
    batch_size: int | None = None,
    batches: int | None = None,
    replacement: bool = True,
    seed: int = 0,
) -> Draws | None:
    """Return how batches are drawn from a group of examples; None where single ones are wanted.

    Parameters
    ----------
    count : int
        Examples of the group.
    attrs : mapping
        Its attributes.
    batch_size, batches, replacement, seed
        See `drawn`; left at their defaults, or a batch size of 1 alone, they ask for single
        examples.

    Raises
    ------
    UsageError
        If such batches cannot be drawn from these examples.
    """
    if batch_size in (None, 1) and batches is None and replacement:
        return None
    check_mean(attrs)
    return Draws.checked(
        count,
        batch_size=1 if batch_size is None else batch_size,
        batches=batches,
        replacement=replacement,
        seed=seed,
        n_data=attrs.get("n_data"),
    )


def drawn(
    values: xr.DataArray,
    *,
    batch_size: int,
    batches: int | None = None,
    replacement: bool = True,
    seed: int = 0,
    n_data: int | None = None,
) -> xr.DataArray:
    r"""Return the noise of minibatches drawn from the gradients of single examples.

    Of `m` recorded examples with gradients :math:`g_i` and mean :math:`\bar g`, batch `k` holds
    example `i` :math:`c_{ki}` times, and its noise is

    .. math:: \zeta_k = \frac{a}{b} \sum_i c_{ki} (g_i - \bar g).

    The counts are multinomial with replacement, multivariate hypergeometric without. Batches are
    independent of each other. Where the examples are all `n` of the data, :math:`a = 1` and the
    noise is distributed as that of true minibatches, with covariance

    .. math:: \frac{\Sigma}{b} \quad\text{or, without replacement,}\quad
              \frac{\Sigma}{b} \, \frac{n - b}{n - 1}, \qquad
              \Sigma = \frac1n \sum_i (g_i - \bar g)(g_i - \bar g)^\top .

    Where they are a random part of the data, :math:`a` makes the expected covariance that of
    minibatches of all `n`: :math:`a^2 = \frac{m}{m-1} \frac{n-1}{n}`, and without replacement
    :math:`a^2 = \frac{1 - b/n}{1 - b/m}` (rescaled bootstrap).

    Parameters
    ----------
    values : xarray.DataArray, dims (..., batch, series)
        Gradients, one example along ``batch``; with a coordinate ``step``, on which draws depend.
    batch_size : int
        Examples per synthetic batch, `b`.
    batches : int, optional
        How many. Default: as many as there are examples.
    replacement : bool
        Whether the examples of a batch are drawn with replacement.
    seed : int
        Of the draws. All series, and so all layers, are of the same batches.
    n_data : int, optional
        Size of the data that the examples were drawn from, `n`. Default: they are all of it.

    Returns
    -------
    xarray.DataArray, dims (..., batch, series)
        Lazy if `values` are; attributes ``batch_size``, ``replacement``, ``seed``, ``scale`` (`a`).

    Raises
    ------
    UsageError
        If a number is out of range, or there are too few examples.

    References
    ----------
    Rao, Wu (1988), "Resampling inference with complex survey data", JASA 83(401). Cochran (1977),
    "Sampling techniques", 3rd edition, Theorem 2.2 (the factor (n - b)/(n - 1)).
    """
    draws = Draws.checked(
        values.sizes["batch"],
        batch_size=batch_size,
        batches=batches,
        replacement=replacement,
        seed=seed,
        n_data=n_data,
    )

    def batch_noise(gradients: FloatArray, step: IntArray) -> FloatArray:
        noise = np.empty((*gradients.shape[:-1], draws.batches))
        centred = gradients - gradients.mean(axis=-1, keepdims=True)
        steps = np.broadcast_to(step, gradients.shape[:-1])
        for label in np.unique(step):
            counts = draws.counts(int(label))
            there = steps == label
            noise[there] = centred[there] @ (counts * (draws.scale / draws.batch_size)).T
        return noise

    whole = values.chunk({"batch": -1}) if values.chunks else values
    step = values["step"] if "step" in values.coords else xr.DataArray(0)
    noise: xr.DataArray = xr.apply_ufunc(
        batch_noise,
        whole,
        step.reset_coords(drop=True),
        input_core_dims=[["batch"], []],
        output_core_dims=[["batch"]],
        exclude_dims={"batch"},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"batch": draws.batches}},
    )
    noise = noise.transpose(*values.dims)
    noise.attrs = {
        "batch_size": draws.batch_size,
        "replacement": replacement,
        "seed": draws.seed,
        "scale": draws.scale,
    }
    return noise


def check_mean(attrs: Mapping[Any, Any]) -> None:
    """Raise a UsageError if batches cannot be made of the examples of a group."""
    if not attrs.get("mean_over_examples", True):
        raise UsageError(
            "batches cannot be made of these examples: they were recorded with "
            "mean_over_examples=False, a loss that is no mean over examples"
        )


def _rescaling(count: int, n_data: int, batch_size: int, replacement: bool) -> float:
    """Return by what noise of batches of `count` examples is multiplied to be that of the data."""
    if count > n_data:
        raise UsageError(f"{count} examples cannot be drawn from data of {n_data}")
    if not replacement and batch_size > count:
        raise UsageError(
            f"batch_size={batch_size} without replacement exceeds the {count} recorded examples; "
            "lower it or set replacement=True"
        )
    if count == n_data:
        return 1.0
    if count == 1 or (not replacement and batch_size == count):
        raise UsageError(
            f"batch_size={batch_size} of {count} recorded examples out of {n_data}: batches do not "
            "differ, which says nothing of the data; record more examples"
        )
    if replacement:
        return float(np.sqrt(count / (count - 1) * (n_data - 1) / n_data))
    return float(np.sqrt((1 - batch_size / n_data) / (1 - batch_size / count)))
