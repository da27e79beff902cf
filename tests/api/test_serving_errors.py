"""Bad lengths, pages, softcaps, sinks and slopes: an error that names them, nothing is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import exactile
from abilities import require
from cases import make_batch
from serving import SENTINEL, in_pages, some_sinks, some_slopes, with_scores, with_used_lengths

PLAN = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="float32")
PAGES = dict(seqused_k=[30, 20], page_size=16)
INT32_MAX = 2**31 - 1


def expected(name: str, got: str = "") -> str:
    """The pattern of an error about an argument."""
    return rf"(?s)^(plan|varlen_prefill): (expected|.*{name}: expected) .*{name}.*, got .*{got}"


# --- lengths, when planned ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "name", "got"),
    [
        (dict(seqused_q=[9, 3]), ValueError, "seqused_q", "9"),
        (dict(seqused_q=[-1, 3]), ValueError, "seqused_q", "-1"),
        (dict(seqused_q=[8]), ValueError, "seqused_q", "1"),
        (dict(seqused_q=[8, 8, 8]), ValueError, "seqused_q", "3"),
        (dict(seqused_q=[[8, 8]]), ValueError, "seqused_q", r"\(1, 2\)"),
        (dict(seqused_q=[8.0, 8.0]), TypeError, "seqused_q", "float64"),
        (dict(seqused_q=8), (TypeError, ValueError), "seqused_q", ""),
        (dict(seqused_q="ab"), TypeError, "seqused_q", ""),
        (dict(seqused_q=[2**31, 0]), ValueError, "seqused_q", "2147483648"),
        (dict(seqused_k=[8, 9]), ValueError, "seqused_k", "9"),
        (dict(seqused_k=[INT32_MAX, 0]), ValueError, "seqused_k", "2147483647"),
        (dict(seqused_k=[3, -(2**31)]), ValueError, "seqused_k", "-2147483648"),
        (dict(seqused_k=[]), ValueError, "seqused_k", "0"),
        (dict(seqused_k=np.zeros((2, 1), np.int32)), ValueError, "seqused_k", r"\(2, 1\)"),
        (dict(seqused_k=np.array([True, True])), TypeError, "seqused_k", "bool"),
        (dict(page_size=16), (TypeError, ValueError), "seqused_k", ""),
        (PAGES | dict(page_size=0), ValueError, "page_size", "0"),
        (PAGES | dict(page_size=-16), ValueError, "page_size", "-16"),
        (PAGES | dict(page_size=2**31), ValueError, "page_size", "2147483648"),
        (PAGES | dict(page_size=16.0), TypeError, "page_size", "float"),
        (PAGES | dict(page_size=True), TypeError, "page_size", "bool"),
        (PAGES | dict(page_size="16"), TypeError, "page_size", "str"),
        (PAGES | dict(page_size=INT32_MAX), ValueError, "page_size from 1 to", "2147483647"),
        (PAGES | dict(seqused_k=[-1, 3]), ValueError, "seqused_k", "-1"),
        (PAGES | dict(seqused_k=[]), ValueError, "seqused_k", "0"),
        (PAGES | dict(seqused_k=[30, 20, 10]), ValueError, "seqused_k", "3"),
        (PAGES | dict(seqused_k=[2**30, 2**30]), ValueError, "seqused_k", "2147483648"),
        (PAGES | dict(cu_seqlens_k=[0, 8, 16]), ValueError, "seqused_k", "30"),
        (PAGES | dict(seqlens_k=[30, 19]), ValueError, "seqused_k", "20"),
        (PAGES | dict(cu_seqlens_k=[0, 50]), ValueError, "cu_seqlens_", ""),
    ],
    ids=repr,
)
def test_plan(options, error, name, got):
    exactile.plan([0, 8, 16], **PLAN, **PAGES)
    with pytest.raises(error, match=expected(name, got)):
        exactile.plan([0, 8, 16], **PLAN, **options)


# --- what a run is given --------------------------------------------------------------------------


def paged_batch():
    """Two sequences of 5 queries, 40 and 20 keys in 2 to 3 pages of 16; 8 pages, all features."""
    batch = make_batch([5, 5], [40, 20], causal=True)
    batch = with_scores(batch, 2.0, some_sinks(4), some_slopes(4))
    return in_pages(with_used_lengths(batch, "q"), 16)


def with_entry(row: int, column: int, value: int):
    """A table with another entry."""

    def change(table):
        table = table.copy()
        table[row, column] = value
        return table

    return change


BAD_OPTIONS = {
    # block_table
    "int64 table": ("block_table", lambda x: x.astype(np.int64), "int64"),
    "float table": ("block_table", lambda x: x.astype(np.float32), "float32"),
    "uint32 table": ("block_table", lambda x: x.astype(np.uint32), "uint32"),
    "table of rank 1": ("block_table", lambda x: x[0], ""),
    "table of rank 3": ("block_table", lambda x: x[None], ""),
    "table of one sequence": ("block_table", lambda x: x[:1], r"\(1, "),
    "table of three sequences": ("block_table", lambda x: np.repeat(x, 2, 0)[:3], r"\(3, "),
    "too few columns": ("block_table", lambda x: x[:, :2], "2"),
    "no columns": ("block_table", lambda x: x[:, :0], "0"),
    "columns apart": ("block_table", lambda x: np.repeat(x, 2, 1)[:, ::2], "2"),
    "columns that fall": ("block_table", lambda x: x[:, ::-1], "-1"),
    "big-endian table": ("block_table", lambda x: x.astype(">i4"), ">i4"),
    "table of lists": ("block_table", lambda x: x.tolist(), "list"),
    "negative page": ("block_table", with_entry(0, 1, -1), "-1"),
    "page past the last": ("block_table", with_entry(1, 1, 8), "8"),
    "page of 31 bits": ("block_table", with_entry(0, 2, INT32_MAX), "2147483647"),
    "most negative page": ("block_table", with_entry(1, 0, -(2**31)), "-2147483648"),
    # softcap
    "softcap < 0": ("softcap", lambda _: -1.0, "-1"),
    "softcap NaN": ("softcap", lambda _: np.nan, "nan"),
    "softcap Inf": ("softcap", lambda _: np.inf, "inf"),
    "softcap -Inf": ("softcap", lambda _: -np.inf, "-inf"),
    "softcap past float32": ("softcap", lambda _: 1e300, r"1e\+300"),
    "softcap below float32": ("softcap", lambda _: 1e-300, "1e-300"),
    "softcap that is text": ("softcap", lambda _: "30", "str"),
    "softcap of many": ("softcap", lambda _: [1.0, 2.0], "list"),
    # sinks
    "three sinks": ("sinks", lambda x: x[:3], r"\(3,\)"),
    "sinks of sequences": ("sinks", lambda x: np.stack([x, x]), r"\(2, 4\)"),
    "one sink": ("sinks", lambda x: x[0], ""),
    "float64 sinks": ("sinks", lambda x: x.astype(np.float64), "float64"),
    "float16 sinks": ("sinks", lambda x: x.astype(np.float16), "float16"),
    "int sinks": ("sinks", lambda x: np.zeros(4, np.int32), "int32"),
    "sinks apart": ("sinks", lambda x: np.repeat(x, 2)[::2], "2"),
    "sinks that fall": ("sinks", lambda x: x[::-1], "-1"),
    "one sink for all": ("sinks", lambda x: np.broadcast_to(x[0], 4), "0"),
    "list of sinks": ("sinks", lambda x: x.tolist(), "list"),
    # alibi_slopes
    "five slopes": ("alibi_slopes", lambda x: np.resize(x, 5), r"\(5,\)"),
    "slopes of one of two": ("alibi_slopes", lambda x: x[None], r"\(1, 4\)"),
    "slopes turned round": ("alibi_slopes", lambda x: np.stack([x, x], 1), r"\(4, 2\)"),
    "slopes of rank 3": ("alibi_slopes", lambda x: np.resize(x, (1, 2, 4)), r"\(1, 2, 4\)"),
    "float64 slopes": ("alibi_slopes", lambda x: x.astype(np.float64), "float64"),
    "bool slopes": ("alibi_slopes", lambda x: x > 0, "bool"),
    "slopes apart": ("alibi_slopes", lambda x: np.repeat([x, x], 2, 1)[:, ::2], "2"),
    "one slope": ("alibi_slopes", lambda x: 0.5, "float"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options(case):
    name, change, got = BAD_OPTIONS[case]
    batch = paged_batch()
    batch.serving[name] = change(batch.serving[name])
    out = np.full_like(batch.q, SENTINEL)
    with pytest.raises((ValueError, TypeError), match=expected(name, got)):
        batch.run(out=out)
    assert (out == SENTINEL).all()


def test_what_is_bad_is_bad_in_place(scheduler):
    """out = q: nothing is written there either, and by no policy."""
    batch = paged_batch()
    before = batch.q.copy()
    batch.serving["block_table"][1, 1] = 8
    with pytest.raises(ValueError, match=expected("block_table", "8")):
        batch.run(out=batch.q, scheduler=scheduler)
    np.testing.assert_array_equal(batch.q, before)


BAD_ARRAYS = {
    "k of rank 3": ("k", lambda x: x[0], ""),
    "v of rank 3": ("v", lambda x: x[0], ""),
    "k of rank 5": ("k", lambda x: x[None], ""),
    "v of smaller pages": ("v", lambda x: x[:, :15], r"15"),
    "v of fewer pages": ("v", lambda x: x[:-1], ""),
    "v of one head": ("v", lambda x: x[:, :, :1], ""),
    "k of another head_dim": ("k", lambda x: x[..., :32], "32"),
    "k of another dtype": ("k", lambda x: x.astype(np.float16), "float16"),
    "k with gaps": ("k", lambda x: np.repeat(x, 2, 3)[..., ::2], "2"),
    "k without pages": ("k", lambda x: x[:0], ""),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays(case):
    name, change, got = BAD_ARRAYS[case]
    batch = paged_batch()
    setattr(batch, name, change(getattr(batch, name)))
    out = np.full_like(batch.q, SENTINEL)
    with pytest.raises(ValueError, match=rf"(?s)expected .*, got .*{got}"):
        batch.run(out=out)
    assert (out == SENTINEL).all()


def planned_run(batch, page_size=16, **changes):
    """A run of a plan for pages of `page_size`; what it refuses it does not write."""
    serving = batch.serving | changes
    used = {name: serving.pop(name, None) for name in ("seqused_q", "seqused_k")}
    plan = exactile.plan(batch.cu_q, batch.cu_k, page_size=page_size, causal=True, **PLAN, **used)
    out = np.full_like(batch.q, SENTINEL)
    try:
        plan.run(batch.q, batch.k, batch.v, out=out, **serving)
    except ValueError:
        assert (out == SENTINEL).all()
        raise


def test_another_page_size():
    for page_size in 8, 32, 1:
        with pytest.raises(ValueError, match=rf"(?s)expected .*{page_size}.*, got .*16"):
            planned_run(paged_batch(), page_size)


def test_a_table_without_page_size():
    batch = make_batch([5, 5], [40, 20])
    table = np.zeros((2, 3), np.int32)
    plan = exactile.plan(batch.cu_q, batch.cu_k, **PLAN)
    out = np.full_like(batch.q, SENTINEL)
    with pytest.raises((ValueError, TypeError), match=r"(?s)expected .*(block_table|page_size)"):
        plan.run(batch.q, batch.k, batch.v, out=out, block_table=table)
    with pytest.raises((ValueError, TypeError), match=r"expected .*rank"):
        exactile.varlen_prefill(
            batch.q, batch.k, batch.v, batch.cu_q, batch.cu_k, out=out, block_table=table
        )
    assert (out == SENTINEL).all()


def test_pages_without_a_table():
    batch = paged_batch()
    out = np.full_like(batch.q, SENTINEL)
    with pytest.raises(ValueError, match=r"expected block_table with a plan of page_size=16, got"):
        planned_run(batch, block_table=None)
    del batch.serving["block_table"]
    with pytest.raises(ValueError, match=r"expected k of rank 3 .*, got shape \(8, 16, 2, 64\)"):
        batch.run(out=out)
    assert (out == SENTINEL).all()


def test_pages_without_lengths_of_keys():
    batch = paged_batch()
    del batch.serving["seqused_k"]
    out = np.full_like(batch.q, SENTINEL)
    with pytest.raises((ValueError, TypeError), match=expected("seqused_k")):
        batch.run(out=out)
    assert (out == SENTINEL).all()


def test_cu_seqlens_k_against_the_table():
    """Lengths that the table has no columns for, and used lengths that exceed them."""
    batch = paged_batch()
    columns = batch.serving["block_table"].shape[1]
    out = np.full_like(batch.q, SENTINEL)
    del batch.serving["seqused_k"]
    batch.cu_k = np.array([0, 16 * columns + 1, 16 * columns + 21], np.int32)
    with pytest.raises(ValueError, match=expected("block_table", str(columns))):
        batch.run(out=out)
    batch.cu_k = np.array([0, 39, 60], np.int32)
    batch.serving["seqused_k"] = np.array([40, 20], np.int32)
    with pytest.raises(ValueError, match=expected("seqused_k", "40")):
        batch.run(out=out)
    assert (out == SENTINEL).all()


def test_entries_that_are_not_read():
    """Past a sequence's last page any number may stand, and where no row counts any page."""
    batch = make_batch([5, 0], [17, 40])
    paged = in_pages(batch, 16)
    paged.serving["block_table"][0, 2:] = INT32_MAX
    paged.check(*paged.run())
    paged.serving["seqused_k"][:] = 0
    paged.serving["block_table"][:] = -1
    assert (paged.run()[0] == 0).all()


def test_padded_rows():
    """q may have more rows than the sequences; out has as many as q, never fewer."""
    batch = make_batch([5, 5])
    q = np.concatenate([batch.q, batch.q])
    batch = replace(batch, q=q)
    for rows in 10, 19, 21:
        out = np.full((rows, 4, 64), SENTINEL, np.float32)
        with pytest.raises(ValueError, match=rf"out of shape \(20, 4, 64\), got \({rows}, 4, 64\)"):
            batch.run(out=out)
        assert (out == SENTINEL).all()
    too_few = replace(batch, q=q[:9])
    out = np.full((9, 4, 64), SENTINEL, np.float32)
    with pytest.raises(ValueError, match="9"):
        too_few.run(out=out)
    for name in "kv":
        with pytest.raises(ValueError, match="got"):
            replace(batch, **{name: getattr(batch, name)[:9]}).run()


def test_out_that_overlaps_a_page():
    batch = make_batch([16, 16], [16, 16], heads=(2, 2))
    paged = in_pages(batch, 16)
    memory = np.zeros((2 + len(paged.k), 16, 2, 64), np.float32)
    memory[2:] = paged.k
    paged.k = memory[2:]
    out = memory[1:3].reshape(32, 2, 64)
    before = memory.copy()
    with pytest.raises(ValueError, match="overlaps k"):
        paged.run(out=out)
    np.testing.assert_array_equal(memory, before)
    free = memory[:2].reshape(32, 2, 64)
    paged.check(free, paged.run(out=free)[1])


@pytest.mark.parametrize("name", ["block_table", "sinks", "alibi_slopes"])
def test_options_of_another_device(name):
    require("torch")
    import torch

    batch = paged_batch()
    batch.serving[name] = torch.from_numpy(batch.serving[name]).to("meta")
    out = np.full_like(batch.q, SENTINEL)
    with pytest.raises((ValueError, TypeError), match=rf"(?s)expected .*{name}.*, got"):
        batch.run(out=out)
    assert (out == SENTINEL).all()
