import io

import pytest

from qtransformers.cli.terminal import painter, printable, progress, table, wants_color


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


def test_progress_draws_after_a_second_on_a_terminal(monkeypatch):
    import sys
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("writing x", "off") as update:
        update(1, 4)
        assert sys.stderr.getvalue() == ""
        now[0] = 1.5
        update(2, 4)
    assert "writing x" in sys.stderr.getvalue()
