"""exactile: attention for varlen prefill that launches exactly the tiles that exist.

`varlen_prefill` computes in one call; `plan` does the part that depends on the lengths alone, for
`Plan.run` to reuse over the layers of a model. `workloads` draws lengths, ``exactile bench``
measures.
"""

from __future__ import annotations

from importlib.metadata import version as _version
from pathlib import Path as _Path
from typing import Any

from exactile import _core, workloads
from exactile.api import varlen_prefill
from exactile.plan import BACKENDS, SCHEDULERS, Plan, get_num_threads, plan, set_num_threads

__version__ = _version("exactile")

__all__ = [
    "BACKENDS",
    "SCHEDULERS",
    "Plan",
    "cmake_dir",
    "get_num_threads",
    "include_dir",
    "info",
    "plan",
    "set_num_threads",
    "varlen_prefill",
    "workloads",
]


def include_dir() -> str:
    """Folder for a compiler's include path: ``#include <exactile/...>``."""
    return str(_Path(_core.__file__).parent / "include")


def cmake_dir() -> str:
    """Folder for ``find_package(exactile)``: pass it as ``-Dexactile_DIR=``."""
    return str(_Path(_core.__file__).parent / "cmake")


def info() -> dict[str, Any]:
    """What is available here: version, headers, backends and why not.

    Returns
    -------
    dict
        ``version``, ``include_dir``, and ``backends``: name -> ``available`` (bool), ``reason``
        (str or None), and for the CPU ``isa`` (instruction set in use), ``isas`` (those that run
        here), ``threads``.
    """
    missing = "planning only: this version has no kernels for it"
    backends: dict[str, Any] = {
        name: {"available": False, "reason": missing} for name in BACKENDS if name != "cpu"
    }
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
        "backends": {"cpu": cpu, **backends},
    }
