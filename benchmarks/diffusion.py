"""A step of a diffusion transformer with GGUF weights: time and memory beside diffusers' own GGUF path, and plain bfloat16 and float32.

usage: diffusion.py [--shapes aura,flux] [--types Q4_K_M,Q8_0] [--pixels 256,512] [--rounds 3] [--threads 2] [--folder DIR] [--dry]

Random weights of the real widths, and few layers: each costs the same as in a whole model. All read one file, made by `convert` in
the original layout. Each runs in a process of its own; they take turns, step by step, in `rounds` rounds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import results

# Real widths, and layers enough to time; latents have 1/8 of the pixels of a side
SHAPES = {
    "aura": {"class": "AuraFlowTransformer2DModel", "config": {"num_mmdit_layers": 1, "num_single_dit_layers": 2}},
    "flux": {"class": "FluxTransformer2DModel", "config": {"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True}},
}  # fmt: skip
TEXT = 256  # tokens of the prompt
KINDS = {
    "ours, fast": "ours:fast", "ours, exact": "ours:exact", "diffusers' GGUF": "theirs", "diffusers, bfloat16": "bfloat16", "diffusers, float32": "float32",
}  # fmt: skip
WORKER = """
import json, resource, sys, time, warnings
kind, gguf, folder, name, pixels, text, threads = sys.argv[1:5] + [int(n) for n in sys.argv[5:8]]
import torch, diffusers
warnings.simplefilter("ignore")
torch.set_num_threads(threads)
made = getattr(diffusers, name)
start = time.perf_counter()
if kind.startswith("ours"):
    from qtransformers.diffusers import load_transformer
    m = load_transformer(gguf, folder, accuracy=kind.partition(":")[2])
elif kind == "theirs":
    quantised = diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32)
    m = made.from_single_file(gguf, quantization_config=quantised, config=folder, torch_dtype=torch.float32)
else:
    m = made.from_pretrained(folder, dtype=getattr(torch, kind)).eval()
loading = time.perf_counter() - start
dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
def noise(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
side = pixels // 8
if name.startswith("Aura"):
    inputs = dict(hidden_states=noise(1, 4, side, side), encoder_hidden_states=noise(1, text, 2048), timestep=torch.tensor([0.5], dtype=dtype))
else:
    n = (side // 2) ** 2
    inputs = dict(hidden_states=noise(1, n, 64), encoder_hidden_states=noise(1, text, 4096), pooled_projections=noise(1, 768), timestep=torch.tensor([0.5], dtype=dtype),
                  guidance=torch.tensor([3.5], dtype=dtype), img_ids=torch.zeros(n, 3), txt_ids=torch.zeros(text, 3))
print(json.dumps(loading), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    with torch.inference_mode():
        out = m(**inputs, return_dict=False)[0]
    took = time.perf_counter() - start
    print(json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, out.float().flatten()[:4096].tolist()]), flush=True)
"""


def make(shape: str, folder: Path) -> Path:
    """A folder of diffusers with random weights in bfloat16."""
    import diffusers
    import torch

    made = getattr(diffusers, SHAPES[shape]["class"])
    torch.manual_seed(1)
    with torch.device("meta"):
        model = made(**SHAPES[shape]["config"])
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for name, p in model.named_parameters():
        one = p.ndim == 1 and name.endswith("weight")
        p.data.normal_(1.0 if one else 0.0, 0.02 if p.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    return folder


def turns(gguf: Path, folder: Path, name: str, pixels: int, threads: int, rounds: int) -> dict[str, list[float]]:
    """Of each kind: seconds to load, median seconds a step, MiB, relative error to float32."""
    workers = {
        title: subprocess.Popen([sys.executable, "-c", WORKER, kind, str(gguf), str(folder), name, str(pixels), str(TEXT), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for title, kind in KINDS.items()
    }  # fmt: skip
    try:
        loading = {title: json.loads(w.stdout.readline()) for title, w in workers.items()}
        times: dict[str, list[float]] = {title: [] for title in workers}
        peak, out = {}, {}
        for r in range(rounds + 1):
            for title, w in workers.items():
                w.stdin.write("\n")
                w.stdin.flush()
                took, peak[title], out[title] = json.loads(w.stdout.readline())
                if r:  # the first one is to warm up
                    times[title].append(took)
    finally:
        for w in workers.values():
            w.kill()
    truth = out["diffusers, float32"]
    norm = sum(t * t for t in truth) ** 0.5
    off = {title: sum((a - t) ** 2 for a, t in zip(o, truth, strict=True)) ** 0.5 / norm for title, o in out.items()}
    return {title: [loading[title], median(times[title]), peak[title], off[title]] for title in workers}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="aura,flux")
    parser.add_argument("--types", default="Q4_K_M,Q8_0")
    parser.add_argument("--pixels", default="256,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default="")
    parser.add_argument("--dry", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    from qtransformers.convert import convert

    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(args.folder or temporary)
        for shape in args.shapes.split(","):
            folder = where / shape
            if not (folder / "config.json").exists():
                make(shape, folder)
            for type in args.types.split(","):
                gguf = where / f"{shape}-{type}.gguf"
                if not gguf.exists():
                    convert(folder, gguf, type)
                for pixels in map(int, args.pixels.split(",")):
                    found = turns(gguf, folder, SHAPES[shape]["class"], pixels, args.threads, args.rounds)
                    theirs = found["diffusers' GGUF"][1]
                    lines += [
                        f"{shape}, {type}, {gguf.stat().st_size / 2**20:,.0f} MiB; {pixels} pixels a side, {(pixels // 16) ** 2} + {TEXT} tokens",
                        "",
                    ]
                    rows = [
                        [title, f"{load:.1f}", f"{step:.2f}", f"{theirs / step:.2f}", f"{peak:,.0f}", f"{off:.4f}"]
                        for title, (load, step, peak, off) in found.items()
                    ]
                    head = ["", "loading, s", "step, s", "times diffusers' GGUF", "peak RSS, MiB", "error to float32"]
                    lines += [results.table(head, rows), ""]
                    print("\n".join(lines[-4:]), file=sys.stderr, flush=True)
    body = (
        f"Random weights of the real widths, few layers, {args.threads} threads; medians of {args.rounds} rounds in turns. RSS counts pages of the file.\n\n"
        + "\n".join(lines)
    )
    if args.dry:
        print(body)
    else:
        results.publish(__file__, "A step of a diffusion transformer", body)


if __name__ == "__main__":
    main()
