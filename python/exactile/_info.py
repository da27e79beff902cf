"""What `exactile.info` says: version, headers, and each backend with what it can do here."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from exactile import _core, _sycl
from exactile._paths import cubin_dir, include_dir
from exactile.threads import get_num_threads


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
        there: only this user may be able to write to the folder), ``nvrtc`` (``path`` and
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
        "version": version("exactile"),
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
    cuda["kernels"] = len(list(cubin_dir().glob("*.cubin")))
    cuda |= {"cache_dir": _core.cache_directory(), "cache_reason": _core.cache_problem() or None}
    try:
        path, version = _core.nvrtc_info()
        cuda |= {"nvrtc": {"path": path, "version": version}, "nvrtc_reason": None}
    except RuntimeError as error:
        cuda |= {"nvrtc": None, "nvrtc_reason": str(error)}
    return cuda
