"""Where the benchmark runs: how data gets there and back, and how a run is timed."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exactile import _sycl
from exactile._arrays import aligned_empty

COLD_BYTES = 256 << 20
"""Written before a run whose working set a GPU's second-level cache could hold."""


class Host:
    """The CPU: numpy arrays as they are, a host clock."""

    def put(self, x: npt.NDArray[Any]) -> Any:
        """Array that `Plan.run` takes."""
        return x

    def get(self, x: Any) -> npt.NDArray[Any]:
        """The numpy array of what `Plan.run` gave; bfloat16 as uint16 storage."""
        return np.asarray(x)

    def empty(self, like: Any, shape: tuple[int, ...]) -> Any:
        """Uninitialised output."""
        return aligned_empty(shape, like.dtype)

    def milliseconds(self, run: Callable[[], Any], plan_bytes: int) -> float:
        """Time of one call."""
        start_ns = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start_ns) / 1e6

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

    def milliseconds(self, run: Callable[[], Any], plan_bytes: int) -> float:
        """Time between two events around one call; caches cold where the data would fit in them."""
        cuda = self.torch.cuda
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        if plan_bytes < 2 * self.l2_bytes:
            self.cold.zero_()
        cuda._sleep(200_000)  # cycles, while the host issues what follows
        start.record()
        run()
        end.record()
        cuda.synchronize()
        return float(start.elapsed_time(end))

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


class Sycl:
    """The default SYCL device through dpnp: arrays in USM, a host clock around a run and a wait.

    Raises
    ------
    ImportError
        No dpnp.
    """

    def __init__(self) -> None:
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

    def milliseconds(self, run: Callable[[], Any], plan_bytes: int) -> float:
        """Time of one call until the queue is empty."""
        self.queue.wait()
        start_ns = time.perf_counter_ns()
        run()
        self.queue.wait()
        return (time.perf_counter_ns() - start_ns) / 1e6

    def available_bytes(self) -> int | None:
        """Memory of the device, used or not; None: the host's own."""
        info = _sycl.device_info(self.queue)
        return None if info["is_cpu"] else int(info["memory_bytes"])

    def describe(self) -> dict[str, str]:
        """Name and driver of the device."""
        info = _sycl.device_info(self.queue)
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
