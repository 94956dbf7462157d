"""Models of transformers written as GGUF."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers

from archs.models import error
from qtransformers.errors import ConfigError, LoadError
from qtransformers.gguf import GGUFFile
from qtransformers.torch import QuantLinear, dequantized, load_transformers, save_gguf
from torch_models import decoded, ids, make, outputs


@pytest.mark.parametrize("name", ["llama-llama3", "gemma3", "gpt-oss", "qwen3next", "stablelm-12b", "nomic-bert"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_is_its_file(name, dtype, tmp_path):
    folder, path = make(name, tmp_path)
    model = load_transformers(folder, path, dtype=dtype)
    assert save_gguf(model, tmp_path / "again.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["llama-llama3", "gemma3", "gpt-oss", "stablelm-12b"])
def test_what_was_changed_is_saved(name, tmp_path):
    folder, path = make(name, tmp_path)
    model = load_transformers(folder, path, accuracy="exact")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.25)
    before = outputs(model, ids())
    again = load_transformers(folder, save_gguf(model, tmp_path / "again.gguf"), accuracy="exact")
    assert error(outputs(again, ids()), before) < 1e-3  # biases of experts have blocks too
    old, new = decoded(path), decoded(tmp_path / "again.gguf")
    changed = {k for k in old if not np.array_equal(old[k], new[k])}
    assert changed and all(old[k].ndim == 1 or "norm" in k or "gate_inp" in k or k.endswith("bias") for k in changed)


def test_a_loaded_model_in_another_type(tmp_path):
    """By way of `convert`, which says what quantising again costs."""
    folder, path = make("llama-llama3", tmp_path)
    model = load_transformers(folder, path, accuracy="exact")
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    with pytest.warns(UserWarning, match="quantised already") as said:
        save_gguf(model, tmp_path / "other.gguf", "Q5_1")
    assert all(str(path) in str(w.message) and ".save_gguf" not in str(w.message) for w in said)
    other = load_transformers(folder, tmp_path / "other.gguf", accuracy="exact")
    assert other.model.layers[0].self_attn.q_proj.weight.quant_type.name == "Q5_1"
    old, new = decoded(path), decoded(tmp_path / "other.gguf")
    name = "blk.1.ffn_up.weight"
    assert 0 < np.linalg.norm(new[name] - old[name]) < 0.05 * np.linalg.norm(old[name])
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)
    with pytest.raises(ConfigError, match="Q9"):
        save_gguf(model, tmp_path / "x.gguf", "Q9")


def test_a_plain_model(tmp_path):
    folder, path = make("llama-llama3", tmp_path)
    plain = dequantized(load_transformers(folder, path, attn_implementation="eager"))
    for type_ in (None, "Q8_0"):
        out = save_gguf(plain, tmp_path / f"{type_}.gguf", type_, tokenizer=folder)
        again = load_transformers(folder, out, accuracy="exact", attn_implementation="eager")
        assert {m.weight.quant_type.name for m in again.modules() if isinstance(m, QuantLinear)} == {type_ or "F32"}
        assert error(outputs(again, ids()), outputs(plain, ids())) < (1e-4 if type_ is None else 0.1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    save_gguf(plain, tmp_path / "object.gguf", "F16", tokenizer=tokenizer)
    with GGUFFile(tmp_path / "object.gguf") as a, GGUFFile(path) as b:
        assert list(a.metadata["tokenizer.ggml.tokens"]) == list(b.metadata["tokenizer.ggml.tokens"])
    assert not list(tmp_path.glob(".save_gguf*"))


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_were_replaced_are_not_passed_over(bias, tmp_path):
    """Whatever stands there now, it is not what the file has."""
    folder, path = make("llama-llama3", tmp_path)
    model = load_transformers(folder, path)
    old = model.model.layers[1].mlp.up_proj
    if bias:
        old.bias = None
    else:
        model.model.layers[1].mlp.up_proj = torch.nn.Linear(old.in_features, old.out_features)
    with pytest.raises(ConfigError, match=r"other layers now.*blk\.1\.ffn_up"):
        save_gguf(model, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x.gguf*"))


def test_refusals(tmp_path):
    folder, path = make("llama-llama3", tmp_path)
    model = load_transformers(folder, path)
    with pytest.raises(ConfigError, match="exists"):
        save_gguf(model, path)
    with pytest.raises(ConfigError, match="reads its weights from"):
        save_gguf(model, path, overwrite=True)
    with pytest.raises(ConfigError, match="no folder"):
        save_gguf(model, tmp_path / "none" / "x.gguf")
    with pytest.raises(ConfigError, match="tokenizer="):
        save_gguf(dequantized(model), tmp_path / "x.gguf", "Q8_0")
    with pytest.raises(ConfigError, match="no quantised layers"):
        dequantized(torch.nn.Linear(2, 2))
    model.gguf = type(model.gguf)(str(tmp_path / "gone.gguf"), {}, frozenset())
    with pytest.raises(LoadError, match="is gone"):
        save_gguf(model, tmp_path / "x.gguf")
    del model.gguf
    with pytest.raises(ConfigError, match="no model of load_transformers"):
        save_gguf(model, tmp_path / "x.gguf", "Q8_0", tokenizer=folder)
    assert not list(tmp_path.glob("x.gguf*"))
