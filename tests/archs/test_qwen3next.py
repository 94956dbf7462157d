"""Qwen3-Next beyond its logits: states of several texts, memory, hyperparameters that cannot be."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from archs.cases import CASES
from archs.models import error, gguf, prompt, reference
from qtransformers.cache import Batch
from qtransformers.errors import LoadError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.load import load
from qtransformers.load.fit import Budget, fit
from qtransformers.load.placement import placed, resolve
from qtransformers.load.plan import PARALLEL
from qtransformers.model import Model

CASE = CASES["qwen3next"]


@pytest.fixture(scope="module")
def theirs():
    return reference(CASE, "qwen3next")


@pytest.fixture(scope="module")
def path(theirs, tmp_path_factory):
    return gguf(theirs, tmp_path_factory.mktemp("qwen3next"), "qwen3next", CASE)


def test_texts_of_a_batch_keep_their_own_states(path, theirs):
    m = load(path, cache="f32", accuracy="exact")
    cache = m.new_cache(1024)
    texts = [prompt(n)[-n:] for n in (40, 90, 1)]
    texts[1] = texts[1][::-1]
    pages = [cache.take(1) for _ in texts]
    found = [[] for _ in texts]
    for past, end in ((0, 1), (1, 30), (30, 90)):
        parts = [(i, t[past:end]) for i, t in enumerate(texts) if t[past:end]]
        batch = Batch.join([Batch.single(part, past, pages[i], outputs=None) for i, part in parts])
        y = m.spec.forward(m.weights, m.hparams, batch, cache)
        for s, (i, _) in enumerate(parts):
            found[i].append(y[batch.starts[s] : batch.starts[s + 1]])
    for text, rows in zip(texts, found, strict=True):
        with torch.inference_mode():
            expected = theirs(torch.tensor([text]), use_cache=False).logits[0].numpy()
        assert error(np.concatenate(rows), expected) < 1e-3


def test_streams_side_by_side_and_one_after_another(path):
    with Model.load(path, accuracy="exact") as model:
        prompts = [prompt(20), prompt(33)[::-1]]
        alone = [model.generate(p, max_tokens=12, temperature=0).tokens for p in prompts]
        streams = [model.stream(p, max_tokens=12, temperature=0) for p in prompts]
        for _ in range(4):
            for s in streams:
                next(s)
        assert [tuple(s.read().tokens) for s in streams] == alone
        assert len(model._engine._use().cache.states) == 0


def test_only_layers_with_attention_have_keys_and_values(path):
    m = load(path, cache="f16")
    assert m.plan.cache_shape.n_layers == 2 and m.new_cache().pages.shape[0] == 2
    assert m.plan.cache_bytes == m.new_cache().nbytes
    n_linear, channels, heads, dim = 4, 2 * 2 * 16 + 4 * 16, 4, 16
    assert m.new_cache().states.nbytes == 4 * n_linear * (3 * channels + heads * dim * dim)
    assert m.plan.states_bytes == PARALLEL * m.new_cache().states.nbytes


def test_layers_are_placed_with_what_they_keep(path):
    plan = load(path, cache="f16").plan
    budget = Budget(1 << 40, 1 << 40, {"cuda:0": 1 << 34})
    table = resolve(plan, "cpu,attn[0-2]=cuda:0", budget)  # of layers 2 and 5, with attention, one
    found = fit(placed(plan, table), budget)
    host, gpu = found.needs
    assert gpu.cache == host.cache == plan.cache_bytes // 2 > 0
    assert (gpu.states, host.states) == (plan.states_bytes // 2, plan.states_bytes // 2) and host.states > 0
    kept = [plan.kept(i) for i in range(6)]
    assert kept[2] == kept[5] == plan.cache_bytes // 2 and kept[0] == kept[4] == plan.states_bytes // 4
    assert fit(plan, Budget(1 << 40)).needs[0].model == plan.total_bytes + plan.program_bytes


@pytest.mark.parametrize("key, value, message", [
    ("ssm.inner_size", 65, "ssm.inner_size is 65; expected ssm.time_step_rank times ssm.state_size, 64"),
    ("ssm.group_count", 3, "ssm.time_step_rank is 4, no multiple of ssm.group_count, 3"),
    ("ssm.group_count", 0, "ssm.group_count is 0"),
    ("ssm.conv_kernel", 1, "ssm.conv_kernel is 1"),
    ("ssm.state_size", 2**31, "ssm.state_size"),
    ("full_attention_interval", 0, "full_attention_interval is 0"),
    ("full_attention_interval", 2, "is missing"),
    ("expert_count", 0, "expert_count is 0; expected at least 1"),
    ("expert_used_count", 9, "expert_used_count is 9; expected 1 to expert_count, 8"),
    ("rope.dimension_count", 17, "rope.dimension_count is 17"),
])  # fmt: skip
def test_hostile_metadata(path, tmp_path, key, value, message):
    with GGUFFile(path) as file:
        tensors = file.tensors.values()
        changed = {**file.metadata, f"qwen3next.{key}": np.uint32(value)}
        with GGUFWriter(tmp_path / "m.gguf", changed, [(t.name, t.shape, "F32") for t in tensors]) as writer:
            for t in tensors:
                writer.write(t.name, t.dequantize())
    with pytest.raises(LoadError, match=message.replace("(", r"\(")):
        load(tmp_path / "m.gguf")
