"""exactile: attention for varlen prefill that launches exactly the tiles that exist.

`varlen_prefill` computes in one call; `plan` does the part that depends on the lengths alone, for
`Plan.run` to reuse over the layers of a model. `workloads` draws lengths, ``exactile bench``
measures.
"""

from __future__ import annotations

import sys as _sys
from importlib.metadata import version as _version

from exactile import _core, workloads
from exactile._arrays import empty_result_cache
from exactile._info import info
from exactile._paths import cmake_dir, include_dir
from exactile._paths import cubin_dir as _cubin_dir
from exactile.api import varlen_prefill
from exactile.caching import append_kv
from exactile.merging import merge
from exactile.planning import BACKENDS, SCHEDULERS, Plan, plan
from exactile.scheduler import Scheduler
from exactile.threads import get_num_threads, set_num_threads

__version__ = _version("exactile")

__all__ = [
    "BACKENDS",
    "SCHEDULERS",
    "Plan",
    "Scheduler",
    "append_kv",
    "cmake_dir",
    "empty_result_cache",
    "get_num_threads",
    "include_dir",
    "info",
    "merge",
    "plan",
    "set_num_threads",
    "varlen_prefill",
    "workloads",
]


# Where device code, shipped kernels and NVRTC's package are looked for.
_core.configure(include_dir(), str(_cubin_dir()), [path for path in _sys.path if path])
