"""Tensors that are more than memory: modes and transformations of torch, on the CPU."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import exactile
from abilities import module, needs
from exactile import _core

torch = module("torch")
pytestmark = needs("torch")

SHAPE = (20, 2, 64)
CU = [0, 15, 20]
PLAN = exactile.plan(CU, num_heads_q=2, num_heads_kv=2, head_dim=64, dtype="float32")


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(3)]


def emptied():
    x = torch.zeros(SHAPE)
    x.untyped_storage().resize_(0)
    return x


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(SHAPE)


def distributed():
    from torch.distributed import device_mesh, init_process_group, is_initialized
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not is_initialized():
        init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    mesh = device_mesh.init_device_mesh("cpu", (2,))
    return distribute_tensor(torch.zeros(SHAPE), mesh, [Replicate()])


def masked():
    from torch.masked import as_masked_tensor

    return as_masked_tensor(torch.zeros(SHAPE), torch.ones(SHAPE, dtype=torch.bool))


def wrapper():
    class Wrapper(torch.Tensor):
        """A tensor around another one, as quantised weights are."""

        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise NotImplementedError

    return Wrapper(torch.zeros(SHAPE))


WITHOUT_MEMORY = {
    "emptied storage": emptied,
    "fake": fake,
    "functional": lambda: torch._to_functional_tensor(torch.zeros(SHAPE)),
    "zero": lambda: torch._efficientzerotensor(SHAPE),
    "wrapper": wrapper,
    "masked": masked,
    "DTensor": distributed,
    "meta": lambda: torch.zeros(SHAPE, device="meta"),
    "sparse": lambda: torch.zeros(SHAPE).to_sparse(),
    "sparse csr": lambda: torch.zeros(SHAPE).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3, 2, 64)] * 2),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.zeros(3, 2, 64), torch.zeros(2, 2, 64)], layout=torch.jagged
    ),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(SHAPE), 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("argument", ["q", "k", "v", "out"])
@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_tensors_without_plain_memory(kind, argument):
    arrays = dict(zip("qkv", tensors(), strict=True)) | {"out": torch.full(SHAPE, 7.0)}
    arrays[argument] = WITHOUT_MEMORY[kind]()
    with pytest.raises(TypeError, match=f"expected {argument} to (be a dense|hold memory)"):
        PLAN.run(**arrays)
    if argument != "out":
        with pytest.raises(TypeError, match=f"expected {argument} to (be a dense|hold memory)"):
            exactile.varlen_prefill(arrays["q"], arrays["k"], arrays["v"], CU)
        assert bool((arrays["out"] == 7).all())


def test_an_empty_tensor_needs_no_memory():
    x = torch.empty(0, 2, 64)
    assert exactile.varlen_prefill(x, x, x, [0]).shape == x.shape


LENGTHS_WITHOUT_MEMORY = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "functional": lambda x: torch._to_functional_tensor(x),
}


@pytest.mark.parametrize("kind", [*LENGTHS_WITHOUT_MEMORY, "fake", "emptied storage"])
def test_lengths_without_memory(kind):
    lengths = torch.tensor(CU, dtype=torch.int32)
    if kind == "fake":
        from torch._subclasses.fake_tensor import FakeTensorMode

        lengths = FakeTensorMode().from_tensor(lengths)
    elif kind == "emptied storage":
        lengths.untyped_storage().resize_(0)
    else:
        lengths = LENGTHS_WITHOUT_MEMORY[kind](lengths)
    with pytest.raises(TypeError, match=r"cu_seqlens_q (in CPU memory|to be a dense tensor)"):
        exactile.plan(lengths, num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32")


def test_tensors_that_require_grad():
    q, k, v = tensors()
    want = PLAN.run(q, k, v)
    for x in (q, k, v):
        x.requires_grad_()
    with pytest.raises(ValueError, match=r"q not to require grad while .* not supported yet") as e:
        PLAN.run(q, k, v)
    assert "no_grad" in str(e.value)
    assert "detach" not in str(e.value)
    out = torch.zeros(SHAPE, requires_grad=True)
    with pytest.raises(ValueError, match="out not to require grad"):
        PLAN.run(*tensors(), out=out)
    for mode in torch.no_grad, torch.inference_mode:
        with mode():
            assert torch.equal(exactile.varlen_prefill(q, k, v, CU), want)
            assert torch.equal(PLAN.run(q, torch.nn.Parameter(k), v, out=out), want)


def test_autograd_sees_that_out_is_written():
    q, k, v = tensors()
    out, weight = torch.ones(SHAPE), torch.ones(SHAPE, requires_grad=True)
    version = out._version
    loss = (out * weight).sum()
    PLAN.run(q, k, v, out=out)
    assert out._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        made_here = torch.empty(SHAPE)
        assert torch.equal(PLAN.run(q, k, v, out=made_here), out)


def test_a_refused_call_writes_nothing_and_says_so():
    out = torch.ones(SHAPE)
    with pytest.raises(ValueError, match="softmax_scale"):
        PLAN.run(*tensors(), out=out, softmax_scale=-1)
    assert out._version == 0
    assert bool((out == 1).all())


def test_pending_negation():
    q, k, v = tensors()
    for arrays in ((torch._neg_view(q), k, v), (q, torch._neg_view(k), v)):
        with pytest.raises(ValueError, match="pending negation"):
            PLAN.run(*arrays)
    with pytest.raises(ValueError, match="float32, float16 or bfloat16, got complex64"):
        PLAN.run(q.to(torch.complex64).conj(), k, v)


def test_transformations_of_torch_func():
    q, k, v = tensors()

    def run(q):
        return PLAN.run(q, k, v)

    with pytest.raises(TypeError, match=r"q .* got one that torch.func .* has wrapped"):
        torch.func.vmap(run)(torch.stack([q, q]))
    with pytest.raises(ValueError, match="q not to require grad"):
        torch.func.grad(lambda q: run(q).sum())(q)
    with pytest.raises(TypeError, match=r"q .* got one that torch.func"):
        torch.func.jvp(run, (q,), (q,))
    with pytest.raises(TypeError, match="expected q to hold memory"):
        torch.func.functionalize(run)(q)


def test_tangents():
    from torch.autograd import forward_ad

    q, k, v = tensors()
    with forward_ad.dual_level():
        want = PLAN.run(q, k, v)
        for place in range(3):
            arrays = [q, k, v]
            arrays[place] = forward_ad.make_dual(arrays[place], torch.ones(SHAPE))
            with pytest.raises(TypeError, match="forward-mode differentiation"):
                PLAN.run(*arrays)
    assert torch.equal(PLAN.run(q, k, v), want)


@pytest.mark.filterwarnings("ignore")
def test_jit_trace():
    q, k, v = tensors()
    with pytest.raises(TypeError, match=r"varlen_prefill: expected a call outside torch.jit.trace"):
        torch.jit.trace(lambda q: PLAN.run(q, k, v), (q,))
    with pytest.raises(TypeError, match=r"varlen_prefill: expected a call outside"):
        torch.jit.trace(lambda q: exactile.varlen_prefill(q, k, v, CU), (q,))
    shape = dict(num_heads_q=2, num_heads_kv=2, head_dim=64, dtype="float32")
    with pytest.raises(TypeError, match=r"plan: expected a call outside torch.jit.trace"):
        torch.jit.trace(lambda x: x * exactile.plan(CU, **shape).valid, (q,))


def call_prefill(q, k, v, cu):
    return exactile.varlen_prefill(q, k, v, cu, causal=True)


def call_plan_and_run(q, k, v, cu):
    plan = exactile.plan(cu, num_heads_q=2, num_heads_kv=2, head_dim=64, dtype=q.dtype, causal=True)
    return plan.run(q, k, v, out=torch.empty_like(q))


@pytest.mark.parametrize(
    ("call", "breaks"), [(call_prefill, 1), (call_plan_and_run, 2)], ids=["prefill", "plan"]
)
def test_a_compiled_model_breaks_its_graph_once_a_call(call, breaks):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counter = CompileCounter()

    def model(q, k, v, cu):
        return call(q * 2, k, v, cu) + 1

    compiled = torch.compile(model, backend=counter, fullgraph=False)
    arguments = (*tensors(), torch.tensor(CU, dtype=torch.int32))
    want = model(*arguments)
    for _ in range(3):
        assert torch.equal(compiled(*arguments), want)
    graph_breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    assert counter.frame_count == 2 + (breaks > 1), "graphs: before, between and after the calls"
    found = torch._dynamo.explain(model)(*arguments)
    assert found.graph_break_count == breaks
    assert graph_breaks <= 2 * breaks + 1  # and at the first line of the call's own frame
    with pytest.raises(torch._dynamo.exc.Unsupported, match="exactile computes eagerly"):
        torch.compile(model, backend="eager", fullgraph=True)(*arguments)
    torch._dynamo.reset()


def test_the_compiler_comes_back_after_an_error():
    q, k, v = tensors()
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    def model(q):
        try:
            PLAN.run(q, k, v[:1])
        except ValueError:
            q = q + 1
        return q * 2

    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend=backend)(q), (q + 1) * 2)
    assert torch.equal(torch.compile(lambda x: x * 3, backend=backend)(q), q * 3)
    assert seen
    torch._dynamo.reset()


def test_another_default_device():
    q, k, v = tensors()
    want = PLAN.run(q, k, v)
    torch.set_default_device("meta")
    try:
        out = torch.empty(SHAPE, device="cpu")
        assert torch.equal(PLAN.run(q, k, v, out=out), want)
        with pytest.raises(TypeError, match="got an array on meta"):
            exactile.plan(torch.tensor([0, 3]), num_heads_q=1, num_heads_kv=1, head_dim=64,
                          dtype="float32")  # fmt: skip
    finally:
        torch.set_default_device(None)


def test_a_subclass_without_tricks_is_a_tensor():
    class Named(torch.Tensor):
        pass

    q, k, v = tensors()
    out = PLAN.run(q.as_subclass(Named), torch.nn.Parameter(k, requires_grad=False), v)
    assert torch.equal(out.as_subclass(torch.Tensor), PLAN.run(q, k, v))


def test_mixed_libraries():
    q, k, v = tensors()
    assert torch.equal(PLAN.run(q, k.numpy(), v), PLAN.run(q, k, v))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = PLAN.run(q.numpy(), k, v)
    assert isinstance(out, np.ndarray)


def test_device_names():
    assert [_core.device_name(i) for i in (1, 2, 14, 99)] == [
        "CPU",
        "CUDA",
        "oneAPI",
        "DLPack device type 99",
    ]


def test_dlpack_numbers():
    """Ours are those of torch."""
    of_torch = torch.utils.dlpack.DLDeviceType
    assert [
        (_core.DEVICE_CPU, int(of_torch.kDLCPU)),
        (_core.DEVICE_CUDA, int(of_torch.kDLCUDA)),
        (_core.DEVICE_CUDA_MANAGED, int(of_torch.kDLCUDAManaged)),
        (_core.DEVICE_ONEAPI, int(of_torch.kDLOneAPI)),
    ] == [(x, x) for x in (1, 2, 13, 14)]
    assert _core.DLPACK_TYPES == {
        "float32": (2, 32),
        "float16": (2, 16),
        "bfloat16": (4, 16),
        "uint16": (1, 16),
    }


def test_the_current_stream_comes_from_dlpack():
    """Where torch has DLPack's C functions. A build without CUDA says the default stream."""
    has_functions = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert isinstance(_core.torch_stream(0), int if has_functions else type(None))
