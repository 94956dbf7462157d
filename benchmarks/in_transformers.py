"""A model of transformers with GGUF weights: prompts, decoding and memory beside our engine and the same class in bfloat16.

usage: in_transformers.py [--shape llama-1b] [--recipe Q4_K_M] [--threads 2] [--folder DIR] [--dry]

The class is driven by its own forward with its own cache; what is over the kernels is the class, and torch. Each runs in a process
of its own, twice with quantised weights: torch's threads wait by spinning, or (OMP_WAIT_POLICY=passive) by sleeping.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import results

PROMPT, GENERATED = 128, 16
WORKER = """
import sys, time, json, resource
path, folder, threads, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
n, new = int(sys.argv[5]), int(sys.argv[6])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
if kind == "engine":
    import numpy as np
    from qtransformers.cache import Batch
    from qtransformers.kernels.cpu import Pool
    from qtransformers.load import load
    m = load(path, context_length=512)
    cache = m.new_cache()
    pages = cache.take(2)
    def forward(tokens, past): m.spec.forward(m.weights, m.hparams, Batch.single(tokens, past, pages), cache)
    with Pool(threads):
        forward(np.arange(3, 3 + n, dtype=np.int32), 0)
        prompt = min(timed(lambda: forward(np.arange(3, 3 + n, dtype=np.int32), 0)) for _ in range(2))
        decode = min(timed(lambda: [forward([5], n + i) for i in range(new)]) for _ in range(2))
else:
    import torch
    from qtransformers.torch import dequantized, load_transformers
    torch.set_num_threads(threads)
    m = load_transformers(folder, path)
    if kind == "bfloat16":
        m = dequantized(m.bfloat16())
    tokens = torch.arange(3, 3 + n)[None]
    def decoded():
        cache = m(tokens, use_cache=True).past_key_values
        start = time.perf_counter()
        for i in range(new): m(torch.tensor([[5]]), past_key_values=cache, use_cache=True)
        return time.perf_counter() - start
    with torch.inference_mode():
        m(tokens)
        prompt = min(timed(lambda: m(tokens)) for _ in range(2))
        decode = min(decoded() for _ in range(2))
print(json.dumps([n / prompt, new / decode, peak()]))
"""
KINDS = {
    "our engine": ("engine", {}),
    "in transformers": ("quantised", {}),
    "in transformers, OMP_WAIT_POLICY=passive": ("quantised", {"OMP_WAIT_POLICY": "passive"}),
    "transformers, bfloat16": ("bfloat16", {}),
}


def config(path: Path) -> dict[str, object]:
    """The config.json of a model that benchmarks/models.py made."""
    from qtransformers.gguf import GGUFFile

    with GGUFFile(path) as file:
        said = {key.partition(".")[2]: file.metadata[key] for key in file.metadata if key.startswith("llama.")}
        rows, tied = file.tensors["token_embd.weight"].shape[0], "output.weight" not in file.tensors
    return {
        "model_type": "llama", "vocab_size": rows, "tie_word_embeddings": tied, "hidden_act": "silu",
        "hidden_size": said["embedding_length"], "intermediate_size": said["feed_forward_length"],
        "num_hidden_layers": said["block_count"], "num_attention_heads": said["attention.head_count"],
        "num_key_value_heads": said["attention.head_count_kv"], "max_position_embeddings": said["context_length"],
        "rms_norm_eps": said["attention.layer_norm_rms_epsilon"], "rope_theta": said.get("rope.freq_base", 10000.0),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-1b", choices=models.SHAPES)
    parser.add_argument("--recipe", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md as it is")
    args = parser.parse_args()
    path = models.at(args.folder, args.shape, args.recipe)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(path)))
        for title, (kind, environment) in KINDS.items():
            line = [
                sys.executable,
                "-c",
                WORKER,
                str(path),
                folder,
                str(args.threads),
                kind,
                str(PROMPT),
                str(GENERATED),
            ]
            done = subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, **environment})
            prompt, decode, peak = json.loads(done.stdout.splitlines()[-1])
            rows.append([title, f"{prompt:.0f}", f"{decode:.1f}", f"{peak:,.0f}"])
            print(rows[-1], file=sys.stderr, flush=True)
    table = results.table(["", "prompt, tokens/s", "decode, tokens/s", "peak RSS, MiB"], rows)
    body = (
        f"{args.shape}-{args.recipe}, random weights, {path.stat().st_size >> 20} MiB, {args.threads} threads, accuracy fast: a prompt of {PROMPT} tokens, "
        f"{GENERATED} after it, the better of two. RSS counts pages of the file.\n\n{table}"
    )
    title = f"GGUF weights in transformers, {args.shape}-{args.recipe}"
    if args.dry:
        print(body)
    else:
        results.publish(__file__, title, body)


if __name__ == "__main__":
    main()
