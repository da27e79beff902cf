"""An installed wheel, tried in a minute: python smoke.py [--kernels]

Needs exactile and numpy, nothing else. `--kernels`: the wheel must hold its CUDA kernels. Not run
by pytest: it tests the files of a release, where they are installed (.ci/wheels, cibuildwheel).
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import numpy as np

import exactile
from exactile.tools.tolerance import compare

LENGTHS = [300, 34, 0, 1, 129]
HEADS_Q, HEADS_KV, HEAD_DIM = 4, 2, 128

# The batch of the README: policy -> work-groups launched, of which 3,808 have work.
GOLDEN = {"Individual": 32_768, "ValidOnlyIndividual": 3_808}
GOLDEN_FLOPS = 1_350_649_774_080
GOLDEN_BATCH = [
    *("--batch=16", "--num_heads_q=32", "--num_heads_kv=8", "--head_size_qk=128"),
    *("--head_size_vo=128", "--varlen", "--varlen_dist=zipf"),
]


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 as the dtype's storage; bfloat16 is the upper half of a float32, as uint16."""
    return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else x.astype(dtype)


def check_results() -> None:
    """varlen_prefill against float64, every dtype, with and without the causal mask."""
    rng = np.random.default_rng(0)
    cu_seqlens = np.cumsum([0, *LENGTHS])
    heads = (HEADS_Q, HEADS_KV, HEADS_KV)
    floats = [rng.standard_normal((sum(LENGTHS), h, HEAD_DIM), np.float32) for h in heads]
    for dtype, causal in itertools.product(("float32", "float16", "bfloat16"), (False, True)):
        qkv = [stored(x, dtype) for x in floats]
        given = dtype if dtype == "bfloat16" else None
        got = exactile.varlen_prefill(*qkv, cu_seqlens, causal=causal, dtype=given, return_lse=True)
        found = compare(got, *qkv, cu_seqlens, cu_seqlens, dtype=dtype, causal=causal)
        print(f"{dtype}, {'causal' if causal else 'full'}: max error {found.max_error:.1e}")
        assert found.passed, (dtype, causal, found)


def run(*arguments: str) -> str:
    """Standard output of `exactile ARGUMENTS`, the command that the wheel installs."""
    command = [str(Path(sysconfig.get_path("scripts"), "exactile")), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_commands() -> None:
    """`exactile info`, and the golden numbers of `exactile plan`."""
    information = run("info")
    print(information, end="")
    assert f"{exactile.__version__}\n" in information
    assert "cpu           available: " in information
    schedulers = ",".join(GOLDEN)
    lines = run("plan", "--backend=cpu", *GOLDEN_BATCH, f"--scheduler={schedulers}", "--json=-")
    plans = [json.loads(line)["plan"] for line in lines.splitlines()]
    assert {plan["scheduler"]: plan["launched"] for plan in plans} == GOLDEN
    assert {plan["flops"] for plan in plans} == {GOLDEN_FLOPS}


def check_files(kernels: bool) -> None:
    """What the package holds beside the module."""
    package = Path(exactile.__file__).parent
    assert exactile.__version__ == version("exactile")
    assert "site-packages" in package.parts, f"expected an installed wheel, got {package}"
    for file in "_core.pyi", "py.typed":
        assert (package / file).exists(), file
    assert Path(exactile.include_dir(), "exactile", "scheduler.hpp").exists()
    assert Path(exactile.cmake_dir(), "exactile-config.cmake").exists()
    found = exactile.info()["backends"]["cuda"]["kernels"]
    print(f"{found} CUDA kernels in the wheel")
    if kernels:
        assert found > 0
        report = json.loads((package / "cubins" / "report.json").read_text())
        assert found == len(report["kernels"])


def main() -> None:
    """Fails at the first thing that is not as it should be."""
    check_files("--kernels" in sys.argv[1:])
    check_results()
    check_commands()
    print(f"exactile {exactile.__version__}, Python {sys.version.split()[0]}: good")


if __name__ == "__main__":
    main()
