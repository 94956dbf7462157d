"""Print completions for a shell. To have them always, in bash or zsh:

echo 'source <(qtransformers completion bash)' >> ~/.bashrc
echo 'source <(qtransformers completion zsh)' >> ~/.zshrc
qtransformers completion fish > ~/.config/fish/completions/qtransformers.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qtransformers.cli.flags import add_flags

COMMANDS = ("qtransformers", "qtf")
SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_qtransformers() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W demo -- "$word") $(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _qtransformers {commands}"""


class _Recorder(argparse.ArgumentParser):
    """A parser that remembers its flags: spellings and help."""

    def __init__(self) -> None:
        self.flags: list[tuple[tuple[str, ...], str]] = []
        super().__init__()

    def add_argument(self, *spellings: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        if spellings[0].startswith("-"):
            self.flags.append((spellings, options.get("help") or ""))
        return super().add_argument(*spellings, **options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SHELL."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the script on stdout."""
    from qtransformers.cli.command import VERBS

    if args.shell == "fish":
        print(fish(VERBS))
    else:
        print(("autoload -U bashcompinit && bashcompinit\n" if args.shell == "zsh" else "") + bash(VERBS))
    return 0


def flags_of(verb: str) -> list[tuple[tuple[str, ...], str]]:
    """A verb's flags: spellings and help."""
    recorder = _Recorder()
    import_module(f"qtransformers.cli.{verb}").add_arguments(recorder)
    return recorder.flags


def bash(verbs: Mapping[str, str]) -> str:
    """The function for bash, which zsh takes as well."""
    words = {verb: " ".join(s for spellings, _ in flags_of(verb) for s in spellings) for verb in verbs}
    cases = "\n".join(f'    {verb}) words="{flags}" ;;' for verb, flags in words.items())
    return _BASH.format(verbs=" ".join(verbs), cases=cases, commands=" ".join(COMMANDS))


def fish(verbs: Mapping[str, str]) -> str:
    """A line for each verb and flag."""
    lines = []
    for command in COMMANDS:
        lines += [
            f"complete -c {command} -n __fish_use_subcommand -f -a {verb} -d {_quoted(text)}"
            for verb, text in verbs.items()
        ]
        for verb in verbs:
            for spellings, text in flags_of(verb):
                names = " ".join(f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in spellings)
                lines.append(
                    f"complete -c {command} -n '__fish_seen_subcommand_from {verb}' {names} -d {_quoted(text)}"
                )
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
