"""A tokenizer's vocabulary as llguidance wants it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from qtransformers.errors import UnsupportedError

if TYPE_CHECKING:
    from qtransformers.load.tokenizer import Tokenizer

COMPILER_STACK = 256 << 20  # bytes: llguidance recurses along chains of rules and references
MAX_WORKERS = 4  # threads that compute masks beside the forward


class Vocabulary:
    """A tokenizer as llguidance wants it, and the threads that work with it."""

    is_tokenizer_wrapper = True  # how llguidance knows what it is given

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.n_tokens = tokenizer.n_tokens
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.n_tokens)]
        self.eos_ids = tokenizer.eos_ids
        self.eos_token_id = min(tokenizer.eos_ids, default=None)
        self.bos_token_id = tokenizer.bos_id
        self.special = tokenizer.special_ids | tokenizer.unused_ids | tokenizer.eos_ids
        self.special_token_ids = sorted(self.special)
        # It keeps what it is given, and Python cannot look into it: given this itself, neither would ever be freed.
        self.native = llguidance().LLTokenizer(copy(self), eos_token=sorted(tokenizer.eos_ids) or None)
        self.process = os.getpid()
        self.workers = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="grammar")
        self.compiler = ThreadPoolExecutor(1, thread_name_prefix="grammar-compiler")
        usual = threading.stack_size(COMPILER_STACK)
        try:
            self.compiler.submit(int).result()  # its thread begins here
        finally:
            threading.stack_size(usual)

    def __call__(self, s: str) -> list[int]:
        """The tokens of a text that goes on after another: without what a tokenizer puts before a first word."""
        data = s.encode()
        for before in ("", "\n", "\x02"):
            ids = self._tokenizer.encode(before + s, add_bos=False)
            ends = np.cumsum([0, *(len(self.tokens[i]) for i in ids)])
            cut = np.flatnonzero(ends == ends[-1] - len(data))
            if len(cut) and b"".join(self.tokens[i] for i in ids[cut[-1] :]) == data:
                return ids[cut[-1] :]
        return []


def llguidance() -> Any:
    """The package; UnsupportedError where it is not installed."""
    try:
        import llguidance
    except ImportError as e:
        raise UnsupportedError(f"grammars need the package llguidance ({e}): pip install llguidance") from None
    return llguidance
