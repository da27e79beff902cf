"""Where a benchmark runs: how data gets there and back, and the one way to time a run there.

``benchmarks/before_after.py`` loads this file into two installations, one of them older: what it
takes from `exactile` it imports where it is used.
"""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

COLD_BYTES = 256 << 20
"""Written before a run whose working set a GPU's second-level cache could hold."""

_HEAD_START = 200_000
"""Cycles that the GPU sleeps for each run that is timed, while the host issues it."""


class _HostClock:
    """Times a run, until all of it is done, by the host's clock."""

    def wait(self) -> None:
        """Until all that was asked for is done."""

    def milliseconds(
        self, run: Callable[[], Any], working_set: int | None, count: int = 1
    ) -> list[float]:
        """Times of `count` runs, one after the other; caches are as the runs leave them."""
        times_ms = []
        for _ in range(count):
            self.wait()
            start_ns = time.perf_counter_ns()
            run()
            self.wait()
            times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        return times_ms

    def slice_ms(self, run: Callable[[], Any], working_set: int | None, seconds: float) -> float:
        """Shortest time in a slice of time: what else runs on a host only adds to it."""
        end, best_ms = time.perf_counter() + seconds, float("inf")
        while time.perf_counter() < end or best_ms == float("inf"):
            best_ms = min(best_ms, *self.milliseconds(run, working_set))
        return best_ms


class Host(_HostClock):
    """The CPU: numpy arrays as they are, a host clock."""

    def put(self, x: npt.NDArray[Any]) -> Any:
        """Array that `Plan.run` takes."""
        return x

    def get(self, x: Any) -> npt.NDArray[Any]:
        """The numpy array of what `Plan.run` gave; bfloat16 as uint16 storage."""
        return np.asarray(x)

    def empty(self, like: Any, shape: tuple[int, ...]) -> Any:
        """Uninitialised output."""
        from exactile._arrays import aligned_empty

        return aligned_empty(shape, like.dtype)

    def available_bytes(self) -> int | None:
        """Memory of the device that can be had; None: the host's own."""
        return None

    def describe(self) -> dict[str, str]:
        """Name of the processor."""
        return {"name": processor_name()}


class Gpu:
    """A CUDA GPU through PyTorch: tensors, and events around a run that the host is ahead of.

    Raises
    ------
    ImportError
        No PyTorch, or one without CUDA.
    """

    def __init__(self) -> None:
        try:
            import torch
        except ImportError:
            raise ImportError("--backend=cuda: pip install torch, which holds the data") from None
        if not torch.cuda.is_available():
            raise ImportError("--backend=cuda: this PyTorch finds no GPU; --backend=cpu needs none")
        self.torch: Any = torch
        self.cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.l2_bytes = int(properties.L2_cache_size)
        self.num_sms = int(properties.multi_processor_count)

    def put(self, x: npt.NDArray[Any]) -> Any:
        """Tensor on the GPU; uint16 becomes bfloat16."""
        tensor = self.torch.from_numpy(x)
        return (tensor.view(self.torch.bfloat16) if x.dtype == np.uint16 else tensor).cuda()

    def get(self, x: Any) -> npt.NDArray[Any]:
        """The numpy array of a tensor; bfloat16 as uint16 storage."""
        bits = x.view(self.torch.uint16) if x.dtype == self.torch.bfloat16 else x
        return np.asarray(bits.cpu().numpy())

    def empty(self, like: Any, shape: tuple[int, ...]) -> Any:
        """Uninitialised output."""
        return self.torch.empty(shape, dtype=like.dtype, device=like.device)

    def milliseconds(
        self,
        run: Callable[[], Any],
        working_set: int | None,
        count: int = 1,
        head_start: int = _HEAD_START,
    ) -> list[float]:
        """Times between two events around each of `count` runs, which follow one another at once.

        Parameters
        ----------
        run : callable
            Issues one run on the current stream.
        working_set : int or None
            Bytes that it touches: where they would fit into the second-level cache, that is cold
            before each run. None: it stays as the run before leaves it.
        count : int
            Runs, at least 1.
        head_start : int
            Cycles for each run by which the host is ahead of the GPU.
        """
        cuda = self.torch.cuda
        events = [[cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        cuda._sleep(head_start * count)
        for start, end in events:
            if working_set is not None and working_set < 2 * self.l2_bytes:
                self.cold.zero_()
            start.record()
            run()
            end.record()
        cuda.synchronize()
        return [float(start.elapsed_time(end)) for start, end in events]

    def slice_ms(self, run: Callable[[], Any], working_set: int | None, seconds: float) -> float:
        """Median time of the runs, 5 to 200, that fill a slice of time."""
        (first_ms,) = self.milliseconds(run, working_set)
        count = int(min(200, max(5, seconds * 1e3 / max(first_ms, 1e-3))))
        return statistics.median(self.milliseconds(run, working_set, count))

    def available_bytes(self) -> int | None:
        """Memory of the device that can be had."""
        return int(self.torch.cuda.mem_get_info()[0])

    def describe(self) -> dict[str, str]:
        """Name, driver and clock of the GPU; the latter two where nvidia-smi is."""
        found = {"name": str(self.torch.cuda.get_device_name())}
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm", "--format=csv,noheader"]
        try:
            text = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return found
        driver, clock = text.splitlines()[0].split(", ")
        return found | {"driver": driver, "clock": clock}


class Sycl(_HostClock):
    """The default SYCL device through dpnp: arrays in USM, a host clock around a run and a wait.

    Raises
    ------
    ImportError
        No dpnp.
    """

    def __init__(self) -> None:
        from exactile import _sycl

        self.sycl: Any = _sycl
        self.queue: Any = _sycl.default_queue()
        try:
            import dpnp
        except ImportError:
            raise ImportError("--backend=sycl: pip install dpnp, which holds the data") from None
        self.dpnp: Any = dpnp

    def put(self, x: npt.NDArray[Any]) -> Any:
        """Array on the device; uint16 is bfloat16 there too."""
        return self.dpnp.asarray(x, sycl_queue=self.queue)

    def get(self, x: Any) -> npt.NDArray[Any]:
        """The numpy array of what `Plan.run` gave; bfloat16 as uint16 storage."""
        return np.asarray(self.dpnp.asnumpy(x))

    def empty(self, like: Any, shape: tuple[int, ...]) -> Any:
        """Uninitialised output."""
        return self.dpnp.empty(shape, dtype=like.dtype, sycl_queue=self.queue)

    def wait(self) -> None:
        """Until the queue is empty."""
        self.queue.wait()

    def available_bytes(self) -> int | None:
        """Memory of the device, used or not; None: the host's own."""
        info = self.sycl.device_info(self.queue)
        return None if info["is_cpu"] else int(info["memory_bytes"])

    def describe(self) -> dict[str, str]:
        """Name and driver of the device."""
        info = self.sycl.device_info(self.queue)
        return {"name": info["name"], "driver": info["driver"]}


Machine = Host | Gpu | Sycl


def machine_of(backend: str) -> Machine:
    """Where plans of a backend run."""
    machines: dict[str, type[Machine]] = {"cpu": Host, "cuda": Gpu, "sycl": Sycl}
    return machines[backend]()


def processor_name() -> str:
    """Return the CPU's model name."""
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()
