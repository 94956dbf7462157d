"""Tiny random models of every architecture: in transformers, in GGUF by our own converter, and as we load them."""

import contextlib
import dataclasses
import functools
import hashlib
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, trainers

from qtransformers.cache import Batch
from qtransformers.convert import convert
from qtransformers.kernels import cpu
from qtransformers.load import load
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

VOCAB = 288
DEFAULTS = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": VOCAB, "max_position_embeddings": 512, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Off:
    """How a feature is switched off: other hyperparameters, and weights replaced."""

    hparams: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    calls: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)  # of `nn`, in the family's file


@dataclasses.dataclass(frozen=True)
class Case:
    """A random model: its transformers classes by their common prefix, its config, and the features that must matter."""

    arch: str
    model: str
    config: Mapping[str, Any]
    features: Mapping[str, Off] = dataclasses.field(default_factory=dict)
    lengths: tuple[int, ...] = (5, 60, 150)
    context_length: int | None = None
    gains: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of weights whose name holds the key
    class_name: str = ""  # where it is not <model>ForCausalLM
    defaults: bool = True  # whether config.json has the usual words for sizes
    golden: bool = True  # False: llama.cpp leaves out what the case is about
    golden_tolerance: float = 1e-3
    type: str = "F32"


def none(weight):
    """Not there."""
    return None


def ones(weight):
    """A norm that only divides."""
    return np.ones_like(weight)


def zeros(weight):
    """Products with it are zero."""
    if isinstance(weight, np.ndarray):
        return np.zeros_like(weight)
    return cpu.bind(
        QTensor("zeros", BY_NAME["F32"], weight.tensor.shape, np.zeros(4 * weight.tensor.n_values, np.uint8), "zeros")
    )


def prompt(n: int) -> list[int]:
    """The same tokens for every model, any number of them."""
    return np.random.default_rng(7).integers(0, 256, n).tolist()


def reference(case: Case, name: str) -> Any:
    """The model in transformers, every parameter random and large enough to matter."""
    sizes = DEFAULTS if case.defaults else {key: DEFAULTS[key] for key in TOKENS}
    config = getattr(transformers, f"{case.model}Config")(**{**sizes, **case.config})
    model = getattr(transformers, case.class_name or f"{case.model}ForCausalLM")._from_config(
        config, attn_implementation="eager"
    )
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, p in (
            *model.named_parameters(),
            *((k, b) for k, b in model.named_buffers() if "bias" in k and b.is_floating_point()),
        ):
            p.copy_(torch.from_numpy(values(key, tuple(p.shape), rng, case)))
    return model.eval()


def values(key: str, shape: tuple[int, ...], rng: np.random.Generator, case: Case) -> np.ndarray:
    gain = next((g for part, g in case.gains.items() if part in key), 1.0)
    x = rng.standard_normal(shape).astype(np.float32)
    if "norm" in key.lower() or ".ln_" in key or key.startswith("ln_"):
        centre = 0.0 if key.endswith("bias") or "zero" in case.gains else 1.0
        return gain * (centre + 0.3 * x)
    if len(shape) < 2:
        return gain * 0.3 * x
    embedding = any(part in key for part in ("embed", "wte", "wpe"))
    return gain * x if embedding else gain * x * shape[-1] ** -0.5


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
    """A vocabulary of bytes and a few merges."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.decoder = decoders.ByteLevel()
    text = "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun while the fox runs on"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 4, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    t.train_from_iterator([text] * 10, trainer)
    t.add_special_tokens(["<s>", "</s>", "<unk>", "<|endoftext|>"])  # llama.cpp wants them of a phi3
    return t


def checkpoint(model: Any, folder: Path) -> Path:
    """The model as a folder of Hugging Face files, with a tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


def gguf(model: Any, folder: Path, name: str, case: Case) -> Path:
    """The model in a GGUF file of our own writing."""
    return convert(checkpoint(model, folder / name), folder / f"{name}.gguf", case.type)


@dataclasses.dataclass(frozen=True, eq=False)
class Ours:
    """A loaded model without its engine, so that features can be switched off."""

    loaded: Any

    @classmethod
    def load(cls, path: Path, case: Case) -> "Ours":
        return cls(load(path, cache="f32", accuracy="exact", context_length=case.context_length, logits_rows=512))

    def logits(self, ids: list[int], off: Off | None = None, chunk: int = 64) -> np.ndarray:
        """Logits of every token, or what an encoder gives, by forwards of `chunk` tokens."""
        h, w = self.loaded.hparams, self.loaded.weights
        if off is not None:
            unknown = set(off.hparams) - set(h)
            assert not unknown, unknown
            h = h.replaced(**off.hparams)
            w = switched(w, off.weights)
            family = sys.modules[self.loaded.spec.forward.__module__]
            with contextlib.ExitStack() as stack:
                for call, other in off.calls.items():
                    stack.enter_context(mock.patch.object(family, call, other))
                return self._logits(w, h, ids, chunk)
        return self._logits(w, h, ids, chunk)

    def _logits(self, w: Any, h: Any, ids: list[int], chunk: int) -> np.ndarray:
        cache = self.loaded.new_cache()
        pages = cache.take(-(-len(ids) // 256))
        parts = [ids[i : i + chunk] for i in range(0, len(ids), chunk)]
        outputs = [
            self.loaded.spec.forward(w, h, Batch.single(part, i * chunk, pages, outputs=None), cache)
            for i, part in enumerate(parts)
        ]
        return np.concatenate(outputs)


def switched(w: Any, changes: Mapping[str, Callable[[Any], Any]]) -> SimpleNamespace:
    """A copy of the weights, attributes of model and layers replaced; each must be there somewhere."""
    seen = set()

    def copy(space: Any) -> SimpleNamespace:
        fields = dict(vars(space))
        for attr, change in changes.items():
            if fields.get(attr) is not None:
                fields[attr] = change(fields[attr])
                seen.add(attr)
        return SimpleNamespace(**fields)

    new = copy(w)
    new.layers = tuple(copy(layer) for layer in w.layers)
    assert seen == set(changes), set(changes) - seen
    return new


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == expected.shape and np.isfinite(expected).all() and np.abs(expected).max() > 0.5
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def digest(path: Path) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
