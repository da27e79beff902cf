"""The command line: golden counts, options, output, JSON, tile map, and every error."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exactile
from exactile import bench, cli

GOLDEN = [
    "--batch=16",
    "--num_heads_q=32",
    "--num_heads_kv=8",
    "--seq_len_qo=1024",
    "--seq_len_kv=1024",
    "--head_size_vo=128",
    "--head_size_qk=128",
    "--varlen",
    "--iterations=3",
]
SMALL = ["--batch=5", "--num_heads_q=4", "--num_heads_kv=2", "--seq_len_qo=40", "--iterations=2"]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plans(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """What `exactile plan` with these options writes as JSON."""
    path = tmp_path / "plan.json"
    path.unlink(missing_ok=True)
    assert cli.main(["plan", *options, f"--json={path}"]) == 0
    return [record["plan"] for record in records(path)]


@pytest.mark.parametrize(
    ("options", "individual", "valid"),
    [
        (["--varlen_dist=zipf"], 32768, 3808),
        (["--varlen_dist=normal"], 7680, 4160),
        ([], 7680, 4160),
        (["--kv_equals_q=0"], 7680, 4416),
    ],
)
def test_golden_counts(tmp_path: Path, options: list[str], individual: int, valid: int) -> None:
    compared = plans(tmp_path, *GOLDEN, *options, "--compare")
    assert [plan["scheduler"] for plan in compared] == list(exactile.SCHEDULERS)
    launched = {plan["scheduler"]: plan["launched"] for plan in compared}
    assert launched["Individual"] == individual
    assert launched["ValidOnlyIndividual"] == valid


def test_golden_work(tmp_path: Path) -> None:
    zipf = ["--varlen_dist=zipf", "--scheduler=ValidOnlyIndividual"]
    (plan,) = plans(tmp_path, *GOLDEN, *zipf)
    assert (plan["num_records"], plan["flops"]) == (119, 1350649774080)
    assert (plan["total_q"], plan["max_seqlen_q"]) == (13856, 8096)
    (causal,) = plans(tmp_path, *GOLDEN, *zipf, "--is_causal")
    assert causal["flops"] == 675438395392
    (packed,) = plans(tmp_path, *GOLDEN, *zipf, "--pack_gqa=1")
    assert packed["launched"] == 3464


def test_defaults_are_those_of_the_original(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path)
    names = ("scheduler", "batch", "num_heads_q", "num_heads_kv", "head_dim", "head_dim_v")
    assert [plan[name] for name in names] == ["Individual", 32, 16, 16, 128, 128]
    assert (plan["dtype"], plan["window"]) == ("bfloat16", [-1, -1])
    assert plan["total_q"] == plan["total_k"] == 32 * 512


def test_options_reach_the_plan(tmp_path: Path) -> None:
    (plan,) = plans(
        tmp_path,
        *("--batch=3", "--seq-len-qo=10", "--seq_len-kv", "20", "--head-size-qk=192"),
        *("--head_size_vo=128", "--dtype=float16", "--scheduler=validonlypersistent"),
        *("--window_left", "-1", "--window-right=4", "--threads=3", "--num-heads-q=6"),
    )
    assert (plan["total_q"], plan["total_k"], plan["workers"]) == (30, 60, 3)
    assert (plan["head_dim"], plan["head_dim_v"], plan["dtype"]) == (192, 128, "float16")
    assert (plan["scheduler"], plan["window"]) == ("ValidOnlyPersistent", [-1, 4])
    assert (plan["num_heads_q"], plan["num_heads_kv"]) == (6, 6)


@pytest.mark.parametrize("name", ["uniform", "lognormal", "constant"])
def test_seq_len_is_the_mean(tmp_path: Path, name: str) -> None:
    options = ["--varlen", f"--varlen_dist={name}", "--seq_len_qo=300", "--batch=2000"]
    (plan,) = plans(tmp_path, *options)
    assert 270 < plan["total_q"] / 2000 < 330
    (other,) = plans(tmp_path, *options, "--seed=0x7")
    assert (other["total_q"] != plan["total_q"]) == (name != "constant")


def test_several_schedulers(tmp_path: Path) -> None:
    several = plans(tmp_path, "--scheduler=individual,ValidOnlyPersistent")
    assert [plan["scheduler"] for plan in several] == ["Individual", "ValidOnlyPersistent"]


def test_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("tokens\n7\n9\n200\n")
    (plan,) = plans(tmp_path, f"--trace={path}", "--trace_column=tokens", "--batch=3")
    assert (plan["total_q"], plan["total_k"], plan["max_seqlen_q"]) == (216, 216, 200)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", [[], ["--is_causal"], ["--window_left=9", "--window_right=2"]])
def test_bench_verifies(
    dtype: str, mask: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"kept": 1}\n')
    options = [*SMALL, "--varlen", "--kv_equals_q=0", f"--dtype={dtype}", *mask, "--compare"]
    assert cli.main(["bench", *options, f"--json={path}"]) == 0
    text, stderr = capsys.readouterr()
    assert stderr == ""
    assert "TFLOP/s" in text
    kept, *results = records(path)
    assert kept == {"kept": 1}
    assert [r["plan"]["scheduler"] for r in results] == list(exactile.SCHEDULERS)
    for r in results:
        assert r["plan"]["scheduler"] in text
        assert r["verification"]["max_error"] > 0
        assert 0 < r["verification"]["of_tolerance"] <= 1
        assert 0 < r["min_ms"] <= r["median_ms"] <= r["max_ms"]
        assert r["tflops"] == pytest.approx(r["plan"]["flops"] / r["median_ms"] / 1e9)
        assert r["gbps"] == pytest.approx(r["plan"]["bytes"] / r["median_ms"] / 1e6)
        assert r["command"].startswith("exactile bench --batch=5 ")
        assert r["version"] == exactile.__version__


def test_bench_without_verification(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert cli.main(["bench", *SMALL, "--verify=0", "--warmup=0", f"--json={path}"]) == 0
    assert "not verified" in capsys.readouterr().out
    assert records(path)[0]["verification"] is None


@pytest.mark.parametrize("options", [["--batch=0"], ["--seq_len_qo=0"], ["--seq_len_kv=0"]])
def test_bench_of_nothing(options: list[str]) -> None:
    assert cli.main(["bench", *SMALL, *options]) == 0


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_wrong_result_fails(
    wrong: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run = exactile.Plan.run

    def wrong_run(self: exactile.Plan, *args: Any, out: Any, **options: Any) -> Any:
        result = run(self, *args, out=out, **options)
        out[-1] *= wrong  # the last row alone
        return result

    monkeypatch.setattr(exactile.Plan, "run", wrong_run)
    path = tmp_path / "bench.json"
    assert cli.main(["bench", *SMALL, "--dtype=float32", f"--json={path}"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert len(records(path)) == 1


def test_sampled_rows_cover_every_kind_of_sequence() -> None:
    seqlens_q = [*[300] * 50, 0, 1, 127, 128, 5, 7, *[300] * 50, 5000]
    seqlens_k = [*[300] * 50, 4, 1, 127, 128, 0, 90, *[300] * 50, 5000]
    plan = exactile.plan(
        *(np.cumsum([0, *x]).astype(np.int32) for x in (seqlens_q, seqlens_k)),
        num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32", pack_gqa=False,
    )  # fmt: skip
    rows = bench.sampled_rows(plan)
    assert {b for b, _ in rows} == {0, 51, 52, 53, 54, 55, len(seqlens_q) - 1}
    assert {row for b, row in rows if b == 0} == {0, 127, 128, 150, 299}
    assert len(rows) < 40


@pytest.mark.parametrize("command", ["bench", "plan"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheduler=Persistent"], "Individual, ValidOnlyIndividual, ValidOnlyPersistent, auto"),
        (["--scheduler=Individual,"], "got ''"),
        (["--varlen", "--varlen_dist=zpf"], "zipf, normal, uniform, lognormal, constant"),
        (["--varlen_dist=zipf"], "--varlen"),
        (["--dtype=int8"], "bfloat16"),
        (["--backend=tpu"], "cpu"),
        (["--batch=-1"], "batch"),
        (["--batch=many"], "invalid integer value: 'many'"),
        (["--seq_len_qo=-5"], "-5"),
        (["--batch=2", "--seq_len_qo=2147483647"], "2147483647"),
        (["--seq_len_qo=99999999999999999999"], "2147483647"),
        (["--num_heads_q=4", "--num_heads_kv=3"], "multiple"),
        (["--head_size_vo=77"], "head_dim"),
        (["--threads=0"], ">= 1"),
        (["--window_left=-2"], "window"),
        (["--varlen", "--seq_len_kv=9"], "--seq_len_kv"),
        (["--varlen", "--varlen_dist=zipf", "--kv_equals_q=0"], "--kv_equals_q"),
        (["--trace=missing.csv"], "missing.csv"),
        (["--trace=missing.csv", "--varlen_dist=zipf"], "--trace"),
        (["--json=missing/folder/file.json"], "missing/folder"),
        (["--pack_gqa=2"], "'auto', '0', '1'"),
        (["--verify=2"], "--verify"),
        (["--batc=2"], "--batc=2"),
        (["stray"], "stray"),
    ],
)
def test_bad_options(
    command: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *options]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert message.replace("'", "") in stderr.replace("'", "")
    assert stderr.startswith("exactile")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations=0"], "--iterations"),
        (["--warmup=-1"], "--warmup"),
        (["--backend=cuda"], "--backend=cuda"),
    ],
)
def test_bad_bench_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["measure"]) == 2
    assert "bench" in capsys.readouterr().err


def test_bad_json_path_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("measured"))
    assert cli.main(["bench", *SMALL, f"--json={tmp_path}"]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_are_shown_when_json_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *SMALL, "--json=/dev/full"]) == 2
    assert "Individual " in capsys.readouterr().out


def test_plan_prints_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*GOLDEN, "--varlen_dist=zipf", "--scheduler=ValidOnlyIndividual"]
    assert cli.main(["plan", *options]) == 0
    text = capsys.readouterr().out
    for words in "672 192 32", "3,808", "1,350,649,774,080":
        assert words in text


def test_plan_allocates_no_data(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, "--batch=1000", "--seq_len_qo=1000000", "--backend=cuda")
    assert plan["total_q"] == 1_000_000_000


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for words in exactile.__version__, exactile.info()["include_dir"], "cpu", "threads":
        assert words in text


@pytest.mark.parametrize("command", [[], ["bench"], ["plan"], ["info"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, "--help"])
    assert exit_info.value.code == 0
    assert "usage: exactile" in capsys.readouterr().out


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "measure", interrupt)
    assert cli.main(["bench", *SMALL]) == 130
    assert capsys.readouterr().err == "exactile bench: interrupted\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in Terminal(), io.StringIO():
        monkeypatch.setattr(sys, "stderr", stream)
        with cli._progress(4, after_s=0.01) as progress:
            for step in range(3):
                progress(f"step {step}")
            time.sleep(0.1)
        if stream.isatty():
            assert "[############............] 0 s  step 2" in stream.getvalue()
            assert stream.getvalue().endswith("\r\x1b[K")
        else:
            assert stream.getvalue() == ""


@pytest.mark.parametrize("options", [["--compare"], ["--is_causal"], ["--varlen", "--batch=3000"]])
def test_plot(options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "tiles.png"
    assert cli.main(["plan", *SMALL, *options, f"--plot={path}"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_counts_the_tiles_of_the_plan() -> None:
    from exactile.plot import n_blocks

    for pack_gqa in False, True:
        plan = exactile.plan(
            seqlens_q=[0, 5, 129, 400], seqlens_k=[7, 0, 100, 900],
            num_heads_q=8, num_heads_kv=2, head_dim=64, dtype="float32",
            window=(70, 3), scheduler="ValidOnlyIndividual", pack_gqa=pack_gqa,
        )  # fmt: skip
        grid = n_blocks(plan)
        assert grid.shape == (4, plan.max_m_blocks)
        assert (grid >= 0).sum() == plan.num_records
        assert (grid[1] == [0] + [-1] * (plan.max_m_blocks - 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot=missing/folder/tiles.png"], "missing/folder"),
        (["--plot=tiles.nonsense"], "nonsense"),
        (["--plot=tiles.png", "--batch=0"], "cells"),
    ],
)
def test_bad_plot(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["plan", *SMALL, "--plot=tiles.png"]) == 2
    assert "pip install exactile[plot]" in capsys.readouterr().err
