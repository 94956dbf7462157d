"""Sequences over scattered pages, for the tests of attention."""

import numpy as np

from qtransformers.kernels import kv

PAGE = kv.PAGE_TOKENS


class PagedCase:
    """Random queries, keys and values of several sequences over scattered pages, `past` tokens of each stored before."""

    def __init__(self, lengths, past, heads, kv_heads, d, dv, codec="f32", window=0, scale=None, seed=0, softcap=0.0, sinks=None, causal=True):  # fmt: skip
        rng = np.random.default_rng(seed)
        total = np.add(past, lengths)
        used = [-(-int(n) // PAGE) for n in total]
        numbers = rng.permutation(sum(used) + 3)
        T, wide = sum(lengths), (3 * np.eye(1, d)[0] + 1).astype(np.float32)  # some scores large, most small
        self.q = rng.standard_normal((T, heads, d), np.float32) * wide
        self.k = rng.standard_normal((T, kv_heads, d), np.float32)
        self.v = rng.standard_normal((T, kv_heads, dv), np.float32)
        # What nobody stored is NaN, or a code with a scale of NaN: reading it would show.
        self.pages = np.full((len(numbers), kv_heads, kv.head_bytes(codec, d, dv)), 0xFF, np.uint8)
        self.tables = np.full((len(lengths), max(used) + 1), -1, np.int32)
        cut = kv.key_bytes(kv.CODECS[codec][0], d)
        for s, n in enumerate(used):
            self.tables[s, :n], numbers = numbers[:n], numbers[n:]
            for first in range(0, past[s], PAGE):
                slots = np.arange(min(PAGE, past[s] - first))
                for head in self.pages[self.tables[s, first // PAGE]]:
                    kv.store(
                        head[:cut], kv.CODECS[codec][0], True, slots, rng.standard_normal((len(slots), d), np.float32)
                    )
                    kv.store(head[cut:], kv.CODECS[codec][1], False, slots, rng.standard_normal((len(slots), dv), np.float32))  # fmt: skip
        self.positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, lengths, strict=True)]).astype(
            np.int32
        )
        self.starts = np.cumsum([0, *lengths]).astype(np.int32)
        self.codec, self.scale, self.window, self.softcap, self.causal = (
            codec,
            scale or d**-0.5,
            window,
            softcap,
            causal,
        )
        self.sinks = None if sinks is None else (rng.standard_normal(heads) * sinks).astype(np.float32)

    def run(self, attention, pages):
        return attention(
            self.q, self.k, self.v, pages, self.codec, self.positions, self.starts, self.tables, self.scale, self.window,
            self.softcap, self.sinks, self.causal,
        )  # fmt: skip
