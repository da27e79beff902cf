"""Peers: what is timed beside ours gets the same batch, and its figures are its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import exactile
from abilities import module, needs
from exactile.tools import bench
from exactile.tools.machines import Host
from exactile.tools.peers import Fa3, TorchSdpa
from exactile.tools.reference import reference

torch = module("torch")
pytestmark = needs("torch")

FA3_FWD = (
    "fwd(Tensor! q, Tensor k, Tensor v, Tensor? k_new, Tensor? v_new, Tensor? q_v, "
    "Tensor(out!)? out, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? cu_seqlens_k_new, "
    "Tensor? seqused_q, Tensor? seqused_k, int? max_seqlen_q, int? max_seqlen_k, "
    "Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k, Tensor? rotary_cos, "
    "Tensor? rotary_sin, Tensor? seqlens_rotary, Tensor? q_descale, Tensor? k_descale, "
    "Tensor? v_descale, float softmax_scale, bool is_causal, int window_size_left, "
    "int window_size_right, float softcap, bool is_rotary_interleaved, "
    "Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, int sm_margin, "
    "Tensor? s_aux, int cp_world_size, int cp_rank, Tensor? cp_tot_seqused_k) -> Tensor[]"
)
"""As vllm 0.20 declares it."""

MASKS = [{}, {"causal": True}, {"window": (9, 2)}]


class TorchHost(Host):
    """The CPU with torch tensors, as a GPU's machine holds them."""

    def put(self, x: Any) -> Any:
        return torch.from_numpy(x)

    def get(self, x: Any) -> Any:
        return x.numpy()

    def empty(self, like: Any, shape: tuple[int, ...]) -> Any:
        return torch.empty(shape, dtype=like.dtype)


@pytest.fixture(scope="module")
def fa3_calls() -> Any:
    """FA3's operator, computed by the reference; yields the largest lengths of its calls."""
    library = torch.library.Library("_vllm_fa3_C", "DEF")
    library.define(FA3_FWD)
    calls: list[tuple[int, int]] = []

    def fwd(q: Any, k: Any, v: Any, *rest: Any) -> list[Any]:
        names = [x.split(" ")[1].rstrip(",") for x in FA3_FWD.partition("(")[2].split(", ")]
        given = dict(zip(names[3:], rest, strict=True))
        scale, causal = given["softmax_scale"], given["is_causal"]
        window = given["window_size_left"], given["window_size_right"]
        assert scale == pytest.approx(q.shape[2] ** -0.5)
        assert (given["softcap"], given["num_splits"], given["cp_world_size"]) == (0.0, 1, 1)
        calls.append((given["max_seqlen_q"], given["max_seqlen_k"]))
        out, _ = reference(
            *(x.numpy() for x in (q, k, v)),
            given["cu_seqlens_q"].numpy(),
            given["cu_seqlens_k"].numpy(),
            causal=causal,
            window=window,
        )
        given["out"].copy_(torch.from_numpy(out))
        return []

    library.impl("fwd", fwd, "CPU")
    yield calls
    library._destroy()


def plan_of(**options: Any) -> exactile.Plan:
    shape = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="float32")
    return exactile.plan(seqlens_q=[40, 0, 7], seqlens_k=[50, 3, 7], **shape, **options)


@pytest.mark.parametrize("mask", MASKS)
def test_fa3_gets_the_same_batch(
    mask: dict[str, Any], fa3_calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(Fa3, "matmul_tflops", lambda self, dtype, machine: 2.0)
    fa3_calls.clear()
    plan = plan_of(**mask)
    result = bench.measure(
        plan,
        bench.random_data(plan, 0),
        TorchHost(),
        iterations=3,
        warmup=2,
        verified=True,
        command="",
        peer=partial(Fa3, library="folder/_vllm_fa3_C.so"),
    )
    assert loaded == ["folder/_vllm_fa3_C.so"]
    assert fa3_calls == [(40, 50)] * (1 + 3 + 1)  # warm up, runs in turns, comparison
    assert result.verification is not None
    assert result.verification.passed
    peer = result.peer
    assert peer is not None
    assert (peer.name, peer.version, peer.matmul_tflops) == ("fa3", "_vllm_fa3_C.so", 2.0)
    assert peer.max_difference < 1e-5
    assert 0 < peer.min_ms <= peer.median_ms <= peer.max_ms
    assert peer.spread == pytest.approx((peer.max_ms - peer.min_ms) / peer.median_ms)
    assert peer.ratio == pytest.approx(peer.median_ms / result.median_ms)


def test_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.ops, "_vllm_fa3_C", object(), raising=False)
    plan = plan_of()
    data = [torch.from_numpy(x) for x in bench.random_data(plan, 0)]
    with pytest.raises(ImportError, match=r"other\.so has no operator _vllm_fa3_C::fwd"):
        Fa3(plan, *data, library="other.so")
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"missing\.so"):
        Fa3(plan, *data, library="missing.so")


def test_torch_on_the_cpu() -> None:
    plan = exactile.plan(
        seqlens_q=[40, 0, 7], num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bfloat16",
        causal=True,
    )  # fmt: skip
    data = bench.random_data(plan, 0)
    result = bench.measure(
        plan, data, Host(), iterations=2, warmup=1, verified=True, command="", peer=TorchSdpa
    )
    assert result.peer is not None
    assert result.peer.max_difference < 0.05
    assert np.isfinite(result.peer.matmul_tflops)
