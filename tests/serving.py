"""Batches as an engine holds them: unused tokens, padding, pages, and variants of scores.

Each function makes another batch of one, with the same rows and keys that count and NaN (or what
is asked for) in all that does not, so that its results can be compared with those of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cases import Batch, assert_same_bits, cumulate, make_batch
from exactile.tools.reference import Lengths, lengths_of

SENTINEL = 7
"""In rows of out that are not to be written."""

PAGE_SIZES = [1, 3, 16, 64, 128, 256]
PAGE_LAYOUTS = ["dense", "heads first", "side by side", "one behind the other", "gaps", "reversed"]
NO_PAGES = [-1, 2**31 - 1, -(2**31), 1 << 20]
"""Entries of a table that may not be followed."""


def lengths(batch: Batch) -> Lengths:
    given = batch.serving
    used = given.get("seqused_q"), given.get("seqused_k")
    return lengths_of(batch.cu_q, batch.cu_k, *used, paged="block_table" in given)


def tokens(starts: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The places in a packed tensor of the tokens that count."""
    each = [np.arange(start, start + n) for start, n in zip(starts, used, strict=True)]
    return np.concatenate([*each, np.zeros(0, np.int64)]).astype(np.int64)


def counted(batch: Batch, results: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Out and lse of the rows that count, one behind the other."""
    rows = tokens(*lengths(batch)[:2])
    return results[0][rows], results[1][:, rows]


def serve(batch: Batch, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of the library; rows of out that do not count are as they were."""
    out = np.full((*batch.q.shape[:2], batch.v.shape[-1]), SENTINEL, batch.q.dtype)
    given, lse = batch.run(out=out, **options)
    assert given is out
    check_untouched(batch, out)
    return out, lse


def check_untouched(batch: Batch, out: np.ndarray) -> None:
    """Rows that do not count are as they were."""
    untouched = np.ones(len(out), bool)
    untouched[tokens(*lengths(batch)[:2])] = False
    assert (out[untouched] == SENTINEL).all(), "a row that does not count was written"


def assert_same_results(got: Any, want: Any) -> None:
    """Of pairs (out, lse)."""
    for x, y in zip(got, want, strict=True):
        assert_same_bits(x, y)


# --- lengths --------------------------------------------------------------------------------------


def with_used_lengths(batch: Batch, sides: str, seed: int = 0, poison: float = np.nan) -> Batch:
    """Sequences of `sides`, "q", "k" or both, followed by unused tokens; before pages."""
    rng = np.random.default_rng(seed)
    now, made = lengths(batch), replace(batch, serving=dict(batch.serving))
    for side in sides:
        starts, used = (getattr(now, f"{x}_{side}") for x in ("start", "len"))
        wide_starts = cumulate(used + rng.integers(0, 40, len(used)))
        places = tokens(wide_starts[:-1], used)
        for name in ("q",) if side == "q" else ("k", "v"):
            x = getattr(batch, name)
            wide = np.full((wide_starts[-1], *x.shape[1:]), poison, x.dtype)
            wide[places] = x[tokens(starts, used)]
            setattr(made, name, wide)
        setattr(made, f"cu_{side}", wide_starts)
        made.serving[f"seqused_{side}"] = used.astype(np.int32)
    return made


def with_padding(batch: Batch, rows: int = 37, poison: float = np.nan) -> Batch:
    """Rows of q past the last sequence; of k and v too, where those are packed."""

    def padded(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.full((rows, *x.shape[1:]), poison, x.dtype)])

    names = "q" if "block_table" in batch.serving else "qkv"
    return replace(batch, **{name: padded(getattr(batch, name)) for name in names})


# --- pages ----------------------------------------------------------------------------------------


def empty_pages(
    layout: str, shape: tuple[int, int, int], dims: tuple[int, int], dtype: Any, poison: float
) -> tuple[np.ndarray, np.ndarray]:
    """K and V of (pages, page_size, heads), full of poison, in a layout of PAGE_LAYOUTS."""
    pages, size, heads = shape

    def full(*of: int) -> np.ndarray:
        return np.full(of, poison, dtype)

    if layout == "heads first":
        k, v = (full(pages, heads, size, n).swapaxes(1, 2) for n in dims)
    elif layout == "side by side":
        both = full(pages, size, heads, sum(dims))
        k, v = both[..., : dims[0]], both[..., dims[0] :]
    elif layout == "one behind the other":
        both = full(pages, 2, size, heads, max(dims))
        k, v = both[:, 0, ..., : dims[0]], both[:, 1, ..., : dims[1]]
    elif layout == "gaps":
        k, v = (full(pages + 1, size + 1, heads + 1, n + 3)[1:, 1:, 1:, 1:-2] for n in dims)
    elif layout == "reversed":
        k, v = (full(*shape, n)[::-1, ::-1, ::-1] for n in dims)
    else:
        k, v = (full(*shape, n) for n in dims)
    return k, v


def page_table(used: np.ndarray, page_size: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """(block_table of shuffled pages, num_pages): three pages are unused."""
    rng = np.random.default_rng(seed)
    counts = -(-used // page_size)
    pages = rng.permutation(counts.sum() + 3).astype(np.int32)
    columns = int(counts.max(initial=0)) + 2
    # Rows of a longer table, as an engine of longer sequences has.
    table = rng.choice(NO_PAGES, (len(used), columns + 5)).astype(np.int32)[:, :columns]
    ends = np.cumsum(counts)
    for b, (end, count) in enumerate(zip(ends, counts, strict=True)):
        table[b, :count] = pages[end - count : end]
    return table, len(pages)


def in_pages(
    batch: Batch,
    page_size: int,
    layout: str = "dense",
    *,
    keep_cu_k: bool = False,
    seed: int = 0,
    poison: float = np.nan,
) -> Batch:
    """The keys in pages; with `keep_cu_k` their lengths are still those of cu_seqlens_k."""
    now = lengths(batch)
    table, num_pages = page_table(now.len_k, page_size, seed)
    shape, dims = (num_pages, page_size, batch.k.shape[1]), (batch.k.shape[2], batch.v.shape[2])
    k, v = empty_pages(layout, shape, dims, batch.k.dtype, poison)
    for b, (start, used) in enumerate(zip(now.start_k, now.len_k, strict=True)):
        page, slot = np.divmod(np.arange(used), page_size)
        k[table[b, page], slot] = batch.k[start : start + used]
        v[table[b, page], slot] = batch.v[start : start + used]
    serving = batch.serving | {"block_table": table}
    if not keep_cu_k:
        serving["seqused_k"] = now.len_k.astype(np.int32)
    return replace(batch, k=k, v=v, cu_k=batch.cu_k if keep_cu_k else None, serving=serving)


# --- scores ---------------------------------------------------------------------------------------


def with_scores(batch: Batch, softcap: float | None = None, sinks: Any = None, slopes: Any = None):
    """With a softcap, sinks or ALiBi slopes, where given."""
    given = {
        "softcap": softcap,
        "sinks": None if sinks is None else np.asarray(sinks, np.float32),
        "alibi_slopes": None if slopes is None else np.asarray(slopes, np.float32),
    }
    given = {name: value for name, value in given.items() if value is not None}
    return replace(batch, serving=batch.serving | given)


def some_sinks(heads: int, seed: int = 0) -> np.ndarray:
    """Logits near the scores' sum, none, and what dwarfs all scores."""
    rng = np.random.default_rng(seed)
    return rng.choice([-np.inf, -2.0, 0.5, 3.0, 6.0, 150.0], heads).astype(np.float32)


def some_slopes(*shape: int, seed: int = 0) -> np.ndarray:
    """As ALiBi has them, 2^-1 to 2^-8, and none."""
    rng = np.random.default_rng(seed)
    return rng.choice([0.0, *(2.0**-i for i in range(1, 9))], shape).astype(np.float32)


Change = Callable[[Batch, int], Batch]

# By kind: two of a kind cannot be had at once. In the order in which they are applied.
FEATURES: dict[str, dict[str, Change]] = {
    "mask": {
        "causal": lambda batch, _: replace(batch, causal=True),
        "window": lambda batch, _: replace(batch, window=(70, 3)),
        "left window": lambda batch, _: replace(batch, window=(5, -1)),
    },
    "softcap": {
        "softcap": lambda batch, _: with_scores(batch, softcap=1.5),
        "wide softcap": lambda batch, _: with_scores(batch, softcap=50.0),
    },
    "sinks": {
        "sinks": lambda batch, seed: with_scores(batch, sinks=some_sinks(batch.q.shape[1], seed))
    },
    "alibi": {
        "alibi": lambda batch, seed: with_scores(
            batch, slopes=some_slopes(batch.q.shape[1], seed=seed)
        ),
        "alibi of sequences": lambda batch, seed: with_scores(
            batch, slopes=some_slopes(len(batch.cu_q) - 1, batch.q.shape[1], seed=seed)
        ),
    },
    "rows": {"seqused_q": lambda batch, seed: with_used_lengths(batch, "q", seed)},
    "keys": {"seqused_k": lambda batch, seed: with_used_lengths(batch, "k", seed)},
    "padding": {"padding": lambda batch, _: with_padding(batch)},
    "pages": {
        f"pages of {size}, {layout}": lambda batch, seed, size=size, layout=layout: in_pages(
            batch, size, layout, keep_cu_k=seed % 2 == 1, seed=seed
        )
        for size, layout in ((1, "gaps"), (3, "reversed"), (16, "side by side"), (64, "dense"),
                             (128, "heads first"), (256, "one behind the other"))
    },
}  # fmt: skip


def with_features(batch: Batch, names: Any, seed: int = 0) -> Batch:
    """With features of any kinds, one of a kind."""
    for of_kind in FEATURES.values():
        for name, change in of_kind.items():
            if name in names:
                batch = change(batch, seed)
    return batch


KIND_OF = {name: kind for kind, names in FEATURES.items() for name in names}
ON_HOST = {name for name in KIND_OF if "gaps" in name or "reversed" in name}
"""Pages whose rows lie where device kernels take none, or that torch cannot have."""


def pairs_of_kinds(without: Any = ()) -> list[tuple[str, str]]:
    """One feature of a kind with one of another, for every pair of kinds."""
    of_kinds = (next(name for name in names if name not in without) for names in FEATURES.values())
    return list(itertools.combinations(of_kinds, 2))


ALL = ["window", "wide softcap", "sinks", "alibi of sequences", "seqused_q", "seqused_k", "padding"]
PAGES = "pages of 16, side by side"
"""Features that go together."""


# --- what a device's tests check; serve(batch, ...): (out, lse) of it -----------------------------


def check_large_scores_with_softcap(serve: Callable[..., Any], dtype: str, softcap: float) -> None:
    batch = make_batch([130, 7], dtype=dtype, causal=True)
    batch.q[:] *= batch.q.dtype.type(12)
    batch = with_scores(batch, softcap=softcap)
    batch.check(*serve(batch))


def check_alibi_over_many_keys(serve: Callable[..., Any], dtype: str) -> None:
    """Biases of thousands, and more keys than the XMX kernel sums up at a time."""
    for mask in {}, {"window": (900, 40)}:
        batch = make_batch([70, 5], [2300, 900], heads=(4, 1), dtype=dtype, **mask)
        batch = with_scores(batch, slopes=[8.0, 0.5, 2.0**-8, 0.0])
        batch.check(*serve(batch))


def check_rows_without_keys_have_their_sink(serve: Callable[..., Any], dtype: str) -> None:
    batch = make_batch([6, 3], [2, 0], dtype=dtype, causal=True)
    sinks = np.array([0.5, -np.inf, -30.0, 200.0], np.float32)
    out, lse = serve(with_scores(batch, sinks=sinks))
    for rows in slice(4), slice(6, 9):
        assert (out[rows] == 0).all()
        np.testing.assert_array_equal(
            lse[:, rows], np.broadcast_to(sinks[:, None], lse[:, rows].shape)
        )
    assert np.isfinite(lse[[0, 2, 3], 4:6]).all()


def check_shared_prefix(serve: Callable[..., Any], **contiguous: Any) -> None:
    """A prefix that sequences share lies in the same pages; options of the run without pages."""
    keys = [4096 + 20, 4096 + 50]
    batch = make_batch([9, 33], keys, heads=(2, 1), dtype="bfloat16", causal=True)
    batch.k[keys[0] : keys[0] + 4096] = batch.k[:4096]
    batch.v[keys[0] : keys[0] + 4096] = batch.v[:4096]
    paged = in_pages(batch, 64)
    paged.serving["block_table"][1, :64] = paged.serving["block_table"][0, :64]
    results = serve(paged)
    batch.check(*results)
    assert_same_results(results, serve(batch, **contiguous))


def check_number_of_no_page(serve: Callable[..., Any], number: int, page_size: int = 16) -> None:
    """In a table: other sequences' results stay, and what is read is finite as the cache is."""
    batch = make_batch([40, 7], [100, 90], dtype="bfloat16")
    paged = in_pages(batch, page_size, poison=0.0)
    want, wrong = serve(paged), replace(paged, serving=dict(paged.serving))
    table = wrong.serving["block_table"].copy()
    table[0, 1] = number
    wrong.serving["block_table"] = table
    out, lse = serve(wrong)
    assert_same_results((out[40:], lse[:, 40:]), (want[0][40:], want[1][:, 40:]))
    assert np.isfinite(out.astype(np.float32)).all()
    assert np.isfinite(lse).all()
