"""The conversation on a terminal: reads lines and commands, leaves the answers to `Talk`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qtransformers.cli.answers import Talk
from qtransformers.cli.flags import in_flags
from qtransformers.cli.terminal import note
from qtransformers.errors import QTransformersError
from qtransformers.settings import Settings

INTERRUPTED = 130
HISTORY_LINES = 1000
FENCE = '"""'
HELP = '''\
/clear          forget the conversation
/system [TEXT]  set the system message and start over; without TEXT there is none
/help           this
/bye            leave (Ctrl-D does too)
"""             begins and ends a text of several lines; a backslash at the end continues a line
Ctrl-C          stops the answer; at the prompt it leaves'''

Read = Callable[[str], str]  # a prompt -> the line, EOFError at the end


def converse(talk: Talk, read: Read) -> int:
    """Converse until the person leaves; the exit code."""
    note(f"{talk.title}. /help lists the commands, /bye leaves.", "dim", talk.color)
    while True:
        try:
            text = read_text(read)
        except EOFError:
            print(file=sys.stderr)
            return 0
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return INTERRUPTED
        if text in ("/bye", "/exit", "/quit"):
            return 0
        if text.startswith("/") and "\n" not in text and not text.startswith("//"):
            obey(talk, text)
        elif text.strip():
            answer(talk, text.removeprefix("/") if text.startswith("//") else text)


def answer(talk: Talk, text: str) -> None:
    """Answer; an error, as of a full context, ends the turn and not the conversation."""
    try:
        talk.answer(text)
    except KeyboardInterrupt:
        print()
        note("(stopped)", "dim", talk.color)
    except QTransformersError as e:
        note(f"{e}{in_flags(str(e))}\n/clear forgets the conversation so far.", "yellow", talk.color)


def obey(talk: Talk, text: str) -> None:
    """Carry out a command."""
    name, _, rest = text[1:].partition(" ")
    if name == "clear":
        talk.clear()
        note("The conversation is forgotten.", "dim", talk.color)
    elif name == "system":
        talk.set_system(rest.strip() or None)
        note(
            "A new conversation, with this system message."
            if rest.strip()
            else "A new conversation, without a system message.",
            "dim",
            talk.color,
        )
    elif name in ("help", "?"):
        note(HELP)
    else:
        note(f"/{name} is no command; a text that begins with a slash needs two.\n{HELP}")


def read_text(read: Read) -> str:
    """One entry: a line, lines that end in a backslash, or what stands between two fences."""
    line = read(">>> ")
    if line.lstrip().startswith(FENCE):
        lines = [line.lstrip()[len(FENCE) :]]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(read("... "))
        lines[-1] = lines[-1].rstrip()[: -len(FENCE)]
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("... "))
    return "\n".join(lines)


def read_line(prompt: str) -> str:
    """A line from the terminal, edited with readline; the prompt never lands in a redirected standard output."""
    if not sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    return input(prompt)


def history_file(settings: Settings) -> Path | None:
    """Where the lines of earlier conversations are kept; None for a user who has no home."""
    try:
        return settings.state_home.expanduser() / "qtransformers" / "history"
    except RuntimeError:  # pathlib's, where neither HOME nor the users' database names one
        return None


@contextmanager
def history(path: Path | None) -> Iterator[None]:
    """Bring back the lines of earlier conversations, and keep those of this one, readable by their owner only."""
    try:
        import readline
    except ImportError:  # Windows: editing without history
        yield
        return
    readline.clear_history()
    if path is None:
        note("no history of earlier conversations: this user has no home; XDG_STATE_HOME may name a folder.")
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    except OSError as e:
        note(f"no history of earlier conversations: {e}")
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        try:
            readline.write_history_file(path)
        except OSError as e:
            note(f"the history could not be kept: {e}")
