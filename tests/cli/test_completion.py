import shutil
import subprocess

import pytest

from qtransformers.cli import main
from qtransformers.cli.command import VERBS


def completions(shell, script, words):
    """What the shell offers for the last of `words`."""
    quoted = " ".join(f"'{w}'" for w in words)
    code = f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _qtransformers; echo ${{COMPREPLY[@]}}"
    return subprocess.run([shell, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["qtransformers", "sh"], ["show"]),
        (["qtransformers", "run", "--te"], ["--temp"]),
        (["qtf", "convert", "--dry"], ["--dry-run"]),
        (["qtf", "show", "--top"], []),
        (["qtransformers", "run", "dem"], ["demo"]),
    ],
)
def test_bash(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["completion", "bash"]) == 0
    assert completions("bash", capsys.readouterr().out, words) == expected


def test_zsh_takes_the_same(capsys):
    assert main(["completion", "bash"]) == 0
    bash = capsys.readouterr().out
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == "autoload -U bashcompinit && bashcompinit\n" + bash


def test_fish(capsys):
    assert main(["completion", "fish"]) == 0
    script = capsys.readouterr().out
    assert all(f"-a {verb} -d '" in script for verb in VERBS)
    assert (
        "complete -c qtf -n '__fish_seen_subcommand_from run' -s c -l context -l ctx-size -d 'context length in tokens"
        in script
    )
    assert "the folder\\'s" in script
    if shutil.which("fish"):
        subprocess.run(["fish", "--no-execute"], input=script, text=True, check=True, timeout=60)


def test_another_shell(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice" in capsys.readouterr().err
