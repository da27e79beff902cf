"""Plans: which tiles exist, who computes them in which order, and what they cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exactile import _core, _sycl, _walk
from exactile._arrays import (
    Array,
    as_int32,
    check_input,
    check_output,
    cumulated,
    empty_like,
    give_back,
    storage,
)
from exactile._device import (
    DeviceLengths,
    backend_of,
    is_torch_cuda,
    run_foreign,
    run_torch,
)
from exactile.scheduler import Scheduler
from exactile.threads import get_num_threads

SCHEDULERS: tuple[str, ...] = _core.SCHEDULERS
"""Names of the tile schedulers; ``"auto"`` lets the planner choose."""

BACKENDS: tuple[str, ...] = _core.BACKENDS
"""Names of the backends that can be planned for."""


class Seqlens(NamedTuple):
    """Lengths of the sequences, int32, shape (batch,)."""

    q: npt.NDArray[np.int32]
    k: npt.NDArray[np.int32]


class Plan:
    """A planned batch: made once from the lengths by `plan`, run on any number of layers.

    Attributes
    ----------
    scheduler, order, backend, dtype : str
    batch, num_heads_q, num_heads_kv, head_dim, head_dim_v : int
    window : tuple[int, int]
        Keys visible left and right of a row's own position; -1: unbounded. Causal is ``(-1, 0)``.
    pack_gqa : bool
        The query heads of one kv head share a tile.
    pack_sequences : bool
        Short sequences that follow one another share tiles.
    workers : int
        Work-groups that run at a time: CPU threads.
    block_m, block_n : int
        Rows of a query tile, keys of a key block.
    tile_tokens, tile_heads, max_m_blocks, num_records : int
        Tokens of a full tile; heads that tiles are counted for (query heads, or kv heads when
        packed); m_blocks of the longest sequence; m_blocks that exist in all sequences.
    launched, valid : int
        Work-groups, and tiles with work.
    pairs : int
        Visible (query, key) pairs of one head.
    flops, bytes : int
        ``2 * num_heads_q * (head_dim + head_dim_v) * pairs``; each needed input row read once and
        each output row written once.
    planning_us : float
        Microseconds that the planner took.
    """

    scheduler: str
    order: str
    backend: str
    dtype: str
    batch: int
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    head_dim_v: int
    window: tuple[int, int]
    pack_gqa: bool
    pack_sequences: bool
    workers: int
    block_m: int
    block_n: int
    tile_tokens: int
    tile_heads: int
    max_m_blocks: int
    num_records: int
    launched: int
    valid: int
    pairs: int
    flops: int
    bytes: int
    planning_us: float

    def __init__(self, core: _core.Plan, lengths: DeviceLengths | None = None) -> None:
        self._core = core
        self._device_lengths = lengths  # keeps the arrays alive
        self._sycl_memory = _sycl.PlanMemory()
        own = core.user_scheduler
        self._own_policy = None if own is None else _walk.OwnPolicy(core, Scheduler(*own))
        for name in Plan.__annotations__:
            setattr(self, name, getattr(core, name))

    @property
    def seqlens(self) -> Seqlens:
        """Lengths of the sequences, int32, two arrays of shape (batch,).

        Raises
        ------
        ValueError
            The lengths are on a GPU.
        """
        if self._device_lengths:
            raise ValueError("Plan.seqlens: the lengths of this plan are on the GPU")
        return Seqlens(np.diff(self._core.cu_seqlens_q), np.diff(self._core.cu_seqlens_k))

    @property
    def records(self) -> npt.NDArray[np.int32]:
        """The tile list, read-only, shape (num_records, 4): q_begin, q_end, k_begin, k_len.

        ``q_end`` is the end of the sequence's rows. Empty for `Individual`, which has no list. A
        tile of several sequences has ``~(first sequence)`` as q_end, the first key of these as
        k_begin, and ``tokens << 20 | keys`` as k_len.
        """
        return self._core.records

    @property
    def num_empty(self) -> int:
        """Work-groups that find no work."""
        return max(0, self.launched - self.valid)

    def summary(self) -> str:
        """A few lines of text: the batch, the launch, the work."""
        if self._device_lengths:
            return repr(self)
        lengths = self.seqlens
        same = np.array_equal(lengths.q, lengths.k)
        heads = f"{self.num_heads_q}/{self.num_heads_kv} heads"
        dims = f"head_dim {self.head_dim}"
        if self.head_dim_v != self.head_dim:
            dims = f"head_dims {self.head_dim}, {self.head_dim_v}"
        group = self.num_heads_q // self.num_heads_kv
        packing = f", {group} heads a tile" if self.pack_gqa else ""
        packing += ", short sequences packed" if self.pack_sequences else ""
        lines = [
            f"batch       {self.batch} sequences, {heads}, {dims}, {self.dtype}",
            f"lengths     {_shorten(lengths.q)}" + ("" if same else " (queries)"),
            *([] if same else [f"            {_shorten(lengths.k)} (keys)"]),
            f"mask        {_describe_window(self.window)}",
            f"scheduler   {self.scheduler}"
            + ("" if self.scheduler == "Individual" else f", {self.order}")
            + f", tiles of {self.block_m} x {self.block_n}{packing}, {self.backend}",
            f"work-groups {self.launched:,} launched, {self.launched - self.num_empty:,} with "
            f"work, {self.num_empty:,} empty",
            f"tiles       {self.valid:,} ({self.num_records:,} m_blocks x {self.tile_heads} heads)",
            f"work        {self.flops:,} FLOPs, {self.bytes:,} bytes",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        if self._device_lengths:
            return (
                f"<exactile.Plan {self.scheduler}: {self.batch} sequences planned on the GPU, at "
                f"most {self.launched} work-groups, {self.backend}>"
            )
        return (
            f"<exactile.Plan {self.scheduler}: {self.batch} sequences, {self.launched} work-groups "
            f"for {self.valid} tiles, {self.backend}>"
        )

    def run(
        self,
        q: Array,
        k: Array,
        v: Array,
        *,
        out: Array | None = None,
        return_lse: bool = False,
        softmax_scale: float | None = None,
        stream: Any = None,
    ) -> Any:
        """Compute attention for the planned batch.

        Parameters
        ----------
        q : array, shape (total_q, num_heads_q, head_dim)
            numpy, torch, CuPy, dpnp or DLPack, of the plan's dtype, on the plan's backend. Strides
            are free but for the last dimension, which is contiguous. bfloat16 in numpy is
            ``ml_dtypes.bfloat16``, or uint16 storage; in dpnp uint16 storage.
        k : array, shape (total_k, num_heads_kv, head_dim)
        v : array, shape (total_k, num_heads_kv, head_dim_v)
        out : array, shape (total_q, num_heads_q, head_dim_v), optional
            Written and returned instead of a new array.
        return_lse : bool
            Also return the log-sum-exp of every row's scaled scores.
        softmax_scale : float, optional
            Finite and > 0. Default: ``head_dim ** -0.5``.
        stream : int or stream object, optional
            CUDA: where to enqueue; a handle, or an object with ``__cuda_stream__`` or
            ``cuda_stream``. Default: the current stream of torch or CuPy for their arrays, else the
            default stream. SYCL: a dpctl.SyclQueue, in order or not. Default: that of `q`, or an
            in-order one of ours on its device.

        Returns
        -------
        out : array, shape (total_q, num_heads_q, head_dim_v)
            Of the library and dtype of `q`. Rows that see no key are 0.
        lse : float32 array, shape (num_heads_q, total_q)
            With `return_lse`. Natural logarithm; -inf for rows that see no key.

        Raises
        ------
        ValueError
            An array does not fit the plan or another array, or a `Scheduler` of your own loses or
            doubles a tile. Nothing has been written.
        TypeError
            An argument is no array that can be used.
        RuntimeError
            CUDA: no driver, no kernel and no compiler for it, or a driver call that failed. SYCL:
            no runtime, no device, one that lacks what the kernel needs, or a failed compilation.
            CPU: no compiler for a `Scheduler` of your own.

        Notes
        -----
        On CUDA the call returns when the work is enqueued. Arrays whose strides TMA cannot take go
        to the sm80 kernels. A CUDA graph that captured a run needs the plan alive. On SYCL it
        returns then too, but for arrays known by DLPack alone, whose results it waits for.

        Deterministic: the same call gives the same bits, whatever the scheduler, the threads and,
        without `pack_sequences`, the rest of the batch. The GIL is released.
        """
        if softmax_scale is None:
            softmax_scale = self.head_dim**-0.5
        walk = self._own_policy.before_run() if self._own_policy else None
        if is_torch_cuda(q):
            return run_torch(self._core, q, k, v, out, return_lse, softmax_scale, stream)
        for x, name in ((q, "q"), (k, "k"), (v, "v")):
            check_input(x, name)
        if self.backend == "sycl":
            return _sycl.run(
                self._core, self._sycl_memory, q, k, v, out, return_lse, softmax_scale, stream
            )
        if self.backend == "cuda" and backend_of(q) == "cuda":
            return run_foreign(self._core, q, k, v, out, return_lse, softmax_scale, stream)
        total_q = self._core.total_q
        result = out
        if result is None:
            result = empty_like(q, (total_q, self.num_heads_q, self.head_dim_v))
        else:
            check_output(result)
        lse = empty_like(q, (self.num_heads_q, total_q), dtype="float32") if return_lse else None
        arrays = (storage(q), storage(k), storage(v), storage(result))
        self._core.run(*arrays, lse, softmax_scale, walk=walk)
        if out is None:
            result = give_back(result, q)
        return (result, give_back(lse, q)) if return_lse else result


def plan(
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    *,
    seqlens_q: Any = None,
    seqlens_k: Any = None,
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    dtype: Any,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    scheduler: str | Scheduler = "auto",
    order: str | None = None,
    pack_gqa: bool | None = None,
    pack_sequences: bool | None = None,
    backend: str | None = None,
    workers: int | None = None,
    total_q: int | None = None,
    total_k: int | None = None,
    stream: Any = None,
) -> Plan:
    """Plan a batch from its lengths. Needs no device and allocates no tensor.

    Parameters
    ----------
    cu_seqlens_q : integers, shape (batch + 1,)
        Running sums of the query lengths: ``[0, len_0, len_0 + len_1, ...]``. numpy, list, torch or
        DLPack, in CPU memory, int32 or what fits in it.
    cu_seqlens_k : integers, shape (batch + 1,), optional
        The same for keys and values. Default: `cu_seqlens_q`.
    seqlens_q, seqlens_k : integers, shape (batch,), optional
        Plain lengths, instead of the running sums.
    num_heads_q, num_heads_kv : int
        `num_heads_q` is a multiple of `num_heads_kv`.
    head_dim, head_dim_v : int
        Of q and k; of v and out (default: `head_dim`).
    dtype : str or dtype
        ``"float32"``, ``"float16"`` or ``"bfloat16"``, or a numpy or torch dtype of that name.
    causal : bool
        Row i sees keys ``j <= i + (len_k - len_q)`` (bottom-right aligned): a right window of 0.
    window : tuple[int, int]
        Keys visible left and right of a row's position ``i + (len_k - len_q)``; -1: unbounded.
    scheduler : str or Scheduler
        One of `SCHEDULERS`, ``"auto"``, or one of your own.
    order : {"natural", "longest_first", "sequence_major", "head_major"}, optional
        Of the tile list: by sequence as they come; the tiles with most keys first; the sequences
        with most keys first and of each its last tile (not with lengths on the GPU); the same for
        one head after the other. Default: the planner chooses.
    pack_gqa : bool, optional
        Let the query heads of one kv head share a tile. Default: False for `Individual` and
        `ValidOnlyIndividual`, else by the planner's cost model.
    pack_sequences : bool, optional
        Let short sequences that follow one another share tiles (CUDA, lengths on the host, a
        scheduler with a tile list). Their results have other bits than without, as their keys are
        summed up in other blocks. Default: by the planner's cost model, for the persistent policy
        on Hopper.
    backend : str, optional
        One of `BACKENDS`. Default: ``"cpu"``.
    workers : int, optional
        Work-groups that run at a time. Default: `get_num_threads` for the CPU; what the current
        GPU or SYCL device runs at a time, or 132 and 128 without one.
    total_q, total_k : int, optional
        With cu_seqlens in GPU memory (int32): the tokens of the packed tensors. The list is then
        made on the GPU, on `stream`, without a wait on the host: launches and `num_records` are
        bounds, work is not counted. Captured in a CUDA graph it is made anew by every replay.
    stream : int or stream object, optional
        For lengths on a GPU; as in `Plan.run`. SYCL: whose device is planned for; default: the one
        that SYCL prefers here.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        Lengths, heads, dims or names that cannot be planned; the message says what was expected.
    TypeError
        Lengths that are no integers, or not on the host.
    """
    lengths = None
    if cu_seqlens_q is not None and seqlens_q is None and backend_of(cu_seqlens_q) == "cuda":
        lengths = DeviceLengths(cu_seqlens_q, cu_seqlens_k, total_q, total_k, stream)
        cu_q, cu_k = lengths.stand_ins
        backend = backend or "cuda"
    else:
        cu_q = _cu_seqlens(cu_seqlens_q, seqlens_q, "q")
        keys_follow = cu_seqlens_k is None and seqlens_k is None
        cu_k = cu_q if keys_follow else _cu_seqlens(cu_seqlens_k, seqlens_k, "k")
    if len(window) != 2:
        raise ValueError(f"plan: expected window of two sizes, (left, right), got {window}")
    left, right = window
    if causal:
        right = 0 if right < 0 else min(right, 0)
    backend = backend or "cpu"
    own, name = None, None
    if isinstance(scheduler, Scheduler):
        own = scheduler
    elif scheduler not in (*SCHEDULERS, "auto"):
        expected = ", ".join((*SCHEDULERS, "auto"))
        raise ValueError(f"plan: scheduler: expected one of {expected}, got {scheduler!r}")
    elif scheduler != "auto":
        name = scheduler
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    dtype = dtype if isinstance(dtype, str) else _dtype_argument(dtype)
    sycl_kernel = _core.SYCL_KERNELS[0]
    if workers is None and backend == "cpu":
        workers = get_num_threads()
    if backend == "sycl":
        queue = None if stream is None else _sycl.queue_of(None, stream)
        sycl_kernel, at_a_time = _sycl.planning_target(queue, dtype, head_dim, head_dim_v)
        workers = at_a_time if workers is None else workers
    return Plan(
        _core.plan(
            cu_q,
            cu_k,
            num_heads_q=num_heads_q,
            num_heads_kv=num_heads_kv,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            dtype=dtype,
            window=(left, right),
            scheduler=name,
            order=order,
            pack_gqa=pack_gqa,
            pack_sequences=pack_sequences,
            backend=backend,
            workers=workers,
            user_scheduler=(own.name, own.source, own.like) if own else None,
            device_lengths=lengths.core if lengths else None,
            sycl_kernel=sycl_kernel,
        ),
        lengths,
    )


def _cu_seqlens(cu_seqlens: Any, seqlens: Any, side: str) -> npt.NDArray[np.int32]:
    if (cu_seqlens is None) == (seqlens is None):
        raise TypeError(f"plan: expected either cu_seqlens_{side} or seqlens_{side}")
    if seqlens is None:
        return as_int32(cu_seqlens, f"cu_seqlens_{side}")
    return cumulated(seqlens, f"seqlens_{side}")


def _dtype_argument(dtype: Any) -> str:
    """Name of a numpy or torch dtype object."""
    text = str(dtype)
    if text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        raise TypeError(f"plan: expected a dtype or its name, got {dtype!r}") from None


def _shorten(lengths: npt.NDArray[np.int32], limit: int = 16) -> str:
    """The lengths, or the first and last few of many, and their sum."""
    values = [str(x) for x in lengths.tolist()]
    if len(values) > limit:
        values = [*values[: limit // 2], "...", *values[-limit // 4 :]]
    return f"{' '.join(values)} = {int(lengths.sum(dtype=np.int64)):,} tokens"


def _describe_window(window: tuple[int, int]) -> str:
    if window == (-1, -1):
        return "full"
    if window == (-1, 0):
        return "causal"
    sides = ["all" if size < 0 else str(size) for size in window]
    return f"window, {sides[0]} keys left and {sides[1]} right"
