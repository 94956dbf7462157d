"""Every architecture on torch tensors: the logits that the CPU's kernels give."""

import gc
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("triton")
import torch
from torch.overrides import TorchFunctionMode

import interpreter  # noqa: F401
from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from cards import cards
from qtransformers import Model, machine
from qtransformers.cache import Batch
from qtransformers.errors import InsufficientMemoryError
from qtransformers.generate.device import forward_of
from qtransformers.kernels import cpu
from qtransformers.kernels.triton.device import torch_device
from qtransformers.kernels.triton.weights import Weight
from qtransformers.load.adapters import Adapter
from qtransformers.load.place import place
from qtransformers.load.placement import parts_of, placed
from qtransformers.nn.adapted import Update

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


def test_experts_and_a_layer_on_the_cpu(tmp_path):
    """What is in main memory is computed by the CPU's kernels, and the rest does not notice."""
    name, case = "qwen2moe", CASES["qwen2moe"]
    ours = Ours.load(gguf(reference(case, name), tmp_path, name, case), case)
    ids = prompt(LENGTH)
    at = {
        part: "cpu" if part[0] in ("experts", "embed") or part[1] == 1 else "cuda:0"
        for part in parts_of(ours.loaded.plan)
    }
    hybrid = on_a_card(ours.loaded, at)
    assert not hybrid.plan.only_on("cuda:0") and hybrid.plan.cache_devices == ("cuda:0", "cpu", "cuda:0")
    assert isinstance(hybrid.weights.layers[0].ffn_up_exps, cpu.Experts) and isinstance(
        hybrid.weights.layers[1].attn_q, cpu.Weight
    )
    assert isinstance(hybrid.weights.layers[0].attn_q, Weight) and hybrid.weights.layers[
        1
    ].attn_norm.device == torch_device("cuda:0")
    assert error(logits(hybrid, ids), ours.logits(ids)) < TOLERANCE


def test_layers_of_two_cards_and_the_cpu(tmp_path, monkeypatch):
    """Each layer is computed where it is, over its own pages; activations cross, weights and pages do not."""
    name, case = "qwen2moe", CASES["qwen2moe"]
    ours = Ours.load(gguf(reference(case, name), tmp_path, name, case), case)
    ids = prompt(LENGTH)
    expected = ours.logits(ids)
    at = {part: ("cuda:0", "cuda:1", "cpu")[part[1] or 0] for part in parts_of(ours.loaded.plan)}
    at["experts", 0] = "cpu"
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    with cards(monkeypatch) as seen:
        model = on_a_card(ours.loaded, at)
        assert model.plan.devices == ("cuda:0", "cuda:1") and model.plan.cache_devices == ("cuda:0", "cuda:1", "cpu")
        assert model.weights.layers[1].attn_q.data.device == second
        forward, cache = forward_of(model), model.new_cache(256)
        assert [getattr(pages, "device", None) for pages in cache.pages[:2]] == [first, second]
        pages, found = cache.take(1), []
        sent = dict(seen.crossed)
        for start, part in ((0, ids[:FIRST]), (FIRST, ids[FIRST:])):
            found.append(np.asarray(forward(Batch.single(part, start, pages, outputs=None), cache)))
    assert error(np.concatenate(found), expected) < TOLERANCE
    assert seen.launched[first] > 20 and seen.launched[second] > 10
    assert sent[None, second] and seen.crossed[first, second] >= 10 and seen.crossed[second, first] >= 10


class Full(TorchFunctionMode):
    """A device that is full when it is asked for memory the n-th time."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.empty, torch.empty_like):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\nMore of it.")
        return func(*args, **(kwargs or {}))


def test_memory_that_runs_out_in_a_forward_is_told_and_given_back(tmp_path):
    name, case = "llama-llama3", CASES["llama-llama3"]
    ours = Ours.load(gguf(reference(case, name), tmp_path, name, case), case)
    model = on_a_card(ours.loaded)
    forward, cache = forward_of(model), model.new_cache(256)
    batch = Batch.single(prompt(1), 0, cache.take(1), outputs=None)
    forward(batch, cache)  # codebooks and frequencies come to stay
    gc.collect()
    before = tensors()
    for n in (1, 5, 19):
        with pytest.raises(InsufficientMemoryError, match=r"cuda:0: memory ran out in a forward of 1 tokens.*cuda:0: \d.* of weights.* of temporaries\. .*Tried to allocate 2.00 MiB\. Lower") as told, Full(n):  # fmt: skip
            forward(batch, cache)
        assert told.value.__context__ is None and tensors() == before, n
    assert error(np.asarray(forward(batch, cache)), ours.logits(prompt(1))) < TOLERANCE


def tensors():
    """How many there are."""
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def test_answers(tmp_path, monkeypatch):
    """The whole engine over a card: answers side by side, drawn, guided, looked at, with an adapter."""
    case = CASES["qwen2"]
    path = gguf(reference(case, "qwen2"), tmp_path, "qwen2", case)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 64), np.float32), rng.standard_normal((64, 4), np.float32)

    def answers(placement):
        with Model.load(path, placement=placement, cache="f32", accuracy="exact", context_length=64) as model:
            update = Update.of(a, b, "blk.0.attn_q")
            adapter = Adapter(path, model.hparams, {(0, "attn_q"): update})
            asked = (
                {"temperature": 0, "logprobs": 2, "lora": adapter},
                {"temperature": 0.9, "top_k": 20, "seed": 1, "regex": "[a-f]+"},
                {"temperature": 0},
            )
            streams = [model.stream([5, 6, 7], add_bos=False, max_tokens=2, **options) for options in asked]
            for stream in streams:
                stream.start(run_ahead=9)
            return model.plan.devices, [stream.read() for stream in streams]

    _, expected = answers("cpu")
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a card", 8 << 30, 8 << 30, (9, 0))])
    devices, found = answers("auto")
    assert devices == ("cuda:0",) and [f.tokens for f in found] == [e.tokens for e in expected]
    assert found[0].tokens != found[2].tokens, "the adapter changes nothing"
    for mine, theirs in zip(found[0].logprobs, expected[0].logprobs, strict=True):
        assert abs(mine.logprob - theirs.logprob) < 1e-3


def on_a_card(loaded, table=None):
    """The model with all weights and its cache on a device, or where `table` says."""
    plan = placed(loaded.plan, table or dict.fromkeys(parts_of(loaded.plan), "cuda:0"))
    assert table or plan.only_on("cuda:0")
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
