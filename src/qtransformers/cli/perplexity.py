"""How well a model knows a text: perplexity as llama-perplexity computes it, and how far it is from the model it was made of.

Disjoint chunks of 512 tokens, each begun with BOS where the vocabulary has it; the second half of each is scored.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qtransformers.cli.flags import add_flags
from qtransformers.cli.models import fetched
from qtransformers.cli.terminal import note, plain_warnings, progress, table
from qtransformers.errors import ConfigError, ModelNotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, FILE and what to compare with."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, `demo`, or user/repo:QUANT")
    parser.add_argument("file", metavar="FILE", help="a text in UTF-8")
    add_flags(parser, "kl-divergence", "chunk", "chunks", "parse-special", "model-path", "cache", "accuracy", "json")


def run(args: argparse.Namespace) -> int:
    """Print perplexity, or the divergence from a base."""
    from qtransformers.load import load
    from qtransformers.quantize import evaluate

    text = read_text(args.file)
    loading = {"cache": args.cache or "f16", "context_length": args.chunk, "logits_rows": args.chunk * 4}
    if args.accuracy:
        loading["accuracy"] = args.accuracy
    options = {"chunk": args.chunk, "encode_special": args.parse_special, "n_chunks": args.chunks}
    with plain_warnings(args.color), progress("scoring", args.color, "chunks") as update:
        model = load(fetched(args.model, args.color), args.model_path, **loading)
        if args.kl_divergence is None:
            found: Any = evaluate.perplexity(model, text, **options, progress=update)
            lines = [_perplexity(found)]
        else:
            base = load(fetched(args.kl_divergence, args.color), args.model_path, **loading)
            found = evaluate.divergence(model, base, text, **options, progress=update)
            lines = _divergence(found)
    if args.json:
        json.dump(asdict(found), sys.stdout, indent=2)
        print()
    else:
        print("\n".join(lines))
    return 0


def read_text(path: str) -> str:
    """The text of a file; ModelNotFoundError where there is none, ConfigError where it is no text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is no UTF-8 text ({e.reason} at byte {e.start}). Save it as UTF-8.") from None
    except (FileNotFoundError, IsADirectoryError):
        raise ModelNotFoundError(f"{path} is no file. Give a text in UTF-8.") from None


def _perplexity(found: Any) -> str:
    return f"perplexity {found.value:.4f} +/- {found.value_error:.5f} ({found.n_tokens:,} tokens scored)"


def _divergence(found: Any) -> list[str]:
    rows = (
        ("perplexity", f"{found.model.value:.4f} +/- {found.model.value_error:.5f}"),
        ("perplexity of the base", f"{found.base.value:.4f} +/- {found.base.value_error:.5f}"),
        ("ln of their ratio", f"{found.log_ratio:.6f} +/- {found.log_ratio_error:.6f}"),
        ("KL divergence, mean", f"{found.mean:.6f} +/- {found.error:.6f}"),
        ("median", f"{found.median:.6f}"),
        ("99.9%", f"{found.p99_9:.6f}"),
        ("largest", f"{found.largest:.6f}"),
        ("same favourite", f"{found.same_top:.3%}"),
        ("RMS of dp", f"{found.rms_dp:.3%}"),
    )
    note(f"{found.model.n_tokens:,} tokens scored")
    return table(rows)
