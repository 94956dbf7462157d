"""Others on the same card, for `gpu_engine.py`: each in a process of its own, or the reason why it is not measured."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from card import Card, seconds

LLAMA_CPP = """
import sys, time, json
try:
    import llama_cpp
except ImportError as e:
    sys.exit(f"cannot be imported ({e}): pass --peer PYTHON")
path, prompt, tokens, card = sys.argv[1], *map(int, sys.argv[2:])
if card and not llama_cpp.llama_supports_gpu_offload():
    sys.exit("is built for the CPU alone: pass --peer PYTHON, of one with llama-cpp-python built for CUDA")
m = llama_cpp.Llama(path, n_gpu_layers=-1, n_ctx=prompt + 2 * tokens + 8, n_batch=max(prompt, 1), n_ubatch=max(prompt, 1), flash_attn=True, verbose=False)
def timed(ids):
    start = time.perf_counter()
    for part in ids:
        m.eval(part)
        llama_cpp.llama_get_logits(m.ctx)
    return time.perf_counter() - start
ids = list(range(3, 3 + prompt))
timed([ids]); m.reset()
read = timed([ids])
timed([[5]] * 2)
print(json.dumps([prompt / read, tokens / timed([[5]] * tokens)]))
"""
EXL2 = """
import sys, time, json
import torch
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config
folder, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:4])
m = ExLlamaV2(ExLlamaV2Config(folder))
cache = ExLlamaV2Cache(m, max_seq_len=prompt + 2 * tokens + 8, lazy=True)
m.load_autosplit(cache)
def timed(parts):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for part in parts:
        m.forward(torch.tensor([part]), cache).argmax(-1).cpu()
    return time.perf_counter() - start
ids = list(range(3, 3 + prompt))
with torch.inference_mode():
    timed([ids]); cache.current_seq_len = 0
    read = timed([ids])
    timed([[5]] * 2)
    print(json.dumps([prompt / read, tokens / timed([[5]] * tokens)]))
"""
Row = tuple[str, str, str]  # who, prompt and answer in tokens per second, or why not


def peers(
    card: Card, options, path: str, shapes: list[tuple[int, int, int]], prompt: int, tokens: int
) -> Iterator[Row]:
    """A row for each; `shapes` are (how many, out, in) of all matrices that a token is multiplied with."""
    yield _process("llama.cpp", [options.peer, "-c", LLAMA_CPP, path, prompt, tokens, int(card.real)])
    if find_spec("exllamav2") is None:
        yield "ExLlamaV2", "", "not measured: exllamav2 is not installed here"
    elif options.exl2 is None:
        yield "ExLlamaV2", "", "not measured: it reads no GGUF; pass --exl2 FOLDER"
    else:
        yield _process("ExLlamaV2", [sys.executable, "-c", EXL2, options.exl2, prompt, tokens])
    yield "products alone, cuBLAS bf16", "", f"{1 / sum(n * _plain(out, width, card) for n, out, width in shapes):.1f}"
    if find_spec("bitsandbytes") is None:
        yield "products alone, bitsandbytes NF4", "", "not measured: bitsandbytes is not installed here"
    else:
        yield (
            "products alone, bitsandbytes NF4",
            "",
            f"{1 / sum(n * _nf4(out, width, card) for n, out, width in shapes):.1f}",
        )


def _process(name: str, words: list) -> Row:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        return name, "", f"not measured: {(done.stderr.strip() or 'it failed').splitlines()[-1]}"
    prompt, answer = json.loads(done.stdout.splitlines()[-1])
    return name, f"{prompt:,.0f}", f"{answer:.1f}"


def _plain(out: int, width: int, card: Card) -> float:
    """Seconds of one token's product in bfloat16; copies take turns, so that the cache is of no help."""
    x = torch.randn(1, width, device=card.device).bfloat16()
    w = torch.randn(out, width, device=card.device).bfloat16()
    ws = [w, *(w.clone() for _ in range(min(16, (192 << 20) // w.nbytes) if card.real else 0))]
    return seconds([lambda w=w: x @ w.T for w in ws], repeats=2)


def _nf4(out: int, width: int, card: Card) -> float:
    import bitsandbytes

    x = torch.randn(1, width, device=card.device).half()
    layers = [
        bitsandbytes.nn.Linear4bit(width, out, bias=False, compute_dtype=torch.float16, quant_type="nf4").to(
            card.device
        )
        for _ in range(min(16, 1 + (384 << 20) // (out * width)))
    ]
    return seconds([lambda layer=layer: layer(x) for layer in layers], repeats=2)
