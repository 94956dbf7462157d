"""Answer the requests of a file, in OpenAI's batch format, and write a result for each: no server, many at a time.

REQUESTS holds a JSON object a line, with custom_id, method, url and body. Results are appended to OUTPUT as they come; after
Ctrl-C or a crash the same command goes on where it ended. Models are those that the requests name, or --model for all."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.cli.flags import add_flags
from qtransformers.errors import ConfigError

if TYPE_CHECKING:
    from qtransformers.serve.offline import Tally

LOADING = (
    "model-path", "ctx-size", "rope-scaling", "rope-base", "cache", "cache-tokens", "placement", "accuracy", "threads",
    "parallel", "pre", "prompt-format", "draft", "mlock", "preload", "stages",
)  # fmt: skip
FIELDS = {"ctx-size": "context_length"}
MAX_MODELS = 16
LARGEST = 1 << 20
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """REQUESTS, OUTPUT and the flags of loading."""
    parser.add_argument("requests", metavar="REQUESTS", help="a file of JSON lines: custom_id, method, url, body")
    add_flags(parser, "output", "model", *LOADING)


def run(args: argparse.Namespace) -> int:
    """Answer what is not answered yet."""
    if not args.output:
        raise ConfigError("--output is missing: the file that results are appended to. Give it one.")
    from qtransformers.cli.models import fetched
    from qtransformers.cli.terminal import note, plain_warnings, progress
    from qtransformers.serve import ModelSpec, ServerConfig
    from qtransformers.serve.config import MAX_SECONDS
    from qtransformers.serve.models import Models
    from qtransformers.serve.offline import (
        MAX_LINE,
        Results,
        Tally,
        answer_all,
        lines_of,
        models_of,
        opened,
        stop_on_signals,
    )
    from qtransformers.serve.server import Server

    requests = Path(args.requests)
    total, named = models_of(requests)
    options = {FIELDS.get(flag, flag.replace("-", "_")): getattr(args, flag.replace("-", "_")) for flag in LOADING}
    del options["model_path"]
    options = {name: value for name, value in options.items() if value not in (None, False)}
    if args.model:
        own = ModelSpec(args.model).names
        specs = [ModelSpec(args.model, tuple(dict.fromkeys((*own, *named))), options, args.model_path)]
    elif not 0 < len(named) <= MAX_MODELS or (args.model_path and len(named) > 1):
        raise ConfigError(f"{requests}: its lines name {len(named)} models; expected 1 to {MAX_MODELS}, one with --model-path. Say which one answers all: --model.")  # fmt: skip
    else:
        specs = [ModelSpec(name, (name,), options, args.model_path) for name in named]
    config = ServerConfig(queue=LARGEST, timeout=MAX_SECONDS, max_body=MAX_LINE, max_choices=1024)
    at_once = 2 * int(options.get("parallel", 8))  # so that none of those computed at once waits for the next line
    tally, started = Tally(total), time.monotonic()

    async def answer(results: Results) -> bool:
        stop = asyncio.Event()
        stop_on_signals(stop)
        server = Server(Models(specs), config)
        with opened(requests) as file, progress("answering", args.color, "requests") as update:
            showing = asyncio.create_task(_show(tally, update))
            try:
                await answer_all(server, lines_of(file), results, at_once, tally, stop)
            finally:
                showing.cancel()
        return stop.is_set()

    with plain_warnings(args.color), Results(Path(args.output)) as results:
        for spec in specs[:1]:
            fetched(spec.reference, args.color)
        try:
            stopped = asyncio.run(answer(results))
        except KeyboardInterrupt:
            stopped = True
        finally:
            note(summary(tally, time.monotonic() - started), "dim", args.color)
    if stopped:
        note(f"{tally.total - tally.done:,} requests are left; the same command goes on with them", color=args.color)
    sys.stderr.flush()
    return INTERRUPTED if stopped else 0


async def _show(tally: Tally, update: Any) -> None:
    while True:
        update(tally.done, tally.total)
        await asyncio.sleep(0.2)


def summary(tally: Tally, seconds: float) -> str:
    """What became of the lines, in one."""
    parts = [f"{tally.answered:,} answered"]
    more = {"refused": tally.refused, "not readable as requests": tally.unreadable, "answered before": tally.skipped}
    parts += [f"{n:,} {what}" for what, n in more.items() if n]
    return f"{', '.join(parts)}; {tally.tokens:,} tokens in {seconds:.1f} s, {tally.tokens / max(seconds, 1e-3):,.0f}/s"
