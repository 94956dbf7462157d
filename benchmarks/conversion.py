"""Memory of conversions, of a checkpoint with the shapes of a 70B model, few layers and random weights in F16.

python benchmarks/conversion.py FOLDER [LAYERS] [TYPE...]      (FOLDER: room for the model and its conversion, made when missing)
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from results import publish, table

N_EMBD, N_FF, VOCAB, KV = 8192, 28672, 128256, 1024
DEMO = Path(__file__).parent.parent / "tests" / "data" / "demo_model"
RUN = """
import resource, sys
from pathlib import Path
from qtransformers.convert import plan_conversion, write
plan = plan_conversion(sys.argv[1], sys.argv[2])
write(plan, Path(sys.argv[3]), overwrite=True)
print(plan.nbytes, plan.n_parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def shapes(n_layers):
    found = {"model.embed_tokens": (VOCAB, N_EMBD), "lm_head": (VOCAB, N_EMBD), "model.norm": (N_EMBD,)}
    for i in range(n_layers):
        layer = {
            "input_layernorm": (N_EMBD,), "post_attention_layernorm": (N_EMBD,), "self_attn.q_proj": (N_EMBD, N_EMBD),
            "self_attn.k_proj": (KV, N_EMBD), "self_attn.v_proj": (KV, N_EMBD), "self_attn.o_proj": (N_EMBD, N_EMBD),
            "mlp.gate_proj": (N_FF, N_EMBD), "mlp.up_proj": (N_FF, N_EMBD), "mlp.down_proj": (N_EMBD, N_FF),
        }  # fmt: skip
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in found.items()}


def make(folder, n_layers):
    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / file, folder)
    config = {
        "model_type": "llama", "hidden_size": N_EMBD, "intermediate_size": N_FF, "num_hidden_layers": n_layers, "num_attention_heads": 64,
        "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "vocab_size": VOCAB, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    at, header = 0, {}
    for name, shape in shapes(n_layers).items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at := at + 2 * math.prod(shape)]}
    raw = json.dumps(header).encode()
    part = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(np.float16).tobytes()
    with (folder / "model.safetensors").open("wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        while at > 0:
            f.write(part[:at])
            at -= len(part)


def main():
    folder = Path(sys.argv[1])
    n_layers = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    types = sys.argv[3:] or ["Q8_0", "Q4_K_M"]
    model = folder / f"model-{n_layers}"
    if not model.exists():
        make(model, n_layers)
    size = (model / "model.safetensors").stat().st_size
    rows = []
    for type_ in types:
        words = [sys.executable, "-c", RUN, str(model), type_, str(folder / "out.gguf")]
        nbytes, n, peak = map(float, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
        rows.append((type_, f"{nbytes / 1e9:.2f} GB", f"{8 * nbytes / n:.2f}", f"{peak / 1e9:.2f} GB"))
    (folder / "out.gguf").unlink()
    head = ("to", "weights", "bits per weight", "peak memory")
    publish(
        __file__,
        "Conversion",
        f"From {size / 1e9:.2f} GB of F16, {n_layers} layer{'s' * (n_layers > 1)} of the shapes of a 70B model.\n\n{table(head, rows)}",
    )


if __name__ == "__main__":
    main()
