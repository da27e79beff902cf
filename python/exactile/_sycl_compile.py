"""Compiles one SYCL kernel; run as a process by `_sycl`, because the compiler may crash.

Reads a request as JSON from stdin, writes SPIR-V to the file that it names and the kernel's name to
stdout. A failure is the compiler's log on stderr and another exit code than 0.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from exactile._sycl import runtime


def main() -> int:
    """Compile; return the exit code."""
    request = json.load(sys.stdin)
    loaded = runtime()
    queue = loaded.dpctl.SyclQueue(request["device"])
    try:
        image, name = loaded.sycl.compile(
            queue.addressof_ref(),
            request["source"],
            [],
            request["name_expression"],
            [os.fsencode(flag) for flag in request["flags"]],
        )
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    Path(request["image"]).write_bytes(image)
    print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
