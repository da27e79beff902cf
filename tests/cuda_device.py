"""Shared by the CUDA tests: batches on the GPU. Their tests are marked with `needs_gpu`."""

from __future__ import annotations

import numpy as np

import exactile
from abilities import module, needs
from cases import DTYPES
from exactile import _core

INFO = exactile.info()["backends"]["cuda"]
torch = module("torch")
needs_gpu = needs("cuda")

ROWS = [row[1:] for row in _core.support() if row[0] == "cuda"]
HALVES = ["float16", "bfloat16"]


def to_gpu(x, device="cuda"):
    bits = torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).to(device)
    return bits.view(getattr(torch, x.dtype.name))


def to_numpy(x):
    if x.dtype == torch.float32:
        return x.cpu().numpy()
    return x.cpu().view(torch.int16).numpy().view(DTYPES[str(x.dtype).removeprefix("torch.")])


def run(batch, **options):
    """(out, lse) of a batch, computed on the GPU; each sequence in tiles of its own."""
    options = {"pack_sequences": False} | options
    out, lse = exactile.varlen_prefill(
        *(to_gpu(x) for x in (batch.q, batch.k, batch.v)),
        batch.cu_q,
        batch.cu_k,
        causal=batch.causal,
        window=batch.window,
        return_lse=True,
        **options,
    )
    return to_numpy(out), to_numpy(lse)
