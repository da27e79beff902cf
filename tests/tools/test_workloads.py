"""The workloads: golden lengths bit for bit, ranges of the others, and every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abilities import needs
from cases import ROOT
from exactile import _core, workloads
from exactile.workloads import (
    DISTRIBUTIONS,
    constant,
    lognormal,
    mixed,
    normal,
    trace,
    uniform,
    zipf,
)

# Lengths of the C++ benchmark of intel/sycl-tla pull request 516, made with libstdc++.
# fmt: off
ZIPF = [672, 192, 32, 320, 32, 96, 32, 32, 8096, 32, 4032, 32, 32, 32, 160, 32]
NORMAL = [1376, 1568, 1792, 672, 1888, 224, 896, 640, 992, 1312, 448, 800, 928, 1088, 960, 224]
NORMAL_Q = [1376, 1568, 1888, 224, 992, 1312, 928, 1088, 1056, 704, 768, 1344, 896, 832, 1024, 864]
NORMAL_KV = [1792, 672, 896, 640, 448, 800, 960, 224, 1696, 1344, 1088, 1280, 1248, 928, 1248, 352]
# Without rounding, seed 12345, from the same C++.
ZIPF_12345 = [2759, 1, 1, 1114, 38, 7769, 20, 4606]
NORMAL_12345 = [1328, 1045, 1433, 987, 489, 828, 631, 216]
# fmt: on


def test_golden() -> None:
    assert zipf(16).q.tolist() == zipf(16).k.tolist() == ZIPF
    assert normal(16).q.tolist() == normal(16).k.tolist() == NORMAL
    drawn = normal(16, kv_equals_q=False)
    assert (drawn.q.tolist(), drawn.k.tolist()) == (NORMAL_Q, NORMAL_KV)


def test_golden_with_another_seed() -> None:
    assert zipf(8, round_to=1, seed=12345).q.tolist() == ZIPF_12345
    assert normal(8, round_to=1, seed=12345).q.tolist() == NORMAL_12345
    assert normal(8, seed=12345 + 2**32).q.tolist() == normal(8, seed=12345).q.tolist()


def test_kv_of_its_own_mean() -> None:
    short = normal(4096, mean=1024, mean_k=256, stddev_k=128, kv_equals_q=False)
    assert 1000 < short.q.mean() < 1100
    assert 256 < short.k.mean() < 300


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("batch", [0, 1, 3000])
def test_lengths_of_every_distribution(name: str, batch: int) -> None:
    lengths = workloads.distribution(name)(batch)
    for seqlens in lengths:
        assert seqlens.shape == (batch,)
        assert seqlens.dtype == np.int32
        assert (seqlens > 0).all()
    assert [cu[-1] for cu in lengths.cu_seqlens] == [lengths.q.sum(), lengths.k.sum()]


def test_ranges() -> None:
    assert set(uniform(2000, low=3, high=6).q) == {3, 4, 5, 6}
    assert set(uniform(100, low=1, high=64, round_to=32).q) == {32, 64}
    assert constant(3, seqlen_q=5, seqlen_k=7).k.tolist() == [7, 7, 7]
    heavy = lognormal(20000, mean=512, max_len=8192)
    assert 480 < heavy.q.mean() < 530
    assert heavy.q.max() <= 8192
    step = mixed(90, prefills=3, low=10, high=20)
    assert step.q[:87].tolist() == [1] * 87
    assert set(step.k[:87]) <= set(range(10, 21))
    assert step.q[87:].tolist() == step.k[87:].tolist()
    assert set(step.q[87:]) <= set(range(5, 11))
    assert [np.sum(mixed(batch).q > 1) for batch in (0, 1, 39, 80)] == [0, 1, 1, 2]
    assert zipf(5000, max_len=100, round_to=1).q.max() <= 100


@pytest.mark.parametrize("name", ["zipf", "normal", "uniform", "lognormal", "mixed"])
def test_seed_decides(name: str) -> None:
    draw = DISTRIBUTIONS[name]
    assert draw(50, seed=1).k.tolist() == draw(50, seed=1).k.tolist()
    assert draw(50, seed=1).k.tolist() != draw(50, seed=2).k.tolist()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("zipf", {"batch": -1}, "batch"),
        ("zipf", {"max_len": 0}, "max_len"),
        ("zipf", {"alpha": float("nan")}, "alpha"),
        ("zipf", {"round_to": 0}, "round_to"),
        ("zipf", {"seed": -1}, "seed"),
        ("normal", {"mean": 0}, "mean"),
        ("normal", {"stddev": -1}, "stddev"),
        ("normal", {"mean_k": 7}, "kv_equals_q"),
        ("normal", {"mean": 1e12}, "2147483647"),
        ("uniform", {"low": 5, "high": 4}, "high"),
        ("lognormal", {"sigma": float("inf")}, "sigma"),
        ("mixed", {"prefills": 5}, "prefills: expected at most batch, 4, got 5"),
        ("mixed", {"low": 8, "high": 7}, "high"),
        ("constant", {"seqlen_q": -1}, "seqlen_q"),
        ("constant", {"seqlen_q": 2**31}, "2147483647"),
    ],
)
def test_bad_parameters(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DISTRIBUTIONS[name](**({"batch": 4} | parameters))


def test_unknown_distribution_lists_those_that_exist() -> None:
    with pytest.raises(
        ValueError, match=r"zipf, normal, uniform, lognormal, constant, mixed, got 'zpf'"
    ):
        workloads.distribution("zpf")


def test_too_many_tokens_for_cu_seqlens() -> None:
    with pytest.raises(ValueError, match="tokens"):
        _ = constant(3, seqlen_q=2**30).cu_seqlens


def test_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("id,context_tokens,generated_tokens\n1,374,44\n2,0,9\n3, 879 ,55\n4,x,1\n")
    assert trace(3, path).q.tolist() == trace(3, path).k.tolist() == [374, 0, 879]
    assert trace(2, path, start=1).q.tolist() == [0, 879]
    assert trace(2, path, column="generated_tokens").q.tolist() == [44, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "readable"),
        (b"", "empty"),
        (b"a,b\n1,2\n", "'context_tokens'.*'a', 'b'"),
        (b"context_tokens\n5\nfive\n", "trace.csv:3.*'five'"),
        (b"context_tokens\n5\n-1\n", "trace.csv:3.*'-1'"),
        (b"context_tokens\n2.5\n5\n", "trace.csv:2.*'2.5'"),
        (b"context_tokens\n5\n99999999999\n", "trace.csv:3"),
        (b"a,context_tokens\n5\n6\n", "trace.csv:2, got a row that is too short"),
        (b"context_tokens\n5\n", "at least 2 rows.*got 1"),
        (b"context_tokens\n\xff\n", "readable"),
        (b'context_tokens\n"5\n', "readable"),
        (b"\x1b[31m,\x07\n5\n", r"'context_tokens'.*'\\x1b\[31m', '\\x07'$"),
        (b"a" * 100 + b",b" * 100 + b"\n5\n", r"got 'a{40}\.\.\.', ('b', ){7}\.\.\.$"),
        (b"context_tokens\n5\n\x1b]0;x\x07\n", r"trace.csv:3, got '\\x1b\]0;x\\x07'$"),
        (b"context_tokens\n5\n" + b"6" * 5000 + b"\n", r"trace.csv:3, got '6{40}\.\.\.'$"),
        (b"context_tokens\n5\n" + b"6" * 65536, "fewer than 65536 characters, .*trace.csv:3"),
        (b"a," * 65536 + b"context_tokens\n5\n", "fewer than 65536 characters, .*trace.csv:1"),
        (b'context_tokens\n"' + b"5\n" * 40000, "fewer than 65536 characters, .*trace.csv:32769"),
        (b"context_tokens\n5\n" + b"\n" * 70000, "fewer than 65536 characters"),
    ],
)
def test_bad_trace(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        trace(2, path)
    with pytest.raises(ValueError, match="start"):
        trace(2, path, start=-1)


@needs("/dev/zero")
def test_a_trace_without_end() -> None:
    with pytest.raises(ValueError, match="fewer than 65536 characters, got a longer one at /dev/z"):
        trace(None, "/dev/zero")


def test_a_trace_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("context_tokens\n7\n\n9\n8")
    assert trace(None, path).q.tolist() == [7, 9, 8]
    assert trace(None, path, start=2).q.tolist() == [8]
    assert trace(None, path, start=3).q.tolist() == []
    with pytest.raises(ValueError, match="at least 4 rows"):
        trace(None, path, start=4)
    monkeypatch.setattr("exactile._trace.MAX_ROWS", 2)
    with pytest.raises(ValueError, match=r"at most 2 rows without a batch, got more at .*csv:5"):
        trace(None, path)
    assert trace(3, path).q.tolist() == [7, 9, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trace(2.5, "trace.csv"), "batch: expected an integer, got 2.5"),
        (lambda: trace(2, "trace.csv", start="1"), "start: expected an integer, got '1'"),
        (lambda: constant(2.0), "batch: expected an integer, got 2.0"),
        (lambda: zipf(2, seed=None), "seed: expected an integer, got None"),
        (lambda: uniform(2, low=1.5), "low: expected an integer, got 1.5"),
        (lambda: normal(2, round_to=0.5), "round_to: expected an integer, got 0.5"),
    ],
)
def test_what_is_no_integer(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_what_the_gpu_benchmark_measures() -> None:
    """Workloads that a kernel is there for; W8 is the batch of the golden counts."""
    path = ROOT / "benchmarks/workloads.json"
    works = json.loads(path.read_text())
    assert [name for name in works if name[0] == "W"] == [f"W{i}" for i in range(1, 11)]
    assert works["W8"]["lens"] == ZIPF
    assert works["W7"] | {"head_dim": 128, "about": ""} == works["W4"] | {"about": ""}
    totals = {name: sum(work["lens"]) * work.get("times", 1) for name, work in works.items()}
    assert (totals["W5"], totals["W6"], totals["W9"], totals["W10"]) == (
        129_653, 139_264, 122_725, 76_953,
    )  # fmt: skip
    for work in works.values():
        dims = work["head_dim"], work.get("head_dim_v", work["head_dim"])
        assert ("cuda", work.get("dtype", "bfloat16"), *dims) in _core.support()
