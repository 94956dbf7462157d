"""Choosing the next token from logits.

Order, as llama.cpp's: top_k, top_p, min_p, temperature, draw. So the cuts are made on the model's own probabilities, and
temperature only shapes what is left of them. A temperature of 0 is greedy: the largest logit, ties to the smallest id.
"""

from qtransformers.sampling.sampler import Logprob, Sampler, logprobs
from qtransformers.sampling.settings import Sampling

__all__ = ["Logprob", "Sampler", "Sampling", "logprobs"]
