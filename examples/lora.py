"""One model, two voices: answers with and without a LoRA adapter, computed side by side.

usage: lora.py [FILE ADAPTER]      without them the demo model, and an adapter made up on the spot
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from qtransformers import Model
from qtransformers.gguf import GGUFWriter


def made_up(model: Model, path: Path, rank: int = 4) -> Path:
    """An adapter of the first layer's output projection, at random."""
    rng, n = np.random.default_rng(0), model.hparams["n_embd"]
    factors = {"lora_a": rng.standard_normal((rank, n)), "lora_b": rng.standard_normal((n, rank)) / 8}
    facts = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": "llama",
        "adapter.lora.alpha": np.float32(rank),
    }
    with GGUFWriter(
        path, facts, [(f"blk.0.attn_output.weight.{name}", x.shape, "F32") for name, x in factors.items()]
    ) as file:
        for name, x in factors.items():
            file.write(f"blk.0.attn_output.weight.{name}", x.astype(np.float32))
    return path


with (
    Model.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo") as model,
    tempfile.TemporaryDirectory() as folder,
):
    adapter = model.load_lora(sys.argv[2] if len(sys.argv) > 2 else made_up(model, Path(folder) / "adapter.gguf"))
    ask = [{"role": "user", "content": "Tell me a story about a brave fox."}]
    answers = {
        scale: model.chat(ask, stream=True, temperature=0, lora=[(adapter, scale)]) for scale in (0.0, 0.05, 0.1)
    }
    for stream in answers.values():
        stream.start()
    for scale, stream in answers.items():
        print(f"scale {scale}: {stream.read().text[:90]!r}")
