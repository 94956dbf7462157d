import io
import sys
import threading
from types import SimpleNamespace

import pytest

from qtransformers.cli.terminal import painter, printable, progress, table, wants_color, watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "hostile, shown",
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),  # the one-byte form of the same
        ("\x07\x00\x7f\r\x0b", "\\x07\\x00\\x7f\\x0d\\x0b"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),  # right-to-left override
        ("\udc80", "\\udc80"),  # a byte that is no UTF-8, as the reader keeps it
        ("two\nlines\tand a tab, Füchse, 狐, 🦊", "two\nlines\tand a tab, Füchse, 狐, 🦊"),
    ],
)
def test_printable_spells_out_what_would_steer_the_terminal(hostile, shown):
    assert printable(hostile) == shown


def test_every_control_character_is_spelled_out():
    for code in [*range(32), *range(127, 160)]:
        assert (printable(chr(code)) == chr(code)) == (chr(code) in "\t\n")


@pytest.mark.parametrize(
    "choice, stream, no_color, expected",
    [
        ("auto", Terminal(), "", True),
        ("auto", Terminal(), "1", False),
        ("auto", io.StringIO(), "", False),
        ("on", io.StringIO(), "1", True),
        ("off", Terminal(), "", False),
    ],
)
def test_color(choice, stream, no_color, expected, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    assert wants_color(choice, stream) is expected
    assert painter(choice, stream)("red", "x") == ("\x1b[31mx\x1b[0m" if expected else "x")


def test_table_aligns_all_but_the_last_column():
    assert table([("a", "1", "long text"), ("bbb", "22", "x")], right=(1,)) == ["  a     1  long text", "  bbb  22  x"]
    assert table([]) == []


def test_progress_is_silent_without_a_terminal(capsys):
    with progress("writing") as update:
        update(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def clock(monkeypatch):
    """The time as the bar sees it, in a list of one number."""
    now = [0.0]
    monkeypatch.setattr("qtransformers.cli.terminal.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_progress_draws_after_a_second_on_a_terminal(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("writing x", "off") as update:
        update(1, 4)
        assert sys.stderr.getvalue() == ""
        clock[0] = 1.5
        update(2, 4)
    assert "writing x" in sys.stderr.getvalue()


def test_watched_work_gets_a_bar(clock, monkeypatch):
    seen = threading.Event()

    def look():
        clock[0] += 1
        if clock[0] > 3:
            seen.set()
        return 3, 7

    monkeypatch.setattr(sys, "stderr", Terminal())
    with watched("reading", look, "off"):
        assert seen.wait(60)
    assert "reading" in sys.stderr.getvalue() and "3/7" in sys.stderr.getvalue()


def test_work_that_ends_at_once_gets_none(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with watched("reading", lambda: (0, 1)):
        pass
    assert sys.stderr.getvalue() == ""
