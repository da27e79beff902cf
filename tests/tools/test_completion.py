"""Completion: what bash proposes, and that every shell's script has every option."""

from __future__ import annotations

import subprocess

import pytest

import exactile
from abilities import needs
from exactile.tools import cli, completion, options


@pytest.fixture
def script(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", request.param]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", completion.SHELLS, indirect=True)
def test_every_option_is_there(script: str) -> None:
    names = [*options.VALUES, *options.FILES, "batch", "traceback", "version"]
    for name in [*names, "bench", "plan", "info", *completion.SHELLS]:
        assert name in script
    for values in options.VALUES.values():
        assert " ".join(values) in script


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err


@needs("bash")
@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["exactile", "pl"], ["plan"]),
        (["exactile", "--v"], ["--version"]),
        (["exactile", "bench", "--back"], ["--backend="]),
        (["exactile", "bench", "--is"], ["--is_causal"]),
        # readline takes = for the end of a word.
        (["exactile", "bench", "--backend", "=", "c"], ["cpu", "cuda"]),
        (["exactile", "bench", "--backend", "="], ["auto", *exactile.BACKENDS]),
        (["exactile", "bench", "--backend=c"], ["--backend=cpu", "--backend=cuda"]),
        (["exactile", "bench", "--backend", "c"], ["cpu", "cuda"]),
        (["exactile", "plan", "--plot", "=", "READ"], ["README.md"]),
        (["exactile", "plan", "--timel"], []),
        (["exactile", "completion", "z"], ["zsh"]),
    ],
)
def test_bash(script: str, words: list[str], want: list[str], tmp_path: object) -> None:
    line = " ".join(words).replace(" = ", "=").removesuffix(" =")
    line += "=" if words[-1] == "=" else ""
    array = " ".join(f"'{word}'" for word in words)
    code = f"""
compopt() {{ :; }}
{script}
cd {tmp_path}; touch README.md
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}
_exactile
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == want
