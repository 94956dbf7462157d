"""Which type and method a model should have on this machine, or on one with other memory, and why. Only headers are read."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, painter, plain_warnings, printable, table

if TYPE_CHECKING:
    from qtransformers.quantize.advise import Advice
    from qtransformers.quantize.advise_diffusion import PictureAdvice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and the machine."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a GGUF file, user/repo:QUANT, or the folder of a Hugging Face model or of a pipeline of diffusers",
    )
    add_flags(parser, "ram", "vram", "ctx-size", "cache", "json")


def run(args: argparse.Namespace) -> int:
    """Print the options and the advice; 5 where nothing fits."""
    from qtransformers import machine
    from qtransformers.load.fit import Budget
    from qtransformers.quantize.advise import Advice, advise

    budget = Budget.of(machine.memory(), args.ram, args.vram)
    with plain_warnings(args.color):
        found = advise(args.model, budget, context_length=args.ctx_size, cache=args.cache or "f16")
    if args.cache and not isinstance(found, Advice):
        note("--cache is for language models: not heeded", "yellow", args.color)
    if args.json:
        json.dump(asdict(found) | {"command": found.command}, sys.stdout, indent=2)
        print()
        return 0 if found.best else 5
    lines = _language(found) if isinstance(found, Advice) else _pictures(found)
    print("\n".join(map(printable, [*lines, "", *_taken(found, args.color)])))
    return 0 if found.best else 5


def _language(found: Advice) -> list[str]:
    from qtransformers.load.files import memory_text

    head = ("type", "weights", "a token reads", "KL of an 8B", "on the GPU", "here")
    rows = [
        (o.file_type, memory_text(o.nbytes), memory_text(o.per_token), f"{o.loss:.4f}", f"{o.on_gpu:.0%}", o.verdict)
        for o in found.options
    ]
    return [f"{found.model}, {found.context_length:,} tokens of context", *table([head, *rows], right=(1, 2, 3, 4))]


def _pictures(found: PictureAdvice) -> list[str]:
    from qtransformers.load.files import memory_text

    where = "in main memory" if found.device == "cpu" else f"on {found.device}"
    head = ("type", "weights", f"needed {where}", "")
    rows = [(o.file_type, memory_text(o.nbytes), memory_text(o.needed), o.verdict) for o in found.options]
    told = f"{found.model}: {found.title}, {found.tokens:,} tokens of picture and text; text encoders and the VAE come on top"
    return [told, *table([head, *rows], right=(1, 2))]


def _taken(found: Advice | PictureAdvice, color: str) -> list[str]:
    paint = painter(color, sys.stdout)
    if found.best is None:
        return [paint("red", found.why[0].upper() + found.why[1:] + ".")]
    return [
        f"{paint('green', 'Take ' + found.best.file_type)}: {found.why}.",
        f"  {paint('bold', found.command)}",
    ]
