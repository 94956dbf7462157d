import os
import subprocess
import sys

import pytest

import qtransformers
from qtransformers.cli import command as command_module
from qtransformers.cli.command import VERBS, main
from qtransformers.cli.flags import add_flags
from qtransformers.errors import LoadError
from qtransformers.gguf import GGUFWriter

HEAVY = ("torch", "tokenizers", "jinja2", "huggingface_hub", "rich", "numpy", "safetensors", "qtransformers._native")


def imported_by(code):
    """The heavy modules that a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(words):
    assert imported_by(f"from qtransformers.cli import main; assert main({words!r}) == 0") == []


def test_the_package_imports_nothing_heavy():
    assert imported_by("import qtransformers") == []


def test_the_probe_sees_heavy_modules():
    assert imported_by("import numpy") == ["numpy"]


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb}  " in out and text in out for verb, text in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_have_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: qtransformers {verb}" in out and err == ""


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"qtransformers {qtransformers.__version__}"


@pytest.mark.parametrize("words", [[], ["shwo"], ["show"], ["show", "x", "--no-such-flag"], ["show", "a", "b"]])
def test_wrong_usage_ends_with_2_and_writes_to_stderr(words, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage:" in err


def test_a_bad_variable_ends_with_2(monkeypatch, capsys):
    monkeypatch.setenv("QTRANSFORMERS_COLOR", "blue")
    assert main(["show", "x.gguf"]) == 2
    assert "QTRANSFORMERS_COLOR is 'blue'" in capsys.readouterr().err


def test_what_is_not_there_ends_with_3(tmp_path, capsys):
    assert main(["show", str(tmp_path / "none.gguf")]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "none.gguf" in err and "Traceback" not in err


def test_what_is_no_gguf_ends_with_4(tmp_path, capsys):
    (tmp_path / "x.gguf").write_bytes(b"hello, I am a text and no model")
    assert main(["show", str(tmp_path / "x.gguf")]) == 4
    assert "x.gguf" in capsys.readouterr().err


@pytest.fixture
def broken(monkeypatch):
    """A verb that raises what it is given."""

    def install(error):
        def run(args):
            raise error

        class Verb:
            add_arguments = staticmethod(add_flags)

        Verb.run = staticmethod(run)
        monkeypatch.setattr(command_module, "import_module", lambda name: Verb)

    return install


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (MemoryError(), 5), (RuntimeError("x\x1b[2J"), 1)])
def test_other_ends(error, code, broken, capsys):
    broken(error)
    assert main(["show"]) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and "\x1b" not in err
    assert ("report" in err) == (code == 1)


@pytest.mark.parametrize("error, code", [(RuntimeError("x\x1b[2J"), 1), (LoadError("x\x1b[2J"), 4)])
@pytest.mark.parametrize("words, env", [(["--debug"], {}), ([], {"QTRANSFORMERS_DEBUG": "1"})])
def test_debug_shows_the_traceback_and_keeps_the_code(error, code, words, env, broken, monkeypatch, capsys):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    broken(error)
    assert main(["show", *words]) == code
    err = capsys.readouterr().err
    assert "Traceback" in err and f"qtransformers: {'unexpected ' if code == 1 else ''}" in err and "\x1b" not in err


def shell(line, **env):
    line = line.replace("QT", f"{sys.executable} -m qtransformers")
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, encoding="utf-8", check=False, env=os.environ | env
    )
    return done.returncode, done.stdout, done.stderr


def test_a_full_disk_is_no_defect():
    code, _, err = shell("QT show demo > /dev/full")
    assert code == 1 and "No space left" in err and "defect" not in err


@pytest.mark.parametrize("closed, out", [("<&-", "7 plus 5 is 12.\n"), (">&-", ""), ("2>&-", "7 plus 5 is 12.\n")])
def test_closed_streams_lead_nowhere(closed, out):
    code, found, err = shell(f'QT run demo "What is 7 plus 5?" --temp 0 {closed}')
    assert (code, found, err) == (0, out, "")


def test_without_prompt_and_input_there_is_nothing_to_answer():
    code, out, err = shell("QT run demo <&-")
    assert code == 2 and out == "" and "the prompt is empty" in err


def test_characters_that_the_encoding_lacks_are_spelled_out(tmp_path):
    with GGUFWriter(tmp_path / "x.gguf", {"general.architecture": "llama", "general.name": "é😀"}, []):
        pass
    code, out, err = shell(f"QT show {tmp_path / 'x.gguf'}", PYTHONIOENCODING="ascii")
    assert code == 0 and err == "" and r"\xe9\U0001f600" in out


def test_a_reader_that_leaves_is_no_error(data):
    line = f"{sys.executable} -m qtransformers show --full {data / 'demo-Q8_0.gguf'} | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.returncode == 0 and len(done.stdout) == 10


def test_both_names_are_installed():
    from importlib.metadata import entry_points

    names = {e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("qtransformers")}
    if not names:
        pytest.skip("the package is not installed; `make test` installs it")
    assert names == {"qtransformers": "qtransformers.cli:main", "qtf": "qtransformers.cli:main"}


def test_a_terminal_without_utf8(command, data):
    done = command("show", data / "demo-Q8_0.gguf", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and done.stderr == "" and "\\u0120 t" in done.stdout


def test_the_flags_of_image_speak_of_pictures(capsys):
    assert main(["image", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "LoRA adapters, .safetensors files or PEFT folders" in text
    assert "says what the file's tensors do not" in text
    assert "GGUF files or PEFT folders" not in text
    assert "tokenizer are copied" not in text
