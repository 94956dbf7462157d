"""A step of a diffusion transformer with GGUF weights: time and memory beside diffusers' own GGUF path, and plain bfloat16 and float32.

usage: diffusion.py [--shapes aura,flux] [--types Q4_K_M,Q8_0] [--pixels 256,512] [--rounds 3] [--threads 2] [--folder DIR] [--dry]
       diffusion.py --device cuda [--tiny]    the part of gpu.py that is called so, with what it says itself

Random weights of the real widths, and few layers: each costs the same as in a whole model. All read one file, made by `convert` in
the original layout. Each runs in a process of its own; they take turns, step by step, in `rounds` rounds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import results

AURA, FLUX = "AuraFlowTransformer2DModel", "FluxTransformer2DModel"
# Real widths, and layers enough to time
SHAPES = {
    "aura": (AURA, {"num_mmdit_layers": 1, "num_single_dit_layers": 2}),
    "flux": (FLUX, {"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True}),
}
KINDS = {
    "ours, fast": "ours:fast", "ours, exact": "ours:exact", "diffusers' GGUF": "theirs", "diffusers, bfloat16": "bfloat16", "diffusers, float32": "float32",
}  # fmt: skip
PLAIN, TRUTH, THEIRS = "diffusers, bfloat16", "diffusers, float32", "diffusers' GGUF"


@dataclass(frozen=True)
class Setup:
    """What is compared: shapes by name, with class and settings; `text` tokens of a prompt, pixels of a side."""

    shapes: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=lambda: SHAPES)
    types: Sequence[str] = ("Q4_K_M", "Q8_0")
    pixels: Sequence[int] = (256, 512)
    rounds: int = 3
    threads: int = 2
    device: str = "cpu"
    text: int = 256
    layout: str = "original"


@dataclass(frozen=True)
class Took:
    """What was seen of a kind: medians of seconds, MiB at most, the relative error to float32, and what its steps are made of."""

    loading: float
    step: float
    peak: float
    error: float
    rest: Mapping[str, float]


def make(shape: tuple[str, Mapping[str, Any]], folder: Path) -> Path:
    """A folder of diffusers with random weights in bfloat16."""
    import diffusers
    import torch

    torch.manual_seed(1)
    with torch.device("meta"):
        model = getattr(diffusers, shape[0])(**shape[1])
    model = model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu").to(torch.bfloat16)
    for name, p in model.named_parameters():
        one = p.ndim == 1 and name.endswith("weight")
        p.data.normal_(1.0 if one else 0.0, 0.02 if p.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    return folder


def turns(setup: Setup, gguf: Path, folder: Path, name: str) -> dict[int, dict[str, Took]]:
    """Of each number of pixels what each kind took."""
    asked = {"gguf": str(gguf), "folder": str(folder), "class": name, "device": setup.device, "text": setup.text, "threads": setup.threads}  # fmt: skip
    script = str(Path(__file__).with_name("diffusion_worker.py"))
    workers = {
        title: subprocess.Popen([sys.executable, script, json.dumps({**asked, "kind": kind})], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for title, kind in KINDS.items()
    }  # fmt: skip
    try:
        loading = {title: json.loads(w.stdout.readline()) for title, w in workers.items()}
        return {pixels: _rounds(setup.rounds, workers, pixels, loading) for pixels in sorted(setup.pixels)}
    finally:
        for w in workers.values():
            w.kill()
            w.wait()


def _rounds(
    rounds: int, workers: Mapping[str, subprocess.Popen[str]], pixels: int, loading: Mapping[str, float]
) -> dict[str, Took]:
    seen: dict[str, list[dict[str, Any]]] = {title: [] for title in workers}
    for _ in range(rounds):
        for title, w in workers.items():
            w.stdin.write(f"{pixels}\n")
            w.stdin.flush()
            seen[title].append(json.loads(w.stdout.readline()))
    truth = seen[TRUTH][-1]["shown"]
    norm = sum(t * t for t in truth) ** 0.5
    found = {}
    for title, turns in seen.items():
        off = sum((a - t) ** 2 for a, t in zip(turns[-1]["shown"], truth, strict=True)) ** 0.5 / norm
        found[title] = Took(
            loading[title], median(t["seconds"] for t in turns), turns[-1]["peak"], off, turns[-1]
        )  # fmt: skip
    return found


def compared(setup: Setup, where: Path, card: Any = None) -> str:
    """Tables of all that `setup` asks for, of models made in a folder; beside the limits of a card (card.Card) where there is one."""
    from qtransformers.convert import convert

    lines = []
    for shape, made in setup.shapes.items():
        folder = where / shape
        if not (folder / "config.json").exists():
            make(made, folder)
        for type in setup.types:
            gguf = where / f"{shape}-{type}.gguf"
            if not gguf.exists():
                convert(folder, gguf, type, layout=setup.layout)
            for pixels, found in turns(setup, gguf, folder, made[0]).items():
                text = f"{shape}, {type}, {gguf.stat().st_size / 2**20:,.0f} MiB; {pixels} pixels a side, {(pixels // 16) ** 2} + {setup.text} tokens"
                lines += [text, "", results.table(*table(found, card)), ""]
                if card is not None:
                    rest = found["ours, fast"].rest
                    lines += [
                        f"By the card's limits: products of many tokens {1e3 * rest['operations'] / card.bf16:.2f} ms a step, decoding for them {1e3 * rest['decoded'] / card.copy:.2f}.",
                        "",
                    ]  # fmt: skip
                print("\n".join(lines[-4:]), file=sys.stderr, flush=True)
    return "\n".join(lines)


def table(found: Mapping[str, Took], card: Any) -> tuple[list[str], list[list[str]]]:
    """Head and rows."""
    on_card = card is not None
    head = [
        "",
        "loading, s",
        "step, ms" if on_card else "step, s",
        "times diffusers' GGUF",
        "times as long as bfloat16",
    ]
    head += [
        *(["kernels of it, ms", "decoding, ms", "peak, MiB"] if on_card else ["peak RSS, MiB"]),
        "error to float32",
    ]
    rows = []
    for title, took in found.items():
        rows.append([title, f"{took.loading:.1f}", f"{took.step * (1e3 if on_card else 1):.2f}", f"{found[THEIRS].step / took.step:.2f}", f"{took.step / found[PLAIN].step:.2f}"])  # fmt: skip
        if on_card:
            rows[-1] += [f"{1e3 * took.rest[name]:.2f}" for name in ("kernels", "decoding")]
        rows[-1] += [f"{took.peak:,.0f}", f"{took.error:.4f}"]
    return head, rows


def main() -> int | None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="aura,flux")
    parser.add_argument("--types", default="Q4_K_M,Q8_0")
    parser.add_argument("--pixels", default="256,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default="")
    parser.add_argument("--dry", action="store_true", help="do not write RESULTS.md")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="on a card: whether everything runs, not how fast")
    args = parser.parse_args()
    if args.device == "cuda":
        import gpu

        sys.argv[1:] = ["diffusion", *(["--tiny"] if args.tiny else [])]
        return gpu.main()
    setup = Setup(
        {name: SHAPES[name] for name in args.shapes.split(",")}, args.types.split(","),
        [int(n) for n in args.pixels.split(",")], args.rounds, args.threads,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        found = compared(setup, Path(args.folder or temporary))
    body = f"Random weights of the real widths, few layers, {args.threads} threads; medians of {args.rounds} rounds in turns, after a step to warm up. Loading counts the import of the diffusers class. RSS counts pages of the file.\n\n{found}"
    if args.dry:
        print(body)
    else:
        results.publish(__file__, "A step of a diffusion transformer", body)
    return None


if __name__ == "__main__":
    sys.exit(main())
