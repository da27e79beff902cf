"""What a type checker sees: results typed by their inputs, names checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import exactile
from abilities import require

ACCEPTED = """
from typing import Any, assert_type
import numpy as np
import numpy.typing as npt
import exactile


class Tensor: ...


def check(q: npt.NDArray[np.float16], t: Tensor, cu: Any, lse: bool) -> None:
    plan = exactile.plan(cu, num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bf16")
    assert_type(plan, exactile.Plan)
    assert_type(plan.head_dim, int)
    assert_type(plan.run(q, q, q), npt.NDArray[np.float16])
    assert_type(
        plan.run(q, q, q, return_lse=True),
        tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]],
    )
    assert_type(plan.run(t, t, t, out=t), Tensor)
    assert_type(plan.run(t, t, t, return_lse=True), tuple[Tensor, Tensor])
    assert_type(plan.run(t, t, t, return_lse=lse), Tensor | tuple[Tensor, Tensor])
    assert_type(exactile.varlen_prefill(t, t, t, cu, causal=True, dtype="fp16"), Tensor)
    assert_type(
        exactile.varlen_prefill(q, q, q, cu, scheduler="Individual", return_lse=True),
        tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]],
    )
"""

REFUSED = """
import exactile
shape = (4, 2, 64)
exactile.plan([0], num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bf16", scheduler="Fair")
exactile.plan([0], num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bf16", order="random")
exactile.plan([0], num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bf16", backend="metal")
exactile.varlen_prefill(1, 1, 1, [0], backend="metal")
exactile.varlen_prefill(1, 1, 1, [0], casual=True)
"""


def run_mypy(source: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "source.py"
    path.write_text(source)
    # mypy finds what is installed, and refuses to be told of it; not an editable installation.
    package = Path(exactile.__file__).parents[1]
    installed = package.name == "site-packages"
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-version=3.11",
         f"--cache-dir={tmp_path / 'cache'}", "--follow-imports=silent", str(path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={} if installed else {"MYPYPATH": str(package)},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_mypy():
    require("mypy")


def test_types_of_results(tmp_path):
    done = run_mypy(ACCEPTED, tmp_path)
    assert done.returncode == 0, done.stdout


def test_names_are_checked(tmp_path):
    lines = run_mypy(REFUSED, tmp_path).stdout.splitlines()
    wrong = {int(line.split(":")[1]) for line in lines if ": error:" in line}
    assert wrong == {4, 5, 6, 7, 8}, lines
