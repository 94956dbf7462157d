"""`main`: the verb is found, called, and its errors become messages and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from types import ModuleType

from qtransformers import __version__
from qtransformers.cli.terminal import table
from qtransformers.errors import QTransformersError

VERBS = {
    "run": "chat with a model, or get one answer",
    "serve": "answer over HTTP: OpenAI's and Anthropic's APIs",
    "image": "pictures from a diffusion model",
    "batch": "answer the requests of a file",
    "stage": "compute some layers of a model that is too large for one machine",
    "ps": "the servers that run here",
    "show": "what is in a GGUF file",
    "plan": "whether a model fits, and what would make it fit",
    "advise": "which type and method a model should have here",
    "pull": "fetch a model from the Hub",
    "list": "the models at hand",
    "rm": "remove a fetched model",
    "convert": "make a GGUF file from a Hugging Face model",
    "imatrix": "learn from texts which columns of weights matter",
    "perplexity": "how well a model knows a text",
    "compare": "how far tensors of two files are apart",
    "bench": "speed against the machine's limits",
    "doctor": "check this machine and this installation",
    "completion": "what a shell needs to complete verbs and flags",
}
INTERRUPTED = 130
EXAMPLES = """
examples:
  qtransformers run demo 'Tell me a story about a brave fox.'
  qtransformers show model.gguf

MODEL is a path, `demo`, or `user/repo:QUANT`. Flags may be set as QTRANSFORMERS_<FLAG>.
`qtransformers VERB --help` tells more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the return value is the exit code (docs/cli.md lists them)."""
    _mend_streams()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as e:  # argparse's way out
        return e.code if isinstance(e.code, int) else 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left; give Python somewhere to flush what is buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        return _report(e)


def _mend_streams() -> None:
    """Closed standard streams lead nowhere; a terminal without UTF-8 shows an escape, not a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(words: list[str]) -> int:
    if words and words[0] in VERBS:
        verb = import_module(f"qtransformers.cli.{words[0]}")
        parser = argparse.ArgumentParser(
            prog=f"qtransformers {words[0]}",
            description=verb.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(parser)
        return _run(verb, parser.parse_intermixed_args(words[1:]))
    parser = _front()
    parser.parse_args(words)
    parser.print_help(sys.stderr)
    return 2


def _run(verb: ModuleType, args: argparse.Namespace) -> int:
    """The verb's exit code; its errors go on, with --debug after a traceback."""
    try:
        code: int = verb.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception as e:
        if isinstance(e, QTransformersError):
            from qtransformers.cli.flags import in_flags

            e.args = (f"{e}{in_flags(str(e), vars(args))}",)
        if args.debug:
            from qtransformers.cli.terminal import printable

            print(printable(traceback.format_exc()), end="", file=sys.stderr)
        raise
    return code


def _front() -> argparse.ArgumentParser:
    """What answers `--help`, `--version`, no verb and a wrong verb; no verb is imported for it."""
    parser = argparse.ArgumentParser(
        prog="qtransformers",
        usage="qtransformers [-h] [--version] VERB ...",
        description="Run, quantise and serve GGUF transformers.",
        epilog="\n".join(("verbs:", *table(list(VERBS.items())), EXAMPLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qtransformers {__version__}")
    parser.add_argument("verb", metavar="VERB", choices=list(VERBS), help="one of the verbs below")
    return parser


def _report(error: Exception) -> int:
    """One line on stderr for the error; its exit code."""
    from qtransformers.cli.terminal import printable

    if isinstance(error, QTransformersError):
        print(f"qtransformers: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, MemoryError):
        print(
            "qtransformers: out of memory. A smaller --ctx-size or a smaller quantisation needs less.", file=sys.stderr
        )
        return 5
    if isinstance(error, OSError):
        print(f"qtransformers: the system refused: {printable(str(error))}", file=sys.stderr)
        return 1
    print(
        f"qtransformers: unexpected {type(error).__name__}: {printable(str(error))}\n"
        "This is a defect of qtransformers. Run again with --debug and report what it prints.",
        file=sys.stderr,
    )
    return 1
