"""Peers: other libraries' attention on the same data, measured beside ours in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from exactile.plan import Plan

MATMUL_SIZE = 2048


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

    def matmul_tflops(self, dtype: str, repetitions: int = 5) -> float:
        """Best rate of torch's matrix product of 2048 x 2048 x 2048 in this process, TFLOP/s."""
        x = self.torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(getattr(self.torch, dtype))
        return 2 * MATMUL_SIZE**3 / min(_seconds(lambda: x @ x, repetitions)) / 1e12


def _seconds(run: Callable[[], Any], repetitions: int) -> list[float]:
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds
