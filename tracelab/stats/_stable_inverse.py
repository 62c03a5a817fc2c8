r"""Draws of one stable law from a table of its quantiles, indexed by the bits of the probability.

A random word of 64 bits is a side, left or right of the median, and a probability p in
:math:`(0, 1/2)` of being further out. From :math:`2^{-18}` on there are 32 cells an octave of p, so
that the leading bits of the float p are the cell and its remaining bits the local variable of a
polynomial of degree 4. Smaller p, in one draw of 131,072, are inverted one by one.

Both integrate the density from outside in, so that p has the density's relative accuracy however
small it is.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from tracelab.stats._stable_density import (
    Float64,
    collapse,
    cumulate,
    density,
    new_law,
    survival,
    table,
)
from tracelab.stats._stable_skew import (
    FAR,
    collapse_skew,
    new_skew_law,
    reliable,
    skew_density,
    skew_table,
)

__all__ = [
    "ALPHA_SKEWED",
    "ALPHA_SYMMETRIC",
    "Inverse",
    "draw",
    "inverse",
    "new_key",
    "new_keys",
    "transform",
    "words",
]

ALPHA_SYMMETRIC = 0.5
"""Smallest alpha of symmetric laws that are drawn from a table."""

ALPHA_SKEWED = 1.05
"""Smallest alpha of laws with skewness that are: below, the density has fewer digits."""

_OCTAVES = 17
_CELLS = 32 * _OCTAVES
_FIRST = int(np.float64(2.0 ** -(_OCTAVES + 1)).view(np.int64)) >> 47
_REST = np.uint64(0x7FFFFFFFFFFFFFFF)
# The density's errors are a part in 1e8 of what it must be this part of.
_RELIABLE = 0.01
# Words are drawn in pieces that stay in the processor's cache.
_PIECE = 16_384
_LEAST = 1 << (63 - _OCTAVES)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_FEW_NODES, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(4)
_POINTS: Float64 = 0.5 - 0.5 * np.cos(np.pi * (np.arange(5) + 0.5) / 5)
_FROM_POINTS: Float64 = np.linalg.inv(np.vander(_POINTS, increasing=True)).astype(np.float64)


class Inverse(NamedTuple):
    """The table of one law, of scale 1 and location 0 in S0.

    Parameters
    ----------
    coefficients : ndarray, shape (2, cell, 5)
        Of the quantiles left and right of the median, by powers of the place in the cell.
    law : ndarray
        The collapsed density: of a symmetric law (row, 24), of another (2, row, 24).
    x0, alpha : float
        What it is evaluated with.
    """

    coefficients: Float64
    law: Float64
    x0: float
    alpha: float


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _density(law: Float64, x0: float, alpha: float, z: float) -> float:
    if law.ndim == 2:
        return float(density(law, x0, alpha, z)[0])
    return float(skew_density(law, x0, alpha, z)[0])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mass(
    law: Float64,
    x0: float,
    alpha: float,
    side: float,
    ends: tuple[float, float],
    nodes: Float64,
    weights: Float64,
) -> float:
    """Return the integral of the density between two distances from 0 to one side, by Gauss."""
    low, high = ends
    total = 0.0
    for k in range(nodes.size):
        a = low + 0.5 * (high - low) * (1.0 + nodes[k])
        total += weights[k] * _density(law, x0, alpha, side * a)
    return 0.5 * (high - low) * total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _quantile(
    law: Float64,
    x0: float,
    alpha: float,
    side: float,
    p: float,
    at: tuple[float, float],
    nodes: Float64,
    weights: Float64,
) -> float:
    """Return the distance beyond which the probability is p, from one with a smaller one.

    `at` are that distance and its probability; distances are negative on the other side of 0.
    """
    start, known = at
    a = start
    for _ in range(60):
        missing = p - known - _mass(law, x0, alpha, side, (a, start), nodes, weights)
        f = _density(law, x0, alpha, side * a)
        step = missing / f
        # The density grows inwards: whole steps overshoot at most at the first.
        a -= min(step, 0.5 * abs(a) + 0.5)
        if abs(missing) <= 4e-15 * p or abs(step) <= 1e-15 * abs(a):
            break
    return a


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _outer(law: Float64, x0: float, alpha: float, side: float, p: float) -> tuple[float, float]:
    """Return a distance with a probability beyond it of p or a little less, and that."""
    if law.ndim == 2:
        # Its distribution is known everywhere.
        a = 1.0
        while survival(law, x0, alpha, a) > p:
            a *= math.sqrt(2.0)
        return a, survival(law, x0, alpha, a)
    a = FAR - x0
    beyond = _density(law, x0, alpha, side * a) * FAR / alpha
    if p < beyond:
        # There the tail is a power.
        return a * (beyond / p) ** (1.0 / alpha), p
    while True:
        inner = a * math.sqrt(0.5)
        more = _mass(law, x0, alpha, side, (inner, a), _NODES, _WEIGHTS)
        if beyond + more > p:
            return a, beyond
        a, beyond = inner, beyond + more


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _far(law: Float64, x0: float, alpha: float, p: float, right: bool) -> float:
    """Return the quantile p left of the median, or right of it, wherever it is in the tail."""
    side = 1.0 if right else -1.0
    at = _outer(law, x0, alpha, side, p)
    if at[1] == p:
        return side * at[0]
    return side * _quantile(law, x0, alpha, side, p, at, _NODES, _WEIGHTS)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tabulate(
    law: Float64, x0: float, alpha: float, points: Float64, from_points: Float64, out: Float64
) -> bool:
    """Write the coefficients (2, cell, 5); return whether the density could be relied on."""
    values = np.empty(5)
    for s in range(2):
        side = 2.0 * s - 1.0
        if law.ndim == 3:
            z = _far(law, x0, alpha, 2.0**-64, s == 1)
            if abs(z) < FAR and not reliable(_density(law, x0, alpha, z), alpha, z, _RELIABLE):
                return False
        p = math.ldexp(1.0, -(_OCTAVES + 1))
        a = side * _far(law, x0, alpha, p, s == 1)
        width = p / 32.0
        left = p
        for cell in range(_CELLS):
            for k in range(5):
                new = left + width * points[k]
                a = _quantile(law, x0, alpha, side, new, (a, p), _FEW_NODES, _FEW_WEIGHTS)
                p = new
                values[k] = side * a
            if law.ndim == 3:
                f = _density(law, x0, alpha, side * a)
                if not reliable(f, alpha, side * a, _RELIABLE):
                    return False
            for c in range(5):
                total = 0.0
                for k in range(5):
                    total += from_points[c, k] * values[k]
                out[s, cell, c] = total
            left += width
            if cell % 32 == 31:
                width *= 2.0
    return True


@lru_cache(maxsize=64)
def inverse(alpha: float, beta: float) -> Inverse | None:
    """Return the table of a law, or None where it cannot be had to one part in 1e6.

    That is below the smallest alphas, and where a tail is so light that the density, a small part
    of that of a heavy one, has no relative accuracy: near a skewness of 1.
    """
    if alpha < (ALPHA_SYMMETRIC if beta == 0 else ALPHA_SKEWED):
        return None
    if beta == 0:
        law = new_law()
        x0 = collapse(table(), alpha, 0, law)
        cumulate(law, x0, alpha)
    else:
        collapsed = new_skew_law()
        x0 = collapse_skew(skew_table(), alpha, beta, collapsed)
        law = collapsed.rows
    coefficients = np.empty((2, _CELLS, 5))
    if not _tabulate(law, x0, alpha, _POINTS, _FROM_POINTS, coefficients):
        return None
    return Inverse(coefficients, law, x0, alpha)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _locate(random: NDArray[np.uint64], place: Float64, first: NDArray[np.int32]) -> np.uint64:
    """Write the place in its cell of each random word's p, and where the cell's coefficients are.

    Returns the smallest of the words without their sides. Without a branch or a table, so that
    compilers make it parallel.
    """
    least = _REST
    for i in range(random.size):
        rest = random[i] & _REST
        least = min(least, rest)
        p = min((np.float64(np.int64(rest)) + 0.5) * 2.0**-64, 0.5 - 2.0**-54)
        bits = np.float64(p).view(np.int64)
        place[i] = np.float64(bits & 0x7FFFFFFFFFFF) * 2.0**-47
        cell = np.int32(np.maximum((bits >> 47) - _FIRST, 0))
        first[i] = 5 * (cell + np.int32(random[i] >> np.uint64(63)) * _CELLS)
    return least


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _evaluate(
    place: Float64,
    first: NDArray[np.int32],
    coefficients: Float64,
    loc: float,
    scale: float,
    out: Float64,
) -> None:
    for i in range(out.size):
        # Unsigned, or every access would look for a negative index.
        k, u = np.uint64(first[i]), place[i]
        z = coefficients[k + np.uint64(4)]
        z = z * u + coefficients[k + np.uint64(3)]
        z = z * u + coefficients[k + np.uint64(2)]
        z = z * u + coefficients[k + np.uint64(1)]
        z = z * u + coefficients[k]
        out[i] = loc + scale * z


def transform(
    tabulated: Inverse, random: NDArray[np.uint64], loc: float, scale: float, out: Float64
) -> None:
    """Write the draw that each word stands for, location in S0."""
    place, first = np.empty(random.size), np.empty(random.size, dtype=np.int32)
    least = _locate(random, place, first)
    _evaluate(place, first, tabulated.coefficients.reshape(-1), loc, scale, out)
    if least < _LEAST:
        rest = random & _REST
        for i in np.flatnonzero(rest < _LEAST):
            p = (float(rest[i]) + 0.5) * 2.0**-64
            right = bool(random[i] > _REST)
            z = _far(tabulated.law, tabulated.x0, tabulated.alpha, p, right)
            out[i] = loc + scale * z


@numba.njit(nogil=True, cache=True, error_model="numpy")
def words(key: NDArray[np.uint64], first: int, out: NDArray[np.uint64]) -> None:
    """Write the random words of a key from the one numbered `first`: SplitMix64.

    Parameters
    ----------
    key : ndarray of uint64, shape (2,)
        State before the first word, and its odd increment.

    References
    ----------
    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16.
    """
    state, gamma = key
    for i in range(out.size):
        z = state + np.uint64(first + i + 1) * gamma
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = z ^ (z >> np.uint64(31))


def new_keys(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Return keys, (count, 2), from two words of a generator each."""
    keys = rng.integers(0, 1 << 64, size=(count, 2), dtype=np.uint64)
    for key in keys:
        gamma = int(key[1]) | 1
        if (gamma ^ (gamma >> 1)).bit_count() < 24:
            # Too regular to move all bits of the state.
            gamma ^= 0xAAAAAAAAAAAAAAAA
        key[1] = gamma
    return keys


def new_key(rng: np.random.Generator) -> NDArray[np.uint64]:
    """Return a key from two words of a generator."""
    return new_keys(1, rng).reshape(2)


def draw(tabulated: Inverse, loc: float, scale: float, n: int, rng: np.random.Generator) -> Float64:
    """Return `n` draws, location in S0; the generator gives a key."""
    out, key, piece = np.empty(n), new_key(rng), np.empty(_PIECE, dtype=np.uint64)
    for start in range(0, n, _PIECE):
        part = out[start : start + _PIECE]
        words(key, start, piece[: part.size])
        transform(tabulated, piece[: part.size], loc, scale, part)
    return out
