"""Instructions of the XMX kernel's main loop beside the ideal; appends to xmx_isa.jsonl.

python benchmarks/xmx_isa.py [--device=pvc] [--ocloc=ocloc] [--iga64=iga64] [--compiler=NAME]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from commit import commit_here

from exactile import _core

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from xmx_isa import Code, Tools, assembly, expected, mix, scratch_accesses, spirv

RESULTS = Path(__file__).with_name("xmx_isa.jsonl")
KERNELS = {"pvc": "xmx_xe_hpc", "bmg": "xmx_xe2"}
HEAD_DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=KERNELS, default="pvc")
    parser.add_argument("--ocloc", default="ocloc")
    parser.add_argument("--iga64", default="iga64")
    parser.add_argument("--compiler", default="libigc1 of Debian 12")
    options = parser.parse_args()
    tools = Tools(options.ocloc, options.iga64)
    commit = commit_here()
    print("| head_dim | rows x keys | dpas | instructions | ideal | scratch | mix |")
    print("|---|---|---|---|---|---|---|")
    for head_dim, head_dim_v in HEAD_DIMS:
        kernel = KERNELS[options.device]
        shape = _core.sycl_shape(kernel, "bfloat16", head_dim, head_dim_v)
        assert shape is not None
        block_m, block_n, threads, _, registers = shape
        rows = block_m // (threads // 16)
        with tempfile.TemporaryDirectory() as folder:
            image = spirv(kernel, "bfloat16", head_dim, head_dim_v, Path(folder))
            code = Code.parse(assembly(image, options.device, registers, tools))
        loop = code.main_loop()
        row = dict(
            commit=commit,
            command="python benchmarks/xmx_isa.py --device="
            + options.device
            + (" --ocloc=... --iga64=..." if tools != Tools() else ""),
            device=options.device,
            compiler=options.compiler,
            dtype="bfloat16",
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            rows=rows,
            keys=block_n,
            instructions=len(loop),
            ideal=expected(rows, block_n, head_dim, head_dim_v).ideal,
            scratch=scratch_accesses(code.instructions),
            mix=mix(loop),
        )
        with RESULTS.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(
            f"| ({head_dim}, {head_dim_v}) | {rows} x {block_n} | {row['mix']['dpas']} "
            f"| {row['instructions']} | {row['ideal']} | {row['scratch']} | {row['mix']} |"
        )


if __name__ == "__main__":
    main()
