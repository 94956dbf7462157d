import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from qtransformers import Model
from qtransformers.cli.answers import Talk
from qtransformers.cli.repl import converse, history, history_file, read_text
from qtransformers.settings import Settings


@pytest.fixture(scope="module")
def model(data):
    with Model.load(gguf_path=data / "demo-Q8_0.gguf") as loaded:
        yield loaded


@pytest.fixture
def talk(model):
    return Talk(model, {"temperature": 0.0})


def lines(*entries):
    """A reader of prepared lines; an exception among them is raised, and the end is Ctrl-D."""
    left = list(entries)

    def read(prompt):
        if not left:
            raise EOFError
        entry = left.pop(0)
        if isinstance(entry, BaseException):
            raise entry
        return entry

    return read


def test_a_conversation_remembers(talk, capsys):
    assert converse(talk, lines("What is 7 plus 5?", "", "Thank you!", "/bye", "never read")) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "7 plus 5 is 12."
    assert "demo-Q8_0.gguf, context of 1,024 tokens" in err
    assert [t["role"] for t in talk.turns] == ["user", "assistant"] * 2
    assert talk.turns[1]["content"] == "7 plus 5 is 12."


def test_commands(talk, capsys):
    read = lines("What is 7 plus 5?", "/clear", "/system Be kind.", "/nonsense", "/help", "//not a command", "/quit")
    assert converse(talk, read) == 0
    err = capsys.readouterr().err
    assert "forgotten" in err and "with this system message" in err and "/nonsense is no command" in err
    assert talk.system == "Be kind."
    assert [t["content"] for t in talk.turns[::2]] == ["/not a command"]
    assert converse(talk, lines("/system")) == 0
    assert talk.system is None and talk.turns == []


@pytest.mark.parametrize("end, code", [(EOFError(), 0), (KeyboardInterrupt(), 130)])
def test_leaving(end, code, talk):
    assert converse(talk, lines(end)) == code


def test_a_full_context_ends_the_turn_only(talk, capsys):
    assert converse(talk, lines("word " * 2000, "What is 7 plus 5?")) == 0
    out, err = capsys.readouterr()
    assert out == "7 plus 5 is 12.\n"
    assert "context_length is --ctx-size" in err and "/clear forgets" in err
    assert len(talk.turns) == 2


def test_ctrl_c_stops_the_answer_and_not_the_conversation(talk, interrupting, capsys):
    out = interrupting(8)
    assert converse(talk, lines("Tell me a story.", "What is 7 plus 5?", KeyboardInterrupt())) == 130
    assert out.getvalue().endswith("\n7 plus 5 is 12.\n")
    assert "(stopped)" in capsys.readouterr().err
    assert talk.turns[1]["content"].startswith("Once upon") and len(talk.turns[1]["content"]) < 100


def test_without_a_template_texts_are_continued(model, capsys):
    raw = Talk(model, {"temperature": 0.0, "max_tokens": 3}, raw=True)
    assert converse(raw, lines("Once upon a", "Once upon a")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and raw.turns == []


@pytest.mark.parametrize(
    "entries, expected",
    [
        (["one line"], "one line"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (['"""one line"""'], "one line"),
        (['"""', "two", '  lines"""'], "two\n  lines"),
        (['"""first', "second", '"""'], "first\nsecond"),
        (['say """hi"""'], 'say """hi"""'),
    ],
)
def test_several_lines(entries, expected):
    assert read_text(lines(*entries)) == expected


def test_the_history_lies_where_programs_keep_state():
    assert history_file(Settings.from_env({"XDG_STATE_HOME": "/s"})).as_posix() == "/s/qtransformers/history"
    assert history_file(Settings.from_env({})).parts[-4:] == (".local", "state", "qtransformers", "history")


def test_a_user_without_a_home_converses_without_history(monkeypatch, capsys):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    assert history_file(Settings.from_env({})) is None
    with history(None):
        assert "no home" in capsys.readouterr().err


def test_history_is_kept_for_its_owner_only(tmp_path):
    readline = pytest.importorskip("readline")
    path = tmp_path / "deep" / "history"
    with history(path):
        readline.add_history("a line")
    with history(path):
        assert readline.get_history_item(1) == "a line"
    assert path.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_kept_is_no_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with history(tmp_path / "file" / "history"):
        pass
    assert "history" in capsys.readouterr().err


def test_on_a_real_terminal(tmp_path):
    """The command as a person sees it: prompt, answer, Ctrl-C at the prompt."""
    ours, theirs = pty.openpty()
    # The child takes the terminal as its own, so that Ctrl-C there reaches it as a signal.
    code = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from qtransformers.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "demo", "--temp", "0"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"},
    )
    os.close(theirs)

    def read_until(mark):
        seen, end = b"", time.monotonic() + 60
        while mark not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 65536)
        return seen

    read_until(b">>> ")
    os.write(ours, b"What is 7 plus 5?\n")
    assert b"7 plus 5 is 12." in read_until(b"12.\r\n>>> ")
    end = time.monotonic() + 60
    while process.poll() is None:  # readline may miss the first: between its prompt and its wait it does not look
        assert time.monotonic() < end
        os.write(ours, b"\x03")
        time.sleep(0.2)
    assert process.returncode in (130, -signal.SIGINT)  # the latter when one more meets Python on its way out
    os.close(ours)
    assert "What is 7 plus 5?" in (tmp_path / "qtransformers" / "history").read_text()
