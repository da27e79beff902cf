"""`exactile.append_kv` on a GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from append_cases import (
    SEQUENCES,
    SLOTS_OF_SEQUENCES,
    UNTOUCHED,
    caches,
    expected,
    new_rows,
    some_slots,
)
from cases import DTYPES, assert_same_bits
from cuda_device import needs_gpu, to_gpu, to_numpy, torch

pytestmark = needs_gpu


@pytest.mark.parametrize(("dtype", "cache_dtype"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("slots_on", ["host", "int32", "int64"])
def test_every_pair_of_dtypes(dtype, cache_dtype, slots_on):
    """Slots in GPU memory that the cache does not have are not written."""
    rows, host = new_rows(20, dtype), caches(cache_dtype)
    slots = some_slots(slots_on == "host")
    want = [expected(c, x, slots) for c, x in zip(host, rows, strict=True)]
    to = [to_gpu(x) for x in host]
    given = slots if slots_on == "host" else torch.from_numpy(slots.astype(slots_on)).cuda()
    versions = [x._version for x in to]
    exactile.append_kv(*(to_gpu(x) for x in rows), *to, slot_mapping=given)
    assert all(x._version > before for x, before in zip(to, versions, strict=True))
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(to_numpy(got), wanted)


def test_pages_of_sequences_and_strides():
    """Heads outside of rows, slots made on the host, on a stream of the caller's."""
    rows = new_rows(5, "bfloat16")
    want = [
        expected(c, x, SLOTS_OF_SEQUENCES) for c, x in zip(caches("bfloat16"), rows, strict=True)
    ]
    to = [to_gpu(x.transpose(0, 2, 1, 3)).transpose(1, 2) for x in caches("bfloat16")]
    rows = [to_gpu(x) for x in rows]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    exactile.append_kv(*rows, *to, **SEQUENCES, stream=stream)
    stream.synchronize()
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(to_numpy(got.contiguous()), wanted)


def test_many_uploads_in_turn():
    """Slots on the host are copied while kernels that read earlier copies still wait."""
    to = [torch.zeros(64, 16, 1, 64, device="cuda") for _ in range(2)]
    rng = np.random.default_rng(0)
    torch.cuda._sleep(20_000_000)
    want = np.zeros((64, 16), np.float32)
    for i in range(40):
        slots = rng.permutation(64 * 16)[:100]
        new = torch.full((100, 1, 64), float(i + 1), device="cuda")
        exactile.append_kv(new, new, *to, slot_mapping=slots)
        want.reshape(-1)[slots] = i + 1
    for x in to:
        np.testing.assert_array_equal(x[:, :, 0].cpu().numpy(), np.repeat(want[..., None], 64, -1))


def test_in_a_graph():
    """Slots on the GPU are read anew by every replay; those on the host are refused."""
    rows, to = (
        [to_gpu(x) for x in arrays] for arrays in (new_rows(3, "float16"), caches("float16"))
    )
    slots = torch.tensor([1, -1, 4], device="cuda")
    exactile.append_kv(*rows, *to, slot_mapping=slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        exactile.append_kv(*rows, *to, slot_mapping=slots)
        with pytest.raises(ValueError, match=r"append_kv: expected slot_mapping on the GPU while"):
            exactile.append_kv(*rows, *to, slot_mapping=np.array([1, 2, 3]))
    slots.copy_(torch.tensor([7, 0, -1]))
    graph.replay()
    for got, cache, x in zip(to, caches("float16"), new_rows(3, "float16"), strict=True):
        want = expected(expected(cache, x, [1, -1, 4]), x, [7, 0, -1])
        assert_same_bits(to_numpy(got), want)


def test_no_token():
    to = [to_gpu(x) for x in caches("float16")]
    exactile.append_kv(*(to_gpu(x) for x in new_rows(0, "float16")), *to,
                       slot_mapping=np.zeros(0, int))  # fmt: skip
    assert (to_numpy(to[0]) == UNTOUCHED).all()


def test_bad_input():
    host = new_rows(3, "float16"), caches("float16")
    rows, to = ([to_gpu(x) for x in arrays] for arrays in host)
    slots = np.array([1, 2, 35])
    with pytest.raises(ValueError, match=r"append_kv: expected slot_mapping below 35, .* got 35"):
        exactile.append_kv(*rows, *to, slot_mapping=slots)
    with pytest.raises(ValueError, match=r"append_kv: expected k_cache on the device of k_new"):
        exactile.append_kv(*rows, *host[1], slot_mapping=slots)
    with pytest.raises(TypeError, match=r"append_kv: expected stream to be an integer handle or"):
        exactile.append_kv(*rows, *to, slot_mapping=slots[:0], stream="0")
    table = torch.zeros(1, 1, dtype=torch.int32, device="cuda")
    with pytest.raises(TypeError, match=r"append_kv: expected block_table in CPU memory, got"):
        exactile.append_kv(*rows, *to, block_table=table, cu_seqlens=[0, 3], seqused_k=[3])
    assert (to_numpy(to[0]) == UNTOUCHED).all()
