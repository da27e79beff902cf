"""`exactile.merge` on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import exactile
from cases import DTYPES, assert_same_bits, make_batch
from cuda_device import needs_gpu, to_gpu, to_numpy, torch
from merge_cases import (
    SHAPES,
    check_a_sum_that_is_no_number,
    check_against_float64,
    draw_parts,
)

pytestmark = needs_gpu


def put(x: np.ndarray):
    return torch.from_numpy(x).cuda() if x.dtype == np.float32 else to_gpu(x)


def merge(outs, lses, **options):
    """(out, lse) of host arrays, merged on the GPU."""
    got = exactile.merge([put(x) for x in outs], [put(x) for x in lses], return_lse=True, **options)
    return tuple(to_numpy(x) for x in got)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_parts", [1, 2, 4, 5, 9, 68])
def test_against_float64(dtype, shape, num_parts):
    check_against_float64(merge, shape, num_parts, dtype)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_sum_that_is_no_number_makes_its_row_nan(value):
    check_a_sum_that_is_no_number(merge, value)


def test_behind_the_attention_that_it_merges():
    """On a stream of the caller's, without a wait between, and in a graph."""
    batch = make_batch([300, 7], [100, 50], dtype="bfloat16")
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()

    def attend():
        parts = [
            exactile.varlen_prefill(q, k[keys], v[keys], batch.cu_q, cu_k, return_lse=True)
            for keys, cu_k in ((slice(100), [0, 100, 100]), (slice(100, 150), [0, 0, 50]))
        ]
        return exactile.merge(*parts[0], *parts[1], return_lse=True)

    with torch.cuda.stream(stream):
        out, lse = attend()
    stream.synchronize()
    batch.check(to_numpy(out), to_numpy(lse))
    outs = [draw_parts((40, 3, 64), 5, "float16"), draw_parts((40, 3, 64), 5, "float16", seed=1)]
    parts = [[put(x) for x in arrays] for arrays in outs[0]]
    result = exactile.merge(*parts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        exactile.merge(*parts, out=result)
    for arrays, others in zip(parts, outs[1], strict=True):
        for x, other in zip(arrays, others, strict=True):
            x.copy_(put(other))
    graph.replay()
    assert_same_bits(to_numpy(result), merge(*outs[1])[0])


def test_in_place_and_strided():
    outs, lses = draw_parts((40, 3, 64), 2, "float32")
    want, _ = merge(outs, lses)
    room = put(np.concatenate([outs[0]] * 2, axis=1))
    first = room[:, 3:]
    version = first._version
    out = exactile.merge(first, put(lses[0].T.copy()).T, put(outs[1]), put(lses[1]), out=first)
    assert out is first
    assert first._version > version
    assert_same_bits(to_numpy(out.contiguous()), want)
    assert_same_bits(to_numpy(room[:, :3].contiguous()), outs[0])


@pytest.mark.parametrize("shape", [(0, 4, 64), (5, 0, 64)])
def test_nothing_to_do(shape):
    out, lse = merge(*draw_parts(shape, 2, "float32"))
    assert out.shape == shape
    assert lse.shape == (shape[1], shape[0])


def test_bad_input():
    outs, lses = draw_parts((6, 2, 64), 2, "float32")
    on = [put(x) for x in outs], [put(x) for x in lses]
    with pytest.raises(ValueError, match=r"merge: expected out_b on the device of out_a, CUDA 0"):
        exactile.merge(on[0][0], on[1][0], outs[1], on[1][1])
    with pytest.raises(ValueError, match=r"merge: expected lse_b on the device of out_a, CUDA 0"):
        exactile.merge(on[0][0], on[1][0], on[0][1], lses[1])
    with pytest.raises(ValueError, match=r"merge: expected at most 68 results on CUDA, got 69"):
        exactile.merge(on[0][:1] * 69, on[1][:1] * 69)
    with pytest.raises(TypeError, match=r"merge: expected stream to be an integer handle or an"):
        exactile.merge(*on, stream="0")
