"""Every architecture on torch tensors: the logits that the CPU's kernels give."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("triton")
import interpreter  # noqa: F401
from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from qtransformers.cache import Batch
from qtransformers.kernels.triton.device import torch_device
from qtransformers.load.place import place
from qtransformers.load.placement import parts_of, placed

TOLERANCE = 1e-3  # of logits, relative to the largest: keys meet queries in f32, sums are taken in another order
LENGTH, FIRST = 3, 2  # tokens, and how many of them in the first forward


# Cases that have all that forwards call; the interpreter is slow, and the others are for those who have time.
MOST = ("command-r-plus", "deepseek-v2", "deepseek-v3", "gemma2", "gpt-oss", "gpt2", "llama-llama3", "ministral3", "phi3-short", "qwen2moe", "qwen3next")  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in MOST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_logits_as_on_the_cpu(name, tmp_path):
    case = CASES[name]
    ours = Ours.load(gguf(reference(case, name), tmp_path, name, case), case)
    ids = prompt(LENGTH)
    expected = np.concatenate([ours.logits(ids[:FIRST]), ours.logits(ids)[FIRST:]])
    assert error(logits(on_a_card(ours.loaded), ids), expected) < TOLERANCE


def on_a_card(loaded):
    """The model with all weights and its cache on a device."""
    plan = placed(loaded.plan, dict.fromkeys(parts_of(loaded.plan), "cuda:0"))
    assert plan.only_on("cuda:0")
    weights = place(loaded.spec, plan, loaded.sources.gguf.tensors, loaded.hparams.n_layers, "exact")
    return replace(loaded, plan=plan, weights=weights)


def logits(model, ids):
    """Of every token, by two forwards."""
    cache = model.new_cache(256)
    pages = cache.take(1)
    outputs = []
    for first, part in ((0, ids[:FIRST]), (FIRST, ids[FIRST:])):
        with cache.states.placed(Batch.single(part, first, pages, outputs=None)) as batch:
            there = batch.on(torch_device("cuda:0"))
            outputs.append(model.spec.forward(model.weights, model.hparams, there, cache).cpu().numpy())
    return np.concatenate(outputs)
