"""Policies of a user's own: what is refused, what their check finds, and the CPU backend."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import exactile
from cases import STRIDED, assert_same_bits, make_batch
from exactile import _core, _walk

HEADER = "#include <exactile/scheduler.hpp>\n"
LENGTHS = [300, 0, 31, 1, 129, 500]
HEADS = 4


def inherit(base: str, body: str = "") -> str:
    """Source of a policy Own with the constructors of a shipped one."""
    return f"{HEADER}struct Own : exactile::{base} {{ using {base}::{base}; {body} }};"


OF_A_LIST = """
struct Own : exactile::ValidOnlyIndividual {
  EXACTILE_HOST_DEVICE Own(const Params& list, int group)
      : exactile::ValidOnlyIndividual(list, GROUP) {}
};
"""
REVERSE = HEADER + OF_A_LIST.replace("GROUP", "list.num_tiles() - 1 - group")
STRIDE = STRIDED.replace("Strided", "Own")
RIGHT = {
    "reverse": (REVERSE, "ValidOnlyIndividual"),
    "inherited": (inherit("ValidOnlyPersistent"), "ValidOnlyPersistent"),
    "strided": (STRIDE, "ValidOnlyPersistent"),
    "grid": (
        HEADER
        + """
struct Own : exactile::Individual {
  EXACTILE_HOST_DEVICE Own(const Params& grid, int group)
      : exactile::Individual(grid, grid.num_tiles() - 1 - group) {}
};
""",
        "Individual",
    ),
    "words of CUDA": (
        HEADER
        + """
struct Own : exactile::ValidOnlyIndividual {
  __host__ __device__ __forceinline__ Own(const Params& list, int group)
      : exactile::ValidOnlyIndividual(list, group) {}
};
""",
        "ValidOnlyIndividual",
    ),
}


def plan_of(backend: str = "cuda", lengths=LENGTHS, **options) -> exactile.Plan:
    shape = dict(num_heads_q=HEADS, num_heads_kv=2, head_dim=64, dtype="bfloat16")
    return exactile.plan(seqlens_q=lengths, backend=backend, **shape | options)


def own(source: str, like: str = "ValidOnlyIndividual") -> exactile.Scheduler:
    return exactile.Scheduler("Own", source, like)


class TestConstruction:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (("Own", None), TypeError, "expected source to be a str, got None"),
            (("Own", b"struct Own;"), TypeError, "source to be a str"),
            ((None, "x"), TypeError, "name to be a str, got None"),
            (("Own", "x", None), TypeError, "like to be a str, got None"),
            (("Own", ""), ValueError, "expected source that defines Own, got none"),
            (("Own", " \n"), ValueError, "expected source that defines Own"),
            (("class", "x"), ValueError, r"name of a C\+\+ type, got 'class'"),
            (("mine::template", "x"), ValueError, r"name of a C\+\+ type"),
            (("int", "x"), ValueError, r"name of a C\+\+ type"),
            (("My Order", "x"), ValueError, r"name of a C\+\+ type, got 'My Order'"),
            (("Own", "x", "Fair"), ValueError, "like: expected one of .*, got 'Fair'"),
        ],
    )
    def test_refused(self, arguments, error, message):
        with pytest.raises(error, match=message):
            exactile.Scheduler(*arguments)

    def test_from_a_file(self, tmp_path):
        file = tmp_path / "a:b.hpp"
        file.write_text(STRIDE)
        got = exactile.Scheduler.from_file(f"{file}:mine::Own")
        assert got == exactile.Scheduler("mine::Own", STRIDE)
        got = exactile.Scheduler.from_file(f"{file}:Own:ValidOnlyPersistent")
        assert got == own(STRIDE, "ValidOnlyPersistent")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("FILE", "expected FILE.hpp:NAME or FILE.hpp:NAME:LIKE"),
            ("FILE:", "expected FILE.hpp:NAME"),
            (":Own", "expected FILE.hpp:NAME"),
            ("FILE:1", "expected FILE.hpp:NAME"),
            ("FILE:class", r"name of a C\+\+ type, got 'class'"),
            ("FILE:Own:Fair", "like: expected one of"),
            ("nowhere.hpp:Own", "readable file, got 'nowhere.hpp'.*No such file"),
            (".:Own", "readable file"),
            ("LATIN:Own", "readable file.*utf-8"),
            ("EMPTY:Own", "source that defines Own"),
        ],
    )
    def test_no_such_file(self, tmp_path, text, message):
        contents = {"FILE": STRIDE.encode(), "LATIN": b"// \xe9", "EMPTY": b""}
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            text = text.replace(name, str(tmp_path / name))
        with pytest.raises(ValueError, match=message):
            exactile.Scheduler.from_file(text)


@pytest.mark.parametrize("backend", exactile.BACKENDS)
@pytest.mark.parametrize("name", RIGHT)
def test_right_policies_pass(name, backend):
    scheduler = own(*RIGHT[name])
    scheduler.check(plan_of(backend, scheduler=scheduler))
    scheduler.check(plan_of(backend, scheduler=scheduler.like, workers=1))
    scheduler.check(plan_of(backend, [], scheduler=scheduler))
    scheduler.check(plan_of(backend, [0, 0], scheduler=scheduler))
    if scheduler.like == "Individual":
        return
    for order in _core.ORDERS:
        scheduler.check(plan_of(backend, scheduler=scheduler, order=order, pack_gqa=True))
    if backend == "cuda":
        packed = plan_of(backend, [34] * 20, scheduler=scheduler, pack_sequences=True)
        assert (packed.records[:, 1] < 0).any()
        scheduler.check(packed)


LIST, COUNTED, GRID = "ValidOnlyIndividual", "ValidOnlyPersistent", "Individual"
FIRST_HEAD_ONLY = (
    HEADER
    + """
struct Own : exactile::ValidOnlyPersistent {
  Own(const Params& params, int group) : ValidOnlyPersistent(params, group), group_(group) {}
  exactile::WorkTile tile() const {
    exactile::WorkTile tile = ValidOnlyPersistent::tile();
    if (group_ > 0) tile.head = 0;
    return tile;
  }
  int group_;
};
"""
)
WRONG = {
    "none": (
        HEADER + OF_A_LIST.replace("GROUP", "group < 5 ? group : 1 << 30"),
        LIST,
        r"tile 5 \(sequence 0, m_block 1, head 1\) was given by no work-group$",
    ),
    "one lost": (
        HEADER + OF_A_LIST.replace("GROUP", "group == 24 ? 1 << 30 : group"),
        LIST,
        r"tile 24 \(sequence 4, m_block 1, head 0\) was given by no work-group$",
    ),
    "one doubled": (
        HEADER + OF_A_LIST.replace("GROUP", "group == 9 ? 4 : group"),
        LIST,
        r"tile 4 \(sequence 0, m_block 1, head 0\) was given twice, by work-groups 4 and 9$",
    ),
    "the first of a stride": (
        STRIDE.replace("index_(group)", "index_(group + 2)"),
        COUNTED,
        r"tile 0 \(sequence 0, m_block 0, head 0\) was given by no work-group$",
    ),
    "no end, a tile for ever": (
        STRIDE.replace("+= params_.work_groups", "+= 0"),
        COUNTED,
        r"tile 0 \(sequence 0, m_block 0, head 0\) was given twice, by work-group 0 both times; "
        r"its walk was ended after 45 tiles$",
    ),
    "no end, in a constructor": (
        HEADER
        + """
struct Own : exactile::ValidOnlyIndividual {
  Own(const Params& list, int group) : exactile::ValidOnlyIndividual(list, group) {
    volatile int i = 0;
    while (group == 3) i = i + 1;
  }
};
""",
        LIST,
        "work-group 3 does not end$",
    ),
    "a crash": (
        HEADER
        + """
struct Own : exactile::ValidOnlyIndividual {
  using ValidOnlyIndividual::ValidOnlyIndividual;
  void advance() { *reinterpret_cast<volatile int*>(8) = 1; }
};
""",
        LIST,
        r"work-group 0 crashed \(SIGSEGV\)$",
    ),
    "an exit": (
        "#include <cstdlib>\n" + inherit(LIST, "void advance() { std::exit(3); }"),
        LIST,
        "its walk ended with code 3$",
    ),
    "a head too many": (
        inherit(
            LIST,
            "exactile::WorkTile tile() const { auto t = ValidOnlyIndividual::tile(); ++t.head; "
            "return t; }",
        ),
        LIST,
        r"work-group 3 gave a tile that is not there: q_begin 0, q_end 300, .*, head 4 of 4$",
    ),
    "rows of its own": (
        inherit(
            LIST,
            "exactile::WorkTile tile() const { auto t = ValidOnlyIndividual::tile(); "
            "t.rows.q_end += 64; return t; }",
        ),
        LIST,
        "work-group 0 gave a tile that is not there: q_begin 0, q_end 364,",
    ),
    "empty tiles of the grid": (
        inherit(GRID, "bool is_valid() const { return !ended_; } void advance() { ended_ = true; }"
                "bool ended_ = false;"),
        GRID,
        r"work-group \d+ gave a tile that is not there: q_begin 300, q_end 300,",
    ),
    "the grid without its last m_block": (
        HEADER
        + """
struct Own : exactile::Individual {
  Own(const Params& grid, int group)
      : exactile::Individual(grid, group % grid.max_m_blocks == 2 ? 1 : group) {}
};
""",
        GRID,
        r"tile 1 \(sequence 0, m_block 1, head 0\) was given twice, by work-groups 1 and 2$",
    ),
}  # fmt: skip


@pytest.fixture
def short_walks(monkeypatch):
    monkeypatch.setattr(_walk, "_SECONDS", 1)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_policies_are_named(name, short_walks):
    source, like, message = WRONG[name]
    plan = plan_of("cpu", scheduler=like, pack_gqa=False, order=None if like == GRID else "natural")
    with pytest.raises(ValueError, match=f"^Scheduler Own: {message}"):
        own(source, like).check(plan)


def test_a_fault_that_needs_two_work_groups_at_a_time():
    """One after the other, the first takes all tiles."""
    plan = plan_of("cpu", scheduler=COUNTED, pack_gqa=False, order="natural", workers=3)
    with pytest.raises(ValueError, match=r"given (twice|by no).* \(3 work-groups at a time\)$"):
        own(FIRST_HEAD_ONLY, COUNTED).check(plan)


@pytest.mark.parametrize("order", ["longest_first", "head_major"])
def test_tiles_are_counted_in_the_order_of_the_list(order):
    plan = plan_of("cpu", scheduler=LIST, order=order)
    scheduler = own(HEADER + OF_A_LIST.replace("GROUP", "group == 7 ? 1 << 30 : group"))
    record, head = (7 // HEADS, 7 % HEADS) if order == "longest_first" else (7, 0)
    q_begin = int(plan.records[record, 0])
    cu = plan._core.cu_seqlens_q
    sequence = int(np.searchsorted(cu, q_begin, "right")) - 1
    m_block = (q_begin - cu[sequence]) // plan.tile_tokens
    where = rf"tile 7 \(sequence {sequence}, m_block {m_block}, head {head}\) was given by no"
    with pytest.raises(ValueError, match=where):
        scheduler.check(plan)


def test_other_params():
    with pytest.raises(ValueError, match=r"Params of ValidOnlyIndividual, got .*ValidOnlyPersis"):
        own(REVERSE).check(plan_of(scheduler="auto"))
    with pytest.raises(RuntimeError, match="does not compile for the host"):
        own(REVERSE, COUNTED).check(plan_of(scheduler=COUNTED))


def test_what_does_not_compile():
    scheduler = own("struct Own { nonsense; };")
    with pytest.raises(
        RuntimeError, match=r"^Scheduler Own: does not compile[\s\S]*Own:1[\s\S]*nonsense"
    ):
        scheduler.check(plan_of(scheduler=LIST))


def test_no_compiler(monkeypatch):
    scheduler = own(inherit(LIST, "int no_compiler;"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler .* install g\+\+ 11 or clang 15"):
        scheduler.check(plan_of(scheduler=LIST))
    monkeypatch.setenv("CXX", "nowhere-c++ -O3")
    with pytest.raises(RuntimeError, match=r"looked for nowhere-c\+\+"):
        scheduler.check(plan_of(scheduler=LIST))


class TestBeforeARun:
    """Of a GPU's plan, without one: what precedes the launch."""

    def guard(self, scheduler, **options) -> _walk.OwnPolicy:
        return plan_of("cuda", scheduler=scheduler, **options)._own_policy

    def test_a_wrong_policy_does_not_run(self):
        source, like, _ = WRONG["one lost"]
        plan = plan_of("cuda", scheduler=own(source, like))
        x = np.zeros((sum(LENGTHS), HEADS, 64), np.uint16)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"tile 24 .* was given by no"):
                plan.run(x, x[:, :2], x[:, :2])

    def test_once_for_a_shape(self, monkeypatch):
        calls = []
        walks = _walk._walks
        monkeypatch.setattr(_walk, "_walks", lambda *x: calls.append(1) or walks(*x))
        scheduler = own(inherit(LIST, "int once;"))
        for _ in range(2):
            guard = self.guard(scheduler)
            assert guard.before_run() is None
            assert guard.before_run() is None
        assert len(calls) == 1
        self.guard(scheduler, lengths=[5, 7]).before_run()
        assert len(calls) == 2

    def test_switched_off(self, monkeypatch):
        guard = self.guard(own(*WRONG["one lost"][:2]))
        monkeypatch.setenv("EXACTILE_CHECK_SCHEDULER", "no")
        with pytest.raises(ValueError, match="EXACTILE_CHECK_SCHEDULER: expected 0 or 1, got 'no'"):
            guard.before_run()
        monkeypatch.setenv("EXACTILE_CHECK_SCHEDULER", "0")
        assert guard.before_run() is None

    def test_no_compiler_warns_once(self, monkeypatch):
        monkeypatch.setenv("CXX", "nowhere-c++")
        scheduler = own(inherit(LIST, "int warned;"))
        with pytest.warns(
            RuntimeWarning, match=r"not checked, .*: Scheduler Own: no C\+\+ compiler"
        ):
            self.guard(scheduler).before_run()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.guard(scheduler, lengths=[5, 7]).before_run()

    def test_what_does_not_compile_warns_in_a_line(self):
        scheduler = own(HEADER + "struct Own { device_only nonsense; };")
        message = (
            r"^not checked, and launched as ValidOnlyIndividual: Scheduler Own: does not compile "
            r"for the host with .*: .*error.*$"
        )
        with pytest.warns(RuntimeWarning, match=message) as warned:
            self.guard(scheduler).before_run()
        assert "\n" not in str(warned[0].message)

    def test_the_shipped_policies_are_not_walked(self, scheduler):
        assert plan_of("cuda", scheduler=scheduler)._own_policy is None


class TestCpu:
    @pytest.mark.parametrize("workers", [1, 2, 3])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("name", RIGHT)
    def test_the_bits_of_the_shipped(self, name, dtype, workers):
        batch = make_batch(LENGTHS, dtype=dtype, causal=True)
        scheduler = own(*RIGHT[name])
        got = batch.run(scheduler=scheduler, workers=workers)
        for x, want in zip(got, batch.run(scheduler=scheduler.like), strict=True):
            assert_same_bits(x, want)
        batch.check(*got)

    @pytest.mark.parametrize("order", _core.ORDERS)
    def test_orders_and_packed_heads(self, order):
        batch = make_batch(LENGTHS, dtype="bfloat16", causal=True)
        scheduler = own(STRIDE, COUNTED)
        for pack_gqa in (False, True):
            options = dict(order=order, pack_gqa=pack_gqa)
            got = batch.run(scheduler=scheduler, **options)
            for x, want in zip(got, batch.run(scheduler=COUNTED, **options), strict=True):
                assert_same_bits(x, want)

    def test_a_work_group_keeps_its_tiles_and_their_order(self):
        plan = plan_of("cpu", scheduler=own(STRIDE, COUNTED), workers=3)
        walk = plan._own_policy.before_run()
        assert walk.begins.size == 4
        for group, (begin, end) in enumerate(zip(walk.begins, walk.begins[1:], strict=False)):
            assert walk.tiles[begin:end].tolist() == list(range(group, plan.valid, 3))

    def test_a_counter_is_shared_out(self):
        plan = plan_of("cpu", scheduler=own(inherit(COUNTED), COUNTED), workers=3)
        sizes = np.diff(plan._own_policy.before_run().begins)
        assert sizes.max() - sizes.min() <= 1

    def test_empty(self):
        batch = make_batch([0, 0])
        out, lse = batch.run(scheduler=own(REVERSE))
        assert out.shape[0] == lse.shape[1] == 0

    def test_a_wrong_policy_writes_nothing(self, monkeypatch):
        monkeypatch.setenv("EXACTILE_CHECK_SCHEDULER", "0")  # the walk is the launch here
        batch = make_batch(LENGTHS)
        out = np.full_like(batch.q, 7)
        plan = plan_of("cpu", scheduler=own(*WRONG["one lost"][:2]), dtype="float32")
        with pytest.raises(ValueError, match="was given by no work-group"):
            plan.run(batch.q, batch.k, batch.v, out=out)
        assert (out == 7).all()

    def test_not_without_its_walk(self):
        plan = plan_of("cpu", scheduler=own(REVERSE), dtype="float32")
        batch = make_batch(LENGTHS)
        wrong = (np.zeros(3, np.int32), np.zeros(0, np.int32))
        for walk in (None, wrong):
            with pytest.raises(ValueError, match="expected the walked tiles"):
                plan._core.run(batch.q, batch.k, batch.v, np.empty_like(batch.q), walk=walk)


class TestNumberOfWorkGroups:
    """As the policy's num_work_groups() says."""

    SOURCE = STRIDE.replace("params, int) {", "params, int workers) {").replace(
        "return params.work_groups;", "return 2 * workers;"
    )

    @pytest.mark.parametrize("backend", exactile.BACKENDS)
    def test_is_launched(self, backend):
        plan = plan_of(backend, scheduler=own(self.SOURCE, COUNTED), workers=3)
        assert plan.launched == 6
        copy = pickle.loads(pickle.dumps(plan))
        assert copy.launched == 6
        assert plan_of(backend, scheduler=COUNTED, workers=3).launched == 3

    def test_computes_all(self):
        batch = make_batch(LENGTHS, causal=True)
        batch.check(*batch.run(scheduler=own(self.SOURCE, COUNTED), workers=3))

    @pytest.mark.parametrize("count", ["-1", "1 << 30"])
    def test_out_of_range(self, count):
        source = self.SOURCE.replace("2 * workers", count)
        with pytest.raises(ValueError, match=r"expected num_work_groups\(\) from 0 to 2\^30 - 1"):
            plan_of("cpu", scheduler=own(source, COUNTED))

    def test_crashes(self):
        source = self.SOURCE.replace("return 2 * workers", "return *(volatile int*)0")
        with pytest.raises(ValueError, match=r"num_work_groups\(\) crashed \(SIGSEGV\)"):
            plan_of("cuda", scheduler=own(source, COUNTED))


def test_every_backend_says_how_many_work_groups_are_launched():
    """Of the bytes that a SYCL kernel is launched with: list (32), counter (8), work-groups."""
    plan = plan_of("sycl", scheduler=COUNTED, workers=3)
    counter, work_groups = struct.unpack_from("=Qi", _core.sycl_schedule(plan._core, 77), 32)
    assert (counter, work_groups) == (77, 3)


def test_the_folder_is_private_and_goes_with_its_process(tmp_path):
    """Also where a forked child ends first."""
    script = f"""
import os, stat, exactile
from exactile import _walk
own = exactile.Scheduler("Own", '''{REVERSE}''')
plan = exactile.plan(seqlens_q=[5], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32",
                     scheduler=own)
own.check(plan)
program = _walk._program(own)
if os.fork() == 0:
    raise SystemExit
os.wait()
assert program.exists()
own.check(plan)
print(oct(stat.S_IMODE(program.parent.stat().st_mode)), program)
"""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env
    )
    mode, program = done.stdout.split()
    assert mode == "0o700"
    assert Path(program).is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
