"""Peers: other libraries' attention on the same data, measured beside ours in the same run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from exactile.planning import Plan
from exactile.tools.machines import Machine
from exactile.workloads import Lengths

MATMUL_SIZE, GPU_MATMUL_SIZE = 2048, 8192


class Peer(Protocol):
    """What is timed in turns with ours."""

    name: str
    version: str

    def __call__(self) -> Any:
        """Run the batch: out as a torch tensor, (total_q, num_heads_q, head_dim_v)."""

    def matmul_tflops(self, dtype: str, machine: Machine) -> float:
        """Rate of torch's matrix product in this process, TFLOP/s."""


class TorchSdpa:
    """PyTorch's ``scaled_dot_product_attention``, called for one sequence after the other.

    Parameters
    ----------
    plan : Plan
        Full, or causal with as many keys as queries: what that function computes itself.
    q, k, v : ndarray
        The plan's data; bfloat16 is uint16 storage.

    Raises
    ------
    ImportError
        torch is not installed.
    ValueError
        The plan's mask is another one.
    """

    name = "torch"

    def __init__(
        self,
        plan: Plan,
        q: npt.NDArray[Any],
        k: npt.NDArray[Any],
        v: npt.NDArray[Any],
    ) -> None:
        try:
            import torch
        except ImportError:
            raise ImportError("--peers: torch is not installed; pip install torch") from None
        lengths = plan.seqlens
        self.causal = plan.window == (-1, 0)
        if not self.causal and plan.window != (-1, -1):
            raise ValueError(f"--peers: torch has no window, got {plan.window}")
        if self.causal and not np.array_equal(lengths.q, lengths.k):
            raise ValueError("--peers: torch's causal mask is top-left, which needs len_q == len_k")
        torch.set_num_threads(plan.workers)
        self.torch = torch
        self.version = str(torch.__version__)
        dtype = getattr(torch, plan.dtype)
        tensors = [torch.from_numpy(x).view(dtype) for x in (q, k, v)]
        sides = (lengths.q, lengths.k, lengths.k)
        split = [torch.split(x, n.tolist()) for x, n in zip(tensors, sides, strict=True)]
        self.sequences = [
            tuple(x.transpose(0, 1).unsqueeze(0) for x in sequence)
            for sequence in zip(*split, strict=True)
        ]

    def __call__(self) -> Any:
        """Run the batch: out as a torch tensor, (total_q, num_heads_q, head_dim_v)."""
        sdpa = self.torch.nn.functional.scaled_dot_product_attention
        outs = [
            sdpa(q, k, v, is_causal=self.causal, enable_gqa=True)[0].transpose(0, 1)
            for q, k, v in self.sequences
        ]
        return self.torch.cat(outs)

    def matmul_tflops(self, dtype: str, machine: Machine) -> float:
        """Best rate of torch's matrix product of 2048 x 2048 x 2048 in this process, TFLOP/s."""
        x = self.torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(getattr(self.torch, dtype))
        times_ms = machine.milliseconds(lambda: x @ x, None, count=6)
        return 2 * MATMUL_SIZE**3 / min(times_ms[1:]) / 1e9


class Fa3:
    """FlashAttention-3: the operators that vllm builds of it (``_vllm_fa3_C``).

    Parameters
    ----------
    plan : Plan
        Of the CUDA backend.
    q, k, v : torch tensors on the GPU
        The plan's data.
    library : str or pathlib.Path
        The operators' shared library, built for the installed PyTorch.

    Raises
    ------
    OSError
        The library cannot be loaded.
    ImportError
        It has other operators.
    """

    name = "fa3"

    def __init__(self, plan: Plan, q: Any, k: Any, v: Any, library: str | Path) -> None:
        import torch

        self.torch: Any = torch
        self.version = Path(library).name
        torch.ops.load_library(str(library))
        try:
            self.operator: Any = torch.ops._vllm_fa3_C.fwd
        except AttributeError:
            raise ImportError(f"--peers: {library} has no operator _vllm_fa3_C::fwd") from None
        cu_q, cu_k = (torch.from_numpy(cu).to(q.device) for cu in Lengths(*plan.seqlens).cu_seqlens)
        longest = [int(seqlens.max(initial=0)) for seqlens in plan.seqlens]
        self.out = q.new_empty((*q.shape[:2], v.shape[2]))
        causal = plan.window == (-1, 0)
        window = (-1, -1) if causal else plan.window
        # Keys and values to append, and qv; cu_seqlens of those, and seqused.
        self.arguments = [q, k, v, None, None, None, self.out, cu_q, cu_k, None, None, None]
        self.arguments += longest
        # Page table to descales; then softcap, rotary_interleaved, metadata, splits, pack_gqa, SMs.
        self.arguments += [None] * 9 + [plan.head_dim**-0.5, causal, *window]
        self.arguments += [0.0, True, None, 1, None, 0, None, 1, 0, None]

    def __call__(self) -> Any:
        """Run the batch: out as a torch tensor, (total_q, num_heads_q, head_dim_v)."""
        self.operator(*self.arguments)
        return self.out

    def matmul_tflops(self, dtype: str, machine: Machine) -> float:
        """Sustained rate of torch's matrix product of 8192 x 8192 x 8192, TFLOP/s."""
        return gpu_matmul_tflops(dtype, machine)


def gpu_matmul_tflops(dtype: str, machine: Machine, repetitions: int = 300) -> float:
    """Rate of torch's matrix product of 8192 x 8192 x 8192 on the GPU, TFLOP/s.

    The median of half a second of them on an H200: a card that is still cool is faster.
    """
    import torch

    x: Any = torch.randn(GPU_MATMUL_SIZE, GPU_MATMUL_SIZE, device="cuda").to(getattr(torch, dtype))
    times_ms = machine.milliseconds(lambda: x @ x, None, repetitions)
    return 2 * GPU_MATMUL_SIZE**3 / statistics.median(times_ms) / 1e9
