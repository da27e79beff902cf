"""Lengths on a GPU: their stand-ins on the host, and errors that need no driver."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import exactile
from abilities import require
from exactile import _core, _device, api

PLAN = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bfloat16")
CUDA = 2


class OnGpu:
    """An array of the host that DLPack says is in a GPU's memory. Nothing reads it."""

    def __init__(self, values, dtype=np.int32, device: int = 0) -> None:
        self._values = np.array(values, dtype)
        self._device = device
        self.shape, self.dtype = self._values.shape, self._values.dtype

    def __dlpack_device__(self):
        return CUDA, self._device

    def __dlpack__(self, **_):
        capsule = self._values.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        device = ctypes.c_int32 * 2  # behind the address of the data
        device.from_address(get(capsule, b"dltensor") + 8)[:] = CUDA, self._device
        return capsule

    def __repr__(self) -> str:
        return f"OnGpu({self._values.tolist()}, {self.dtype}, {self._device})"

    @property
    def address(self) -> int:
        return self._values.ctypes.data


CU = OnGpu([0, 8, 16])
USED = OnGpu([8, 3])
PAGES = dict(seqused_k=USED, page_size=16, max_seqlen_k=40)


def core_and_stand_ins(arrays, paged=False, **bounds):
    names = "cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k"
    bounds = dict.fromkeys(("total_q", "total_k", "max_seqlen_k")) | bounds
    lengths = _device.DeviceLengths(dict.fromkeys(names) | arrays, bounds, paged, 7)
    return lengths.core, [x.tolist() for x in lengths.stand_ins]


def test_packed():
    """Of queries and keys, or of queries alone, whose keys are theirs."""
    cu_k = OnGpu([0, 30, 60])
    arrays = dict(cu_seqlens_q=CU, cu_seqlens_k=cu_k, seqused_q=USED)
    core, stand_ins = core_and_stand_ins(arrays, total_q=17, total_k=61)
    assert core == (CU.address, cu_k.address, USED.address, 0, 0, 7)
    assert stand_ins == [[0, 8, 17], [0, 30, 61]]
    core, stand_ins = core_and_stand_ins(dict(cu_seqlens_q=CU, seqused_k=USED), total_q=16)
    assert core == (CU.address, CU.address, 0, USED.address, 0, 7)
    assert stand_ins == [[0, 8, 16], [0, 8, 16]]
    assert core_and_stand_ins(dict(cu_seqlens_q=CU), total_q=20, total_k=16)[1][1] == [0, 8, 16]


@pytest.mark.parametrize(
    ("max_seqlen_k", "keys"),
    [(0, [0, 0, 0]), (40, [0, 40, 80]), (2**30, [0, _core.MAX_TOKENS // 2, _core.MAX_TOKENS])],
)
def test_pages(max_seqlen_k, keys):
    """As many keys as tables have pages for, or as can be counted."""
    arrays = dict(cu_seqlens_q=CU, seqused_k=USED)
    core, stand_ins = core_and_stand_ins(arrays, paged=True, total_q=16, max_seqlen_k=max_seqlen_k)
    assert core == (CU.address, 0, 0, USED.address, 0, 7)
    assert stand_ins == [[0, 8, 16], keys]


def test_no_sequence():
    none = OnGpu([])
    _, stand_ins = core_and_stand_ins(
        dict(cu_seqlens_q=OnGpu([0]), seqused_k=none), paged=True, total_q=0, max_seqlen_k=40
    )
    assert stand_ins == [[0], [0]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        # some on the host
        (dict(seqused_q=[8, 3]), TypeError, "seqused_q on a GPU, .*, got a list"),
        (dict(seqused_k=np.array([8, 3])), TypeError, "seqused_k on a GPU, .*, got a ndarray"),
        (dict(cu_seqlens_k=[0, 8, 16], total_k=16), TypeError, "cu_seqlens_k on a GPU, .* a list"),
        (dict(seqlens_k=[8, 8]), TypeError, "cu_seqlens_k with .* on a GPU, got seqlens_k"),
        (PAGES | dict(seqused_k=[8, 3]), TypeError, "seqused_k on a GPU, .*, got a list"),
        # other dtypes, shapes, devices
        (dict(seqused_q=OnGpu([8, 3], np.int64)), TypeError, "seqused_q .*int32, got int64"),
        (dict(seqused_k=OnGpu([[8, 3]])), ValueError, r"seqused_k .*\(batch,\), got \(1, 2\)"),
        (dict(seqused_q=OnGpu([8])), ValueError, "seqused_q of length 2 .*, got 1"),
        (dict(seqused_k=OnGpu([8, 3, 1])), ValueError, "seqused_k of length 2 .*, got 3"),
        (dict(seqused_k=OnGpu([8, 3], device=1)), ValueError, "CUDA 0, got 2 on CUDA 1"),
        (dict(cu_seqlens_k=USED, total_k=16), ValueError, "cu_seqlens_k of .* 3 .*, got 2"),
        # bounds
        (dict(total_q=None), TypeError, "expected total_q"),
        (dict(cu_seqlens_k=CU), TypeError, r"expected total_q \(and total_k\)"),
        (dict(max_seqlen_k=-1), ValueError, "max_seqlen_k from 0 to .*, got -1"),
        (dict(max_seqlen_k=2**31 - 1), ValueError, "max_seqlen_k from 0 .*, got 2147483647"),
        (dict(max_seqlen_k=2**31), ValueError, r"max_seqlen_k < 2\^31, got 2147483648"),
        (PAGES | dict(max_seqlen_k=4.0), TypeError, "max_seqlen_k to be an int, got float"),
        (PAGES | dict(max_seqlen_k=True), TypeError, "max_seqlen_k to be an int, got bool"),
        (PAGES | dict(max_seqlen_k=-5), ValueError, "max_seqlen_k from 0 to .*, got -5"),
        (PAGES | dict(max_seqlen_k=None), TypeError, "max_seqlen_k, .*, got no max_seqlen_k"),
        # of pages
        (PAGES | dict(seqused_k=None), TypeError, "seqused_k .*, got no seqused_k"),
        (PAGES | dict(cu_seqlens_k=CU), TypeError, "with page_size .*, got cu_seqlens_k"),
        (PAGES | dict(total_k=80), TypeError, "with page_size .*, got total_k"),
        (PAGES | dict(page_size=0), ValueError, "page_size >= 1, got 0"),
        (PAGES | dict(scheduler="Individual"), ValueError, "a scheduler with a tile list"),
        (PAGES | dict(pack_sequences=True), ValueError, "no pack_sequences=True with page_size"),
        (PAGES | dict(backend="cpu", dtype="float32"), ValueError, "for the cuda backend"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=rf"^plan: .*{message}"):
        exactile.plan(CU, **PLAN | dict(total_q=16) | options)


@pytest.mark.parametrize("name", ["cu_seqlens_k", "seqused_q", "seqused_k"])
def test_lengths_on_a_gpu_beside_queries_on_the_host(name):
    lengths = CU if name == "cu_seqlens_k" else USED
    with pytest.raises(TypeError, match=rf"expected {name} in CPU memory, got an array on CUDA"):
        exactile.plan([0, 8, 16], **PLAN, **{name: lengths}, backend="cuda")


def test_no_lengths_that_torch_has_elsewhere():
    require("torch")
    import torch

    with pytest.raises(TypeError, match=r"expected seqused_k on a GPU, .*, got a Tensor elsewhere"):
        exactile.plan(CU, **PLAN, total_q=16, seqused_k=torch.tensor([8, 3], dtype=torch.int32))


@pytest.mark.parametrize("backend", exactile.BACKENDS)
def test_the_longest_sequence_of_lengths_on_the_host(backend):
    for lengths in dict(cu_seqlens_k=[0, 30, 70]), dict(seqused_k=[40, 12], page_size=16):
        request = PLAN | lengths | dict(backend=backend)
        assert exactile.plan([0, 8, 16], **request, max_seqlen_k=40).batch == 2
        with pytest.raises(ValueError, match="at most max_seqlen_k=39 keys in a sequence, got 40"):
            exactile.plan([0, 8, 16], **request, max_seqlen_k=39)


@pytest.mark.parametrize(
    ("table", "given", "want"),
    [
        (np.zeros((2, 5), np.int32), None, 80),
        (np.zeros((2, 5), np.int32), 33, 33),
        (np.broadcast_to(np.int32(0), (2, 1 << 28)), None, _core.MAX_TOKENS),
        ([[0, 1]], None, 0),
    ],
)
def test_what_a_call_takes_for_the_longest(monkeypatch, table, given, want):
    """As many keys as the table's columns have pages for; 0 without a table of rank 2."""

    class Asked(Exception):
        pass

    def plan(*lengths, **options):
        assert lengths == (CU, None)
        raise Asked(options["max_seqlen_k"], options["page_size"], options["total_k"])

    monkeypatch.setattr(api, "plan", plan)
    q, k = np.zeros((16, 4, 64), np.float16), np.zeros((9, 16, 2, 64), np.float16)
    with pytest.raises(Asked) as asked:
        exactile.varlen_prefill(
            q, k, k, CU, seqused_k=USED, block_table=table, max_seqlen_k=given, backend="cuda"
        )
    assert asked.value.args == (want, 16, None)
