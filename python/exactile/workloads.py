"""Workloads: the lengths of a batch, drawn from a distribution or read from a trace.

`zipf` and `normal` give, bit for bit, the lengths of the C++ benchmark of intel/sycl-tla pull
request 516 (std::mt19937 and the libstdc++ distributions), so that numbers can be compared.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from exactile import _trace
from exactile._arrays import running_sums

SEED = 0x202305151552
"""Seed of the original benchmark; std::mt19937 takes its low 32 bits."""

_INT32_MAX = 2**31 - 1


class Lengths(NamedTuple):
    """Lengths of a batch in tokens, one per sequence; both arrays are int32, shape (batch,)."""

    q: npt.NDArray[np.int32]
    k: npt.NDArray[np.int32]

    @property
    def cu_seqlens(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """`(cu_seqlens_q, cu_seqlens_k)`: int32, shape (batch + 1,), first entry 0."""
        return _cumulate(self.q, "q"), _cumulate(self.k, "k")


def _cumulate(seqlens: npt.NDArray[np.int32], name: str) -> npt.NDArray[np.int32]:
    cu_seqlens = running_sums(seqlens)
    if cu_seqlens[-1] > _INT32_MAX:
        raise ValueError(
            f"cu_seqlens_{name}: expected <= {_INT32_MAX} tokens, got {cu_seqlens[-1]}"
        )
    return cu_seqlens.astype(np.int32)


def _at_least(minimum: float, **values: float) -> None:
    for name, value in values.items():
        if not minimum <= value < math.inf:
            raise ValueError(f"{name}: expected a number >= {minimum}, got {value}")


def _integers(minimum: int, **values: int) -> None:
    for name, value in values.items():
        try:
            operator.index(value)
        except TypeError:
            raise TypeError(f"{name}: expected an integer, got {value!r}") from None
        if value < minimum:
            raise ValueError(f"{name}: expected an integer >= {minimum}, got {value}")


def _lengths(q: npt.ArrayLike, k: npt.ArrayLike | None = None, *, round_to: int = 1) -> Lengths:
    """Round the lengths up to multiples of `round_to`; `k` is `q` when left out."""
    _integers(1, round_to=round_to)
    rounded = [
        np.ceil(np.asarray(x, np.float64) / round_to) * round_to for x in (q, q if k is None else k)
    ]
    longest = max(x.max(initial=0) for x in rounded)
    if longest > _INT32_MAX:
        raise ValueError(f"lengths: expected at most {_INT32_MAX} tokens, got {longest:.0f}")
    return Lengths(*(x.astype(np.int32) for x in rounded))


def _canonical(seed: int) -> Iterator[float]:
    """std::uniform_real_distribution<double>(0, 1) of libstdc++ on std::mt19937(uint32(seed))."""
    _integers(0, seed=seed)
    engine = np.random.RandomState(seed & 0xFFFFFFFF)  # seeded as std::mt19937 is
    while True:
        low, high = engine.randint(0, 2**32, size=(1024, 2), dtype=np.uint32).T.astype(np.float64)
        x = np.minimum((low + high * 2.0**32) / 2.0**64, np.nextafter(1.0, 0.0))
        yield from x.tolist()


def _polar(uniform: Iterator[float], mean: float, stddev: float) -> Iterator[float]:
    """std::normal_distribution<double>(mean, stddev) of libstdc++: Marsaglia's polar method."""
    while True:
        x, y = 2.0 * next(uniform) - 1.0, 2.0 * next(uniform) - 1.0
        r2 = x * x + y * y
        if 0.0 < r2 <= 1.0:
            scale = math.sqrt(-2.0 * math.log(r2) / r2)
            yield y * scale * stddev + mean
            yield x * scale * stddev + mean


def zipf(
    batch: int,
    *,
    max_len: int = 16384,
    alpha: float = 1.098,
    round_to: int = 32,
    seed: int = SEED,
) -> Lengths:
    """Lengths from a truncated Zipf law: P(n) proportional to n**-alpha for n = 1 ... max_len.

    Parameters
    ----------
    batch : int
        Number of sequences.
    max_len : int
        Longest length in tokens, before rounding.
    alpha : float
        Exponent; larger is more skewed.
    round_to : int
        Lengths are rounded up to a multiple of this many tokens (32 = 64 bytes of a 2-byte type).
    seed : int
        Seed of the engine; its low 32 bits count.

    Returns
    -------
    Lengths
        kv lengths equal q lengths.

    Raises
    ------
    ValueError
        A parameter is out of range.

    References
    ----------
    intel/sycl-tla pull request 516, `initialize_varlen_zipf`.
    """
    _integers(0, batch=batch)
    _integers(1, max_len=max_len)
    _at_least(0, alpha=alpha)
    # math.pow and sums in index order: the bits of the C++ loop.
    weights = [math.pow(n, -alpha) for n in range(1, max_len + 1)]
    cdf = np.cumsum(np.array(weights) / np.cumsum(weights)[-1])
    cdf[-1] = 1.0
    uniform = _canonical(seed)
    x = [next(uniform) for _ in range(batch)]
    return _lengths(np.searchsorted(cdf, x, side="right") + 1, round_to=round_to)


def normal(
    batch: int,
    *,
    mean: float = 1024,
    stddev: float = 512,
    mean_k: float | None = None,
    stddev_k: float | None = None,
    round_to: int = 32,
    seed: int = SEED,
    kv_equals_q: bool = True,
) -> Lengths:
    """Lengths from a normal distribution, redrawn until positive.

    Parameters
    ----------
    batch : int
        Number of sequences.
    mean, stddev : float
        Of the q lengths, in tokens.
    mean_k, stddev_k : float, optional
        Of the kv lengths when they are drawn on their own; default: those of q.
    round_to : int
        Lengths are rounded up to a multiple of this many tokens.
    seed : int
        Seed of the engine; its low 32 bits count.
    kv_equals_q : bool
        True: kv lengths equal q lengths, one draw per sequence (the pull request). False: q, then
        kv, are drawn for each sequence from the same engine (the benchmark before it).

    Returns
    -------
    Lengths

    Raises
    ------
    ValueError
        A parameter is out of range, or mean_k/stddev_k are given with kv_equals_q.

    References
    ----------
    intel/sycl-tla pull request 516, `initialize_varlen`.
    """
    if kv_equals_q and (mean_k, stddev_k) != (None, None):
        raise ValueError("mean_k, stddev_k: expected none with kv_equals_q=True")
    mean_k, stddev_k = mean if mean_k is None else mean_k, stddev if stddev_k is None else stddev_k
    _integers(0, batch=batch)
    _at_least(0, stddev=stddev, stddev_k=stddev_k)
    _at_least(1, mean=mean, mean_k=mean_k)
    uniform = _canonical(seed)
    # Two distributions on one engine: each keeps its own spare value.
    draws_q, draws_k = _polar(uniform, mean, stddev), _polar(uniform, mean_k, stddev_k)

    def positive(draws: Iterator[float]) -> int:
        return next(n for n in map(int, draws) if n > 0)

    if kv_equals_q:
        return _lengths([positive(draws_q) for _ in range(batch)], round_to=round_to)
    pairs = [(positive(draws_q), positive(draws_k)) for _ in range(batch)]
    return _lengths(*np.array(pairs, np.int64).reshape(batch, 2).T, round_to=round_to)


def uniform(
    batch: int, *, low: int = 1, high: int = 2047, round_to: int = 1, seed: int = SEED
) -> Lengths:
    """Lengths uniform on the integers low ... high, both included.

    Parameters
    ----------
    batch : int
        Number of sequences.
    low, high : int
        Shortest and longest length in tokens, before rounding; 0 <= low <= high.
    round_to : int
        Lengths are rounded up to a multiple of this many tokens.
    seed : int
        Seed of the engine; its low 32 bits count.

    Returns
    -------
    Lengths
        kv lengths equal q lengths.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """
    _integers(0, batch=batch, low=low)
    _integers(low, high=high)
    draws = _canonical(seed)
    return _lengths(
        [low + int(next(draws) * (high - low + 1)) for _ in range(batch)], round_to=round_to
    )


def lognormal(
    batch: int,
    *,
    mean: float = 1024,
    sigma: float = 1.2,
    max_len: int = 16384,
    round_to: int = 1,
    seed: int = SEED,
) -> Lengths:
    """Lengths from a log-normal distribution, clamped to 1 ... max_len.

    Parameters
    ----------
    batch : int
        Number of sequences.
    mean : float
        Mean length in tokens, before clamping.
    sigma : float
        Standard deviation of the natural logarithm of the length; larger is more skewed.
    max_len : int
        Longest length in tokens, before rounding.
    round_to : int
        Lengths are rounded up to a multiple of this many tokens.
    seed : int
        Seed of the engine; its low 32 bits count.

    Returns
    -------
    Lengths
        kv lengths equal q lengths.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """
    _integers(0, batch=batch)
    _integers(1, max_len=max_len)
    _at_least(0, sigma=sigma)
    _at_least(1, mean=mean)
    draws = _polar(_canonical(seed), math.log(mean) - sigma * sigma / 2, sigma)
    # The exponent is clamped first: exp() of a wild draw overflows.
    x = [math.exp(min(next(draws), math.log(max_len))) for _ in range(batch)]
    return _lengths(np.clip(np.rint(x), 1, max_len), round_to=round_to)


def constant(batch: int, *, seqlen_q: int = 1024, seqlen_k: int | None = None) -> Lengths:
    """Give every sequence the same length.

    Parameters
    ----------
    batch : int
        Number of sequences.
    seqlen_q : int
        Length of q in tokens, >= 0.
    seqlen_k : int, optional
        Length of k and v in tokens, >= 0; default: that of q.

    Returns
    -------
    Lengths

    Raises
    ------
    ValueError
        A parameter is out of range.
    """
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    _integers(0, batch=batch, seqlen_q=seqlen_q, seqlen_k=seqlen_k)
    for length in seqlen_q, seqlen_k:
        if length > _INT32_MAX:
            raise ValueError(f"lengths: expected at most {_INT32_MAX} tokens, got {length}")
    return Lengths(*(np.full(batch, length, np.int32) for length in (seqlen_q, seqlen_k)))


def mixed(
    batch: int,
    *,
    prefills: int | None = None,
    low: int = 4096,
    high: int = 16384,
    seed: int = SEED,
) -> Lengths:
    """A step of an engine: decode steps of one token, and behind them prompts.

    Parameters
    ----------
    batch : int
        Number of sequences.
    prefills : int, optional
        How many of them are prompts, of low // 2 to high // 2 tokens. Default: one in 40, and at
        least one.
    low, high : int
        Keys of a decode step: uniform from low to high.
    seed : int
        Seed of the generator.

    Returns
    -------
    Lengths
        kv lengths of the prompts equal their q lengths.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """
    prefills = min(batch, max(1, batch // 40)) if prefills is None else prefills
    _integers(0, batch=batch, prefills=prefills, seed=seed)
    _integers(2, low=low)
    _integers(low, high=high)
    if prefills > batch:
        raise ValueError(f"prefills: expected at most batch, {batch}, got {prefills}")
    rng = np.random.default_rng(seed)
    keys = rng.integers(low, high + 1, batch - prefills)
    prompts = rng.integers(low // 2, high // 2 + 1, prefills)
    return _lengths(np.concatenate([np.ones_like(keys), prompts]), np.concatenate([keys, prompts]))


def trace(
    batch: int | None,
    path: str | Path,
    *,
    column: str = "context_tokens",
    start: int = 0,
) -> Lengths:
    """Lengths read from one column of a CSV file with a header row, such as a log of real requests.

    Parameters
    ----------
    batch : int or None
        Number of sequences: rows start ... start + batch - 1. No row after them is read. None: all
        rows from `start` on, of a file of at most 16,777,216.
    path : str or pathlib.Path
        The file. Rows have at most 65,535 characters.
    column : str
        Name of the column that holds the lengths in tokens.
    start : int
        First row, counted from 0 after the header.

    Returns
    -------
    Lengths
        kv lengths equal q lengths.

    Raises
    ------
    ValueError
        The file is missing, unreadable or empty, lacks the column, has a row without a length in it
        or one that is too long (the message gives ``file:line``), or too few or too many rows.
    TypeError
        `batch` or `start` is no integer.
    """
    _integers(0, batch=0 if batch is None else batch, start=start)
    return _lengths(np.array(_trace.read_column(path, column, start, batch), np.int32))


DISTRIBUTIONS: dict[str, Callable[..., Lengths]] = {
    f.__name__: f for f in (zipf, normal, uniform, lognormal, constant, mixed)
}
"""The distributions by name; each is called as `f(batch, **parameters)`."""


def distribution(name: str) -> Callable[..., Lengths]:
    """Return the distribution called `name`; a ValueError lists those that exist."""
    if name not in DISTRIBUTIONS:
        raise ValueError(f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, got {name!r}")
    return DISTRIBUTIONS[name]
