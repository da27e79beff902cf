"""Split-KV: what is planned. Needs no GPU; tests/cuda/test_cuda_splits.py runs it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from abilities import require
from cases import MASKS

MODEL = dict(num_heads_q=32, num_heads_kv=8, head_dim=128, dtype="bfloat16", backend="cuda")


def plan(lens_q, lens_k, **options):
    return exactile.plan(seqlens_q=lens_q, seqlens_k=lens_k, **MODEL | options)


def parts(made):
    """The parts of each tile, by (first token, end of the sequence's rows): their splits."""
    found = {}
    for q_begin, q_end, number, _ in made.records:
        found.setdefault((q_begin, q_end), []).append(made._core.splits[number])
    return found


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3000)), min_size=1, max_size=6),
    mask=st.sampled_from(sorted(MASKS)),
    num_splits=st.sampled_from([2, 3, 7, 1000]),
    order=st.sampled_from([None, "natural", "head_major", "longest_first"]),
    pack_gqa=st.booleans(),
)
def test_parts_have_every_block_once(lengths, mask, num_splits, order, pack_gqa):
    lens_q, lens_k = zip(*lengths, strict=True)
    options = dict(order=order, pack_gqa=pack_gqa, pack_sequences=False, **MASKS[mask])
    whole = plan(lens_q, lens_k, num_splits=1, **options)
    made = plan(lens_q, lens_k, num_splits=num_splits, **options)
    assert len(whole._core.splits) == 0
    if made.num_splits == 1:  # every tile visits one block
        np.testing.assert_array_equal(made.records, whole.records)
        return
    tiles = parts(made)
    assert len(tiles) == whole.num_records
    assert made.num_records == sum(map(len, tiles.values())) == len(made._core.splits)
    cu_q, cu_k = made._core.cu_seqlens_q, made._core.cu_seqlens_k
    rows = []
    for (q_begin, _), of_tile in tiles.items():
        b = np.searchsorted(cu_q, q_begin, "right") - 1
        of_tile = sorted(of_tile, key=lambda split: split[1])
        k_begin, first, end, first_row = np.array(of_tile).T
        assert (k_begin == cu_k[b]).all()
        assert len(of_tile) <= num_splits
        assert first[0] == 0
        assert end[-1] == max(1, cu_k[b + 1] - cu_k[b])
        assert (end[:-1] == first[1:]).all()
        assert (first < end).all()
        assert (first % made.block_n == 0).all()
        if len(of_tile) == 1:
            assert first_row[0] == -1
            continue
        tokens = min(made.tile_tokens, cu_q[b + 1] - q_begin)
        assert (np.diff(first_row) == tokens * 32).all()
        rows += [(row, row + tokens * 32) for row in first_row]
    ends = sorted(rows)
    assert ends[0][0] == 0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))


def test_unasked_where_there_are_few_tiles():
    """A decode step of few sequences over many keys; not one of many, nor a prefill."""
    few = plan([1], [131072])
    assert few.num_splits == 16  # 8 heads on 132 multiprocessors
    assert few.valid == 128
    assert "split keys  8 tiles in up to 16 parts" in few.summary()
    uneven = plan([1] * 4, [30000, 1000, 500, 20])
    assert uneven.num_splits > 4
    assert uneven._core.num_split_tiles == 8  # those of the longest
    for lens_q, lens_k in (([1] * 256, [8192] * 256), ([2048] * 8, [2048] * 8), ([1], [200])):
        made = plan(lens_q, lens_k)
        assert made.num_splits == 1
        assert "split keys" not in made.summary()


def test_partial_results_count_where_there_are_some():
    """Of whole tiles of 192 rows they cost nothing: split, these would take longer."""
    options = dict(num_heads_q=8, num_heads_kv=8, pack_sequences=False)
    assert plan([192], [1024], **options).num_splits == 1
    assert plan([192], [8192], **options).num_splits > 1


def test_not_unasked_with_a_scheduler_of_the_callers():
    for scheduler in exactile.SCHEDULERS:
        assert plan([1], [131072], scheduler=scheduler).num_splits == 1
    assert plan([1], [131072], num_splits=1).num_splits == 1
    assert plan([1], [131072], scheduler="ValidOnlyIndividual", num_splits=4).num_splits == 4
    assert plan([1], [131072], workers=3).num_splits == 16  # a device's, not the caller's


def test_a_copy_has_the_same_splits():
    import copy

    made = plan([1, 5], [9000, 100], num_splits=3)
    again = copy.copy(made)
    np.testing.assert_array_equal(again._core.splits, made._core.splits)


@pytest.mark.parametrize("backend", ["cpu", "sycl"])
def test_backends_that_do_not_split(backend):
    options = dict(backend=backend, dtype="float32", num_heads_kv=8)
    if backend == "sycl":
        require("sycl")
    assert plan([1], [9000], num_splits=1, **options).num_splits == 1
    with pytest.raises(ValueError, match=r"expected num_splits=1, or None, for the .* got num_spl"):
        plan([1], [9000], num_splits=2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_splits=0), "expected num_splits >= 1, got 0"),
        (dict(num_splits=-3), "expected num_splits >= 1, got -3"),
        (dict(num_splits=2**31), r"expected num_splits < 2\^31"),
        (dict(num_splits=2, scheduler="Individual"), "a scheduler with a tile list for num_splits"),
        (dict(num_splits=2, pack_sequences=True), "no pack_sequences=True with num_splits > 1"),
    ],
    ids=repr,
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        plan([1, 2], [9000, 50], **options)
    with pytest.raises(TypeError, match="num_splits"):
        plan([1], [9000], num_splits="2")


def test_too_many_partial_results():
    with pytest.raises(ValueError, match=r"expected less than 2\^31 rows of partial results"):
        plan([65536] * 8, [65536] * 8, num_splits=200)
