"""What others' samplers leave of the same logits, for tests/sampling/test_goldens.py, in two steps:

    python tools/goldens_sampling.py llama tests/data/goldens/sampling.json          (with llama-cpp-python; made with 0.3.36)
    python tools/goldens_sampling.py transformers tests/data/goldens/sampling.json   (with the dev extra; made with 5.23.0)

Each replaces its own part of the file: ids and probabilities of what is left, by our names of the settings.
"""

import json
import sys
from pathlib import Path

import numpy as np

N = 300
HISTORY = [5, 9, 7, 3, 5, 9, 7, 3, 11, 12, 5, 9, 7, 200, 5, 9, 7]
CASES = [
    {"top_k": 20}, {"top_p": 0.9}, {"top_p": 0.5}, {"min_p": 0.05}, {"typical_p": 0.9}, {"typical_p": 0.3}, {"temperature": 0.7},
    {"top_k": 50, "top_p": 0.9, "temperature": 0.6}, {"repetition_penalty": 1.3}, {"top_k": 30, "repetition_penalty": 1.1, "temperature": 1.4},
]  # fmt: skip
LLAMA = [
    {"top_n_sigma": 1.0}, {"top_n_sigma": 2.5, "temperature": 1.5}, {"xtc_probability": 1.0, "xtc_threshold": 0.03},
    {"top_k": 40, "typical_p": 0.8, "top_p": 0.9, "min_p": 0.02, "xtc_probability": 1.0, "xtc_threshold": 0.05, "temperature": 0.8},
    {"dynatemp_range": 0.5}, {"temperature": 0.8, "dynatemp_range": 0.7, "dynatemp_exponent": 2.0, "top_k": 60},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3}, {"frequency_penalty": -0.5, "penalty_range": 6},
    {"dry_multiplier": 0.8}, {"dry_multiplier": 0.5, "dry_base": 1.2, "dry_allowed_length": 3}, {"dry_multiplier": 1.0, "dry_range": 9},
    {"logit_bias": [[3, 5.0], [200, -2.5]]}, {"repetition_penalty": 1.1, "dry_multiplier": 0.8, "top_k": 30, "min_p": 0.01, "temperature": 1.2},
]  # fmt: skip


def logits() -> np.ndarray:
    """Normal ones with a deviation of 3."""
    return (np.random.default_rng(20).standard_normal(N) * 3).astype(np.float32)


def by_llama(x: np.ndarray, s: dict) -> np.ndarray:
    import llama_cpp as l

    chain = [l.llama_sampler_init_logit_bias(N, len(s["logit_bias"]), (l.llama_logit_bias * len(s["logit_bias"]))(*map(tuple, s["logit_bias"])))] if "logit_bias" in s else []  # fmt: skip
    penalties = [s.get("repetition_penalty", 1.0), s.get("frequency_penalty", 0.0), s.get("presence_penalty", 0.0)]
    if penalties != [1.0, 0.0, 0.0]:
        chain.append(l.llama_sampler_init_penalties(N, s.get("penalty_range", len(HISTORY)), *penalties))
    if "dry_multiplier" in s:
        chain.append(l.llama_sampler_init_dry(None, s["dry_multiplier"], s.get("dry_base", 1.75), s.get("dry_allowed_length", 2), s.get("dry_range", len(HISTORY)), None, 0))  # fmt: skip
    stages = {
        "top_n_sigma": l.llama_sampler_init_top_n_sigma, "top_k": l.llama_sampler_init_top_k, "typical_p": lambda p: l.llama_sampler_init_typical(p, 1),
        "top_p": lambda p: l.llama_sampler_init_top_p(p, 1), "min_p": lambda p: l.llama_sampler_init_min_p(p, 1),
        "xtc_threshold": lambda t: l.llama_sampler_init_xtc(s["xtc_probability"], t, 1, 1),
    }  # fmt: skip
    chain += [make(s[name]) for name, make in stages.items() if name in s]
    t = s.get("temperature", 1.0)
    chain.append(l.llama_sampler_init_temp_ext(t, s.get("dynatemp_range", 0.0), s.get("dynatemp_exponent", 1.0)))
    data = (l.llama_token_data * N)(*((i, float(v), 0.0) for i, v in enumerate(x)))
    array = l.llama_token_data_array(data, N, -1, False)
    for sampler in chain:
        for token in HISTORY:
            l.llama_sampler_accept(sampler, token)
        l.llama_sampler_apply(sampler, array)
    left = np.full(N, -np.inf)
    for i in range(array.size):
        left[array.data[i].id] = array.data[i].logit
    return left


def by_transformers(x: np.ndarray, s: dict) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as t

    makers = {
        "repetition_penalty": t.RepetitionPenaltyLogitsProcessor, "top_k": t.TopKLogitsWarper, "typical_p": t.TypicalLogitsWarper,
        "top_p": t.TopPLogitsWarper, "min_p": t.MinPLogitsWarper, "temperature": t.TemperatureLogitsWarper,
    }  # fmt: skip
    ids, scores = torch.tensor([HISTORY]), torch.from_numpy(x)[None]
    for name, make in makers.items():
        if name in s:
            scores = make(s[name])(ids, scores)
    return scores[0].double().numpy()


def main() -> None:
    by, path = sys.argv[1], Path(sys.argv[2])
    x = logits()
    told = json.loads(path.read_text()) if path.exists() else {}
    told |= {"logits": [float(v) for v in x], "history": HISTORY}
    told[by] = []
    for s in CASES + (LLAMA if by == "llama" else []):
        left = {"llama": by_llama, "transformers": by_transformers}[by](x, s)
        ids = np.flatnonzero(left > -np.inf)
        p = np.exp(left[ids] - left[ids].max())
        told[by].append({"settings": s, "ids": ids.tolist(), "p": [float(f"{v:.7g}") for v in p / p.sum()]})
    path.write_text(json.dumps(told).replace('{"settings"', '\n{"settings"') + "\n")


if __name__ == "__main__":
    main()
