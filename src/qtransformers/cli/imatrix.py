"""Collect an importance matrix: how much each column of each weight matters on texts, for better quantisation.

The file is llama.cpp's GGUF form, for `qtransformers convert --imatrix` and for llama-quantize. Learn from the original model
(F16, BF16 or F32) and from texts like those it is for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qtransformers.cli.flags import add_flags
from qtransformers.cli.models import fetched
from qtransformers.cli.perplexity import read_text
from qtransformers.cli.terminal import note, plain_warnings, progress
from qtransformers.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, texts and where to write."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, `demo`, or user/repo:QUANT")
    add_flags(parser, "file", "output", "chunk", "chunks", "parse-special", "model-path", "overwrite")


def run(args: argparse.Namespace) -> int:
    """Collect and write."""
    from qtransformers.load import load
    from qtransformers.quantize import imatrix
    from qtransformers.quantize.passes import calibration_text, text_chunks

    output = Path(args.output or f"{Path(args.model).stem}-imatrix.gguf")
    if output.exists() and not args.overwrite:
        raise ConfigError(f"{output} exists. Choose another name, or replace it with overwrite.")
    texts = [read_text(path) for path in args.file or ()] or [calibration_text()]
    names = [Path(path).name for path in args.file or ()] or ["qtransformers calibration.txt"]
    with plain_warnings(args.color), progress("collecting", args.color, "chunks") as update:
        model = load(
            fetched(args.model, args.color), args.model_path, context_length=args.chunk, logits_rows=4 * args.chunk
        )
        rows = text_chunks(model.tokenizer, "\n".join(texts), args.chunk, args.parse_special, least=1)
        found = imatrix.collect(model, rows[: args.chunks], datasets=names, progress=update)
    imatrix.write(found, output, overwrite=args.overwrite)
    note(f"{output}: {len(found.sums)} weights, {found.n_chunks * found.chunk:,} tokens")
    return 0
