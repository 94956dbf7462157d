"""Make a GGUF file of a Hugging Face model (config.json, tokenizer and safetensors), or of another GGUF file.

Weights pass through slab by slab: memory does not limit the size of a model. Interrupted, the same command goes on where it was."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, plain_warnings, progress, table
from qtransformers.errors import ConfigError

if TYPE_CHECKING:
    from qtransformers.convert import ConversionPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the type and where to write."""
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a Hugging Face model, or a GGUF file")
    add_flags(
        parser, "type", "output", "tensor-type", "keep", "shard-size", "name", "pre", "force", "overwrite", "dry-run"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, or say what would be written."""
    from qtransformers.convert import plan_conversion, write
    from qtransformers.convert.write import default_name

    with plain_warnings(args.color):
        plan = plan_conversion(
            args.model, args.type, name=args.name, pre=args.pre, overrides=_overrides(args.tensor_type or ()),
            keep=args.keep or (), force=args.force,
        )  # fmt: skip
    output = Path(args.output or default_name(plan))
    if args.dry_run:
        print("\n".join(_described(plan)))
        note(f"would write {output}, {_size(plan, plan.nbytes)}")
        return 0
    with plain_warnings(args.color), progress(f"writing {output.name}", args.color) as update:
        paths = write(plan, output, overwrite=args.overwrite, max_bytes=args.shard_size, progress=update)
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    note(f"{name}: {_size(plan, sum(path.stat().st_size for path in paths))}")
    return 0


def _overrides(given: list[str] | tuple[()]) -> list[tuple[str, str]]:
    """PATTERN=TYPE, each in two."""
    pairs = [text.rpartition("=") for text in given]
    for pattern, _, type_ in pairs:
        if not pattern or not type_:
            raise ConfigError(f"--tensor-type {pattern or type_!r}; expected PATTERN=TYPE, such as attn_v=Q8_0.")
    return [(pattern, type_) for pattern, _, type_ in pairs]


def _described(plan: ConversionPlan) -> list[str]:
    """Every tensor, then what each type comes to."""
    from qtransformers.load.files import size_text

    rows = [(t.name, t.type.name, " x ".join(map(str, t.shape)), size_text(t.nbytes)) for t in plan.tensors]
    types = [
        (f"{n} tensors", type_.name, f"{values:,} weights", size_text(nbytes))
        for type_, (n, values, nbytes) in plan.sizes().items()
    ]
    return [*table(rows, right=(2, 3)), "", *table(types, right=(2, 3))]


def _size(plan: ConversionPlan, nbytes: int) -> str:
    from qtransformers.load.files import size_text

    return f"{len(plan.tensors)} tensors, {size_text(nbytes)}, {plan.bits_per_weight:.2f} bits per weight"
