"""The SYCL runtime for exactile, whose own `_sycl` loads the module in here when it is needed.

Importing this loads no runtime. It makes the CPU device of the package intel-opencl-rt known, whose
own entry points to a place that does not exist; that has to be before the first device is asked
for.
"""

import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

_CPU_DEVICE = "libintelocl.so"


def _announce_cpu_device() -> None:
    if "OCL_ICD_FILENAMES" in os.environ:
        return
    library = Path(__file__).parents[3] / _CPU_DEVICE  # <prefix>/lib, where wheels put libraries
    if not library.exists():
        try:
            listed = files("intel-opencl-rt") or []
        except PackageNotFoundError:
            return
        found = [Path(str(file.locate())) for file in listed if file.name == _CPU_DEVICE]
        if not found:
            return
        library = found[0].resolve()
    os.environ["OCL_ICD_FILENAMES"] = str(library)


_announce_cpu_device()
