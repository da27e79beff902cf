"""Options: errors that name theirs, options that would have no effect, memory that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

import exactile
from command_line import SMALL, plans
from exactile.tools import cli, memory

INT = "2147483647"


@pytest.mark.parametrize("command", ["bench", "plan"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scheduler=Persistent"],
            "--scheduler: expected one of Individual, ValidOnlyIndividual, ValidOnlyPersistent, "
            "auto or FILE.hpp:NAME, got 'Persistent'",
        ),
        (["--scheduler=none.hpp:Own"], "--scheduler: expected a readable file, got 'none.hpp'"),
        (["--scheduler=Individual,"], "--scheduler: expected one of"),
        (["--scheduler="], "--scheduler: expected one of"),
        (
            ["--varlen", "--varlen_dist=zpf"],
            "--varlen_dist: expected one of zipf, normal, uniform, lognormal, constant, mixed, got",
        ),
        (["--varlen_dist="], "--varlen_dist: expected one of zipf"),
        (
            ["--dtype=int8"],
            "--dtype: expected one of float32, fp32, float, float16, fp16, half, bfloat16, bf16",
        ),
        (["--dtype=float32", "--backend=cuda"], "--dtype of the cuda backend to be one of float16"),
        (
            ["--backend=tpu"],
            f"--backend: expected one of auto, {', '.join(exactile.BACKENDS)}, got 'tpu'",
        ),
        (["--batch=-1"], f"--batch: expected an integer from 0 to {INT}, got '-1'"),
        (["--batch=many"], f"--batch: expected an integer from 0 to {INT}, got 'many'"),
        (["--batch=1000000000000"], f"--batch: expected an integer from 0 to {INT}, got '1000000"),
        (["--batch="], "--batch: expected an integer"),
        (["--batch=" + "9" * 5000], "9999...'"),
        (["--seed=-1"], "--seed: expected an integer from 0"),
        (["--seq_len_qo=-5"], "--seq_len_qo: expected an integer from 0"),
        (
            ["--seq_len_qo=99999999999999999999"],
            f"--seq_len_qo: expected an integer from 0 to {INT}",
        ),
        (["--batch=2", f"--seq_len_qo={INT}"], f"--batch: expected at most {INT} tokens in all"),
        ([f"--seqlens={INT},1"], f"--seqlens: expected at most {INT} tokens in all"),
        (["--seqlens=5,2147483648"], "--seqlens: expected an integer from 0"),
        (["--seqlens="], "--seqlens: expected lengths as in 5,0,700, got ''"),
        (["--seqlens=5,"], "--seqlens: expected lengths as in 5,0,700, got '5,'"),
        (["--varlen", "--seq_len_qo=0"], "--seq_len_qo: expected a mean of at least 1 token"),
        (
            ["--varlen", "--kv_equals_q=0", "--seq_len_kv=0"],
            "--seq_len_kv: expected a mean of at least 1 token",
        ),
        (["--num_heads_q=4", "--num_heads_kv=3"], "--num_heads_q to be a positive multiple of"),
        (["--num_heads_q=0"], "--num_heads_q: expected an integer from 1"),
        (["--num_heads_q=99999999999"], "--num_heads_q: expected an integer from 1"),
        (
            ["--num_heads_q=300", "--num_heads_kv=1", "--pack_gqa=1"],
            "kv head with --pack_gqa=True, got 300",
        ),
        (
            ["--num_heads_q=1073741824", "--num_heads_kv=1"],
            "--batch: expected work-groups and tiles to be counted in 31 bits",
        ),
        (["--head_size_vo=77"], "(--head_size_qk, --head_size_vo) of the cpu backend"),
        (["--threads=0"], "--threads: expected an integer from 1"),
        (["--threads=99999999999"], "--threads: expected an integer from 1"),
        (["--window_left=-2"], "--window_left: expected an integer from -1"),
        (["--window=0"], "--window: expected an integer from 1"),
        (["--window=4", "--window_left=2"], "--window: expected no --window_left and"),
        (["--page_size=0"], "--page_size: expected an integer from 1"),
        (["--seq_len_kv_cache=-1"], "--seq_len_kv_cache: expected an integer from 0"),
        ([f"--seq_len_kv_cache={INT}"], "--seq_len_kv_cache: expected < 2^31 keys"),
        (["--softcap=-1"], "--softcap: expected a finite number >= 0, got '-1'"),
        (["--softcap=nan"], "--softcap: expected a finite number >= 0, got 'nan'"),
        (["--num_splits=0"], "--num_splits: expected an integer from 1 to"),
        (["--num_splits=2", "--backend=cpu"], "expected --num_splits=1, or None, for the cpu"),
        (["--num_splits=2", "--backend=cuda"], "expected a scheduler with a tile list for"),
        (["--peers", "--page_size=16"], "--peers: expected no --page_size beside it"),
        (["--peers", "--alibi"], "--peers: expected no --alibi beside it"),
        (["--varlen", "--varlen_dist=mixed", "--seq_len_qo=9"], "--varlen_dist: expected no"),
        (["--pack_sequences=1"], "for --pack_sequences=True, got cpu"),
        (["--varlen", "--seq_len_kv=9"], "--seq_len_kv: expected 512"),
        (["--varlen", "--varlen_dist=zipf", "--kv_equals_q=0"], "--kv_equals_q: expected 1"),
        (["--trace=missing.csv"], "--trace: expected a readable CSV file, got missing.csv"),
        (["--json=missing/folder/file.json"], "missing/folder"),
        (["--json="], "--json: expected the name of a file, got ''"),
        (["--trace="], "--trace: expected the name of a file, got ''"),
        (["--peers="], "--peers: expected the name of a file, got ''"),
        (["--pack_gqa=2"], "--pack_gqa: expected one of auto, 0, 1, got '2'"),
        (["--verify=2"], "--verify: expected one of 0, 1, got '2'"),
        (["--iterations=0"], "--iterations: expected an integer from 1"),
        (["--warmup=-1"], "--warmup: expected an integer from 0"),
        (["--batc=2"], "--batc=2"),
        (["stray"], "stray"),
        (["stray\x1b[31m"], r"stray\x1b[31m"),
    ],
)
def test_errors_name_their_option(
    command: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options if any("--backend" in x for x in options) else [*options, "--backend=cpu"]
    assert cli.main([command, *options]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert stderr.startswith(f"exactile {command}: error: ")
    assert message in stderr
    assert len(stderr) < 300
    assert stderr[:-1].isprintable()


@pytest.mark.parametrize("command", ["bench", "plan"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seqlens=5", "--batch=2"], "--seqlens: expected no --batch beside it"),
        (["--seqlens=5", "--seq_len_qo=2"], "--seqlens: expected no --seq_len_qo beside it"),
        (["--seqlens=5", "--seq_len_kv=2"], "--seqlens: expected no --seq_len_kv beside it"),
        (["--seqlens=5", "--varlen"], "--seqlens: expected no --varlen beside it"),
        (["--seqlens=5", "--kv_equals_q=0"], "--seqlens: expected no --kv_equals_q beside it"),
        (["--seqlens=5", "--trace=t.csv"], "--seqlens: expected no --trace beside it"),
        (["--seqlens=5", "--trace_column=a"], "--seqlens: expected no --trace_column beside it"),
        (["--trace=t.csv", "--varlen"], "--trace: expected no --varlen beside it"),
        (["--trace=t.csv", "--varlen_dist=zipf"], "--trace: expected no --varlen_dist beside it"),
        (["--trace=t.csv", "--seq_len_qo=7"], "--trace: expected no --seq_len_qo beside it"),
        (["--trace=t.csv", "--kv_equals_q=0"], "--trace: expected no --kv_equals_q beside it"),
        (["--trace_column=a"], "--trace_column: expected --trace beside it"),
        (["--varlen_dist=zipf"], "--varlen_dist: expected --varlen beside it"),
        (["--kv_equals_q=0"], "--kv_equals_q: expected --varlen beside it"),
        (["--compare", "--scheduler=auto"], "--compare: expected no --scheduler beside it"),
        (["--is_causal", "--window_right=4"], "--window_right: expected 0 with --is_causal, got 4"),
    ],
)
def test_options_without_effect_are_errors(
    command: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *options, "--backend=cpu"]) == 2
    assert capsys.readouterr().err == f"exactile {command}: error: {message}\n"


def test_a_backend_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = exactile.info()
    info["backends"]["cuda"] |= {"available": False, "reason": "no driver"}
    monkeypatch.setattr(exactile, "info", lambda: info)
    assert cli.main(["bench", *SMALL, "--backend=cuda"]) == 2
    assert "--backend=cuda: no driver" in capsys.readouterr().err


def test_environment_variables_are_no_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXACTILE_NUM_THREADS", "many")
    assert cli.main(["plan", "--backend=cpu"]) == 2
    assert capsys.readouterr().err.startswith("exactile plan: error: EXACTILE_NUM_THREADS: ")


@pytest.mark.parametrize(
    ("short", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_short_names_of_dtypes(short: str, dtype: str, tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, *SMALL, f"--dtype={short}")
    assert plan["dtype"] == dtype


def test_a_policy_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "reverse.hpp"
    file.write_text(
        """
        #include <exactile/scheduler.hpp>
        struct Reverse : exactile::ValidOnlyIndividual {
          EXACTILE_HOST_DEVICE Reverse(const Params& list, int group)
              : exactile::ValidOnlyIndividual(list, list.num_tiles() - 1 - group) {}
        };
        """
    )
    options = [*SMALL, "--backend=cpu", "--iterations=1", f"--scheduler=auto,{file}:Reverse"]
    assert cli.main(["bench", *options]) == 0
    assert "Reverse" in capsys.readouterr().out


def test_a_trace_alone_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("context_tokens\n" + "7\n" * 100)
    (whole,) = plans(tmp_path, "--backend=cpu", f"--trace={path}")
    assert whole["batch"] == 100
    (part,) = plans(tmp_path, "--backend=cpu", f"--trace={path}", "--batch=40")
    assert part["batch"] == 40


def test_a_trace_sends_nothing_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "\x1b[2Jtrace.csv"
    for content, message in (
        ("a\x1b[31mb,c\n5\n", r"'context_tokens' in "),
        ("context_tokens\n\x1b]0;title\x07\n", r"trace.csv:2, got '\x1b]0;title\x07'"),
    ):
        path.write_text(content)
        assert cli.main(["plan", "--backend=cpu", f"--trace={path}"]) == 2
        stderr = capsys.readouterr().err
        assert message in stderr
        assert stderr[:-1].isprintable()


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("plan", ["--batch=9000000"], "--batch: expected at most the 1.0 GiB of memory that are "
         "available for lengths, got about 1.1 GiB"),
        ("plan", ["--batch=1", "--seq_len_qo=1000000000", "--num_heads_q=32", "--num_heads_kv=1",
         "--scheduler=ValidOnlyIndividual", "--pack_gqa=1"], "available for the tile list, got"),
        ("bench", ["--batch=200000"], "available for q, k, v and out, got about 1,56"),
        ("bench", ["--seqlens=1000000"], "--seqlens: expected at most the 1.0 GiB"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_so(
    command: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 30)
    monkeypatch.setattr(cli, "random_data", lambda *_: pytest.fail("drawn"))
    assert cli.main([command, *options, "--backend=cpu"]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["plan", "--batch=100000", "--backend=cpu"]) == 0


def test_memory_of_a_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("exactile.tools.machines.Host.available_bytes", lambda self: 1 << 20)
    assert cli.main(["bench", *SMALL]) == 0
    assert cli.main(["bench", *SMALL, "--batch=50"]) == 2
    assert "GiB of cpu memory that are available" in capsys.readouterr().err


def test_tensors_bytes() -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        plan = exactile.plan(
            seqlens_q=[3, 4], seqlens_k=[5, 6], num_heads_q=6, num_heads_kv=2,
            head_dim=192, head_dim_v=128, dtype=dtype,
        )  # fmt: skip
        want = 7 * 6 * (192 + 128) + 11 * 2 * (192 + 128)
        assert memory.tensors_bytes(plan) == want * size + 7 * 6 * 4


GROUPS = {
    "version 2": (
        "0::/a/b\n",
        "sys/fs/cgroup/a",
        {
            "memory.max": "3000",
            "memory.current": "2000",
            "memory.stat": "file 9\ninactive_file 500\n",
        },
    ),
    "version 1": (
        "5:cpu:/\n4:memory,x:/a/b\n0::/\n",
        "sys/fs/cgroup/memory/a/b",
        {
            "memory.limit_in_bytes": "3000",
            "memory.usage_in_bytes": "2000",
            "memory.stat": "total_inactive_file 500\n",
        },
    ),
    "no limit": (
        "0::/\n",
        "sys/fs/cgroup",
        {"memory.max": "max", "memory.current": "2000", "memory.stat": "inactive_file 500\n"},
    ),
    "not to be seen": ("0::/a\n", "sys", {}),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_available_bytes(kind: str, tmp_path: Path) -> None:
    groups, folder, files = GROUPS[kind]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   10 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    (tmp_path / folder).mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / folder / name).write_text(text)
    want = 1500 if kind.startswith("version") else 10 << 10
    assert memory.available_bytes(tmp_path) == want
    assert memory.available_bytes(tmp_path / "nowhere") is None
