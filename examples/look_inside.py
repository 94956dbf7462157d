"""Log-probabilities of an answer, and a function of one's own between the model and the sampler.

usage: look_inside.py [FILE]
"""

import sys

import numpy as np

from qtransformers import Model

with Model.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    fox = model.tokenizer.encode(" fox", add_bos=False)[-1]

    def no_foxes(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[fox] = -np.inf
        return logits

    answer = model.generate(
        "Once upon a time there was a little", max_tokens=6, temperature=0, logprobs=3, hooks=[no_foxes]
    )
    for p in answer.logprobs:  # the model's own, before any hook
        likeliest = ", ".join(f"{model.tokenizer.decode([i])!r} {x:.2f}" for i, x in p.top)
        print(f"{model.tokenizer.decode([p.token])!r} {p.logprob:.2f}   likeliest: {likeliest}")
