"""Shared by the CUDA tests of serving: batches on the GPU with what they are served with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cases import Batch, place_in_whole
from cuda_device import to_gpu, to_numpy, torch
from serving import SENTINEL, check_untouched


def put_view(x: np.ndarray):
    """`x` where it lies in the array that it is a view of, which `to_gpu` makes dense."""
    whole, steps, at = place_in_whole(x)
    return to_gpu(whole).flatten().as_strided(x.shape, steps, at)


def there(batch: Batch) -> Batch:
    """A batch on the GPU, what it is served with too."""
    arrays = ("block_table", "sinks", "alibi_slopes")
    given = {
        name: torch.from_numpy(np.ascontiguousarray(x)).cuda() if name in arrays else x
        for name, x in batch.serving.items()
    }
    return replace(
        batch, q=to_gpu(batch.q), k=put_view(batch.k), v=put_view(batch.v), serving=given
    )


def serve(batch: Batch, **options) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of the GPU; rows of out that do not count are as they were."""
    on = there(batch)
    out = torch.full((*batch.q.shape[:2], batch.v.shape[-1]), SENTINEL, dtype=on.q.dtype).cuda()
    _, lse = on.run(out=out, **options)
    result = to_numpy(out)
    check_untouched(batch, result)
    return result, to_numpy(lse)
