"""Golden logits of llama.cpp for tests/archs/test_llama.py: tokens, a few rows of logits, nothing else.

Needs llama-cpp-python (made with 0.3.36); the second file is the reference data's:
    python tools/goldens_llama.py tests/data/demo-Q8_0.gguf stories260K-f32.gguf tests/data/goldens/llama.npz
Keys and values in f32, one thread, no flash attention. The tokens are a prompt and what llama.cpp greedily adds to it.
"""

import sys

import llama_cpp
import numpy as np

PROMPTS = {
    "demo": b"<|user|>\nTell me a story about a brave fox.<|end|>\n<|assistant|>\n",
    "stories": b"Once upon a time, there was a little",
}
N_NEW = {"demo": 120, "stories": 110}  # the second was trained for 128 tokens
N_ROWS = 8
GGML_F32 = 0


def golden(name: str, path: str) -> dict[str, np.ndarray]:
    model = llama_cpp.Llama(
        path, n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, flash_attn=False,
        type_k=GGML_F32, type_v=GGML_F32, verbose=False,
    )  # fmt: skip
    tokens = model.tokenize(PROMPTS[name], add_bos=name == "stories", special=True)
    n_prompt = len(tokens)
    model.eval(tokens)
    while len(tokens) < n_prompt + N_NEW[name]:
        tokens.append(int(np.argmax(model.scores[len(tokens) - 1])))
        model.eval(tokens[-1:])
    rows = np.linspace(0, len(tokens) - 1, N_ROWS).astype(np.int32)
    return {
        f"{name}_tokens": np.array(tokens, np.int32),
        f"{name}_prompt": np.array(n_prompt, np.int32),
        f"{name}_rows": rows,
        f"{name}_logits": model.scores[rows].astype(np.float32),
    }


def main() -> None:
    demo, stories, output = sys.argv[1:]
    np.savez_compressed(output, **golden("demo", demo), **golden("stories", stories))


if __name__ == "__main__":
    main()
