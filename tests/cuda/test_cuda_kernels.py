"""The CUDA kernels as the build made them: all there, without spills. Needs no GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

import exactile
from abilities import CUBINS, needs, require
from exactile import _core

ROWS = [row[1:] for row in _core.support() if row[0] == "cuda"]
INFO = exactile.info()["backends"]["cuda"]

MAX_SPILL_BYTES = 32
"""Of any kernel, stores and loads each: a few registers saved outside the loops."""


@pytest.fixture(scope="module")
def report():
    require("cubins")
    return json.loads((CUBINS / "report.json").read_text())["kernels"]


def test_everything_supported_is_shipped(report):
    # 2 families; 2 kinds of mask and 3 schedulers, and packed sequences with one; 2 planners.
    assert len(report) == len(ROWS) * 2 * (2 * 3 + 1) + 2
    assert {entry["architecture"] for entry in report} == {"sm_80", "sm_90a"}
    assert {f"{entry['key']}.cubin" for entry in report} == {
        file.name for file in CUBINS.glob("*.cubin")
    }
    assert INFO["kernels"] == len(report)


def test_no_spills(report):
    spilling = [
        entry
        for entry in report
        if not 0 <= max(entry["spill_store_bytes"], entry["spill_load_bytes"]) <= MAX_SPILL_BYTES
    ]
    assert not spilling
    assert all(0 < entry["registers"] <= 255 for entry in report)


@pytest.mark.parametrize("scheduler", exactile.SCHEDULERS)
@pytest.mark.parametrize("family", ["sm80", "sm90"])
def test_a_shipped_kernel_is_found_in_the_wheel(report, family, scheduler):
    program = _core.kernel_program(family, "bfloat16", 128, 128, True, scheduler)
    origin, key, name, image = _core.find_cubin(*program, "sm_90a" if family == "sm90" else "sm_80")
    assert origin in ("wheel", "memory")
    assert key in {entry["key"] for entry in report}
    assert image[:4] == b"\x7fELF"
    assert name.encode() in image


@needs("nvrtc")
def test_a_kernel_that_is_not_shipped_compiles(tmp_path, monkeypatch):
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    program = _core.kernel_program("sm80", "float16", 64, 64, False, "Individual", probe="Timeline")
    origin, _, name, image = _core.find_cubin(*program, "sm_120")
    assert origin == "compiler"
    assert name.encode() in image


@needs("nvrtc")
@pytest.mark.parametrize("scores", ["PlainScores", "SinkScores", "GeneralScores"])
@pytest.mark.parametrize("layout", ["ContiguousKv", "PagedKv"])
@pytest.mark.parametrize("family", ["sm80", "sm90"])
def test_layouts_and_scores_compile(family, layout, scores, tmp_path, monkeypatch):
    """No plan asks for others than the first yet: they have not been run on a GPU."""
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    program = _core.kernel_program(
        *(family, "bfloat16", 128, 128, True, "ValidOnlyPersistent"), layout=layout, scores=scores
    )
    architecture = "sm_90a" if family == "sm90" else "sm_80"
    _, _, name, image = _core.find_cubin(*program, architecture)
    assert name.encode() in image


@needs("nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("element", ["float", "exactile::Fp16", "exactile::Bf16"])
@pytest.mark.parametrize("name", ["merge", "append"])
def test_kernels_of_rows_compile(name, element, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    arguments = element if name == "merge" else f"{element}, float"
    program = (
        f"#include <exactile/cuda/{name}.hpp>\n",
        f"exactile::cuda::{name}_kernel<{arguments}>",
    )
    origin, _, name, image = _core.find_cubin(*program, architecture)
    assert origin in ("compiler", "memory")
    assert name.encode() in image


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
def test_plans_need_no_gpu(dtype, head_dim, head_dim_v):
    plan = exactile.plan(
        [0, 300, 500],
        num_heads_q=8,
        num_heads_kv=2,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        dtype=dtype,
        backend="cuda",
    )
    assert plan.block_m == (192 if head_dim == 64 else 128)
    assert plan.valid == sum(-(-x // plan.tile_tokens) for x in (300, 200)) * plan.tile_heads


def test_float32_is_refused():
    with pytest.raises(ValueError, match="backend to be one of float16, bfloat16, got float32"):
        exactile.plan(
            [0, 8], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32", backend="cuda"
        )


def test_host_arrays_are_refused():
    plan = exactile.plan(
        [0, 8], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float16", backend="cuda"
    )
    x = np.zeros((8, 1, 64), np.float16)
    with pytest.raises(ValueError, match="arrays in CUDA memory for the cuda backend"):
        plan.run(x, x, x)


def test_an_unknown_family(monkeypatch):
    monkeypatch.setenv("EXACTILE_CUDA_FAMILY", "sm70")
    with pytest.raises(ValueError, match="EXACTILE_CUDA_FAMILY: expected one of sm80, sm90"):
        exactile.plan(
            [0, 8], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float16", backend="cuda"
        )


def test_info():
    assert INFO["available"] == (INFO["reason"] is None)
    assert INFO["cache_dir"] == _core.cache_directory()
    assert INFO["available"] == any(x["compute_capability"] >= (8, 0) for x in INFO["devices"])
    if INFO["driver"] is None:
        assert "NVIDIA" in INFO["reason"]
