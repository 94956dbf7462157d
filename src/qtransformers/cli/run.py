"""Chat with a model, or get one answer: from PROMPT, from standard input, or from both.

The answer goes to standard output, everything else to standard error. Without a prompt and on a terminal a conversation
begins; /help lists what it understands."""

from __future__ import annotations

import argparse
import os
import stat
import sys

from qtransformers.cli.flags import ENDING, SAMPLING, add_flags
from qtransformers.errors import ConfigError
from qtransformers.settings import Settings

LOADING = (
    "model-path",
    "ctx-size",
    "rope-scaling",
    "rope-base",
    "cache",
    "placement",
    "accuracy",
    "threads",
    "pre",
    "mlock",
    "preload",
    "stages",
)
TALKING = ("prompt-format", "system", "raw", "draft", "lora", "json-schema", "grammar")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, PROMPT and the flags of loading, talking and sampling."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or folder, `demo`, or user/repo:QUANT from the Hub")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="what to answer; text on standard input is appended"
    )
    add_flags(parser, *LOADING, *TALKING, *ENDING, *SAMPLING)


def run(args: argparse.Namespace) -> int:
    """Load the model, then answer once or converse."""
    prompt = the_prompt(args.prompt, piped_text(args.prompt is not None))
    if prompt is None and args.raw:
        raise ConfigError("--raw continues a text; give one as PROMPT or on standard input.")
    from qtransformers.cli.answers import talk
    from qtransformers.native import lib

    lib.watch_mappings()
    with talk(args) as conversation:
        if prompt is not None:
            conversation.answer(prompt)
            return 0
        from qtransformers.cli.repl import converse, history, history_file, read_line

        with history(history_file(Settings.from_env())):
            return converse(conversation, read_line)


def piped_text(has_prompt: bool) -> str | None:
    """What waits on standard input, None when a person sits there.

    Beside a prompt only pipes and files are read: whoever starts us with a socket or a device there means nothing by it.
    """
    if sys.stdin.isatty():
        return None
    if has_prompt:
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            return None
    raw = sys.stdin.buffer.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(
            f"standard input is no UTF-8 (byte {e.start} of {len(raw)}). Convert it, with iconv for instance."
        ) from e


def the_prompt(given: str | None, piped: str | None) -> str | None:
    """Prompt and piped text as one; None when there is neither; ConfigError when what there is is empty."""
    parts = [part.strip("\n") for part in (given, piped) if part is not None]
    if not parts:
        return None
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise ConfigError("the prompt is empty. Give one as an argument or on standard input.")
    return text
