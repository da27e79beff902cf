"""Plans: which tiles exist, how they are launched and in which order, and what they cost."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar, overload

import numpy as np
import numpy.typing as npt

from exactile import _core, _sycl, _walk
from exactile._arguments import (
    BackendName,
    DtypeName,
    OrderName,
    RunOptions,
    SchedulerName,
    boolean,
    breaks_graphs,
    eager,
    integer,
    one_of,
    takes_run_options,
    window_sizes,
)
from exactile._arrays import (
    Results,
    as_int32,
    canonical_dtype,
    cumulated,
    host_results,
    refuse_stream,
    used_lengths,
)
from exactile._device import (
    DeviceLengths,
    backend_of,
    cuda_results,
    stream_handle,
)
from exactile.scheduler import Scheduler
from exactile.threads import get_num_threads

if TYPE_CHECKING:
    from typing_extensions import Unpack

SCHEDULERS: tuple[str, ...] = _core.SCHEDULERS
"""Names of the tile schedulers; ``"auto"`` lets the planner choose."""

BACKENDS: tuple[str, ...] = _core.BACKENDS
"""Names of the backends that can be planned for."""

_RESULTS: dict[str, Callable[[_core.Plan, Any, Any], Results]] = {
    "cpu": host_results,
    "cuda": cuda_results,
    "sycl": _sycl.results,
}
"""By the backend of a plan, where its runs' results come from."""

ArrayT = TypeVar("ArrayT")
ScalarT = TypeVar("ScalarT", bound=np.generic)


class Seqlens(NamedTuple):
    """Lengths of the sequences, int32, shape (batch,)."""

    q: npt.NDArray[np.int32]
    k: npt.NDArray[np.int32]


class Plan:
    """A planned batch: made once from the lengths by `plan`, run on any number of layers.

    Read-only. A copy, or one that was pickled, is planned anew from the same request; where the
    lengths are on a GPU that is a TypeError.

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
    page_size : int
        Keys in a page; 0: keys and values are packed.
    num_splits : int
        Parts of the tile whose keys are split into most; 1: none is.
    workers : int
        Work-groups that run at a time: CPU threads.
    block_m, block_n : int
        Rows of a query tile, keys of a key block.
    tile_tokens, tile_heads, max_m_blocks, num_records : int
        Tokens of a full tile; heads that tiles are counted for (query heads, or kv heads when
        packed); m_blocks of the longest sequence; m_blocks that exist in all sequences, each
        counted for every part of its keys.
    launched, valid : int
        Work-groups, and tiles (parts of split ones) with work.
    pairs : int
        Visible (query, key) pairs of one head.
    flops, bytes : int
        ``2 * num_heads_q * (head_dim + head_dim_v) * pairs``; each needed input row read once and
        each output row written once.
    planning_us : float
        Microseconds that the planner took.
    """

    scheduler: str
    order: OrderName
    backend: BackendName
    dtype: DtypeName
    batch: int
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    head_dim_v: int
    window: tuple[int, int]
    pack_gqa: bool
    pack_sequences: bool
    page_size: int
    num_splits: int
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

    def __init__(
        self, core: _core.Plan, request: dict[str, Any], lengths: DeviceLengths | None = None
    ) -> None:
        self._core: _core.Plan
        self._request: dict[str, Any]
        self._device_lengths: DeviceLengths | None
        self._results: Callable[[_core.Plan, Any, Any], Results]
        self._own_policy: _walk.OwnPolicy | None
        own = core.user_scheduler
        self.__dict__.update(
            _core=core,
            _request=request,
            _device_lengths=lengths,  # keeps the arrays alive
            _results=_RESULTS[core.backend],
            _own_policy=None if own is None else _walk.OwnPolicy(core, Scheduler(*own)),
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Plan.{name}: plans are read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Plan.{name}: plans are read-only")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._device_lengths:
            raise TypeError(
                "Plan: expected lengths on the host to copy or pickle a plan, got a plan whose "
                "lengths are on the GPU"
            )
        cu_seqlens = np.array(self._core.cu_seqlens_q), np.array(self._core.cu_seqlens_k)
        return _make, (*cu_seqlens, self._request)

    @property
    def seqlens(self) -> Seqlens:
        """Queries and keys of the sequences that count, int32, two arrays of shape (batch,).

        Raises
        ------
        ValueError
            The lengths are on a GPU.
        """
        if self._device_lengths:
            raise ValueError("Plan.seqlens: the lengths of this plan are on the GPU")
        return Seqlens(*used_lengths(self._core))

    @property
    def records(self) -> npt.NDArray[np.int32]:
        """The tile list, read-only, shape (num_records, 4): q_begin, q_end, k_begin, k_len.

        ``q_end`` is the end of the sequence's rows. Empty for `Individual`, which has no list. A
        tile of several sequences has ``~(first sequence)`` as q_end, the first key of these as
        k_begin, and ``tokens << 20 | keys`` as k_len. With `num_splits` > 1 a record is a part of a
        tile, and its k_begin the part's number.
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
            *([f"pages       of {self.page_size} keys"] if self.page_size else []),
            f"scheduler   {self.scheduler}"
            + (f", {self.order}" if self._core.has_list else "")
            + f", tiles of {self.block_m} x {self.block_n}{packing}, {self.backend}",
            f"work-groups {self.launched:,} launched, {self.launched - self.num_empty:,} with "
            f"work, {self.num_empty:,} empty",
            f"tiles       {self.valid:,} ({self.num_records:,} m_blocks x {self.tile_heads} heads)",
            *self._describe_splits(),
            f"work        {self.flops:,} FLOPs, {self.bytes:,} bytes",
        ]
        return "\n".join(lines)

    def _describe_splits(self) -> list[str]:
        if self.num_splits == 1:
            return []
        split = self._core.num_split_tiles
        return [f"split keys  {split:,} tiles in up to {self.num_splits} parts, which are merged"]

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

    @overload
    def run(
        self,
        q: ArrayT,
        k: Any,
        v: Any,
        *,
        out: Any = None,
        return_lse: Literal[False] = False,
        stream: Any = None,
        **options: Unpack[RunOptions],
    ) -> ArrayT: ...

    @overload
    def run(
        self,
        q: npt.NDArray[ScalarT],
        k: Any,
        v: Any,
        *,
        out: Any = None,
        return_lse: Literal[True],
        stream: Any = None,
        **options: Unpack[RunOptions],
    ) -> tuple[npt.NDArray[ScalarT], npt.NDArray[np.float32]]: ...

    @overload
    def run(
        self,
        q: ArrayT,
        k: Any,
        v: Any,
        *,
        out: Any = None,
        return_lse: Literal[True],
        stream: Any = None,
        **options: Unpack[RunOptions],
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def run(
        self,
        q: ArrayT,
        k: Any,
        v: Any,
        *,
        out: Any = None,
        return_lse: bool,
        stream: Any = None,
        **options: Unpack[RunOptions],
    ) -> ArrayT | tuple[ArrayT, ArrayT]: ...

    @breaks_graphs
    @takes_run_options
    def run(
        self,
        q: Any,
        k: Any,
        v: Any,
        *,
        out: Any = None,
        return_lse: bool = False,
        stream: Any = None,
        **options: Unpack[RunOptions],
    ) -> Any:
        """Compute attention for the planned batch.

        Parameters
        ----------
        q : array, shape (total_q, num_heads_q, head_dim)
            numpy, torch, CuPy, dpnp or DLPack, of the plan's dtype, on the plan's backend. Strides
            are free but for the last dimension, which is contiguous. bfloat16 in numpy is
            ``ml_dtypes.bfloat16``, or uint16 storage; in dpnp uint16 storage. There may be more
            rows than the plan has: these, and those past `seqused_q`, are not read, and their rows
            of the results are left as they are (of a new array: whatever the memory held).
        k : array, shape (total_k, num_heads_kv, head_dim)
            Or more rows. With `page_size`: (num_pages, page_size, num_heads_kv, head_dim).
        v : array, shape (total_k, num_heads_kv, head_dim_v)
            Likewise.
        out : array, shape (rows of q, num_heads_q, head_dim_v), optional
            Written and returned instead of a new array. It shares no element with an input, but may
            be exactly `q`, which is overwritten then. Torch sees the write.
        return_lse : bool
            Also return the log-sum-exp of every row's scaled scores.
        softmax_scale : float, optional
            Finite and > 0, as a float32 too. Default: ``head_dim ** -0.5``.
        softcap : float, optional
            Scores become ``softcap * tanh(score / softcap)``, after `softmax_scale`. Default, and
            0: they stay.
        sinks : float32 array, shape (num_heads_q,), optional
            A logit of every row that has no value: it takes its part of the row's sum. -inf:
            none.
        alibi_slopes : float32 array, shape (num_heads_q,) or (batch, num_heads_q), optional
            After `softcap`, ``slope * |i + (len_k - len_q) - j|`` is taken from the score of row i
            and key j.
        block_table : int32 array, shape (batch, max_pages), optional
            With `page_size`: the pages of a sequence's keys, in order. Entries past its last key
            are not read. The last dimension is contiguous.
        stream : int or stream object, optional
            CPU: None. CUDA: where to enqueue; a handle, or an object with ``__cuda_stream__`` or
            ``cuda_stream``. Default: the current stream of torch or CuPy for their arrays, else the
            default stream. SYCL: a dpctl.SyclQueue, in order or not. Default: that of `q`, or an
            in-order one of ours on its device.

        Returns
        -------
        out : array, shape (rows of q, num_heads_q, head_dim_v)
            Of the library and dtype of `q`. Rows that see no key are 0.
        lse : float32 array, shape (num_heads_q, rows of q)
            With `return_lse`. Natural logarithm, the sink in it; -inf for rows that see neither.

        Raises
        ------
        ValueError
            An array does not fit the plan or another array, or requires grad while gradients are
            recorded, or a `Scheduler` of your own loses or doubles a tile. Nothing has been
            written.
        TypeError
            An argument is no array that can be used: one without memory, or under a transformation
            (vmap, torch.jit.trace, jax.jit, forward-mode differentiation).
        MemoryError
            No memory for the result or, on the CPU, for a thread; `out` may be partly written then.
        RuntimeError
            CPU: a thread could not be started, or no compiler for a `Scheduler` of your own;
            nothing has been written. CUDA: no driver, no kernel and no compiler for it, or a driver
            call that failed. SYCL: no runtime, no device, one that lacks what the kernel needs, or
            a failed compilation.

        Notes
        -----
        On CUDA the call returns when the work is enqueued. Arrays whose strides TMA cannot take go
        to the sm80 kernels. A CUDA graph that captured a run needs the plan alive. On SYCL it
        returns then too, but for arrays known by DLPack alone, whose results it waits for.

        Deterministic: the same call gives the same bits, whatever the scheduler and the threads.
        Without `pack_sequences` and with ``num_splits=1`` they do not depend on the rest of the
        batch either. The GIL is released. On the CPU runs of
        several threads share the helper threads, and signals are answered between tiles: Ctrl-C
        ends a run and leaves `out` partly written.

        References
        ----------
        softcap: arXiv:2408.00118. sinks: arXiv:2309.17453, as learned logits arXiv:2508.10925.
        alibi_slopes: arXiv:2108.12409.
        """
        if (hook := _core.suspend_compiler()) is not None:  # as `eager`, without its 0.3 us
            try:
                return self.run(q, k, v, out=out, return_lse=return_lse, stream=stream, **options)
            finally:
                _core.resume_compiler(hook)
        core = self._core
        walk = self._own_policy.before_run() if self._own_policy else None
        results = self._results(core, q, stream)
        result, lse = out, None
        rows: int | None = core.total_q
        while rows is not None:  # once, or again where q has more rows
            if out is None:
                result = results.empty(q, (rows, core.num_heads_q, core.head_dim_v), core.dtype)
            if return_lse:
                lse = results.empty(q, (core.num_heads_q, rows), "float32")
            rows = core.run(q, k, v, result, lse, options, results.stream, out is not None, walk)
        if out is None:
            result = results.give_back(result, q)
        return (result, results.give_back(lse, q)) if return_lse else result


for _name in Plan.__annotations__:  # documented as attributes of the class
    setattr(Plan, _name, property(operator.attrgetter(f"_core.{_name}"), doc=""))


@eager
def plan(
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    *,
    seqlens_q: Any = None,
    seqlens_k: Any = None,
    seqused_q: Any = None,
    seqused_k: Any = None,
    page_size: int | None = None,
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    dtype: Any,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    scheduler: SchedulerName | Scheduler = "auto",
    order: OrderName | None = None,
    pack_gqa: bool | None = None,
    pack_sequences: bool | None = None,
    num_splits: int | None = None,
    backend: BackendName | None = None,
    workers: int | None = None,
    total_q: int | None = None,
    total_k: int | None = None,
    max_seqlen_k: int | None = None,
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
    seqused_q, seqused_k : integers, shape (batch,), optional
        Queries and keys of a sequence that count, the first ones; not more than the lengths say.
        Default: all.
    page_size : int, optional
        Keys and values lie in pages of so many (`Plan.run` takes their `block_table`). Their number
        is `seqused_k` then, or what `cu_seqlens_k` or `seqlens_k` say; one of these is given, in
        GPU memory `seqused_k`.
    num_heads_q, num_heads_kv : int
        `num_heads_q` is a multiple of `num_heads_kv`.
    head_dim, head_dim_v : int
        Of q and k; of v and out (default: `head_dim`).
    dtype : str or dtype
        ``"float32"``, ``"float16"`` or ``"bfloat16"``; fp32, float, fp16, half or bf16; or a dtype
        of numpy, ml_dtypes, torch or JAX.
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
    num_splits : int, optional
        Let up to so many work-groups share the keys of a tile, whose partial results are merged
        (split-KV; CUDA, lengths on the host, a scheduler with a tile list). Results have other bits
        than without. Default: by the planner's cost model where no `scheduler` is asked for, which
        splits where there are fewer tiles than the device holds, as in a decode step of few
        sequences. 1: a sequence's result does not depend on the rest of its batch.
    backend : str, optional
        One of `BACKENDS`. Default: ``"cpu"``.
    workers : int, optional
        Work-groups that run at a time. Default: `get_num_threads` for the CPU; what the current
        GPU or SYCL device runs at a time, or 132 and 128 without one.
    total_q, total_k : int, optional
        The tokens of the packed tensors: what cu_seqlens end with at most. With lengths in GPU
        memory they are required; `total_k` may be left out with `cu_seqlens_k`, and is with pages.
    max_seqlen_k : int, optional
        Keys of the longest sequence, at most. With pages and lengths in GPU memory it is required:
        of a sequence that has more, no more are seen, and tables have pages for so many.
    stream : int or stream object, optional
        For lengths on a GPU; as in `Plan.run`. CPU: None. SYCL: whose device is planned for;
        default: the one that SYCL prefers here.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        Lengths, heads, dims or names that cannot be planned; the message says what was expected.
    TypeError
        Lengths that are no integers, or some on the host and some on a GPU; an argument of another
        type, or a missing one.

    Notes
    -----
    `cu_seqlens_q`, and with it `cu_seqlens_k`, `seqused_q` and `seqused_k`, may be in GPU memory
    (int32, contiguous). The host does not read them: the list is made on the GPU, on `stream`,
    without a wait on the host. `launched` and `num_records` are bounds then, and work is not
    counted. Used lengths larger than their sequence count as all of it. Captured in a CUDA graph
    the list is made anew by every replay. The plan keeps the arrays alive.
    """
    _core.refuse_tracing("plan")
    lengths = None
    if cu_seqlens_q is not None and seqlens_q is None and backend_of(cu_seqlens_q) == "cuda":
        if seqlens_k is not None:
            raise TypeError("plan: expected cu_seqlens_k with cu_seqlens_q on a GPU, got seqlens_k")
        arrays = dict(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
        arrays |= dict(seqused_q=seqused_q, seqused_k=seqused_k)
        bounds = dict(total_q=total_q, total_k=total_k, max_seqlen_k=max_seqlen_k)
        lengths = DeviceLengths(arrays, bounds, page_size is not None, stream)
        cu_q, cu_k = lengths.stand_ins
        seqused_q = seqused_k = None
        backend = backend or "cuda"
    else:
        cu_q = _cu_seqlens(cu_seqlens_q, seqlens_q, "q")
        keys_follow = cu_seqlens_k is None and seqlens_k is None
        if keys_follow and page_size is not None:
            if seqused_k is None:
                raise TypeError(
                    "plan: expected seqused_k, or cu_seqlens_k or seqlens_k, with page_size, got "
                    "none of them"
                )
            cu_k, seqused_k = cumulated(_used(seqused_k, cu_q, "k"), "seqused_k"), None
        else:
            cu_k = cu_q if keys_follow else _cu_seqlens(cu_seqlens_k, seqlens_k, "k")
    own, name = None, None
    if isinstance(scheduler, Scheduler):
        own = scheduler
    elif scheduler not in (*SCHEDULERS, "auto"):
        expected = ", ".join((*SCHEDULERS, "auto"))
        raise ValueError(f"plan: scheduler: expected one of {expected}, got {scheduler!r}")
    elif scheduler != "auto":
        name = scheduler
    head_dim = integer(head_dim, "head_dim")
    request = dict(
        num_heads_q=integer(num_heads_q, "num_heads_q"),
        num_heads_kv=integer(num_heads_kv, "num_heads_kv"),
        head_dim=head_dim,
        head_dim_v=head_dim if head_dim_v is None else integer(head_dim_v, "head_dim_v"),
        dtype=canonical_dtype(dtype),
        window=window_sizes(window, boolean(causal, "causal")),
        scheduler=name,
        order=None if order is None else one_of(order, "order"),
        pack_gqa=None if pack_gqa is None else boolean(pack_gqa, "pack_gqa"),
        pack_sequences=None
        if pack_sequences is None
        else boolean(pack_sequences, "pack_sequences"),
        num_splits=None if num_splits is None else _at_least_one(num_splits, "num_splits"),
        backend="cpu" if backend is None else one_of(backend, "backend"),
        workers=None if workers is None else integer(workers, "workers"),
        seqused_q=None if seqused_q is None else _used(seqused_q, cu_q, "q"),
        seqused_k=None if seqused_k is None else _used(seqused_k, cu_q, "k"),
        page_size=0 if page_size is None else _at_least_one(page_size, "page_size"),
        max_len_k=None if max_seqlen_k is None else integer(max_seqlen_k, "max_seqlen_k"),
        user_scheduler=(own.name, own.source, own.like) if own else None,
    )
    _ask_device(request, stream)
    made = _make(cu_q, cu_k, request, lengths)
    _check_total(total_q, made._core.total_q, "q")
    _check_total(total_k, made._core.total_k, "k")
    return made


def _make(
    cu_q: npt.NDArray[np.int32],
    cu_k: npt.NDArray[np.int32],
    request: dict[str, Any],
    lengths: DeviceLengths | None = None,
) -> Plan:
    """The plan of a request, on as many CPU threads as there are now unless it says."""
    options = request
    if request["workers"] is None and request["backend"] == "cpu":
        options = request | {"workers": get_num_threads()}
    options = options | {"device_lengths": lengths.core if lengths else None}
    core = _core.plan(cu_q, cu_k, **options)
    if request["user_scheduler"]:
        work_groups = _walk.num_work_groups(Scheduler(*request["user_scheduler"]), core)
        if work_groups != core.launched:
            core = _core.plan(cu_q, cu_k, **options, work_groups=work_groups)
    return Plan(core, request, lengths)


def _ask_device(request: dict[str, Any], stream: Any) -> None:
    """Check `stream`; for SYCL, request the kernel and the workers of its device."""
    backend = request["backend"]
    if backend == "cuda" and stream is not None:
        stream_handle(stream)
    elif backend == "sycl":
        queue = None if stream is None else _sycl.queue_of(None, stream)
        dims = request["head_dim"], request["head_dim_v"]
        kernel, at_a_time = _sycl.planning_target(
            queue, request["dtype"], *dims, request["page_size"]
        )
        request["sycl_kernel"] = kernel
        if request["workers"] is None:
            request["workers"] = at_a_time
    elif backend == "cpu" and stream is not None:
        refuse_stream(stream, "plan")


def _at_least_one(value: Any, name: str) -> int:
    number = integer(value, name)
    if number < 1:
        raise ValueError(f"plan: expected {name} >= 1, got {number}")
    return number


def _used(seqused: Any, cu_seqlens_q: npt.NDArray[np.int32], side: str) -> npt.NDArray[np.int32]:
    used = as_int32(seqused, f"seqused_{side}")
    batch = max(0, len(cu_seqlens_q) - 1)
    if len(used) != batch:
        raise ValueError(f"plan: expected seqused_{side} of length batch, {batch}, got {len(used)}")
    return used


def _check_total(total: int | None, planned: int, side: str) -> None:
    if total is not None and integer(total, f"total_{side}") < planned:
        raise ValueError(
            f"plan: expected cu_seqlens_{side}[-1] <= total_{side}, the {total} tokens of the "
            f"packed tensors, got {planned}"
        )


def _cu_seqlens(cu_seqlens: Any, seqlens: Any, side: str) -> npt.NDArray[np.int32]:
    if (cu_seqlens is None) == (seqlens is None):
        raise TypeError(f"plan: expected either cu_seqlens_{side} or seqlens_{side}")
    if seqlens is None:
        return as_int32(cu_seqlens, f"cu_seqlens_{side}")
    return cumulated(seqlens, f"seqlens_{side}")


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
