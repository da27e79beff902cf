"""New keys and values written into the pages of a cache: `exactile.append_kv`, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from abilities import module, needs
from cases import DTYPES, assert_same_bits

torch = module("torch")

HEADS, DIMS = 2, (64, 96)


def draw(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(DTYPES[dtype])


def new_rows(tokens, dtype="float32", heads=HEADS, dims=DIMS):
    return [draw((tokens, heads, dim), dtype, seed) for seed, dim in enumerate(dims)]


def caches(pages, page_size, dtype="float32", heads=HEADS, dims=DIMS):
    return [np.full((pages, page_size, heads, dim), 7, DTYPES[dtype]) for dim in dims]


def expected(cache, rows, slots):
    want = cache.copy()
    for row, slot in zip(rows, slots, strict=True):
        if slot >= 0:
            want[slot // cache.shape[1], slot % cache.shape[1]] = row.astype(cache.dtype)
    return want


@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slot_dtype", [np.int32, np.int64])
def test_every_pair_of_dtypes(dtype, cache_dtype, slot_dtype):
    rng = np.random.default_rng(0)
    rows = new_rows(40, dtype)
    slots = rng.permutation(7 * 11)[:40].astype(slot_dtype)
    slots[[3, 17]] = -1, -(2**31)
    to = caches(7, 11, cache_dtype)
    want = [expected(c, x, slots) for c, x in zip(to, rows, strict=True)]
    assert exactile.append_kv(*rows, *to, slot_mapping=slots) is None
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_the_caches_dtype_keep_their_bits(dtype):
    bits = np.uint32 if dtype == "float32" else np.uint16
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, np.iinfo(bits).max, (9, 2, 72), bits).view(DTYPES[dtype])] * 2
    to = caches(3, 4, dtype, dims=(72, 72))
    exactile.append_kv(*rows, *to, slot_mapping=np.arange(9)[::-1].copy())
    for cache in to:
        assert_same_bits(cache.reshape(12, 2, 72)[:9][::-1], rows[0])


def test_conversions_of_special_values():
    numbers = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, 65519.0, 65520.0, 1 + 2**-8 + 2**-9]
    values = np.array(numbers, np.float32)
    rows = [np.tile(values, 8)[None, None, :]] * 2
    for cache_dtype in ("float16", "bfloat16"):
        to = caches(1, 1, cache_dtype, heads=1, dims=(72, 72))
        exactile.append_kv(*rows, *to, slot_mapping=np.zeros(1, np.int32))
        with np.errstate(over="ignore"):
            want = rows[0].astype(DTYPES[cache_dtype]).astype(np.float32)
        np.testing.assert_array_equal(to[0][0].astype(np.float32), want)
        assert np.signbit(to[0][0, 0, 0, 1].astype(np.float32))


def test_layouts():
    """Pages with heads outside of rows, K and V side by side, and rows that are slices."""
    rows = new_rows(10, dims=(64, 64))
    slots = np.arange(20)[::2].copy()
    want = [expected(c, x, slots) for c, x in zip(caches(5, 4, dims=(64, 64)), rows, strict=True)]
    both = np.full((5, 4, HEADS, 128), 7, np.float32)
    views = {
        "heads outside": [
            np.full((5, HEADS, 4, 64), 7, np.float32).transpose(0, 2, 1, 3) for _ in range(2)
        ],
        "side by side": [both[..., :64], both[..., 64:]],
        "both in a page": list(
            np.full((5, 2, 4, HEADS, 64), 7, np.float32).transpose(1, 0, 2, 3, 4)
        ),
    }
    fused = np.concatenate([rows[0], rows[1], rows[0]], axis=1)
    pieces = fused[:, :HEADS], fused[:, HEADS : 2 * HEADS]
    for to in views.values():
        exactile.append_kv(*pieces, *to, slot_mapping=np.repeat(slots, 3)[::3])
        for got, wanted in zip(to, want, strict=True):
            assert_same_bits(got, wanted)


def test_pages_of_sequences():
    """Then attention to the pages is attention to the keys."""
    rng = np.random.default_rng(0)
    page_size, new, keys = 16, np.array([3, 1, 40, 0]), np.array([50, 75, 40, 20], np.int32)
    table = np.full((4, 6), -1, np.int32)
    pages = iter(rng.permutation(30))
    for b, length in enumerate(keys):
        for column in range(-(-length // page_size)):
            table[b, column] = next(pages)
    all_k, all_v = draw((2, keys.sum(), HEADS, 64), "float32")
    ends = np.cumsum(keys)
    last = np.concatenate([np.arange(e - n, e) for e, n in zip(ends, new, strict=True)])
    first = np.setdiff1d(np.arange(keys.sum()), last)
    cache = caches(30, page_size, dims=(64, 64))
    cu_first, cu_new = np.cumsum([0, *(keys - new)]), np.cumsum([0, *new])
    for picked, cu, used in ((first, cu_first, keys - new), (last, cu_new, keys)):
        exactile.append_kv(
            all_k[picked], all_v[picked], *cache, block_table=table, cu_seqlens=cu, seqused_k=used
        )
    q = draw((new.sum(), 4, 64), "float32", 5)
    out = exactile.varlen_prefill(q, *cache, cu_new, seqused_k=keys, block_table=table, causal=True)
    want = exactile.varlen_prefill(q, all_k, all_v, cu_new, np.cumsum([0, *keys]), causal=True)
    assert_same_bits(out, want)


def test_tokens_past_the_last_sequence_are_not_written():
    rows = new_rows(5)
    to = caches(2, 4)
    want = [expected(c, x, [4, 5, 0, -1, -1]) for c, x in zip(to, rows, strict=True)]
    exactile.append_kv(*rows, *to, block_table=np.array([[1], [0]], np.int32),
                       cu_seqlens=[0, 2, 3], seqused_k=[2, 1])  # fmt: skip
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("tokens", [0, 1, 1000])
def test_threads_and_sizes(tokens):
    rows = new_rows(tokens, "float16")
    slots = np.random.default_rng(0).permutation(max(1, tokens))[:tokens]
    want = [expected(c, x, slots) for c, x in zip(caches(63, 16, "float16"), rows, strict=True)]
    for threads in (1, 3):
        exactile.set_num_threads(threads)
        try:
            to = caches(63, 16, "float16")
            exactile.append_kv(*rows, *to, slot_mapping=slots)
        finally:
            exactile.set_num_threads(None)
        for got, wanted in zip(to, want, strict=True):
            assert_same_bits(got, wanted)


def test_bfloat16_as_storage():
    rows, to = new_rows(3, "bfloat16"), caches(1, 4, "bfloat16")
    want = [expected(c, x, [2, 0, 3]) for c, x in zip(to, rows, strict=True)]
    slots = np.array([2, 0, 3])
    exactile.append_kv(*(x.view(np.uint16) for x in (*rows, *to)), slot_mapping=slots,
                       dtype="bfloat16")  # fmt: skip
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(got, wanted)
    floats, storage = new_rows(3), caches(1, 4, "bfloat16")
    exactile.append_kv(*floats, *(x.view(np.uint16) for x in storage), slot_mapping=slots,
                       dtype="bfloat16")  # fmt: skip
    assert_same_bits(storage[0], expected(caches(1, 4, "bfloat16")[0], floats[0], slots))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_random_cases(data):
    tokens = data.draw(st.integers(0, 60), label="tokens")
    pages, page_size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 20)), label="pages")
    dims = data.draw(st.tuples(*[st.sampled_from([1, 16, 33, 64, 130])] * 2), label="dims")
    heads = data.draw(st.integers(1, 4), label="heads")
    dtype, cache_dtype = (data.draw(st.sampled_from(list(DTYPES))) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 999), label="seed"))
    slots = np.full(tokens, -1)
    used = min(tokens, pages * page_size)
    slots[rng.permutation(tokens)[:used]] = rng.permutation(pages * page_size)[:used]
    rows = new_rows(tokens, dtype, heads, dims)
    to = caches(pages, page_size, cache_dtype, heads, dims)
    want = [expected(c, x, slots) for c, x in zip(to, rows, strict=True)]
    exactile.append_kv(*rows, *to, slot_mapping=slots)
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(got, wanted)


# --- bad input ----------------------------------------------------------------------------------


def good():
    k_new, v_new = new_rows(3)
    k_cache, v_cache = caches(4, 5)
    slots = np.array([3, 19, -1])
    return dict(k_new=k_new, v_new=v_new, k_cache=k_cache, v_cache=v_cache, slot_mapping=slots)


BAD = {
    "k_new": {
        "of rank 3 .*, got shape": lambda x: x[0],
        "of dtype .*, got float64": lambda x: x.astype(np.float64),
        "of dtype .*, got uint16": lambda x: x.astype(np.uint16),
        "contiguous, got a stride of 2": lambda x: np.repeat(x, 2, axis=2)[..., ::2],
    },
    "v_new": {
        r"of shape \(3, 2, 96\), got \(2, 2, 96\)": lambda x: x[:2],
        r"of shape \(3, 2, 96\), got \(3, 1, 96\)": lambda x: x[:, :1],
        "of the dtype of k_new, float32, got float16": lambda x: x.astype(np.float16),
    },
    "k_cache": {
        r"of rank 4 \(num_pages, page_size, heads, head_dim\), got shape": lambda x: x[0],
        r"of shape \(4, 5, 2, 64\), got \(4, 5, 2, 32\)": lambda x: x[..., :32].copy(),
        r"of shape \(4, 5, 2, 64\), got \(4, 5, 1, 64\)": lambda x: x[:, :, :1],
        "to be writable, got a read-only array": lambda x: np.broadcast_to(x, x.shape),
        "strides of k_cache that lead to every element once": lambda x: (
            np.lib.stride_tricks.as_strided(x, x.shape, (0, *x.strides[1:]))
        ),
        "pages of at least one row, got a page size of 0": lambda x: x[:, :0],
    },
    "v_cache": {
        r"of shape \(4, 5, 2, 96\), got \(3, 5, 2, 96\)": lambda x: x[:3],
        r"of shape \(4, 5, 2, 96\), got \(4, 4, 2, 96\)": lambda x: x[:, :4],
        "of the dtype of k_cache, float32, got float16": lambda x: x.astype(np.float16),
    },
    "slot_mapping": {
        r"of shape \(3,\), got \(4,\)": lambda x: np.append(x, -1),
        r"of rank 1 \(num_tokens,\), got shape \(3, 1\)": lambda x: x[:, None],
        "of dtype int32 or int64, got float64": lambda x: x.astype(float),
        "of dtype int32 or int64, got uint32": lambda x: x.astype(np.uint32),
        r"below 20, the rows of all pages \(negative: none\), got 20 at index 1": lambda x: x + (
            x == 19
        ),
        "below 20, .* got 4294967299 at index 0": lambda x: x + 2**32 * (x == 3),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"), [(name, message) for name in BAD for message in BAD[name]]
)
def test_bad_arrays(name, message):
    arrays = good()
    caches_before = [arrays["k_cache"], arrays["v_cache"]]
    arrays[name] = BAD[name][message](arrays[name])
    if "page size of 0" in message:
        arrays["v_cache"] = arrays["v_cache"][:, :0]
    with pytest.raises(ValueError, match=f"append_kv: expected .*{message}"):
        exactile.append_kv(**arrays)
    for cache in caches_before:
        assert (cache == 7).all()


def test_overlaps():
    x = good()
    memory = np.zeros((4, 5, 2, 64), np.float32)
    with pytest.raises(ValueError, match=r"k_cache apart from what is appended .* overlaps k_new"):
        exactile.append_kv(**(x | {"k_cache": memory, "k_new": memory[1, :3]}))
    slots = memory.reshape(-1)[:3].view(np.int32)
    with pytest.raises(ValueError, match=r"k_cache apart .* overlaps slot_mapping"):
        exactile.append_kv(**(x | {"k_cache": memory, "slot_mapping": slots}))


def paged():
    x = good()
    del x["slot_mapping"]
    table = np.array([[0, 1], [2, 3]], np.int32)
    return x | dict(block_table=table, cu_seqlens=[0, 2, 3], seqused_k=[6, 1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"block_table": None}, TypeError, "slot_mapping, or block_table, .* got cu_seqlens and s"),
        ({"slot_mapping": np.zeros(3, int)}, TypeError, "got block_table .* and slot_mapping"),
        ({"cu_seqlens": [0, 2, 4]}, ValueError, r"at most the tokens of k_new, 3, got \[0, 2, 4\]"),
        ({"cu_seqlens": [0, 2, 1]}, ValueError, "cu_seqlens from 0, not falling"),
        ({"cu_seqlens": [1, 2, 3]}, ValueError, "cu_seqlens from 0"),
        ({"cu_seqlens": [0.0, 2.5]}, TypeError, "cu_seqlens of integers"),
        ({"seqused_k": [1, 1]}, ValueError, r"seqused_k of at least .* \[2, 1\], got \[1, 1\]"),
        ({"seqused_k": [6]}, ValueError, "seqused_k of at least the new tokens"),
        ({"seqused_k": [11, 1]}, ValueError, r"shape \(2, 3 or more\), got \(2, 2\)"),
        ({"block_table": np.zeros((1, 2), np.int32)}, ValueError, r"block_table of shape \(2, 2"),
        ({"block_table": np.zeros((2, 2), int)}, ValueError, "block_table of dtype int32 and .*64"),
        ({"block_table": np.zeros(2, np.int32)}, ValueError, r"shape \(batch, max_pages\), got"),
        (
            {"block_table": np.array([[0, 4], [2, 3]], np.int32)},
            ValueError,
            r"pages from 0 to 3, got 4 at index \(0, 1\)",
        ),
        (
            {"block_table": np.array([[0, 1], [-1, 3]], np.int32)},
            ValueError,
            r"pages from 0 to 3, got -1 at index \(1, 0\)",
        ),
        ({"k_cache": np.zeros((4, 5, 64), np.float32)}, ValueError, "k_cache of rank 4"),
    ],
)
def test_bad_pages(changes, error, message):
    arrays = paged()
    with pytest.raises(error, match=f"append_kv: expected .*{message}"):
        exactile.append_kv(**(arrays | changes))
    assert (arrays["k_cache"] == 7).all()
    assert (arrays["v_cache"] == 7).all()


def test_other_bad_arguments():
    x = good()
    slots = x.pop("slot_mapping")
    with pytest.raises(
        TypeError, match=r"append_kv: expected slot_mapping, or .* got none of them"
    ):
        exactile.append_kv(**x)
    with pytest.raises(TypeError, match=r"append_kv: expected stream=None on the cpu backend"):
        exactile.append_kv(**x, slot_mapping=slots, stream=1)
    with pytest.raises(ValueError, match=r"append_kv: expected dtype 'bfloat16'.* got 'float16'"):
        exactile.append_kv(**x, slot_mapping=slots, dtype="float16")
    with pytest.raises(TypeError, match=r"append_kv: expected k_new to be a numpy array.*got list"):
        exactile.append_kv(**(x | {"k_new": [1]}), slot_mapping=slots)
    with pytest.raises(TypeError, match=r"append_kv: expected slot_mapping to be .*got list"):
        exactile.append_kv(**x, slot_mapping=[3, 19, -1])


# --- torch --------------------------------------------------------------------------------------


@needs("torch")
def test_torch():
    want = good()
    exactile.append_kv(**want)
    x = {name: torch.from_numpy(array) for name, array in good().items()}
    versions = [x[name]._version for name in ("k_cache", "v_cache")]
    exactile.append_kv(**x)
    for name, version in zip(("k_cache", "v_cache"), versions, strict=True):
        assert x[name]._version > version
        assert_same_bits(x[name].numpy(), want[name])
    x["k_new"].requires_grad_()
    with pytest.raises(ValueError, match=r"append_kv: expected k_new not to require grad"):
        exactile.append_kv(**x)
    with torch.no_grad():
        exactile.append_kv(**x)
    y = {
        name: torch.from_numpy(array) for name, array in paged().items() if name[:2] in ("k_", "v_")
    }
    exactile.append_kv(
        **y,
        block_table=torch.tensor([[0, 1], [2, 3]], dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 2, 3]),
        seqused_k=torch.tensor([6, 1]),
    )
    assert_same_bits(y["k_cache"][0, 4].numpy(), y["k_new"][0].numpy())
