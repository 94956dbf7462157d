"""`convert` where weights learn from texts: `--awq`, `--refine`, `--budget`, `--fit`; and the gate that judges what was made."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtransformers.cli.terminal import note, progress
from qtransformers.errors import ConfigError

if TYPE_CHECKING:
    from qtransformers.convert import ConversionPlan
    from qtransformers.convert.plan import Asked
    from qtransformers.quantize.make import How

FLAGS = ("awq", "refine", "budget", "fit", "file", "chunks", "parse-special")
COLOURS = {"good": "green", "worse": "yellow", "ruined": "red"}


def wanted(args: argparse.Namespace) -> bool:
    """Whether anything of it was asked for; ConfigError for flags that mean nothing without it, or beside it."""
    asked = args.awq or args.refine or args.budget is not None or args.fit is not None
    for flag in () if asked else ("file", "chunks", "parse_special"):
        if getattr(args, flag):
            raise ConfigError(f"--{flag.replace('_', '-')} is for --awq, --refine, --budget and --fit.")
    if args.dry_run and (args.budget is not None or args.fit is not None):
        raise ConfigError("--dry-run cannot say what --budget and --fit choose: that is measured on the model itself.")
    if args.budget is not None and args.fit is not None:
        raise ConfigError("--budget and --fit both say how large the file may be. Give one of them.")
    return bool(asked)


def convert(args: argparse.Namespace, plan: ConversionPlan, output: Path) -> str:
    """Write the plan with what the texts tell, and say how good the result is; what was written, in words."""
    from qtransformers.load.files import size_text
    from qtransformers.quantize.make import make

    with progress("quantising", args.color, "steps") as update:
        try:
            made = make(
                plan, output, _how(args), overwrite=args.overwrite, max_bytes=args.shard_size, progress=lambda what, *at: update(*at)
            )  # fmt: skip
        except KeyboardInterrupt:
            note(f"{output}: interrupted; the same command goes on where it was")
            raise
    if made.verdict:
        for line in made.verdict.lines():
            note(line, COLOURS[made.verdict.grade], args.color)
    nbytes = sum(replace(t, type=made.types[t.name]).nbytes for t in plan.tensors)  # without the header, as elsewhere
    size, more = size_text(sum(path.stat().st_size for path in made.paths)), len(made.paths) - 1
    name = f"{made.paths[0]} and {more} more" if more else str(output)
    return f"{name}: {len(plan.tensors)} tensors, {size}, {8 * nbytes / plan.n_parameters:.2f} bits per weight"


def check(args: argparse.Namespace, plan: ConversionPlan) -> None:
    """ConfigError where a plan has nothing to learn about."""
    from qtransformers.quantize.make import How

    How(args.awq, args.refine, args.budget, args.fit).check(plan)


@contextmanager
def of_diffusion(
    args: argparse.Namespace, model: Path, asked: Asked, plan: ConversionPlan, output: Path
) -> Iterator[ConversionPlan]:
    """The plan of a diffusion model that learned from calls in .safetensors (-f), or from noise; it is written within the context.

    What would hinder the writing is said before anything is learned.
    """
    from qtransformers.diffusers.improving import plan_improved
    from qtransformers.diffusers.observing import read_call
    from qtransformers.gguf.writer import check_room, in_the_way
    from qtransformers.quantize.make import How

    for flag in ("chunks", "parse_special"):
        if getattr(args, flag):
            raise ConfigError(f"--{flag.replace('_', '-')} is of texts, from which language models learn; a diffusion model learns from noise, or from calls (-f CALL.safetensors).")  # fmt: skip
    how = How(args.awq, args.refine, args.budget, args.fit)
    if (there := in_the_way(output, args.shard_size is not None)) and not args.overwrite:
        raise ConfigError(f"{there} exists. Choose another name, or replace it with --overwrite.")
    check_room(output.parent, how.most_bytes(plan))
    calls = [read_call(Path(file)) for file in args.file] if args.file else None
    with ExitStack() as stack:
        with progress("learning", args.color, "steps") as update:
            plan = stack.enter_context(plan_improved(model, asked, how, calls=calls, progress=update))
        yield plan


def _how(args: argparse.Namespace) -> How:
    from qtransformers.cli.perplexity import read_text
    from qtransformers.quantize.make import How

    text = "\n".join(map(read_text, args.file)) if args.file else None
    return How(
        args.awq, args.refine, args.budget, args.fit, text, n_chunks=args.chunks, encode_special=args.parse_special
    )
