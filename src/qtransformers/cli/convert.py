"""Make a GGUF file from a Hugging Face model: config.json, tokenizer and safetensors in one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, plain_warnings, progress, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FOLDER, the type and where to write."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of the Hugging Face model")
    add_flags(parser, "type", "output", "name", "pre", "overwrite", "dry-run")


def run(args: argparse.Namespace) -> int:
    """Convert, or say what would be written."""
    from qtransformers.convert import plan_conversion, write
    from qtransformers.convert.write import default_name
    from qtransformers.load.files import size_text

    with plain_warnings(args.color):
        plan = plan_conversion(args.folder, args.type, name=args.name, pre=args.pre)
    output = Path(args.output or default_name(plan, args.type))
    if args.dry_run:
        print(
            "\n".join(
                table(
                    [(t.name, t.type.name, " x ".join(map(str, t.shape)), size_text(t.nbytes)) for t in plan.tensors],
                    right=(2, 3),
                )
            )
        )
        note(f"would write {output}, {len(plan.tensors)} tensors, {size_text(plan.nbytes)}")
        return 0
    with progress(f"writing {output.name}", args.color) as update:
        write(plan, output, overwrite=args.overwrite, progress=update)
    note(f"{output}: {len(plan.tensors)} tensors, {size_text(output.stat().st_size)}")
    return 0
