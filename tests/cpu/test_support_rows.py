"""Rows of support.def that a backend's kernels cannot run do not compile."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from abilities import needs, require

ROOT = Path(__file__).parents[2]
DTYPES = ["kFloat32", "kFloat16", "kBfloat16"]
FLAGS = {
    "baseline": [],
    "avx512": ["-march=x86-64-v4"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
}


def compile_with(row: str, folder: Path, isa: str) -> str:
    """What the compiler says of the CPU kernels' table with a row in the place of (96, 96)."""
    header = folder / "exactile" / "support.def"
    header.parent.mkdir()
    text = (ROOT / "include/exactile/support.def").read_text()
    changed = text.replace("(X, kCpu, 96, 96)", f"(X, kCpu, {row})")
    assert changed != text
    header.write_text(changed)
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wno-psabi", *FLAGS[isa]]
    command += [f"-DEXACTILE_CPU_ISA={isa}", f"-I{folder}", "-Iinclude", "-Isrc"]
    done = subprocess.run(
        [*command, "src/cpu/kernels.cpp"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode != 0) == bool(done.stderr)
    return done.stderr


@needs("g++")
@pytest.mark.parametrize(
    ("row", "isa", "refused"),
    [
        ("80, 80", "baseline", {"kFloat16": "head_dim_v", "kBfloat16": "head_dim_v"}),
        ("80, 96", "baseline", {}),
        ("72, 64", "baseline", {}),
        ("96, 72", "baseline", dict.fromkeys(DTYPES, "head_dim_v")),
        ("72, 64", "avx512", dict.fromkeys(DTYPES, "head_dim")),
        ("80, 96", "avx512", {}),
        ("80, 96", "avx512_bf16", {"kBfloat16": "head_dim"}),
        ("160, 160", "avx512_bf16", {}),
    ],
)
def test_cpu(row, isa, refused, tmp_path):
    require(isa)
    said = compile_with(row, tmp_path, isa)
    assert said.count("static assertion failed") == len(refused)
    for dtype, name in refused.items():
        where = f"support.def: the row kCpu, {dtype}, {row}: {name} is no multiple of what"
        assert f"{where} the CPU kernels for {isa} " in said
