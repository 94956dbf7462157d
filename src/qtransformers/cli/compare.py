"""How far the tensors of one GGUF file are from those of another, which counts as the truth."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, table
from qtransformers.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A and B."""
    parser.add_argument("a", metavar="A", help="a GGUF file")
    parser.add_argument("b", metavar="B", help="the GGUF file it was made of")
    add_flags(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Print a line a tensor, worst first."""
    from qtransformers.gguf import GGUFFile
    from qtransformers.load.hub import resolve_model
    from qtransformers.quantize.evaluate import compare

    with GGUFFile(resolve_model(args.a)) as a, GGUFFile(resolve_model(args.b)) as b:
        found = sorted(compare(a.tensors, b.tensors), key=lambda d: -d.relative)
        alone = sorted(set(a.tensors) ^ set(b.tensors))
    if not found:
        raise ConfigError(f"{args.a} and {args.b} have no tensor in common: they are no two forms of one model.")
    if args.json:
        json.dump({"tensors": [asdict(d) | {"sqnr": d.sqnr} for d in found], "alone": alone}, sys.stdout, indent=2)
        print()
        return 0
    head = ("tensor", "type", "bits", "RMSE", "relative", "SQNR dB")
    rows = [
        (d.name, f"{d.types[0]} / {d.types[1]}", f"{d.bits[0]:.2f}", f"{d.rmse:.3g}", f"{d.relative:.3%}", f"{d.sqnr:.2f}")
        for d in found
    ]  # fmt: skip
    print("\n".join(table([head, *rows], right=(2, 3, 4, 5))))
    if alone:
        note(f"in one of them only: {', '.join(alone)}", "yellow")
    return 0
