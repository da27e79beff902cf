"""Arrays of any library: their dtype and storage, and results of the same library."""

from __future__ import annotations

import math
import sys
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from exactile import _core
from exactile._arguments import DtypeName

LARGE_BYTES = 4 << 20
"""Results from here on lie in memory that is kept for the next one (`empty_result_cache`). Smaller
ones the allocators of numpy and torch keep: a run takes 1.05 to 1.2 times as with ``out=``."""

Array = Any
"""numpy.ndarray, torch.Tensor, or anything with ``__dlpack__``."""


class Results(Protocol):
    """Where the results of a run come from, and where it is enqueued.

    Each backend has a function ``(core, q, stream) -> Results``, which refuses a stream that is not
    its own, and arrays that it does not reach.
    """

    stream: int
    """As the core takes it."""

    def empty(self, q: Array, shape: tuple[int, ...], dtype: str) -> Any:
        """An uninitialised array of the library of q and beside it; float32, or q's dtype."""

    def give_back(self, result: Any, q: Array) -> Any:
        """What `empty` gave, once it is written, as an array of the library of q."""


DTYPE_ALIASES: dict[str, DtypeName] = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
"""The usual names, and those that messages use."""


def is_torch(x: Array) -> bool:
    """Whether `x` is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def canonical_dtype(dtype: Any, function: str = "plan") -> DtypeName:
    """Name of a dtype that the kernels know.

    Parameters
    ----------
    dtype : str or dtype
        A name of `DTYPE_ALIASES`, or a dtype of numpy, ml_dtypes, torch or JAX.
    function : str
        Begins the messages.

    Raises
    ------
    TypeError
        `dtype` is no dtype.
    ValueError
        It is another one.
    """
    if isinstance(dtype, str):
        name = dtype.removeprefix("torch.")
    elif (text := str(dtype)).startswith("torch."):
        name = text.removeprefix("torch.")
    else:
        try:
            if dtype is None:  # numpy's float64
                raise TypeError
            name = str(np.dtype(dtype).name)
        except TypeError:
            raise TypeError(
                f"{function}: expected dtype to be a dtype or its name, got {dtype!r}"
            ) from None
    if name not in DTYPE_ALIASES:
        expected = ", ".join(_core.DTYPES)
        raise ValueError(f"{function}: dtype: expected one of {expected}, got {name!r}")
    return DTYPE_ALIASES[name]


def check_input(x: Array, name: str) -> None:
    """Raise unless `x` looks like an array; the rest is checked where it is read.

    Raises
    ------
    TypeError
        `x` is no array.
    """
    if not hasattr(x, "__dlpack__") or not hasattr(x, "dtype"):
        raise TypeError(
            f"varlen_prefill: expected {name} to be a numpy array, a torch tensor or an array with "
            f"__dlpack__, got {type(x).__name__}"
        )


def storage(x: Array) -> Array:
    """`x` as DLPack can give it: numpy has no bfloat16, so those go as uint16."""
    if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16":
        return x.view(np.uint16)
    return x


class _HostResults:
    """`Results` on the CPU: torch's for torch, else numpy's."""

    stream = 0

    def __init__(self, function: str) -> None:
        self._function = function

    def empty(self, q: Array, shape: tuple[int, ...], dtype: str) -> Array:
        check_input(q, "q")
        return empty_like(q, shape, dtype=dtype if dtype == "float32" else None)

    def give_back(self, result: Array, q: Array) -> Array:
        return give_back(result, q, self._function)


_HOST_RESULTS = _HostResults("varlen_prefill")


def host_results(core: _core.Plan, q: Array, stream: Any) -> Results:
    """Where the results for arrays on the CPU come from."""
    if stream is not None:
        refuse_stream(stream, "varlen_prefill")
    return _HOST_RESULTS


def host_results_of(function: str, stream: Any) -> Results:
    """The same for another function than attention."""
    if stream is not None:
        refuse_stream(stream, function)
    return _HostResults(function)


def refuse_stream(stream: Any, function: str) -> NoReturn:
    """Raise the TypeError for a stream on the CPU."""
    raise TypeError(f"{function}: expected stream=None on the cpu backend, got {stream!r}")


def empty_like(x: Array, shape: tuple[int, ...], *, dtype: str | None = None) -> Array:
    """An uninitialised CPU array: torch for torch, else numpy (see `give_back`)."""
    if not is_torch(x):
        return aligned_empty(shape, np.dtype(dtype or x.dtype))
    torch = sys.modules["torch"]
    torch_dtype = x.dtype if dtype is None else getattr(torch, dtype)
    size = math.prod(shape) * torch_dtype.itemsize
    if size < LARGE_BYTES:
        return torch.empty(shape, dtype=torch_dtype, device="cpu")
    return torch.from_numpy(_core.result_memory(size)).view(torch_dtype).view(shape)


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As `numpy.empty`, but begins at a cache line, so that rows can be written past the caches."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size >= LARGE_BYTES:
        return _core.result_memory(size).view(dtype).reshape(shape)
    memory = np.empty(size + 63, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size].view(dtype).reshape(shape)


def empty_result_cache() -> None:
    """Give the memory that freed results have left back to the system.

    Results on the CPU of 4 MiB and more lie in memory of exactile's own. When the last array over
    it is gone it is kept for a next result of about that size, since fresh memory costs up to twice
    the time of attention over short sequences. At most 256 MiB are kept, or as many as the
    environment variable ``EXACTILE_RESULT_CACHE_MIB`` says; 0: none. Results in use are not
    counted, and are not touched by this function.
    """
    _core.empty_result_cache()


def give_back(result: Array, like: Array, function: str = "varlen_prefill") -> Array:
    """`result` as an array of the library of `like`, without a copy where that library can."""
    if is_torch(like) or isinstance(like, np.ndarray):
        return result
    namespace = like.__array_namespace__() if hasattr(like, "__array_namespace__") else None
    if namespace is None or not hasattr(namespace, "from_dlpack"):
        raise TypeError(
            f"{function}: {type(like).__name__} has no array namespace to make the result "
            "with; pass out="
        )
    imported = namespace.from_dlpack(storage(result))
    return (
        imported
        if imported.dtype == like.dtype or result.dtype.name != "bfloat16"
        else (imported.view(like.dtype))
    )


def as_int32(lengths: Any, name: str, function: str = "plan") -> npt.NDArray[np.int32]:
    """A 1-d C-contiguous int32 copy or view of integer lengths on the host.

    Raises
    ------
    TypeError
        `lengths` does not hold integers, or is not on the host.
    ValueError
        `lengths` is not 1-d, or a value does not fit in 31 bits.
    """
    if isinstance(lengths, np.ma.MaskedArray):
        raise TypeError(f"{function}: expected {name} without a mask, got a masked array")
    if is_torch(lengths):
        lengths = _host_tensor(lengths, name, function)
    elif hasattr(lengths, "__dlpack_device__") and not isinstance(lengths, np.ndarray):
        _check_on_host(_core.device_name(int(lengths.__dlpack_device__()[0])), name, function)
        lengths = np.from_dlpack(lengths)
    array = np.asarray(lengths)
    if array.size == 0 and not isinstance(lengths, np.ndarray):
        array = array.astype(np.int32)
    if array.dtype.kind in "fO" and all(type(x) is int for x in np.asarray(lengths, object).flat):
        array = np.asarray(lengths, object)  # some of more than 64 bits
    elif array.dtype.kind not in "iu":
        raise TypeError(f"{function}: expected {name} of integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{function}: expected {name} of rank 1, got shape {array.shape}")
    if array.dtype != np.int32:
        limits = np.iinfo(np.int32)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise ValueError(
                f"{function}: expected {name} to fit in int32, got {int(array.min())} to "
                f"{int(array.max())}"
            )
        array = array.astype(np.int32)
    return np.ascontiguousarray(array)


def _host_tensor(lengths: Any, name: str, function: str) -> npt.NDArray[Any]:
    """A torch tensor's memory as numpy's."""
    device = str(lengths.device.type)
    _check_on_host("CPU" if device == "cpu" else device, name, function)
    try:
        array: npt.NDArray[Any] = lengths.numpy()
        if array.size and not lengths.data_ptr():
            raise RuntimeError("it holds no memory")
    except Exception as error:  # a kind of tensor that has no plain memory
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{function}: expected {name} to be a dense tensor of integers, got a "
            f"{type(lengths).__name__} ({reason})"
        ) from None
    return array


def _check_on_host(device: str, name: str, function: str) -> None:
    if device != "CPU":
        raise TypeError(
            f"{function}: expected {name} in CPU memory, got an array on {device}; pass the "
            "lengths that the host knows"
        )


def cumulated(lengths: Any, name: str) -> npt.NDArray[np.int32]:
    """Plain lengths as cu_seqlens: a leading 0, then running sums.

    Raises
    ------
    TypeError, ValueError
        As `as_int32`; also for a negative length and for a total that does not fit in int32.
    """
    array = as_int32(lengths, name)
    if array.size and int(array.min()) < 0:
        raise ValueError(f"plan: expected {name} >= 0, got {int(array.min())}")
    return as_int32(running_sums(array), f"the sum of {name}")


def used_lengths(core: _core.Plan) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(batch,) each: queries and keys of a plan's sequences that count."""
    cu_seqlens = core.cu_seqlens_q, core.cu_seqlens_k
    used = core.seqused_q, core.seqused_k
    first, second = (u if len(u) else np.diff(cu) for u, cu in zip(used, cu_seqlens, strict=True))
    return first, second


def running_sums(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """A 0, then running sums: where each of what has these lengths begins, and the end."""
    lengths = np.asarray(lengths)
    sums = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=sums[1:])
    return sums
