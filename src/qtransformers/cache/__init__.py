"""The batch of a forward pass and the paged key-value cache it reads and writes."""

from qtransformers.cache.batch import Batch
from qtransformers.cache.pages import PagedCache
from qtransformers.cache.states import States
from qtransformers.kernels.kv import CODECS, PAGE_TOKENS, bytes_per_token

__all__ = ["CODECS", "PAGE_TOKENS", "Batch", "PagedCache", "States", "bytes_per_token"]
