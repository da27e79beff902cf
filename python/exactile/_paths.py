"""Where the package's own files lie: headers, CMake's package, CUDA kernels."""

from __future__ import annotations

from pathlib import Path

from exactile import _core

PACKAGE = Path(_core.__file__).parent


def include_dir() -> str:
    """Folder for a compiler's include path: ``#include <exactile/...>``.

    An editable installation has no copy of the headers: it is the source tree's folder.
    """
    installed = PACKAGE / "include"
    return str(installed if installed.is_dir() else Path(__file__).parents[2] / "include")


def cmake_dir() -> str:
    """Folder for ``find_package(exactile)``: pass it as ``-Dexactile_DIR=``."""
    return str(PACKAGE / "cmake")


def cubin_dir() -> Path:
    """Folder of the CUDA kernels that the package ships; may not exist."""
    return PACKAGE / "cubins"
