"""What a forward takes on a GPU beside weights and cache: the plan's number holds what tensors take, and is not far above it."""

import importlib.util
import weakref
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from qtransformers.kernels.staging import WORKSPACES
from qtransformers.kernels.triton import multiply
from qtransformers.load.footprint import KEPT_BYTES, Product, device_temporaries
from qtransformers.types import BY_NAME


class Counted(TorchDispatchMode):
    """Bytes of the tensors that are made while it is entered: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, torch.Tensor)}  # of which views may be made
        for x in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(x, torch.Tensor) and (storage := x.untyped_storage())._cdata not in self.seen | given:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, key, n):
        self.seen.discard(key)
        self.now -= n


@pytest.fixture
def step(monkeypatch):
    """The forwards that are compiled ahead of time, on torch's meta device: kernels and the vendor's products compute nothing."""
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(multiply, "_multiplied", lambda x, w, bias, result: x.new_empty((len(x), len(w)), dtype=result))
    spec = importlib.util.spec_from_file_location("step", Path(__file__).with_name("ahead_step.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tokens", [32, 512, 2048])
def test_a_prompt_takes_what_the_plan_says(step, tokens):
    """Of the shapes of a Llama 3 8B, whose weights and cache were there before."""
    h = step.SIZES
    spec, h_ = step.spec_of("llama", ""), step.Hyperparameters(h)
    weights, batch = step.weights(spec, h_), step.batch(tokens, 1)
    pages = torch.empty(1, 8, 8, step.kv.head_bytes("f16", 128, 128), dtype=torch.uint8, device="meta")
    cache = step.PagedCache(pages, "f16", [], head_dims=(128, 128))
    with Counted() as counted:
        spec.forward(weights, h_, batch, cache)
    d, ff, kv = h["n_embd"], h["n_ff"], h["n_kv_heads"] * h["head_dim"]
    shapes = {"attn": [(d, d), (kv, d), (kv, d), (d, d)], "dense_ffn": [(ff, d), (ff, d), (d, ff)]}
    products = [Product(role, 0, BY_NAME["Q4_K"], *shape) for role, found in shapes.items() for shape in found]
    planned = device_temporaries(d, h["vocab_size"], products, tokens, 1, "fast") - WORKSPACES
    parts = 8 << 20  # in which products of few tokens are cut, where there are too few rows for a whole card
    assert counted.most <= planned <= 1.1 * counted.most + KEPT_BYTES + parts
