"""Completion: scripts that complete the command line in a shell, made from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from exactile.tools.options import FILES, VALUES

_BASH = """\
# source <(exactile completion bash)
_exactile() {
  local word=${COMP_LINE:0:COMP_POINT} previous=${COMP_WORDS[COMP_CWORD - 1]} words= value
  word=${word##*[[:space:]]}
  if [[ $COMP_CWORD == 1 ]]; then
    words="@COMMANDS@"
  else
    case ${COMP_WORDS[1]} in
@OPTIONS@
    esac
  fi
  [[ " $words " == *" $previous= "* && $word != -* ]] && word=$previous=$word
  value=${word#*=}
  case $word in
@VALUES@
    *) compopt -o nospace
      COMPREPLY=($(compgen -W "$words" -- "$word"))
      [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY != *= ]] && compopt +o nospace
      return ;;
  esac
  # Where = does not end a word for readline, the word to replace begins with the option.
  [[ ${COMP_WORDS[COMP_CWORD]} == --*=* ]] && COMPREPLY=("${COMPREPLY[@]/#/${word%%=*}=}")
}
complete -F _exactile exactile
"""

_ZSH = """\
#compdef exactile
# source <(exactile completion zsh), after compinit; or save it as _exactile in $fpath
_exactile() {
  local context state state_descr line
  local -A opt_args
  _arguments -C '--help[show what there is]' '--version[show the version]' \\
    '1:command:(@COMMANDS@)' '*:: :->options'
  [[ $state == options ]] || return
  case $words[1] in
@OPTIONS@
  esac
}
compdef _exactile exactile
"""


class _Option(NamedTuple):
    flag: str
    takes_value: bool
    values: tuple[str, ...]
    is_file: bool
    help: str


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Text to be read by a shell: ``"bash"``, ``"zsh"`` or ``"fish"``.

    Raises
    ------
    KeyError
        Another shell.
    """
    commands = next(x for x in parser._actions if isinstance(x, argparse._SubParsersAction))
    options = {name: list(_options(command)) for name, command in commands.choices.items()}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](options)


SHELLS = ("bash", "zsh", "fish")


def _options(parser: argparse.ArgumentParser) -> Iterator[_Option]:
    for action in parser._actions:
        if action.option_strings:
            name = action.dest
            text = (action.help or "").partition(" (default")[0]
            yield _Option(
                action.option_strings[-1],
                action.nargs != 0,
                VALUES.get(name, ()),
                name in FILES,
                text.replace("'", "").replace("[", "(").replace("]", ")"),
            )
        elif action.choices:
            yield _Option("", True, tuple(action.choices), False, action.dest)


def _bash(options: dict[str, list[_Option]]) -> str:
    words, values = [], {}
    for command, known in options.items():
        flags = [x.flag + "=" * x.takes_value for x in known if x.flag]
        flags += [value for x in known if not x.flag for value in x.values]
        words.append(f'      {command}) words="{" ".join(flags)}" ;;')
        for x in known:
            if x.flag and x.values:
                values[x.flag] = f'COMPREPLY=($(compgen -W "{" ".join(x.values)}" -- "$value"))'
            elif x.is_file:
                values[x.flag] = 'compopt -o filenames; COMPREPLY=($(compgen -f -- "$value"))'
    return (
        _BASH.replace("@COMMANDS@", " ".join([*options, "--help", "--version"]))
        .replace("@OPTIONS@", "\n".join(words))
        .replace("@VALUES@", "\n".join(f"    {x}=*) {reply} ;;" for x, reply in values.items()))
    )


def _zsh(options: dict[str, list[_Option]]) -> str:
    cases = []
    for command, known in options.items():
        specs = []
        for x in known:
            action = "_files" if x.is_file else f"({' '.join(x.values)})" if x.values else " "
            if not x.flag:
                specs.append(f"'1:{x.help}:{action}'")
            else:
                value = f":value:{action}" if x.takes_value else ""
                specs.append(f"'{x.flag}{'=' * x.takes_value}[{x.help}]{value}'")
        lines = " \\\n        ".join(specs)
        cases.append(f"    {command})\n      _arguments {lines} ;;")
    return _ZSH.replace("@COMMANDS@", " ".join(options)).replace("@OPTIONS@", "\n".join(cases))


def _fish(options: dict[str, list[_Option]]) -> str:
    lines = ["# exactile completion fish | source", "complete -c exactile -f"]
    first = "complete -c exactile -n __fish_use_subcommand"
    lines += [f"{first} -a '{' '.join(options)}'", f"{first} -l version", f"{first} -l help"]
    for command, known in options.items():
        for x in known:
            line = f"complete -c exactile -n '__fish_seen_subcommand_from {command}'"
            line += f" -l {x.flag[2:]} -d '{x.help}'" if x.flag else ""
            line += " -r -F" if x.is_file else " -x" * x.takes_value
            line += f" -a '{' '.join(x.values)}'" if x.values else ""
            lines.append(line)
    return "\n".join(lines) + "\n"
