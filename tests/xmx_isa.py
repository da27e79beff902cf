"""What the graphics compiler makes of the SYCL kernels: instructions of the main loop, counted.

Needs `ocloc` (Debian: intel-opencl-icd) and `iga64` (libigc-tools), and the SYCL runtime with some
device, whose compiler gives the SPIR-V; no Intel GPU.
"""

from __future__ import annotations

import collections
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from exactile import _core, _sycl
from sycl_device import small_plan

PLATFORMS = {"pvc": "xehpc", "acm-g10": "xehpg", "bmg": "xe2"}
"""Names of a device for ocloc and for iga64."""


class Tools(NamedTuple):
    ocloc: str = "ocloc"
    iga64: str = "iga64"


def spirv(
    kernel: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int,
    folder: Path,
    *,
    page_size: int | None = None,
    general: bool = False,
) -> Path:
    """SPIR-V of one kernel. That the SYCL device here may not take it does not matter."""
    with mock.patch.dict(os.environ, EXACTILE_SYCL_KERNEL=kernel):
        plan = small_plan(dtype, head_dim, head_dim_v, "ValidOnlyPersistent", page_size=page_size)
    source, name_expression = _core.sycl_kernel(plan._core, general)[-2:]
    queue, unused = _sycl.default_queue(), folder / "unused.spv"
    done = subprocess.run(
        [sys.executable, "-m", "exactile._sycl_compile"],
        cwd=folder,
        env=os.environ | {"SYCL_DUMP_IMAGES": "1"},
        input=_sycl.compile_request(queue, source, name_expression, unused),
        capture_output=True,
        text=True,
        check=False,
    )
    images = [path for path in folder.glob("sycl*.spv") if b"prefill_kernel" in path.read_bytes()]
    assert len(images) == 1, f"expected one image with the kernel, got {images}\n{done.stderr}"
    return images[0]


def assembly(image: Path, device: str, registers: int, tools: Tools) -> list[str]:
    """Instructions and labels of the kernel in a SPIR-V image, compiled for a device."""
    folder = image.parent / device
    options = ["-options", "-ze-opt-large-register-file"] if registers == 256 else []
    _run(
        *(tools.ocloc, "compile", "-spirv_input", "-file", str(image), "-device", device),
        *("-out_dir", str(folder), *options),
    )
    (binary,) = folder.glob("*.bin")
    code = folder / "kernel.text"
    code.write_bytes(_text(binary) or _kernel_heap(binary, device, tools))
    listing = _run(tools.iga64, "-d", f"-p={PLATFORMS[device]}", str(code))
    lines = [line.strip() for line in listing.splitlines()]
    return [line for line in lines if line and not line.startswith(("//", "illegal"))]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _text(binary: Path) -> bytes | None:
    """The kernel's section of an ELF file, as newer versions of ocloc write it."""
    data = binary.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<3H", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    for name, _, _, _, at, length in sections:
        start = sections[names][4] + name
        if data[start : data.index(b"\0", start)].startswith(b".text._Z"):
            return data[at : at + length]
    return None


def _kernel_heap(binary: Path, device: str, tools: Tools) -> bytes:
    dump = binary.parent / "dump"
    _run(tools.ocloc, "disasm", "-file", str(binary), "-device", device, "-dump", str(dump))
    (heap,) = (path for path in dump.glob("*KernelHeap.dat") if "prefill_kernel" in path.name)
    return heap.read_bytes()


class Code(NamedTuple):
    """Instructions of a kernel; labels by the index of what follows them."""

    instructions: list[str]
    labels: dict[str, int]

    @staticmethod
    def parse(lines: list[str]) -> Code:
        instructions: list[str] = []
        labels = {}
        for line in lines:
            if label := re.match(r"(L\d+):", line):
                labels[label[1]] = len(instructions)
                line = line[label.end() :].strip()
            if line:
                instructions.append(line)
        return Code(instructions, labels)

    def jumps(self) -> list[tuple[int, int]]:
        """(from, to) of every branch."""
        return [
            (at, self.labels[target])
            for at, line in enumerate(self.instructions)
            if re.search(r"\b(jmpi|goto|while|brd)\b", line)
            for target in re.findall(r"L\d+", line.split("//")[0])
        ]

    def main_loop(self) -> list[str]:
        """The innermost loop with dpas, as it mostly runs: blocks without dpas that a branch leads
        around (to mask, to rescale) left out."""
        has_dpas = [bool(re.search(r"\bdpas", line)) for line in self.instructions]
        jumps = self.jumps()
        loops = [(to, at) for at, to in jumps if to <= at and any(has_dpas[to:at])]
        begin, end = min(loops, key=lambda loop: loop[1] - loop[0])
        skipped: set[int] = set()
        for at, to in jumps:
            if begin <= at < to <= end and not any(has_dpas[at:to]):
                skipped.update(range(at + 1, to))
        return [self.instructions[i] for i in range(begin, end + 1) if i not in skipped]


def scratch_accesses(instructions: list[str]) -> int:
    """Spilled registers, and anything else in scratch; the compiler says nothing of them."""
    return sum(bool(re.search(r"scratch|\.ss\[|a32\.ss", line)) for line in instructions)


def mix(instructions: list[str]) -> dict[str, int]:
    """How many there are of what; `32` after a name: two registers at once."""
    counts: collections.Counter[str] = collections.Counter()
    for line in instructions:
        code = re.sub(r"^\([^)]*\)\s*", "", line)
        name = code.split()[0]
        width = int(found[1]) if (found := re.search(r"\((\d+)\|M", code)) else 0
        if name.startswith("send"):
            block = re.search(r"load_block2d\S*?\.(d\w+)\.a64(\S*)", line)
            if scratch_accesses([line]):
                counts["scratch"] += 1
            elif not block:
                counts["other messages"] += 1
            else:
                counts["prefetch" if block[2] else f"load_block2d {block[1]}"] += 1
        elif name.startswith(("dpas", "sync")):
            counts[name.split(".")[0]] += 1
        elif width >= 16:
            name = {"sel": "max", "math.exp": "exp"}.get(name, name)
            counts[name if width == 16 else f"{name} {width}"] += 1
        else:
            counts["scalar"] += 1
    return dict(counts.most_common())


class Expected(NamedTuple):
    """What one pass through the main loop needs at least."""

    dpas: int
    key_loads: int
    value_loads: int
    ideal: int


def expected(rows: int, block_n: int, head_dim: int, head_dim_v: int) -> Expected:
    """For one sub-group.

    The ideal: dpas, K and V once in the largest messages, five 16-wide instructions for 16 scores
    (maximum, multiply-add, exponential, sum, conversion), four for the loop.
    """
    dpas = rows // 8 * block_n // 16 * (head_dim + head_dim_v) // 16
    keys = block_n // 16 * head_dim // 16
    values = block_n // 32 * head_dim_v // 32
    return Expected(dpas, keys, values, dpas + keys + values + 5 * rows * block_n // 16 + 4)
