"""Remove a model from the Hugging Face cache: one quantisation, or with user/repo alone the whole repository.

Only what the manager of the cache counts to it goes. Asks before, unless --yes is given."""

from __future__ import annotations

import argparse
import sys

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note
from qtransformers.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument(
        "model", metavar="MODEL", help="user/repo:QUANT or user/repo, as `qtransformers list` names them"
    )
    add_flags(parser, "yes")


def run(args: argparse.Namespace) -> int:
    """Say what goes, ask, remove; 1 when the answer is no."""
    from qtransformers.load.cached import plan_removal
    from qtransformers.load.files import size_text
    from qtransformers.load.hub import the_hub

    removal = plan_removal(args.model, the_hub())
    names = ", ".join(dict.fromkeys(m.name for m in removal.models)) or removal.ref.repo
    what = f"all of {removal.ref.repo} ({names})" if removal.whole is not None else names
    note(f"{what}: {size_text(removal.nbytes)} of disk")
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("there is nobody to ask whether to remove it. Add --yes.")
        print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            note("Nothing was removed.")
            return 1
    removal.execute()
    note(f"Removed, {size_text(removal.nbytes)} are free again.")
    return 0
