"""exactile: attention for varlen prefill that launches exactly the tiles that exist.

`varlen_prefill` computes in one call; `plan` does the part that depends on the lengths alone, for
`Plan.run` to reuse over the layers of a model. `workloads` draws lengths, ``exactile bench``
measures.
"""

from __future__ import annotations

import sys as _sys
from importlib.metadata import version as _version
from typing import Any

from exactile import _core, _sycl, workloads
from exactile._arrays import empty_result_cache
from exactile._paths import cmake_dir, include_dir
from exactile._paths import cubin_dir as _cubin_dir
from exactile.api import varlen_prefill
from exactile.planning import BACKENDS, SCHEDULERS, Plan, plan
from exactile.scheduler import Scheduler
from exactile.threads import get_num_threads, set_num_threads

__version__ = _version("exactile")

__all__ = [
    "BACKENDS",
    "SCHEDULERS",
    "Plan",
    "Scheduler",
    "cmake_dir",
    "empty_result_cache",
    "get_num_threads",
    "include_dir",
    "info",
    "plan",
    "set_num_threads",
    "varlen_prefill",
    "workloads",
]


# Where device code, shipped kernels and NVRTC's package are looked for.
_core.configure(include_dir(), str(_cubin_dir()), [path for path in _sys.path if path])


def info() -> dict[str, Any]:
    """What is available here: version, headers, backends and why not.

    Returns
    -------
    dict
        ``version``, ``include_dir``, and ``backends``: name -> ``available`` (bool), ``reason``
        (str or None). For the CPU: ``isa`` (instruction set in use), ``isas`` (those that run
        here), ``threads``. For CUDA: ``driver`` (version or None), ``devices`` (list of ``name``,
        ``compute_capability``, ``multiprocessors``, ``memory_bytes``), ``kernels`` (number in the
        package), ``cache_dir``, ``cache_reason`` (None, or why compiled kernels are not kept
        there: the folder has to be ours and nobody else's to write to), ``nvrtc`` (``path`` and
        ``version``, or None) and ``nvrtc_reason``. For SYCL: ``runtime`` (str or None), ``devices``
        (list of ``name``, ``driver``, ``compute_units``, ``memory_bytes``, ``kernel`` and what else
        decides which kernel runs), ``kernels``, ``cache_dir``, ``cache_reason``. Loads the SYCL
        runtime where it is installed.
    """
    cpu = {
        "available": True,
        "reason": None,
        "isa": _core.isa(),
        "isas": _core.available_isas(),
        "threads": get_num_threads(),
    }
    return {
        "version": __version__,
        "include_dir": include_dir(),
        "backends": {
            "cpu": cpu,
            "cuda": _cuda_info(),
            "sycl": _sycl.info(),
        },
    }


def _cuda_info() -> dict[str, Any]:
    cuda: dict[str, Any] = {"available": False, "reason": None, "driver": None, "devices": []}
    try:
        found = _core.cuda_driver_info()
        major, minor = divmod(found["driver_version"], 1000)
        cuda |= {"driver": f"{major}.{minor // 10}", "devices": found["devices"]}
        cuda["available"] = any(x["compute_capability"] >= (8, 0) for x in cuda["devices"])
        if not cuda["available"]:
            cuda["reason"] = "expected a GPU of compute capability 8.0 or newer"
    except RuntimeError as error:
        cuda["reason"] = str(error)
    cuda["kernels"] = len(list(_cubin_dir().glob("*.cubin")))
    cuda |= {"cache_dir": _core.cache_directory(), "cache_reason": _core.cache_problem() or None}
    try:
        path, version = _core.nvrtc_info()
        cuda |= {"nvrtc": {"path": path, "version": version}, "nvrtc_reason": None}
    except RuntimeError as error:
        cuda |= {"nvrtc": None, "nvrtc_reason": str(error)}
    return cuda
