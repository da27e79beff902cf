"""The kernels as Intel GPU code, which nothing here can run: offline compiled and read.

A compiler that spills does not say so; loads that are not 2D messages are only slow. So the
disassembly is counted.
"""

from __future__ import annotations

import pytest

from abilities import needs
from exactile import _core
from sycl_device import needs_device
from xmx_isa import Code, Tools, assembly, expected, mix, scratch_accesses, spirv

TOOLS = Tools()
pytestmark = [
    needs_device,
    needs("ocloc"),
    needs("iga64"),
]

XMX = [
    ("bfloat16", 64, 64),
    ("bfloat16", 96, 96),
    ("bfloat16", 128, 128),
    ("bfloat16", 192, 128),
    ("bfloat16", 192, 192),
    ("float16", 128, 128),
]


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), XMX)
def test_main_loop(dtype, head_dim, head_dim_v, tmp_path):
    block_m, block_n, threads, _, registers = _core.sycl_shape(
        "xmx_xe_hpc", dtype, head_dim, head_dim_v
    )
    image = spirv("xmx_xe_hpc", dtype, head_dim, head_dim_v, tmp_path)
    code = Code.parse(assembly(image, "pvc", registers, TOOLS))
    loop = code.main_loop()
    counts = mix(loop)
    want = expected(block_m // (threads // 16), block_n, head_dim, head_dim_v)
    assert counts["dpas"] == want.dpas
    assert counts["load_block2d d32t"] == want.key_loads
    assert counts["load_block2d d16v"] == want.value_loads
    assert counts["prefetch"] > 0
    assert scratch_accesses(loop) == 0
    assert scratch_accesses(code.instructions) == 0
    assert len(loop) < 400, counts


@pytest.mark.parametrize("kernel", ["xmx_xe_hpc", "xmx_xe2"])
@pytest.mark.parametrize(
    ("page_size", "general"),
    [(16, False), (None, True), (16, True)],
    ids=["pages", "scores", "both"],
)
def test_main_loop_that_serves(page_size, general, kernel, tmp_path):
    """Values come in messages of 16 keys; nothing is spilled for pages or other scores. (Debian's
    compiler knows no Xe2: its messages are read as those of pvc.)"""
    image = spirv(kernel, "bfloat16", 128, 128, tmp_path, page_size=page_size, general=general)
    code = Code.parse(assembly(image, "pvc", 256, TOOLS))
    loop = code.main_loop()
    counts = mix(loop)
    want = expected(16, 32, 128, 128)
    assert counts["dpas"] == want.dpas
    assert counts["load_block2d d32t"] == want.key_loads
    assert counts["load_block2d d16v"] == 2 * want.value_loads
    assert counts["prefetch"] > 0
    assert scratch_accesses(code.instructions) == 0
    assert len(loop) < 650, counts


@pytest.mark.parametrize("device", ["pvc", "acm-g10"])
@pytest.mark.parametrize(("dtype", "head_dim"), [("bfloat16", 128), ("float32", 64)])
def test_portable_kernel_compiles(device, dtype, head_dim, tmp_path):
    """Arc A-series GPUs (acm) take this one: they have no 2D messages."""
    image = spirv("portable", dtype, head_dim, head_dim, tmp_path)
    assert len(assembly(image, device, 128, TOOLS)) > 100


def test_scratch_is_seen():
    lines = [
        "(W) send.dc0 (16|M0) r8 r0 null:0 0x0 0x021C102C {$29} // hword scratch block read x2",
        "(W) load.ugm.d32x32t.a32.ss[a0.2] (1|M0) r8:2 [r4:1]",
        "(W) send.ugm (1|M0) r24 r232 null:0 0x0 0x02800203 // load_block2d.ugm.d16.a64",
    ]
    assert scratch_accesses(lines) == 2
