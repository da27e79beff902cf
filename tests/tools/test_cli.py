"""The command line: golden counts, what options do, output and JSON.

Counts and errors are those of the CPU, which every test names: `--backend=auto` is the GPU where
there is one.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exactile
from abilities import needs, require
from command_line import SMALL, plans, records
from exactile.tools import bench, cli, options, report
from exactile.tools.tolerance import compare

GOLDEN = [
    "--backend=cpu",
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
    (plan,) = plans(tmp_path, "--backend=cpu")
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
        "--backend=cpu",
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
        assert r["command"].startswith("exactile bench --backend=cpu --batch=5 ")
        assert r["version"] == exactile.__version__


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        (["--page_size=16", "--seq_len_kv_cache=70"], "pages       of 16 keys"),
        (["--page_size=7", "--varlen", "--varlen_dist=zipf"], "pages       of 7 keys"),
        (["--window=9"], "mask        window, 8 keys left and 0 right"),
        (["--softcap=0.5", "--sinks", "--alibi"], "scores      softcap 0.5, sinks, ALiBi"),
        (["--page_size=3", "--softcap=0"], "pages       of 3 keys"),
    ],
)
def test_bench_of_serving(
    serving: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    options = [*SMALL, "--is_causal", "--dtype=float32", *serving, "--compare"]
    assert cli.main(["bench", *options, f"--json={path}"]) == 0
    assert said in capsys.readouterr().out.splitlines()
    results = records(path)
    assert [r["verification"]["of_tolerance"] <= 1 for r in results] == [True] * 3
    keys = {r["plan"]["max_seqlen_k"] for r in results}
    if "--seq_len_kv_cache=70" in serving:
        assert keys == {40 + 70}


def test_scores_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is verified without them is wrong."""
    monkeypatch.setattr(bench, "compare", lambda *a, softcap, **o: compare(*a, **o))
    assert cli.main(["bench", *SMALL, "--softcap=0.5"]) == 1


def test_bench_without_verification(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert cli.main(["bench", *SMALL, "--verify=0", "--warmup=0", f"--json={path}"]) == 0
    assert "not verified" in capsys.readouterr().out
    assert records(path)[0]["verification"] is None


@pytest.mark.parametrize("nothing", [["--batch=0"], ["--seq_len_qo=0"], ["--seq_len_kv=0"]])
def test_bench_of_nothing(nothing: list[str]) -> None:
    assert cli.main(["bench", *SMALL, *nothing]) == 0


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


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["measure"]) == 2
    assert "bench" in capsys.readouterr().err


def test_bad_json_path_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("measured"))
    assert cli.main(["bench", *SMALL, f"--json={tmp_path}"]) == 2


@needs("/dev/full")
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
    for name, backend in exactile.info()["backends"].items():
        state = "available" if backend["available"] else f"not available: {backend['reason']}"
        assert f"\n{name:<13} {state}" in text


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info == json.loads(json.dumps(exactile.info()))


def test_names_of_any_bytes_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exactile, "info", lambda: INFO_ON_A_GPU | {"include_dir": "/\udcff"})
    assert cli.main(["info"]) == 0
    assert "\\udcff" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"exactile {exactile.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "exactile", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"exactile {exactile.__version__}\n"


@pytest.mark.parametrize("command", [[], ["bench"], ["plan"], ["info"], ["completion"]])
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
        with report.progress_bar(4, after_s=0.01) as progress:
            for step in range(3):
                progress(f"step {step}")
            end = time.monotonic() + 30 * stream.isatty()
            while "step 2" not in stream.getvalue() and time.monotonic() < end:
                time.sleep(0.02)
        if stream.isatty():
            assert re.search(r"\[############\.{12}\] \d+ s  step 2", stream.getvalue())
            assert stream.getvalue().endswith("\r\x1b[K")
        else:
            assert stream.getvalue() == ""


# --- a machine with a GPU ------------------------------------------------------------------------

INFO_ON_A_GPU = exactile.info()
INFO_ON_A_GPU["backends"] = INFO_ON_A_GPU["backends"] | {
    "cuda": INFO_ON_A_GPU["backends"]["cuda"] | {"available": True, "reason": None}
}


def test_auto_is_the_gpu_where_one_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("torch")
    monkeypatch.setattr(exactile, "info", lambda: INFO_ON_A_GPU)
    (plan,) = plans(tmp_path, *GOLDEN, "--backend=auto")
    assert plan["backend"] == "cuda"
    assert cli.main(["plan", "--dtype=fp32"]) == 2


def test_auto_says_why_it_is_not_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exactile, "info", lambda: INFO_ON_A_GPU)
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert cli.main(["bench", *SMALL, "--backend=auto"]) == 0
    assert "--backend=auto is cpu: PyTorch, which" in capsys.readouterr().out
    assert cli.main(["bench", *SMALL]) == 0
    assert "PyTorch" not in capsys.readouterr().out


# --- what is printed where -----------------------------------------------------------------------


@pytest.mark.parametrize(("command", "cases"), [("bench", 3), ("plan", 3)])
def test_json_to_standard_output(
    command: str, cases: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *SMALL, "--compare", "--json=-"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["plan"]["batch"] for line in out.splitlines()] == [5] * cases
    assert "5 sequences" in err


@pytest.mark.parametrize(
    ("chosen", "lines"),
    [
        ([], 1),
        (["--compare"], 1),
        (["--scheduler=individual,auto"], 1),
        (["--scheduler=ValidOnlyIndividual"], 0),
        (["--scheduler=auto"], 0),
    ],
)
def test_the_baseline_is_named_once(
    chosen: list[str], lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *SMALL, *chosen]) == 0
    text = capsys.readouterr().out
    assert text.count("baseline    Individual") == lines
    assert text.count("--scheduler=auto would choose ValidOnlyPersistent, ") == lines


def exactile_with(
    *arguments: str, stdout: Any = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`exactile` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "exactile", *arguments],
        env=os.environ | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", [["plan", "--backend=cpu"], ["info"], ["completion", "bash"]])
def test_a_broken_pipe_is_quiet(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = exactile_with(*command, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


@needs("/dev/full")
def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        done = exactile_with("plan", "--backend=cpu", stdout=full)
    assert done.returncode == 2
    assert done.stderr == "exactile plan: error: [Errno 28] No space left on device\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(cli, "measure", bug)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["bench", *SMALL])


def test_traceback_of_a_users_error() -> None:
    for arguments, environment in (
        (["--traceback"], {}),
        ([], {"EXACTILE_TRACEBACK": "1"}),
    ):
        done = exactile_with("plan", "--head_size_vo=77", *arguments, **environment)
        assert done.returncode == 2
        assert done.stderr.startswith("Traceback")
        assert "\nexactile plan: error: expected (--head_size_qk, --head_size_vo)" in done.stderr
    quiet = exactile_with("plan", "--head_size_vo=77", EXACTILE_TRACEBACK="0")
    assert quiet.stderr.count("\n") == 1
