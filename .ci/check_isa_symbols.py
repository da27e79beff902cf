"""The kernels of an instruction set must not lend code to others: looks into their object files.

    python .ci/check_isa_symbols.py BUILD_DIR

A weak symbol (an inline function, a template) that is not in the namespace of its instruction set
could be chosen by the linker for code that runs on older processors.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def strangers(kernels: Path) -> list[str]:
    """Defined global or weak symbols of one object file that do not carry its instruction set."""
    isa = kernels.parent.parent.name.removeprefix("kernels_").removesuffix(".dir")
    listing = subprocess.run(
        ["nm", "--demangle", "--defined-only", "--extern-only", kernels],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    own = f"exactile::cpu::{isa}::"
    return [
        f"{isa}: {line[17:]}"
        for line in listing.splitlines()
        if own not in line and "DW.ref." not in line
    ]


def main(build_dir: str) -> int:
    """Print what was found; 1 if anything was."""
    objects = sorted(Path(build_dir).rglob("kernels_*.dir/**/kernels.cpp.o"))
    found = [symbol for kernels in objects for symbol in strangers(kernels)]
    print(f"{len(objects)} instruction sets, {len(found)} strange symbols", *found, sep="\n")
    return int(bool(found) or not objects)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
