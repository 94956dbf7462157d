"""The batch of a forward pass and the paged key-value cache it reads and writes."""

from qtransformers.cache.batch import Batch
from qtransformers.cache.pages import PAGE_TOKENS, PagedCache

__all__ = ["PAGE_TOKENS", "Batch", "PagedCache"]
