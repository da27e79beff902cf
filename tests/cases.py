"""Cases that the tests share: batches of random data and their checks, lengths, masks, poison."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import exactile
from exactile.tools.tolerance import compare

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

TESTS = Path(__file__).parent
ROOT = TESTS.parent

STRIDED = """
#include <exactile/scheduler.hpp>
class Strided {
 public:
  using Params = exactile::CountedList;
  EXACTILE_HOST_DEVICE Strided(const Params& params, int group) : params_(params), index_(group) {}
  EXACTILE_HOST_DEVICE static int num_work_groups(const Params& params, int) {
    return params.work_groups;
  }
  EXACTILE_HOST_DEVICE bool is_valid() const { return index_ < params_.list.num_tiles(); }
  EXACTILE_HOST_DEVICE exactile::WorkTile tile() const { return params_.list.tile(index_); }
  EXACTILE_HOST_DEVICE void advance() { index_ += params_.work_groups; }

 private:
  Params params_;
  int index_;
};
"""
"""A policy like ValidOnlyPersistent that needs no counter, but the number of work-groups."""


# --- lengths and masks ----------------------------------------------------------------------------

MASKS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (70, 3)},
    "left window": {"window": (5, -1)},
    "right window": {"window": (-1, 40)},
    "causal window": {"causal": True, "window": (33, -1)},
}
# Zero, one, around a tile and a key block; more queries than keys, fewer, and none of either.
LENS_Q = [5, 0, 130, 1, 64, 127, 7, 0]
LENS_K = [9, 4, 70, 1, 64, 129, 0, 0]

# --- batches --------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Random q, k, v for the lengths, and how they are to be attended."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    cu_q: np.ndarray
    cu_k: np.ndarray | None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    serving: dict[str, Any] = field(default_factory=dict)
    """Arguments that the library and the reference name alike: serving.py has what fills them."""

    def run(self, **options):
        """(out, lse) of the library."""
        return exactile.varlen_prefill(
            self.q,
            self.k,
            self.v,
            self.cu_q,
            self.cu_k,
            causal=self.causal,
            window=self.window,
            return_lse=True,
            **self.serving,
            **options,
        )

    def check(self, out, lse):
        """Every row within the tolerance that the benchmark has, too."""
        found = compare(
            (np.asarray(out), np.asarray(lse)),
            self.q,
            self.k,
            self.v,
            self.cu_q,
            self.cu_k,
            dtype=self.q.dtype.name,
            causal=self.causal,
            window=self.window,
            **self.serving,
        )
        assert found.passed, found


def cumulate(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)


def make_batch(
    lens_q,
    lens_k=None,
    *,
    heads=(4, 2),
    head_dim=64,
    head_dim_v=None,
    dtype="float32",
    seed=0,
    **mask,
) -> Batch:
    rng = np.random.default_rng(seed)
    lens_k = lens_q if lens_k is None else lens_k
    total_q, total_k = int(np.sum(lens_q)), int(np.sum(lens_k))

    def draw(*shape):
        return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])

    return Batch(
        draw(total_q, heads[0], head_dim),
        draw(total_k, heads[1], head_dim),
        draw(total_k, heads[1], head_dim_v or head_dim),
        cumulate(lens_q),
        cumulate(lens_k),
        **mask,
    )


def assert_same_bits(a, b):
    """Bitwise equal arrays, NaN included."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    different = np.flatnonzero(a.view(np.uint8).reshape(-1) != b.view(np.uint8).reshape(-1))
    assert different.size == 0, f"{different.size} bytes differ, first at {different[:4]}"


def place_in_whole(x: np.ndarray) -> tuple[np.ndarray, list[int], int]:
    """The array that `x` is a view of, and strides and offset of `x` there, in elements."""
    whole = x
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    steps = [stride // x.itemsize for stride in x.strides]
    return whole, steps, (x.ctypes.data - whole.ctypes.data) // x.itemsize


def check_any_place_of_a_batch(run, dtype):
    """A sequence alone, and in any place of a batch, has the same bits; run(batch): (out, lse)."""
    lengths = [200, 33, 129, 5]
    whole = make_batch(lengths, dtype=dtype, causal=True)
    out, lse = run(whole)
    permuted = [2, 0, 3, 1]
    pieces = [slice(a, b) for a, b in itertools.pairwise(whole.cu_q)]
    shuffled = make_batch([lengths[i] for i in permuted], dtype=dtype, causal=True)
    for name in "qkv":
        x = getattr(whole, name)
        setattr(shuffled, name, np.concatenate([x[pieces[i]] for i in permuted]))
    shuffled_out, shuffled_lse = run(shuffled)
    assert_same_bits(shuffled_out, np.concatenate([out[pieces[i]] for i in permuted]))
    assert_same_bits(shuffled_lse, np.concatenate([lse[:, pieces[i]] for i in permuted], axis=1))
    for length, piece in zip(lengths, pieces, strict=True):
        alone = make_batch([length], dtype=dtype, causal=True)
        alone.q, alone.k, alone.v = whole.q[piece], whole.k[piece], whole.v[piece]
        alone_out, alone_lse = run(alone)
        assert_same_bits(alone_out, out[piece])
        assert_same_bits(alone_lse, lse[:, piece])


def check_poison_stays(run, dtype, poison, scheduler):
    """Sequences of NaN or Inf change no bit of others; run(batch, scheduler=): (out, lse)."""
    lengths = [40, 17, 70, 100, 1]
    clean = make_batch(lengths, dtype=dtype)
    dirty = make_batch(lengths, dtype=dtype)
    for sequence in (1, 3):
        rows = slice(clean.cu_q[sequence], clean.cu_q[sequence + 1])
        dirty.q[rows] = dirty.k[rows] = dirty.v[rows] = poison
    want, want_lse = run(clean)
    got, got_lse = run(dirty, scheduler=scheduler)
    for sequence, length in enumerate(lengths):
        rows = slice(clean.cu_q[sequence], clean.cu_q[sequence] + length)
        if sequence in (1, 3):
            assert np.isnan(got[rows].astype(np.float32)).all()
        else:
            assert_same_bits(got[rows], want[rows])
            assert_same_bits(got_lse[:, rows], want_lse[:, rows])


# --- scores and poison ----------------------------------------------------------------------------

# Scores that are exact in float32, so that every sum of products gives them: the largest of a row.
LARGEST = {
    "float32": [2.0**20, 2.0**31, 2.0**33, 2.0**64, 2.0**100],
    "float16": [2.0**20, 2.0**32],
    "bfloat16": [2.0**20, 2.0**31, 2.0**33, 2.0**64, 2.0**100],
}


def batch_with_scores(dtype: str, largest: float, keys: int, order: str) -> Batch:
    """Scores of every sign up to 125 / 128 `largest`, `largest` / 128 apart or equal."""
    rng = np.random.default_rng(1)
    batch = make_batch([70], [keys], heads=(2, 1), dtype=dtype)
    weight = rng.integers(-125, 126, keys)
    weight[0] = 125
    if order == "rising":
        weight.sort()
    # 32 equal products for each key; the scale of head_dim 64 is 1 / 8.
    factor = min(2.0 ** (np.log2(largest) // 2), 256)
    batch.q[:] = 0
    batch.q[:, 0, :32] = batch.q[:, 1, 32:] = largest / 512 / factor
    batch.k[:, 0] = factor * np.repeat([weight, -weight], 32, axis=0).T
    return batch


POISONED = {  # mask: (sequence, key); some seen by no row, by some, by all of one
    "causal": ({"causal": True}, [(0, 39), (0, 7), (2, 80), (2, 149), (3, 10)]),
    "window": ({"window": (20, 3)}, [(0, 0), (0, 20), (2, 3), (2, 90), (3, 63)]),
    "left window": ({"window": (9, -1)}, [(0, 1), (2, 15), (2, 64), (3, 0)]),
}


def scale_scores(batch: Batch, lengths: list[int], root: np.float32, order: str) -> None:
    """Multiply q and k by `root`, and k by what lets a sequence's scores rise, fall or mix."""
    factor = {
        "rising": np.concatenate([np.linspace(0.1, 1, n) for n in lengths]),
        "falling": np.concatenate([np.linspace(1, 0.1, n) for n in lengths]),
        "mixed": np.where(np.arange(sum(lengths)) % 3 == 0, 1, 1e-3),
    }[order].reshape(-1, 1, 1)
    batch.q[:] = (batch.q.astype(np.float32) * root).astype(batch.q.dtype)
    batch.k[:] = (batch.k.astype(np.float32) * root * factor).astype(batch.k.dtype)


def poisoned_batches(dtype, mask, poison):
    """(clean batch, poisoned batch, rows that see a poisoned key)."""
    options, places = POISONED[mask]
    lens_q, lens_k = [40, 1, 130, 70], [40, 33, 150, 64]
    clean, dirty = (
        make_batch(lens_q, lens_k, heads=(6, 2), dtype=dtype, **options) for _ in range(2)
    )
    sees = np.zeros(len(clean.q), bool)
    left, right = clean.window
    right = 0 if clean.causal else right
    for sequence, key in places:
        for name in ("v",) if sequence == 3 else ("k", "v"):
            getattr(dirty, name)[clean.cu_k[sequence] + key] = poison
        position = np.arange(lens_q[sequence]) + lens_k[sequence] - lens_q[sequence]
        distance = key - position
        rows = ((left < 0) | (distance >= -left)) & ((right < 0) | (distance <= right))
        sees[clean.cu_q[sequence] + np.flatnonzero(rows)] = True
    assert 0 < sees.sum() < len(sees)
    return clean, dirty, sees
