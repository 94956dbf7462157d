"""Print what llama.cpp's logits say of the perplexity of tests/data/demo-Q8_0.gguf: the golden of tests/quantize/test_evaluate.py.

needs: pip install llama-cpp-python
"""

import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "demo_model"))


def text(n: int, seed: int = 1000) -> str:
    """`n` documents of the demo model's corpus."""
    from stories import documents

    made = documents(seed)
    return "".join(f"{user or ''}\n{answer}\n" for _, user, answer in (next(made) for _ in range(n)))


def main() -> None:
    llama = Llama(
        str(ROOT / "tests" / "data" / "demo-Q8_0.gguf"), n_ctx=512, n_batch=512, logits_all=True, verbose=False
    )
    ids = llama.tokenize(text(30).encode(), add_bos=True, special=False)
    total, count = 0.0, 0
    for i in range(len(ids) // 512):
        chunk = list(ids[512 * i : 512 * i + 512])
        if llama._model.add_bos_token():
            chunk[0] = llama.token_bos()
        llama.reset()
        llama.eval(chunk)
        scores = llama.scores[256:511].astype(np.float64)
        scores -= scores.max(1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        total -= log_p[np.arange(255), chunk[257:]].sum()
        count += 255
    print(len(ids), count, np.exp(total / count))


if __name__ == "__main__":
    main()
