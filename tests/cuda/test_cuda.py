"""The CUDA backend on a GPU, against float64 and against itself."""

from __future__ import annotations

import importlib
import itertools
import json
from functools import partial

import numpy as np
import pytest

import exactile
from abilities import needs, require
from cases import (
    LENS_K,
    LENS_Q,
    MASKS,
    STRIDED,
    assert_same_bits,
    check_poison_stays,
    cumulate,
    make_batch,
)
from cuda_device import HALVES, ROWS, needs_gpu, run, to_gpu, to_numpy, torch
from exactile import _core
from exactile.tools import cli
from exactile.tools.machines import Gpu
from exactile.tools.timeline import record
from golden import GOLDEN, ZIPF, ZIPF_GRID

pytestmark = needs_gpu

REVERSE = """
#include <exactile/scheduler/valid_only.hpp>
struct Reverse : exactile::ValidOnlyIndividual {
  EXACTILE_HOST_DEVICE Reverse(const Params& list, int group)
      : exactile::ValidOnlyIndividual(list, list.num_tiles() - 1 - group) {}
};
"""


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
def test_every_supported_row_under_every_mask(family, dtype, head_dim, head_dim_v, mask):
    shape = dict(dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v)
    for lens_q, lens_k in ((LENS_Q, LENS_K), ([300, 1, 0, 700], [300, 500, 5, 650])):
        batch = make_batch(lens_q, lens_k, **shape, **MASKS[mask])
        batch.check(*run(batch))


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (8, 1), (7, 1), (32, 8)])
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_head_groups(family, heads, pack_gqa, scheduler):
    batch = make_batch([3, 140, 45], heads=heads, causal=True, dtype="bfloat16", head_dim=128)
    batch.check(*run(batch, scheduler=scheduler, pack_gqa=pack_gqa))


@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_schedules_change_no_bit(family, mask):
    batch = make_batch([300, 0, 31, 1, 1029], dtype="bfloat16", head_dim=128, **MASKS[mask])
    first = run(batch, scheduler="Individual")
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (None, 3)
    ):
        orders = (None,) if scheduler == "Individual" else (None, "natural", "head_major")
        for order in orders:
            options = dict(scheduler=scheduler, pack_gqa=pack_gqa, order=order, workers=workers)
            for got, want in zip(run(batch, **options), first, strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("mask", ["full", "causal", "window"])
@pytest.mark.parametrize("largest", [1, 24])
def test_scores_that_grow(family, dtype, head_dim, mask, largest):
    """Rows whose maximum moves from block to block, beyond what a float's exponent covers, beside
    rows whose maximum falls or stays: right, and the same bits whatever the neighbours."""
    lengths = [300, 90, 700]
    batch = make_batch(lengths, dtype=dtype, head_dim=head_dim, heads=(4, 1), **MASKS[mask])
    sign = (np.arange(sum(lengths) * 4) % 3 - 1).reshape(-1, 4, 1)
    falling = np.concatenate([np.linspace(largest, 0, n) for n in lengths]).reshape(-1, 1, 1)
    batch.q[:] = (0.1 * batch.q.astype(np.float32) + sign).astype(batch.q.dtype)
    batch.k[:] = (0.1 * batch.k.astype(np.float32) + falling).astype(batch.k.dtype)
    out, lse = run(batch, pack_gqa=True)
    batch.check(out, lse)
    for got, want in zip(run(batch, pack_gqa=False), (out, lse), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_stays_in_its_sequence(family, dtype, poison, scheduler):
    check_poison_stays(run, dtype, poison, scheduler)


def test_rows_that_see_no_key_are_written(family, scheduler):
    batch = make_batch([6, 3], [2, 0], causal=True, dtype="float16")
    out = torch.full((9, 4, 64), torch.nan, dtype=torch.float16, device="cuda")
    returned, lse = run(batch, out=out, scheduler=scheduler)
    batch.check(returned, lse)
    assert (to_numpy(out)[6:] == 0).all()


def test_no_keys_at_all(family):
    batch = make_batch([6, 3], [0, 0], dtype="float16")
    out, lse = run(batch)
    assert (out == 0).all()
    assert np.isneginf(lse).all()


def test_strides(family):
    """q, k and v of one projection; out inside a larger tensor, whose rest stays untouched."""
    batch = make_batch([100, 50], dtype="bfloat16")
    packed = torch.randn(150, 8, 64, device="cuda").bfloat16()
    parts = packed[:, :4], packed[:, 4:6], packed[:, 6:]
    batch.q, batch.k, batch.v = (to_numpy(x.contiguous()) for x in parts)
    storage = torch.full((150, 6, 80), 7.0, device="cuda").bfloat16()
    out = storage[:, 1:5, 8:72]
    _, lse = exactile.varlen_prefill(*parts, batch.cu_q, out=out, return_lse=True)
    batch.check(to_numpy(out.contiguous()), to_numpy(lse))
    storage[:, 1:5, 8:72] = 7.0
    assert bool((storage == 7.0).all())


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [x[1:] for x in ROWS if x[0] == "float16"])
def test_strides_that_tma_cannot_take(head_dim, head_dim_v, mask):
    """Heads that share their memory go to the sm80 kernels, which have smaller tiles."""
    shape = dict(head_dim=head_dim, head_dim_v=head_dim_v, dtype="float16")
    batch = make_batch([90, 300, 20, 9], heads=(8, 4), **shape, **MASKS[mask])
    batch.k[:] = batch.k[:, :1]
    arrays = [to_gpu(x) for x in (batch.q, batch.k, batch.v)]
    arrays[1] = arrays[1][:, :1].expand(-1, 4, -1)
    for packing in {}, dict(pack_gqa=False), dict(pack_gqa=True), dict(pack_sequences=True):
        out, lse = exactile.varlen_prefill(
            *arrays, batch.cu_q, **MASKS[mask], **packing, return_lse=True
        )
        batch.check(to_numpy(out), to_numpy(lse))


@pytest.mark.parametrize("pack_gqa", [False, True])
@pytest.mark.parametrize("lengths", [[700, 1, 0, 129, 2500], [34] * 400], ids=["mixed", "short"])
def test_in_place(family, scheduler, lengths, pack_gqa):
    batch = make_batch(lengths, heads=(16, 4), head_dim=128, dtype="bfloat16", causal=True)
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    options = dict(causal=True, scheduler=scheduler, pack_gqa=pack_gqa)
    want = exactile.varlen_prefill(q, k, v, batch.cu_q, **options)
    version = q._version
    assert exactile.varlen_prefill(q, k, v, batch.cu_q, out=q, **options) is q
    assert torch.equal(q, want)
    assert q._version > version


def test_outputs_that_overlap():
    packed = torch.randn(11, 6, 64, device="cuda", dtype=torch.float16)
    q, k, v = packed[:10, :2], packed[:10, 2:4], packed[:10, 4:]
    want = exactile.varlen_prefill(q, k, v, [0, 10])
    for out in (k, v, packed[1:, :2], packed[:10, 1:3], q[:1].expand(10, 2, 64)):
        with pytest.raises(ValueError, match=r"expected (out apart from|strides of out)"):
            exactile.varlen_prefill(q, k, v, [0, 10], out=out)
    exactile.varlen_prefill(q, k, v, [0, 10], out=q)
    assert torch.equal(q, want)


def test_modes_of_torch():
    x = torch.randn(10, 2, 64, device="cuda", dtype=torch.float16)
    want = exactile.varlen_prefill(x, x, x, [0, 10])
    needs_grad = x.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(exactile.varlen_prefill(needs_grad, x, x, [0, 10]), want)
    with pytest.raises(TypeError, match=r"outside torch.jit.trace"):
        torch.jit.trace(lambda q: exactile.varlen_prefill(q, x, x, [0, 10]), (x,))
    with pytest.raises(TypeError, match=r"one that torch.func"):
        torch.func.vmap(lambda q: exactile.varlen_prefill(q, x, x, [0, 10]))(x[None])
    torch.set_default_device("cpu")
    try:
        out, lse = exactile.varlen_prefill(x, x, x, [0, 10], return_lse=True)
    finally:
        torch.set_default_device(None)
    assert torch.equal(out, want)
    assert lse.is_cuda


def test_lengths_on_the_gpu_that_hold_no_memory():
    lengths = torch.tensor([0, 10], device="cuda", dtype=torch.int32)
    lengths.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="cu_seqlens_q to hold memory"):
        exactile.plan(lengths, total_q=10, num_heads_q=1, num_heads_kv=1, head_dim=64,
                      dtype="float16")  # fmt: skip


def test_misaligned_tensors_are_refused():
    x = torch.zeros(10 * 64 + 1, device="cuda", dtype=torch.float16)[1:].view(10, 1, 64)
    with pytest.raises(ValueError, match="rows of q to begin at multiples of 16 bytes"):
        exactile.varlen_prefill(x, x, x, [0, 10])


def test_tensors_that_do_not_belong_together():
    x = torch.zeros(10, 1, 64, device="cuda", dtype=torch.float16)
    for bad, message in (
        (x.cpu(), "on the device of q"),
        (x.bfloat16(), "dtype float16, got bfloat16"),
        (x[:9], r"cu_seqlens_k\[-1\] <= total_k"),
        (x.clone().requires_grad_(), "training is not supported yet"),
    ):
        with pytest.raises(ValueError, match=message):
            exactile.varlen_prefill(x, bad, x, [0, 10])


@needs("two gpus")
def test_tensors_on_two_gpus_are_refused():
    x = torch.zeros(10, 1, 64, device="cuda", dtype=torch.float16)
    with pytest.raises(ValueError, match="on the device of q"):
        exactile.varlen_prefill(x, x.to("cuda:1"), x, [0, 10])


@pytest.fixture(scope="module")
def gpu():
    return Gpu()


def zeros(lengths, num_heads_q, num_heads_kv, head_dim, **_):
    """q, k and v of bfloat16 zeros."""
    heads = num_heads_q, num_heads_kv, num_heads_kv
    return [np.zeros((sum(lengths), n, head_dim), np.uint16) for n in heads]


@pytest.mark.parametrize("scheduler", ["Individual", "ValidOnlyIndividual"])
def test_golden_counts_in_the_kernel(family, gpu, scheduler):
    plan = exactile.plan(seqlens_q=ZIPF, **GOLDEN, scheduler=scheduler, backend="cuda")
    padded, tiles = ZIPF_GRID[plan.block_m]
    launched = padded if scheduler == "Individual" else tiles
    timeline = record(plan, zeros(ZIPF, **GOLDEN), gpu)
    assert timeline.launched == plan.launched == launched
    assert (len(timeline.tiles), timeline.num_empty) == (tiles, launched - tiles)


@pytest.mark.parametrize("options", [{}, {"pack_gqa": True}, {"causal": True}, {"workers": 3}])
def test_timeline(family, gpu, scheduler, options):
    """Every tile with work exactly once, phases in order, a work-group on one SM at a time."""
    lengths = [700, 0, 1, 129, 128, 40]
    shape = dict(num_heads_q=8, num_heads_kv=2, head_dim=128)
    plan = exactile.plan(
        seqlens_q=lengths, **shape, dtype="bfloat16", scheduler=scheduler, backend="cuda", **options
    )
    timeline = record(plan, zeros(lengths, **shape), gpu)
    starts = cumulate(lengths).tolist()
    assert sorted(timeline.tiles[["head", "q_begin", "q_end", "k_begin", "k_len"]].tolist()) == [
        (head, q, end, begin, end - begin)
        for head in range(plan.tile_heads)
        for begin, end in itertools.pairwise(starts)
        for q in range(begin, end, plan.tile_tokens)
    ]
    assert timeline.launched == plan.launched
    if scheduler != "ValidOnlyPersistent":  # there a fast one may take a late one's tile
        assert timeline.num_empty == plan.num_empty
    records = timeline.records
    assert (records["times_written"] == 1).all()
    assert ((records["sm"] >= 0) & (records["sm"] < gpu.num_sms)).all()
    assert gpu.num_sms == torch.cuda.get_device_properties(0).multi_processor_count
    tiles = timeline.tiles
    names = ("prologue_ns", "mainloop_ns", "epilogue_ns", "end_ns")
    for before, after in itertools.pairwise(names):
        assert (tiles[before] <= tiles[after]).all()
    assert timeline.span_ns > 0
    for group in range(plan.launched):
        mine = records[records["work_group"] == group]
        assert len(set(mine["sm"].tolist())) == 1
        for before, after in itertools.pairwise(mine):  # in order of their begin
            assert before["end_ns"] == after["prologue_ns"]


def test_a_timeline_changes_no_bit(family, scheduler):
    batch = make_batch([300, 0, 31, 1, 1029], dtype="bfloat16", head_dim=128, causal=True)
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    plan = exactile.plan(batch.cu_q, num_heads_q=4, num_heads_kv=2, head_dim=128,
                         dtype="bfloat16", causal=True, backend="cuda",
                         scheduler=scheduler)  # fmt: skip
    want, out = plan.run(q, k, v), torch.empty_like(q)
    size = plan._core.timeline_bytes
    memory = torch.zeros(size + 4096, device="cuda", dtype=torch.uint8)
    memory[size:] = 7
    run = partial(plan._core.run, q, k, v, out, timeline=memory.data_ptr())
    run(timeline_bytes=size)
    torch.cuda.synchronize()
    assert torch.equal(out, want)
    assert bool((memory[size:] == 7).all())
    with pytest.raises(ValueError, match=f"expected a timeline of {size} bytes, got {size - 1}"):
        run(timeline_bytes=size - 1)


def test_bench_draws_a_timeline(family, tmp_path):
    require("matplotlib")
    path = tmp_path / "timeline.json"
    options = "--batch=16 --num_heads_q=32 --num_heads_kv=8 --varlen --varlen_dist=zipf --compare"
    options += " --pack_gqa=0 --iterations=1 --backend=cuda"
    assert cli.main(["bench", *options.split(), f"--timeline={path}"]) == 0
    launches = json.loads(path.read_text())["otherData"]["launches"]
    padded, tiles = ZIPF_GRID[192 if family == "sm90" else 128]
    assert [x["tiles"] for x in launches] == [tiles] * 3
    assert [x["launched"] for x in launches[:2]] == [padded, tiles]
    assert [x["empty"] for x in launches[:2]] == [padded - tiles, 0]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_streams_and_threads_of_one_plan(family):
    batch = make_batch([700, 40, 300], dtype="bfloat16", head_dim=128, causal=True)
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    plan = exactile.plan(batch.cu_q, num_heads_q=4, num_heads_kv=2, head_dim=128,
                         dtype="bfloat16", causal=True, backend="cuda")  # fmt: skip
    want = plan.run(q, k, v)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    outs = []
    for _ in range(10):
        for stream in streams:
            outs.append(plan.run(q, k, v, stream=stream))
            with torch.cuda.stream(stream):
                outs.append(plan.run(q, k, v))
    torch.cuda.synchronize()
    for out in outs:
        assert torch.equal(out, want)


def test_the_current_stream_of_torch():
    """From DLPack's C functions, where torch has them: it is what torch says in public."""
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        assert _core.torch_stream(0) is None
        return
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            assert _core.torch_stream(0) == torch.cuda.current_stream().cuda_stream


def test_a_plan_may_go_before_its_kernels_are_done(family):
    batch = make_batch([2000, 1500], dtype="bfloat16", head_dim=128, heads=(16, 4))
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    want = exactile.varlen_prefill(q, k, v, batch.cu_q)
    outs = [exactile.varlen_prefill(q, k, v, batch.cu_q) for _ in range(50)]
    assert all(torch.equal(out, want) for out in outs)


def test_graph(family):
    """Captured before the plan was ever run, and beside launches outside the graph."""
    batch = make_batch([700, 40, 300], dtype="bfloat16", head_dim=128)
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    plan = exactile.plan(
        batch.cu_q, num_heads_q=4, num_heads_kv=2, head_dim=128, dtype="bfloat16", backend="cuda"
    )
    out = torch.empty_like(q)
    exactile.varlen_prefill(q, k, v, batch.cu_q)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run(q, k, v, out=out)
    for _ in range(3):
        out.zero_()
        graph.replay()
        again = plan.run(q, k, v)
        torch.cuda.synchronize()
        assert torch.equal(out, again)
    batch.check(to_numpy(out), to_numpy(plan.run(q, k, v, return_lse=True)[1]))


@pytest.mark.parametrize("mask", ["full", "causal", "window"])
@pytest.mark.parametrize("order", [x for x in _core.ORDERS if x != "sequence_major"])
def test_lengths_on_the_gpu(family, mask, order):
    """Planned there: the same bits; the launch is the bound."""
    batch = make_batch([700, 0, 40, 1, 300], [500, 9, 40, 1, 0], dtype="bfloat16", **MASKS[mask])
    want = run(batch, order=order)
    host = batch.cu_q, batch.cu_k
    batch.cu_q, batch.cu_k = (torch.from_numpy(cu).cuda() for cu in host)
    for scheduler in ("auto", "ValidOnlyIndividual", "ValidOnlyPersistent"):
        for got, expected in zip(run(batch, scheduler=scheduler, order=order), want, strict=True):
            assert_same_bits(got, expected)


def test_many_lengths_on_the_gpu(family):
    """More records than one block of the planner takes."""
    batch = make_batch([3, 200, 0, 17] * 900, dtype="float16", heads=(2, 2), causal=True)
    want = run(batch)
    batch.cu_q = batch.cu_k = torch.from_numpy(batch.cu_q).cuda()
    for got, expected in zip(run(batch), want, strict=True):
        assert_same_bits(got, expected)


def test_golden_counts_with_lengths_on_the_gpu(family, gpu):
    cu = torch.from_numpy(cumulate(ZIPF)).cuda()
    plan = exactile.plan(cu, total_q=sum(ZIPF), **GOLDEN, scheduler="ValidOnlyIndividual")
    timeline = record(plan, zeros(ZIPF, **GOLDEN), gpu)
    assert len(timeline.tiles) == ZIPF_GRID[plan.block_m][1]
    at_most = 32 * (sum(ZIPF) // plan.block_m + len(ZIPF))
    assert timeline.launched == plan.launched <= at_most


def test_graph_replayed_with_other_lengths(family):
    first, second = [500, 40, 484], [24, 1000, 0]
    batch = make_batch(first, dtype="bfloat16", head_dim=128, causal=True)
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    cu = torch.from_numpy(cumulate(first)).cuda()
    shape = dict(num_heads_q=4, num_heads_kv=2, head_dim=128, dtype="bfloat16", causal=True)
    exactile.plan(cu, total_q=1024, **shape).run(q, k, v)  # loads the kernels
    out = [torch.empty_like(q) for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = exactile.plan(cu, total_q=1024, **shape)
        for layer in out:
            plan.run(q, k, v, out=layer)
    for lengths in (first, second, first):
        cu.copy_(torch.from_numpy(cumulate(lengths)))
        graph.replay()
        torch.cuda.synchronize()
        cu_seqlens = cumulate(lengths)
        want = exactile.varlen_prefill(q, k, v, cu_seqlens, causal=True, pack_sequences=False)
        for layer in out:
            assert torch.equal(layer, want)


@needs("nvrtc")
def test_a_scheduler_of_ones_own(family):
    batch = make_batch([300, 0, 31, 1, 129], dtype="bfloat16", causal=True)
    own = exactile.Scheduler("Reverse", source=REVERSE)
    strided = exactile.Scheduler("Strided", source=STRIDED, like="ValidOnlyPersistent")
    for scheduler in (own, strided):
        for got, want in zip(run(batch, scheduler=scheduler), run(batch), strict=True):
            assert_same_bits(got, want)
    wrong = exactile.Scheduler("Wrong", source="struct Wrong { int nonsense };")
    with pytest.raises(RuntimeError, match=r"nvrtcCompileProgram[\s\S]*Wrong"):
        run(batch, scheduler=wrong)
    run(batch)  # the context is as usable as before


@pytest.mark.parametrize("library", ["cupy", "jax.numpy"])
def test_other_libraries(library):
    require(library)
    module = importlib.import_module(library)
    batch = make_batch([90, 5], dtype="float16")
    arrays = [module.asarray(x) for x in (batch.q, batch.k, batch.v)]
    out, lse = exactile.varlen_prefill(*arrays, batch.cu_q, return_lse=True)
    assert type(out) is type(arrays[0])
    to_host = module.asnumpy if library == "cupy" else np.asarray
    batch.check(to_host(out), to_host(lse))


def test_more_than_two_to_the_31_elements(family):
    require("gpu memory")
    tokens, heads = 70_000, 256
    q = torch.zeros(tokens, heads, 128, device="cuda", dtype=torch.bfloat16)
    kv = torch.randn(tokens, 1, 128, device="cuda").bfloat16()
    assert q.numel() > 2**31
    out = exactile.varlen_prefill(q, kv, kv, [0, tokens - 300, tokens])
    mean = kv[-300:].float().mean(0)
    assert (out[-1].float() - mean).abs().max() < 2e-2
