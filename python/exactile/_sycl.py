"""Runs on SYCL devices: queues, kernels, results. Loads the SYCL runtime on first use."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from exactile import _core
from exactile._arrays import Results
from exactile._device import backend_of
from exactile._paths import include_dir

_SUB_GROUP = 16
_INSTALL = (
    "pip install 'exactile[sycl]' brings it for Intel GPUs, 'exactile[sycl-cpu]' adds a SYCL "
    "CPU device (from a clone: '.[sycl]' ./python/exactile-sycl)"
)

# What `import exactile` does for this backend: it makes the CPU device known, and loads nothing.
_installed = importlib.util.find_spec("exactile_sycl") is not None
if _installed:
    importlib.import_module("exactile_sycl")


class Runtime(NamedTuple):
    """The SYCL runtime, once loaded."""

    sycl: Any  # exactile_sycl._sycl
    dpctl: Any
    wheel: str
    """Folder of the SPIR-V that was compiled when the package was built; may not exist."""


_lock = threading.Lock()
_locks: dict[Any, threading.Lock] = {}
_runtime: Runtime | None = None
_devices: dict[Any, dict[str, Any]] = {}
_queues: dict[int, Any] = {}


def runtime() -> Runtime:
    """The SYCL runtime, loaded when first asked for.

    Raises
    ------
    RuntimeError
        It is not installed, cannot be loaded, is of another version, or was in use before this
        process was forked.
    """
    loaded = _runtime or _load_runtime()
    _core.sycl_check_process()
    return loaded


def _load_runtime() -> Runtime:
    global _runtime
    with _lock:
        if _runtime is not None:
            return _runtime
        if not _installed:
            raise RuntimeError(
                f"exactile: the sycl backend needs the SYCL runtime, which is not installed: "
                f"{_INSTALL}"
            )
        try:
            dpctl = importlib.import_module("dpctl")  # loads libsycl, wherever it lies
            sycl = importlib.import_module("exactile_sycl._sycl")
        except ImportError as error:
            raise RuntimeError(
                f"exactile: the SYCL runtime cannot be loaded ({error}): {_INSTALL}"
            ) from error
        _core.sycl_use_runtime(getattr(sycl, "table", None))
        atexit.register(sycl.drain)  # does nothing in a process that was forked later
        _runtime = Runtime(sycl, dpctl, str(Path(str(sycl.__file__)).parent / "spirv"))
        return _runtime


def default_queue() -> Any:
    """Queue on the device that SYCL prefers here.

    Raises
    ------
    RuntimeError
        No runtime, or no device.
    """
    dpctl = runtime().dpctl
    try:
        return dpctl.SyclQueue()
    except dpctl.SyclQueueCreationError as error:
        raise RuntimeError(
            "exactile: the SYCL runtime finds no device: install the driver of the GPU, or "
            "pip install 'exactile[sycl-cpu]' for a CPU device; import exactile before anything "
            f"asks for devices ({error})"
        ) from None


def queue_of(x: Any, stream: Any, function: str = "varlen_prefill") -> Any:
    """The dpctl.SyclQueue to run `function` on: `stream`, else that of array `x`.

    Raises
    ------
    TypeError
        `stream` is no dpctl.SyclQueue.
    RuntimeError
        As `default_queue`.
    """
    dpctl = runtime().dpctl
    if stream is not None:
        if not isinstance(stream, dpctl.SyclQueue):
            raise TypeError(
                f"{function}: expected stream to be a dpctl.SyclQueue on the sycl backend, got "
                f"{type(stream).__name__}"
            )
        return stream
    own = getattr(x, "sycl_queue", None)
    if isinstance(own, dpctl.SyclQueue):
        return own
    try:
        device_type, ordinal = (int(number) for number in x.__dlpack_device__())
    except Exception:  # no array: refused when its arguments are checked
        return default_queue()
    devices = dpctl.get_devices()
    if device_type != _core.DEVICE_ONEAPI or ordinal >= len(devices):
        return default_queue()
    if ordinal not in _queues:  # of two threads that come here, both get the first one's
        _queues.setdefault(ordinal, dpctl.SyclQueue(devices[ordinal], property="in_order"))
    return _queues[ordinal]


def device_info(queue: Any) -> dict[str, Any]:
    """What a queue's device can do."""
    device = queue.sycl_device
    if device not in _devices:
        _devices[device] = runtime().sycl.device_info(queue.addressof_ref())
    return _devices[device]


def planning_target(
    queue: Any, dtype: str, head_dim: int, head_dim_v: int, page_size: int = 0
) -> tuple[str, int | None]:
    """Kernel that a plan is made for, and the work-groups that run at a time, if a device says.

    Parameters
    ----------
    queue : dpctl.SyclQueue or None
        None: the default device, where there is one.
    page_size : int
        Keys in a page; 0: no pages.
    """
    info = None
    if queue is not None:
        info = device_info(queue)
    elif _installed:
        try:
            info = device_info(default_queue())
        except RuntimeError:  # plans need no device
            info = None
    wanted = dtype, head_dim, head_dim_v, page_size
    kernel = _choose_kernel(info, *wanted)
    shape = _core.sycl_shape(kernel, *wanted)
    if info is None or shape is None:
        return kernel, None
    if info["is_cpu"]:
        return kernel, info["compute_units"]
    _, _, threads, _, registers = shape
    threads_per_unit = info["threads_per_unit"] * 128 // registers
    at_a_time = info["compute_units"] * threads_per_unit * _SUB_GROUP // threads
    return kernel, max(1, at_a_time)


def _choose_kernel(
    info: dict[str, Any] | None, dtype: str, head_dim: int, head_dim_v: int, page_size: int = 0
) -> str:
    """Name of the kernel for a device; EXACTILE_SYCL_KERNEL forces one."""
    if forced := os.environ.get("EXACTILE_SYCL_KERNEL"):
        return forced
    own = f"xmx_{info['xmx']}" if info else ""
    if own in _core.SYCL_KERNELS and _core.sycl_shape(own, dtype, head_dim, head_dim_v, page_size):
        return own
    return "portable"


def _check_device(queue: Any, kernel: str, dtype: str, threads: int, local_bytes: int) -> None:
    info = device_info(queue)
    missing = None
    if not info["usm"]:
        missing = "USM device allocations"
    elif _SUB_GROUP not in info["sub_group_sizes"]:
        missing = f"sub-groups of {_SUB_GROUP} work-items (has {info['sub_group_sizes']})"
    elif dtype == "float16" and not info["fp16"]:
        missing = "the aspect fp16, which float16 needs; use float32 or bfloat16"
    elif info["max_work_group_size"] < threads:
        missing = f"work-groups of {threads} work-items (has {info['max_work_group_size']})"
    elif info["local_bytes"] < local_bytes:
        missing = f"{local_bytes} bytes of local memory (has {info['local_bytes']})"
    elif kernel not in ("portable", "xmx_emulated", f"xmx_{info['xmx']}"):
        missing = f"the matrix engines that the kernel {kernel} is made for"
    if missing:
        raise RuntimeError(f"exactile: sycl: the device {info['name']} lacks {missing}")


# --- kernels ----------------------------------------------------------------------------------


@contextmanager
def _alone(key: Any) -> Iterator[None]:
    """One thread at a time for a key; those with other keys go on."""
    with _lock:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        yield


def load_kernel(queue: Any, kernel: str, dtype: str, fields: tuple[int, int, int, str, str]) -> int:
    """Address of a kernel that the core has not loaded for the context and device of a queue.

    Parameters
    ----------
    queue : capsule
        As dpctl.SyclQueue takes it.
    fields : tuple
        As `_core.sycl_kernel` gives them.

    Raises
    ------
    RuntimeError
        The device lacks what the kernel needs, or as `find_spirv`.
    """
    threads, local_bytes, registers, source, name_expression = fields
    on = runtime().dpctl.SyclQueue(queue)
    _check_device(on, kernel, dtype, threads, local_bytes)
    return _load(on, source, name_expression, registers)


def _load(queue: Any, source: str, name_expression: str, registers: int) -> int:
    """Address of a kernel, loaded from where `find_spirv` finds it.

    SPIR-V that the runtime refuses is passed over, and that in the cache directory replaced.
    """
    for search in ("anywhere", "not the wheel", "compiler"):
        origin, _, name, image = find_spirv(queue, source, name_expression, search)
        try:
            return int(runtime().sycl.load(queue.addressof_ref(), image, name, registers))
        except RuntimeError:
            if origin == "compiler":
                raise
    raise AssertionError("a search for the compiler gave something else")


def find_spirv(
    queue: Any, source: str, name_expression: str, search: str = "anywhere"
) -> tuple[str, str, str, bytes]:
    """(origin, cache key, name, SPIR-V) of a program: found, or compiled and kept.

    Threads that ask for one program wait for one compilation.

    Parameters
    ----------
    search : {"anywhere", "not the wheel", "compiler"}
        What is passed over.

    Raises
    ------
    RuntimeError
        It does not compile; with the compiler's log.
    """
    wheel = runtime().wheel if search == "anywhere" else ""
    with _alone((source, name_expression)):
        found = None
        if search != "compiler":
            found = _core.sycl_look_up(source, name_expression, wheel)
        if found is None:
            name, image = compile_program(queue, source, name_expression)
            found = _core.sycl_keep(source, name_expression, wheel, name, image)
        return found


def compile_program(queue: Any, source: str, name_expression: str) -> tuple[str, bytes]:
    """(name, SPIR-V) of a program, compiled in a process of its own: the compiler may crash.

    Raises
    ------
    RuntimeError
        As `find_spirv`.
    """
    info = device_info(queue)
    if not info["compiles"]:
        raise RuntimeError(
            f"exactile: sycl: {name_expression} is not in the cache, and the SYCL runtime cannot "
            f"compile for {info['name']}"
        )
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "kernel.spv"
        done = subprocess.run(
            [_python(), "-m", "exactile._sycl_compile"],
            cwd=Path(__file__).parents[1],  # found there, whatever the user's folder holds
            input=compile_request(queue, source, name_expression, image),
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.strip(), image.read_bytes()
    how = f"ended with signal {-done.returncode}" if done.returncode < 0 else "failed"
    log = done.stderr.strip()
    hint = ""
    if "file not found" in log:
        hint = "\nIt takes the C++ standard library's headers from this machine: install g++."
    raise RuntimeError(
        f"exactile: the SYCL compiler {how} for {name_expression} on {info['name']}:\n{log}{hint}"
    )


def _python() -> str:
    """The interpreter for the compiler's process, also where Python is embedded in a program.

    Raises
    ------
    RuntimeError
        None is found.
    """
    from multiprocessing.spawn import get_executable  # what the program said, or sys.executable

    said = os.fsdecode(get_executable() or "")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = [Path(folder) / "bin" / version for folder in (sys.exec_prefix, sys.base_prefix)]
    for path in (Path(said), *installed):
        if path.name.startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return str(path)
    raise RuntimeError(
        "exactile: sycl: expected a Python interpreter to compile kernels with, got "
        f"sys.executable = {sys.executable!r}, and none at {installed[0]}: name one with "
        "multiprocessing.set_executable()"
    )


def compile_request(queue: Any, source: str, name_expression: str, image: Path) -> str:
    """What `exactile._sycl_compile` reads, to write SPIR-V to `image`."""
    device = queue.sycl_device
    while (parent := device.parent_device) is not None:
        device = parent
    return json.dumps(
        {
            "device": str(device.get_filter_string()),
            "source": source,
            "name_expression": name_expression,
            "flags": [*_core.SYCL_FLAGS, "-I", include_dir()],
            "image": str(image),
        }
    )


# --- runs -------------------------------------------------------------------------------------


def results(core: _core.Plan, q: Any, stream: Any) -> Results:
    """Where the results for arrays in USM come from."""
    if backend_of(q) != "sycl":  # says so, whatever is installed
        core.check_memory(q)
    return _Results(queue_of(q, stream))


def results_of(function: str, x: Any, stream: Any) -> Results:
    """The same for another function than attention, on an array that is in USM."""
    return _Results(queue_of(x, stream, function), function)


class _Results:
    """Where results come from.

    dpnp allocates its own, on the queue of the run. Others get memory of ours through their
    ``from_dlpack`` when the kernel is done: they are not ordered with the queue.
    """

    def __init__(self, queue: Any, function: str = "varlen_prefill") -> None:
        self._queue = queue
        self._function = function
        self.stream = int(queue.addressof_ref())

    def empty(self, q: Any, shape: tuple[int, ...], dtype: str) -> Any:
        if _is_dpnp(q):
            return _namespace(q).empty(
                shape,
                dtype="float32" if dtype == "float32" else q.dtype,
                usm_type=q.usm_type,
                sycl_queue=self._queue,
            )
        if dtype == "bfloat16" and "bfloat16" not in str(q.dtype):
            dtype = "uint16"  # its storage, as q
        code, bits = _core.DLPACK_TYPES[dtype]
        ordinal = int(q.__dlpack_device__()[1])
        return runtime().sycl.empty(self.stream, shape, code, bits, ordinal)

    def give_back(self, result: Any, q: Any) -> Any:
        if _is_dpnp(q):
            return result
        self._queue.wait()
        namespace = _namespace(q)
        if namespace is None or not hasattr(namespace, "from_dlpack"):
            raise TypeError(
                f"{self._function}: {type(q).__name__} has no array namespace to make the result "
                "with; pass out="
            )
        return namespace.from_dlpack(result)


def _is_dpnp(x: Any) -> bool:
    return hasattr(x, "sycl_queue") and hasattr(x, "usm_type")


def _namespace(x: Any) -> Any:
    """What the library of an array has to make arrays with, or None."""
    if _is_dpnp(x):  # a usm_ndarray of a dpnp array names dpnp, its own is dpnp.tensor
        return sys.modules[type(x).__module__.rpartition(".")[0]]
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else None


# --- what there is ----------------------------------------------------------------------------


def info() -> dict[str, Any]:
    """What `exactile.info` says of this backend; loads the runtime where it is installed."""
    found: dict[str, Any] = {"available": False, "reason": None, "runtime": None, "devices": []}
    found |= {"cache_dir": _core.cache_directory(), "cache_reason": _core.cache_problem() or None}
    try:
        loaded = runtime()
        found["runtime"] = f"dpctl {loaded.dpctl.__version__}"
        for device in loaded.dpctl.get_devices():
            about = device_info(loaded.dpctl.SyclQueue(device))
            found["devices"].append(about | {"kernel": _choose_kernel(about, "bfloat16", 128, 128)})
        found["kernels"] = len(list(Path(loaded.wheel).glob("*.spv")))
        default_queue()
        found["available"] = True
    except RuntimeError as error:
        found["reason"] = str(error)
    return found
