"""A forward that keeps its tokens in the cache's pages, and whose next token depends on all it finds there.

So an answer shows whether every page of a sequence holds what it should, whoever computed it.
"""

import numpy as np

from qtransformers.cache import PAGE_TOKENS, PagedCache
from qtransformers.generate import Engine, Request, Sequence, Stream
from qtransformers.sampling import Sampling

VOCAB = 200


class Ids:
    """Tokens are numbers with a space."""

    state = None

    def push(self, token):
        return f"{token} "

    def finish(self):
        return ""

    def restore(self, state):
        pass


class Remember:
    def __init__(self):
        self.batches = []
        self.computed = 0

    def __call__(self, batch, cache):
        self.batches.append(batch)
        self.computed += len(batch.tokens)
        logits = np.zeros((len(batch.output_rows), VOCAB), np.float32)
        slots = cache.pages[0, :, 0].view(np.int32)
        outputs = iter(range(len(batch.output_rows)))
        for s, (begin, end) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
            pages = batch.page_tables[s]
            for row in range(begin, end):
                page, slot = divmod(int(batch.positions[row]), PAGE_TOKENS)
                slots[pages[page], slot] = batch.tokens[row]
            for row in range(begin, end):
                if row in batch.output_rows:
                    n = int(batch.positions[row]) + 1
                    seen = slots[pages[: -(-n // PAGE_TOKENS)]][:, :PAGE_TOKENS].reshape(-1)[:n]
                    logits[next(outputs)] = scores(seen)
        return logits


def scores(tokens):
    """Logits after these tokens: any of them changes all."""
    state = int((tokens.astype(np.int64) * (np.arange(len(tokens)) * 2 + 1) % 1000003).sum())
    return np.random.default_rng(state).standard_normal(VOCAB).astype(np.float32)


def continuation(prompt, n):
    """What a greedy answer of `n` tokens is."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(scores(np.array(tokens)).argmax()))
    return tuple(tokens[len(prompt) :])


def engine(n_tokens=2048, context_length=2048, forward=None, **given):
    cache = PagedCache.allocate(1, 1, 4, 4, n_tokens, "f32")
    return Engine(
        forward or Remember(), cache, n_tokens=VOCAB, context_length=context_length, **{"prefill_chunk": 512, **given}
    )


def stream(e, prompt, max_tokens=20, run_ahead=64, **given):
    request = Request(tuple(prompt), max_tokens, **{"sampling": Sampling(temperature=0), **given})
    return Stream(e, Sequence(request, Ids(), VOCAB, run_ahead))


def forward_of(e):
    return e._use().forward


def random_prompt(seed, n):
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, n).tolist())
