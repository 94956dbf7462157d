"""Pictures from a diffusion model: MODEL is the GGUF file of its transformer, --base the pipeline with all else.

The path of each picture goes to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, plain_warnings, progress
from qtransformers.errors import ConfigError

HELPS = {
    "lora": "LoRA adapters, .safetensors files or PEFT folders, each at a weight (1), separated by commas",
    "config": "folder or Hub id of the model's transformer: says what the file's tensors do not",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, PROMPT and the flags of loading and painting."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file of a diffusion transformer, or user/repo:QUANT")
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture should show")
    add_flags(
        parser, "base", "config", "text-encoder", "lora", "negative", "steps", "size", "guidance", "seed", "count", "output",
        "overwrite", "device", "offload", "accuracy", "threads", helps=HELPS,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load, paint, write; the paths are the answer."""
    wish = wish_of(args)
    encoders = dict(_pair(text) for text in args.text_encoder or ())
    paths = free_paths(args.output, args.count, args.overwrite)
    from qtransformers.cli.answers import scaled_paths

    loras: dict[str | Path, float] = dict(scaled_paths(args.lora))
    from qtransformers.cli.models import fetched
    from qtransformers.diffusers.pipelines import Picture, load_pipeline, paint, save

    path = fetched(args.model, args.color, judged=False)
    picture = Picture(**wish)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    started = time.monotonic()
    with plain_warnings(args.color):
        pipe = load_pipeline(
            path, args.base, text_encoders=encoders, config=args.config, device=args.device, offload=args.offload,
            accuracy=args.accuracy or "fast", loras=loras,
        )  # fmt: skip
        loaded = time.monotonic()
        with progress("painting", args.color, unit="steps") as update:
            painted = paint(pipe, picture, update)
    done = time.monotonic()
    facts = {**{k: v for k, v in wish.items() if v is not None}, "seed": painted.seed, "model": path.name}
    if painted.frames and not args.output:
        paths = [p.with_suffix(".gif") for p in paths]
    save(painted, paths, facts)
    for p in paths:
        print(p)
    if args.verbose:
        note(
            f"loaded in {loaded - started:.1f} s, painted in {done - loaded:.1f} s, seed {painted.seed}",
            "dim",
            args.color,
        )
    return 0


def wish_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Picture that the flags give."""
    if not args.prompt.strip():
        raise ConfigError("PROMPT is empty; say what the picture should show.")
    width = height = None
    if args.size:
        found = re.fullmatch(r"(\d{1,5})(?:[x\u00d7*](\d{1,5}))?", args.size.strip().lower())
        if not found:
            raise ConfigError(f"--size is {args.size!r}; expected pixels such as 1024x768, or 1024 for a square.")
        width, height = int(found[1]), int(found[2] or found[1])
    return {
        "prompt": args.prompt, "negative": args.negative, "steps": args.steps, "width": width, "height": height,
        "guidance": args.guidance, "seed": args.seed, "count": args.count,
    }  # fmt: skip


def free_paths(output: str | None, count: int, overwrite: bool) -> list[Path]:
    """Where the pictures go: `output`, numbered when there are several, or the next free `image.png`, `image-2.png`, ..."""
    if output is None:
        free = (p for i in range(1, 10**6) if not (p := Path("image.png" if i == 1 else f"image-{i}.png")).exists())
        return [next(free) for _ in range(count)]
    path = Path(output)
    paths = [path] if count == 1 else [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(count)]
    for p in paths:
        if p.is_dir():
            raise ConfigError(f"{p} is a folder; expected the name of a picture, such as {p / 'image.png'}.")
        if p.exists() and not overwrite:
            raise ConfigError(f"{p} exists. Choose another name, or pass --overwrite.")
        if not p.parent.is_dir():
            raise ConfigError(f"{p.parent} is no folder to write to. Make it first, or choose another.")
        if p.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".gif"):
            raise ConfigError(f"{p} ends in {p.suffix or 'nothing'}; expected .png, .jpg, .webp or .gif.")
    return paths


def _pair(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not sign or not name or not path:
        raise ConfigError(f"--text-encoder is {text!r}; expected NAME=FILE, such as text_encoder=t5.gguf.")
    return name, path
