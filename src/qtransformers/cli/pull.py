"""Bring a model from the Hub into the Hugging Face cache and print its path.

Its header is fetched and planned first: what could not be loaded is refused before the download. Interrupted, it goes on
where it was the next time; what came is held against the hash that the Hub lists."""

from __future__ import annotations

import argparse

from qtransformers.cli.flags import add_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", help="user/repo:QUANT, user/repo@revision:QUANT")
    add_flags(parser, "force")


def run(args: argparse.Namespace) -> int:
    """Fetch the model; its path, of several files the first, goes to stdout."""
    from qtransformers.cli.models import fetched
    from qtransformers.cli.terminal import printable

    print(printable(str(fetched(args.model, args.color, judged=not args.force))))
    return 0
