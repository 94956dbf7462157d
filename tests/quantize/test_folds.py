"""Folding in floats leaves what a model computes as it was, whatever the scales and the architecture."""

from types import SimpleNamespace

import numpy as np
import pytest

from archs import encoders
from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from qtransformers.cache import Batch
from qtransformers.kernels import cpu
from qtransformers.load import load
from qtransformers.quantize.folds import Folded, folds
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

# Folds a layer that are expected at least: norms, values of attention, feed-forward
FOLDS = {
    "mistral": {"attn_norm", "attn_v", "ffn_norm", "ffn_up"},
    "mixtral": {"attn_norm", "attn_v", "ffn_norm", "ffn_up_exps"},
    "qwen2moe": {"attn_norm", "attn_v", "ffn_norm", "ffn_up_exps", "ffn_up_shexp"},
    "gemma2": {"attn_norm", "attn_v", "ffn_norm", "ffn_up"},
    "phi3": {"attn_norm", "attn_qkv", "ffn_norm", "ffn_up"},
    "glm4": {"attn_norm", "attn_v", "ffn_norm", "ffn_up"},
    "olmo2": {"attn_v", "ffn_up"},
    "command-r": {"attn_norm", "attn_v", "ffn_up"},
    "stablelm-12b": {"attn_norm", "attn_v", "ffn_up"},
    "starcoder2": {"attn_norm", "attn_v", "ffn_norm"},
    "gpt2": {"attn_norm", "attn_qkv", "ffn_norm"},
    "gpt-oss": {"attn_norm", "attn_v", "post_attention_norm"},
    "deepseek-v3": {
        "attn_norm",
        "attn_q_a_norm",
        "attn_kv_a_norm",
        "attn_v_b",
        "ffn_norm",
        "ffn_up_exps",
        "ffn_up_shexp",
    },
    "qwen3next": {"attn_norm", "attn_v", "ssm_norm", "post_attention_norm", "ffn_up_exps", "ffn_up_shexp"},
}
NAMES = [name for name in CASES if CASES[name].type == "F32"]


def applied(model, folded):
    """The model's weights in floats with their factors."""

    def change(space, layer):
        fields = dict(vars(space))
        for (i, attr), factors in folded.factors.items():
            if i != layer:
                continue
            if isinstance(fields[attr], np.ndarray):
                fields[attr] = np.ascontiguousarray(factors.apply(fields[attr]), np.float32)
            else:
                values = np.ascontiguousarray(factors.apply(fields[attr].tensor.dequantize()), np.float32)
                fields[attr] = cpu.bind(QTensor(attr, BY_NAME["F32"], values.shape, values.reshape(-1).view(np.uint8)))
        return SimpleNamespace(**fields)

    weights = change(model.weights, None)
    weights.layers = tuple(change(layer, i) for i, layer in enumerate(model.weights.layers))
    return weights


@pytest.mark.parametrize("name", NAMES)
def test_logits_stay(name, tmp_path):
    case = CASES[name]
    ours = Ours.load(gguf(reference(case, name), tmp_path, name, case), case)
    rng = np.random.default_rng(1)
    found, folded = list(folds(ours.loaded)), Folded()
    for fold in found:
        assert fold.readers, fold.source
        folded.add(fold, np.exp(rng.uniform(-1.5, 1.5, fold.shape)).astype(np.float32), ours.loaded.weights)
    assert FOLDS.get(name, {"attn_norm"} if case.arch != "olmo2" else {"attn_v"}) <= {fold.source for fold in found}
    assert {fold.layer for fold in found} >= set(range(ours.loaded.hparams.n_layers))
    ids = prompt(60)
    plain = ours.logits(ids)
    changed = ours._logits(applied(ours.loaded, folded), ours.loaded.hparams, ids, 64)
    assert error(changed, plain) < 2e-5


@pytest.mark.parametrize("name, n", [("bert", 1), ("nomic-bert", 2)])
def test_encoders_stay(name, n, tmp_path):
    model = load(encoders.gguf(encoders.encoder(name)[1], tmp_path, name), cache="f32", accuracy="exact")
    folded, found = Folded(), list(folds(model))
    assert len(found) == n * model.hparams.n_layers
    for fold in found:
        s = np.exp(np.random.default_rng(1).uniform(-1.5, 1.5, fold.shape)).astype(np.float32)
        folded.add(fold, s, model.weights)
    batch = Batch.single(np.arange(5, 25), 0, [0])
    plain, changed = (model.spec.forward(w, model.hparams, batch) for w in (model.weights, applied(model, folded)))
    assert error(changed, plain) < 2e-5


def test_every_name_is_a_case():
    assert set(FOLDS) <= set(CASES)


def test_one_side_alone_changes_logits(tmp_path):
    case = CASES["mistral"]
    ours = Ours.load(gguf(reference(case, "mistral"), tmp_path, "mistral", case), case)
    plain = ours.logits(prompt(20))
    for fold in list(folds(ours.loaded))[:4]:
        folded = Folded()
        folded.add(fold, np.full(fold.shape, 2, np.float32), ours.loaded.weights)
        del folded.factors[fold.layer, fold.readers[0].attr]
        assert error(ours._logits(applied(ours.loaded, folded), ours.loaded.hparams, prompt(20), 64), plain) > 1e-3
