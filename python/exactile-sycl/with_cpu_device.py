"""Build step: runs a command where the CPU device of the build environment is known, if it has one.

In pip's isolated environments the device's libraries lie apart from the runtime's.
"""

import os
import subprocess
import sys

import exactile_sycl  # noqa: F401  (announces the device)

device = os.environ.get("OCL_ICD_FILENAMES")
folder = {"LD_LIBRARY_PATH": os.path.dirname(device)} if device else {}
sys.exit(subprocess.run(sys.argv[1:], env=os.environ | folder, check=False).returncode)
