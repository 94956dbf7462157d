"""Keys and values in a file: what was computed once need not be computed again, not even by another process.

The file is a GGUF of `general.type` "session": token ids, what they were computed with, and a tensor of bytes for each page.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.hparams import Hyperparameters
from qtransformers.cache import PAGE_TOKENS, PagedCache
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.generate.engine import Engine
from qtransformers.generate.pages import SHORTEST_SHARE
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.kernels.kv import CODECS, encode_page

KEY = "qtransformers.session."
SAMPLE = 256  # bytes of a tensor, at either end, that tell one model from another


def fingerprint(file: GGUFFile, hparams: Hyperparameters) -> str:
    """What tells a model from another: hyperparameters as they took effect; of all tensors name, type, shape and some bytes."""
    facts = {name: value for name, value in hparams.values_.items() if name != "loaded_context"}
    if facts.get("rope_scaling") == "longrope":  # whose factors depend on it
        facts["is_long"] = hparams["loaded_context"] > hparams["rope_original"]
    mark = zlib.crc32(repr(sorted(facts.items())).encode())
    for name, tensor in file.tensors.items():
        mark = zlib.crc32(f"{name} {tensor.type.name} {tensor.shape}".encode(), mark)
        mark = zlib.crc32(tensor.data[-SAMPLE:].tobytes(), zlib.crc32(tensor.data[:SAMPLE].tobytes(), mark))
    return f"{len(file.tensors)}-{file.nbytes}-{mark:08x}"


def save(engine: Engine, path: Path, tokens: Sequence[int], model: str, overwrite: bool) -> int:
    """Write what the cache holds of `tokens`, as many of them from the first as it does; how many these are."""
    with engine.held(tokens) as (cache, numbers, n):
        _check_kind(cache)
        if not n:
            raise ConfigError(
                f"the cache can keep none of these {len(tokens)} tokens for later. Save more: at least {SHORTEST_SHARE}, or with deterministic=True {PAGE_TOKENS}."
            )
        shape = cache.page_shape
        marks = np.array([zlib.crc32(_page(cache, number).data) for number in numbers], np.uint32)
        facts = {
            "general.type": "session",
            KEY + "model": model,
            **{KEY + name: value for name, value in _layout(cache).items()},
            KEY + "tokens": np.array(tokens[:n], np.uint32),
            KEY + "checksums": marks,
        }
        names = [f"page.{i}" for i in range(len(numbers))]
        with GGUFWriter(path, facts, [(name, shape, "I8") for name in names], overwrite=overwrite) as file:
            for name, number in zip(names, numbers, strict=True):
                file.write(name, _page(cache, number))
    return n


def restore(engine: Engine, path: Path, model: str) -> tuple[int, ...]:
    """Put a saved session into the cache, for the next request that begins with its tokens; these tokens.

    LoadError where the file is of another model, cache type or version, or damaged; InsufficientMemoryError.
    """
    with GGUFFile(path) as file:
        facts = file.metadata
        if facts.get("general.type") != "session":
            raise LoadError(
                f"{path} is no saved session (general.type {facts.get('general.type')!r}). Save one with save_session."
            )
        with engine.held(()) as (cache, _, _):
            _check_kind(cache)
            expected = {"model": model, **_layout(cache)}
        for name, value in expected.items():
            if facts.get(KEY + name) != value:
                raise LoadError(
                    f"{path} was saved with {name} {facts.get(KEY + name)!r}; this model has {value!r}. "
                    "Load the model as it was when the session was saved, or compute the session again."
                )
        tokens, marks = (facts.get(KEY + name) for name in ("tokens", "checksums"))
        shape = cache.page_shape
        ids = _numbers(tokens, engine.n_tokens)
        checks = _numbers(marks, 1 << 32)
        if (
            ids is None
            or checks is None
            or not 0 < len(ids) <= engine.context_length
            or len(checks) != -(-len(ids) // PAGE_TOKENS)
        ):
            raise LoadError(
                f"{path}: its tokens or checksums are none that could have been saved. Save the session again."
            )

        def page(i: int) -> NDArray[np.uint8]:
            tensor = file.tensors.get(f"page.{i}")
            if (
                tensor is None
                or tensor.type.name != "I8"
                or tuple(tensor.shape) != shape
                or zlib.crc32(tensor.data.data) != checks[i]
            ):
                raise LoadError(f"{path}: page.{i} is missing or damaged. Save the session again.")
            return tensor.data.reshape(shape)

        engine.take_in(ids, page)
    return ids


def _page(cache: PagedCache, number: int) -> NDArray[np.uint8]:
    """A page of all layers as bytes."""
    return cache.read(number).reshape(-1)


def _layout(cache: PagedCache) -> dict[str, Any]:
    """The cache's geometry, and a mark of how this version lays out pages of its type."""
    n_layers, n_heads, head_bytes = cache.page_shape
    pattern = np.sin(np.arange(PAGE_TOKENS * 64, dtype=np.float32)).reshape(PAGE_TOKENS, 64)
    mark = 0
    for kind, is_key in zip(CODECS[cache.codec], (True, False), strict=True):
        mark = zlib.crc32(encode_page(pattern, kind, is_key).tobytes(), mark)
    return {
        "cache": cache.codec,
        "layers": n_layers,
        "heads": n_heads,
        "head_bytes": head_bytes,
        "layout": f"{mark:08x}",
    }


def _check_kind(cache: PagedCache) -> None:
    if cache.states.nbytes:
        raise UnsupportedError(
            "this model has recurrent layers, whose state is not in pages: its sessions cannot be saved."
        )
    if not cache.n_pages:
        raise ConfigError("this model keeps nothing between texts: it has no sessions to save.")


def _numbers(values: Any, below: int) -> tuple[int, ...] | None:
    """Whole numbers from 0 to below `below`; None for anything else."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        return None
    if (
        array.ndim != 1
        or array.dtype.kind not in "iu"
        or (len(array) and not 0 <= int(array.min()) <= int(array.max()) < below)
    ):
        return None
    return tuple(array.tolist())
