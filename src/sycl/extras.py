"""Build step: the extras ``sycl`` and ``sycl-cpu`` of exactile, for pyproject.toml.

They require the distribution in `runtime`, by its place in this source tree. So SYCL's headers, in
a wheel of 170 MB, come into the build of that distribution alone, and only where an extra asks for
it: an isolated build of exactile itself cannot know which extras were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def dynamic_metadata(
    settings: Mapping[str, Any], project: Mapping[str, Any]
) -> dict[str, dict[str, list[str]]]:
    """What scikit-build-core adds to [project]."""
    runtime = Path(__file__).resolve().parent / "runtime"
    sycl = [f"exactile-sycl @ {runtime.as_uri()}"]
    cpu_device = ["intel-opencl-rt>=2026.2,<2027"]
    return {"optional-dependencies": {"sycl": sycl, "sycl-cpu": sycl + cpu_device}}
