"""Be one stage of a model whose layers are spread over several processes or machines.

The first stage is `run`, `serve`, `batch` or `bench` with --stages HOST:PORT/N; each of the others is one of these, with a
RANK from 1 to N-1 of its own and a copy of the same file, of which it maps its own layers only. Connections are neither
encrypted nor checked: for networks that you trust. It ends when the first stage ends, or one is lost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from qtransformers.cli.flags import add_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, HOST:PORT, RANK and what concerns this machine; the first stage says the rest."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or folder, `demo`, or user/repo:QUANT from the Hub")
    parser.add_argument("meeting", metavar="ADDRESS", help="HOST:PORT, where the first stage listens")
    parser.add_argument("rank", metavar="RANK", type=int, help="which stage this is: 1 comes after the first")
    add_flags(parser, "model-path", "placement", "threads", "mlock", "preload")


def run(args: argparse.Namespace) -> int:
    """Load the layers, then compute what the first stage says."""
    from qtransformers.cli.models import fetched
    from qtransformers.cli.terminal import note, plain_warnings
    from qtransformers.generate.link import Meeting
    from qtransformers.generate.pipeline import follow
    from qtransformers.load import Loaded, load
    from qtransformers.load.stages import Part

    meeting = Meeting.parse(args.meeting, counted=False)
    with plain_warnings(args.color):
        path = fetched(args.model, args.color)

        def load_part(part: Part, settings: Mapping[str, Any]) -> Loaded:
            return load(
                path,
                args.model_path,
                placement=args.placement or "auto",
                threads=args.threads,
                mlock=args.mlock,
                preload=args.preload,
                part=part,
                **settings,
            )

        follow(meeting, args.rank, load_part, args.threads, lambda text: note(text, "dim", args.color))
        note("the first stage has ended", "dim", args.color)
    return 0
