"""CUDA arrays: device, stream and results. Uses torch where the caller has imported it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from exactile import _core
from exactile._arguments import BackendName, integer
from exactile._arrays import Results

BACKEND_OF_DEVICE: dict[int, BackendName] = {
    _core.DEVICE_CPU: "cpu",
    _core.DEVICE_CUDA: "cuda",
    _core.DEVICE_CUDA_MANAGED: "cuda",
    _core.DEVICE_ONEAPI: "sycl",
}
"""Name of the backend that reaches the memory of a device, by DLPack's type."""


def backend_of(x: Any) -> str:
    """Name of the backend that reaches the memory of an array; ``"cpu"`` for an unknown one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return {"cuda": "cuda", "xpu": "sycl"}.get(x.device.type, "cpu")
    if isinstance(x, (np.ndarray, list, tuple)):
        return "cpu"
    if hasattr(type(x), "__sycl_usm_array_interface__"):  # DLPack: for its default context only
        return "sycl"
    try:
        return BACKEND_OF_DEVICE.get(int(x.__dlpack_device__()[0]), "cpu")
    except Exception:  # a device that DLPack does not know: refused when it is run
        return "cpu"


def is_torch_cuda(x: Any) -> bool:
    """Whether `x` is a torch tensor on a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor) and x.is_cuda


def stream_handle(stream: Any, function: str = "varlen_prefill") -> int:
    """The CUstream that a caller means, as an integer. `function`: for messages.

    Raises
    ------
    TypeError
        `stream` is no integer and has none of ``__cuda_stream__``, ``cuda_stream`` and ``ptr``.
    ValueError
        A handle that is no address.
    """
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if isinstance(stream, (int, np.integer)) and not isinstance(stream, bool):
        if not 0 <= stream < 1 << 64:
            raise ValueError(f"{function}: expected a stream handle of 64 bits, got {stream}")
        return int(stream)
    raise TypeError(
        f"{function}: expected stream to be an integer handle or an object with __cuda_stream__ or "
        f"cuda_stream, got {type(stream).__name__}"
    )


class DeviceLengths:
    """Lengths on a GPU, that are to be planned there: no host ever waits for them.

    Parameters
    ----------
    arrays : dict
        Of ``cu_seqlens_q``, ``cu_seqlens_k``, ``seqused_q`` and ``seqused_k``, int32, as
        `exactile.plan` takes them; all but the first may be None. No ``cu_seqlens_k`` is that of
        the queries or, with pages, none.
    bounds : dict
        ``total_q`` and ``total_k``, the tokens of the packed tensors; ``max_seqlen_k``, the keys of
        the longest sequence at most, which with pages stands for ``total_k``.
    paged : bool
        Keys and values lie in pages.

    Raises
    ------
    TypeError
        An array or a bound that is missing, too many, or of another kind.
    ValueError
        Arrays of other shapes, or on another device.
    """

    def __init__(
        self, arrays: dict[str, Any], bounds: dict[str, int | None], paged: bool, stream: Any
    ) -> None:
        arrays, total_q, total_k = _complete(arrays, bounds, paged)
        self._keep = arrays
        views = {name: _Lengths(x, name) for name, x in arrays.items() if x is not None}
        first = views["cu_seqlens_q"]
        for name, view in views.items():
            entries = first.size - name.startswith("seqused")
            if (view.size, view.device) != (entries, first.device):
                raise ValueError(
                    f"plan: expected {name} of length {entries} on the device of cu_seqlens_q, "
                    f"CUDA {first.device}, got {view.size} on CUDA {view.device}"
                )
        if stream is not None:
            handle = stream_handle(stream)
        else:
            handle = _torch_stream(first.device) if is_torch_cuda(arrays["cu_seqlens_q"]) else 0
        addresses = (views[name].address if name in views else 0 for name in arrays)
        self.core = (*addresses, first.device, handle)
        batch = first.size - 1
        if paged:
            total_k = min(batch * total_k, _core.MAX_TOKENS)
        self.stand_ins = tuple(
            (np.arange(first.size, dtype=np.int64) * total // max(1, batch)).astype(np.int32)
            for total in (total_q, total_k)
        )


def _complete(
    arrays: dict[str, Any], bounds: dict[str, int | None], paged: bool
) -> tuple[dict[str, Any], int, int]:
    """(arrays, total_q, and total_k or, with pages, max_seqlen_k), of which none is missing."""
    total_q, total_k = bounds["total_q"], bounds["total_k"]
    name_k = "max_seqlen_k" if paged else "total_k"
    if paged:
        for name, given in (("cu_seqlens_k", arrays["cu_seqlens_k"]), ("total_k", total_k)):
            if given is not None:
                raise TypeError(
                    "plan: expected seqused_k and max_seqlen_k, and no other lengths of keys, with "
                    f"page_size and lengths on a GPU, got {name}"
                )
        total_k = bounds[name_k]
        if arrays["seqused_k"] is None or total_k is None:
            missing = name_k if total_k is None else "seqused_k"
            raise TypeError(
                "plan: expected seqused_k and max_seqlen_k, the keys of the longest sequence at "
                f"most, with page_size and lengths on a GPU, got no {missing}"
            )
    elif arrays["cu_seqlens_k"] is None:
        arrays = arrays | {"cu_seqlens_k": arrays["cu_seqlens_q"]}
        total_k = total_q if total_k is None else total_k
    if total_q is None or total_k is None:
        raise TypeError(
            "plan: expected total_q (and total_k) with cu_seqlens on a GPU: the tokens of the "
            "packed tensors bound the launch"
        )
    return arrays, integer(total_q, "total_q"), integer(total_k, name_k)


class _Lengths:
    """Address, size and device of int32 lengths on a GPU."""

    def __init__(self, x: Any, name: str) -> None:
        if backend_of(x) != "cuda":
            raise TypeError(
                f"plan: expected {name} on a GPU, where cu_seqlens_q is, got a "
                f"{type(x).__name__} elsewhere"
            )
        if str(x.dtype).removeprefix("torch.") != "int32":
            raise TypeError(f"plan: expected {name} on a GPU of dtype int32, got {x.dtype}")
        of = "(batch,)" if name.startswith("seqused") else "(batch + 1,)"
        if len(x.shape) != 1 or (x.shape[0] < 1 and of != "(batch,)"):
            raise ValueError(f"plan: expected {name} of shape {of}, got {tuple(x.shape)}")
        self.size = int(x.shape[0])
        if is_torch_cuda(x):
            if not x.is_contiguous():
                raise ValueError(
                    f"plan: expected {name} to be contiguous, got stride {x.stride(0)}"
                )
            self.address, self.device = x.data_ptr(), x.get_device()
        else:
            try:
                self.address, self.device = _core.cuda_lengths(x)
            except TypeError:  # the binding's, about types of C++
                raise TypeError(
                    f"plan: expected {name} to be a contiguous int32 array with __dlpack__ on a "
                    f"GPU, got {type(x).__name__}"
                ) from None
        if self.address == 0 and self.size > 0:
            raise TypeError(f"plan: expected {name} to hold memory, got a {type(x).__name__}")


def cuda_results(core: _core.Plan, q: Any, stream: Any) -> Results:
    """Where the results for arrays on a GPU come from."""
    if not is_torch_cuda(q) and backend_of(q) != "cuda":
        core.check_memory(q)
    return cuda_results_of("varlen_prefill", q, stream)


def cuda_results_of(function: str, x: Any, stream: Any) -> Results:
    """The same for another function than attention, beside an array on a GPU."""
    if is_torch_cuda(x):
        return _TorchResults(x, stream, function)
    return _ForeignResults(x, stream, function)


class _TorchResults:
    """Torch's own, from the stream that writes them: its memory is reused in stream order."""

    __slots__ = ("_device", "_is_current", "stream")

    def __init__(self, q: Any, stream: Any, function: str) -> None:
        self._device = q.get_device()
        current = _torch_stream(self._device)
        self.stream = current if stream is None else stream_handle(stream, function)
        self._is_current = self.stream == current

    def empty(self, q: Any, shape: tuple[int, ...], dtype: str) -> Any:
        if self._is_current:
            return _torch_empty(q, shape, dtype)
        with _torch_scope(self._device, self.stream):
            return _torch_empty(q, shape, dtype)

    def give_back(self, result: Any, q: Any) -> Any:
        return result


def _torch_empty(q: Any, shape: tuple[int, ...], dtype: str) -> Any:
    if dtype == "float32":
        return q.new_empty(shape, dtype=sys.modules["torch"].float32)
    if q.shape == shape and q.is_contiguous():
        return sys.modules["torch"].empty_like(q)  # 0.8 us less than new_empty
    return q.new_empty(shape)


def _torch_stream(device: int) -> int:
    current = _core.torch_stream(device)
    if current is not None:
        return current
    torch: Any = sys.modules["torch"]
    private = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # the public way takes 1 us
    if private is not None:  # torch before 2.10
        return int(private(device))
    return int(torch.cuda.current_stream(device).cuda_stream)


def _torch_scope(device: int, stream: int) -> AbstractContextManager[Any]:
    torch: Any = sys.modules["torch"]
    scope: AbstractContextManager[Any] = torch.cuda.stream(
        torch.cuda.ExternalStream(stream, device=device)
    )
    return scope


class _ForeignResults:
    """Where results for arrays of any library but torch come from.

    CuPy allocates its own, and its current stream is the default. Others get memory of ours through
    their ``from_dlpack`` when the kernel is done: they are not ordered with the stream.
    """

    def __init__(self, q: Any, stream: Any, function: str) -> None:
        self._function = function
        self._device = int(q.__dlpack_device__()[1])
        self._cupy: Any = sys.modules.get("cupy") if type(q).__module__.startswith("cupy") else None
        if stream is None and self._cupy is not None:
            with q.device:
                stream = self._cupy.cuda.get_current_stream()
        self.stream = 0 if stream is None else stream_handle(stream, function)

    def empty(self, q: Any, shape: tuple[int, ...], dtype: str) -> Any:
        if self._cupy is None:
            return _core.cuda_empty(shape, dtype, self._device)
        with q.device:
            return self._cupy.empty(shape, "float32" if dtype == "float32" else q.dtype)

    def give_back(self, result: Any, q: Any) -> Any:
        if self._cupy is not None:
            return result
        _core.cuda_synchronize(self._device, self.stream)
        namespace = q.__array_namespace__() if hasattr(q, "__array_namespace__") else None
        if namespace is None or not hasattr(namespace, "from_dlpack"):
            raise TypeError(
                f"{self._function}: {type(q).__name__} has no array namespace to make the result "
                "with; pass out="
            )
        return namespace.from_dlpack(result)
