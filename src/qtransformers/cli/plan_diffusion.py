"""What `plan` prints of a diffusion transformer."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from qtransformers.cli.terminal import COLOURS, count, painter, printable, table

if TYPE_CHECKING:
    from pathlib import Path

    from qtransformers.gguf import GGUFFile
    from qtransformers.load.diffusion_fit import Outlook
    from qtransformers.load.fit import Budget, Fit


def run(gguf: GGUFFile, beside: Path | None, budget: Budget, args: argparse.Namespace) -> int:
    """Print it on stdout, with the config of --model-path, or that beside the file; 0 when it fits, 4 when it cannot be loaded, 5 when it does not fit."""
    from qtransformers.load.diffusion import read_config
    from qtransformers.load.diffusion_fit import TOKENS, fit_diffusion, outlook
    from qtransformers.load.hub import the_hub

    found = outlook(gguf, *read_config(args.model_path or beside, the_hub(), "--model-path "))
    tokens = args.ctx_size or TOKENS
    result = fit_diffusion(found.weights_bytes, found.temporaries(tokens), budget)
    if args.json:
        json.dump(as_json(found, result, tokens), sys.stdout, indent=2)
        print()
    else:
        print("\n".join(map(printable, as_text(found, result, tokens, args.color))))
    return 4 if found.problems else 5 if result.verdict == "does not fit" else 0


def as_json(found: Outlook, result: Fit, tokens: int) -> dict[str, Any]:
    """The plan for other programs; bytes throughout."""
    plan, spec = found.plan, found.found.spec
    return {
        "file": found.file,
        "architecture": spec.id,
        "title": spec.title,
        "layout": found.found.layout,
        "class": spec.class_name,
        "runnable": plan is not None,
        "problems": list(found.problems),
        "warnings": list(plan.warnings if plan else found.found.warnings),
        "config": dict(plan.config) if plan else {},
        "parameters": found.parameters,
        "weights": found.weights_bytes,
        "tokens": tokens,
        "temporaries": found.temporaries(tokens),
        "tensors": [
            {"role": role, "type": type, "tensors": len(ts), "bytes": sum(t.nbytes for t in ts)}
            for (role, type), ts in found.groups().items()
        ],
        **result.as_json(),
    }


def as_text(found: Outlook, result: Fit, tokens: int, color: str = "auto") -> list[str]:
    """The plan for people, as lines."""
    from qtransformers.load.diffusion_fit import rows
    from qtransformers.load.files import memory_text as text

    paint = painter(color, sys.stdout)
    bits = 8 * found.weights_bytes / max(1, found.parameters)
    spec, (need,) = found.found.spec, result.needs
    lines = [paint("bold", f"{found.file}: {spec.title}, {found.found.layout} layout, {count(found.parameters)} parameters, {bits:.2f} bits a weight")]  # fmt: skip
    if not found.problems:
        lines.append(f"  for {spec.class_name} of diffusers; runs in {', '.join(spec.pipelines)}")
    main = need.device == "cpu"
    needed = [
        ("weights as stored", need.weights, "mapped: one copy, in the page cache" if main else "copied"),
        ("peak temporaries", need.activations, f"of one step, about, with {tokens:,} tokens of picture and text in float32"),
        ("program", need.program, "with torch and diffusers; text encoders and the VAE come on top"),
        ("for the system", need.system, "page tables, and what should stay free" if main else "the driver's context"),
    ]  # fmt: skip
    have = "" if need.have is None else f"; there are {text(need.have)}"
    lines += ["", *rows(found), "", paint("bold", "main memory" if main else need.device)]
    lines += table([(what, text(n), why) for what, n, why in needed if n], right=(1,))
    lines.append(f"  {text(need.model)}, {text(need.model + need.system)} with what the system needs{have}")
    lines += [*(found.plan.warnings if found.plan else found.found.warnings), ""]
    if not found.problems or result.verdict != "fits":
        lines += [paint(COLOURS[result.verdict], result.verdict), *(f"  {remedy.text}" for remedy in result.remedies)]
    if found.problems:  # last, where the eye ends
        lines += [paint("red", "cannot be loaded"), *(f"  {p}" for p in found.problems)]
    return lines
