"""What DeepSeek files may look like beside the ones we write."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from safetensors.numpy import load_file, save_file

from archs.cases import CASES
from archs.models import Ours, checkpoint, error, prompt, reference
from qtransformers.convert import convert
from qtransformers.errors import LoadError
from qtransformers.gguf import GGUFFile, GGUFWriter

NAME = "deepseek-v3"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepseek")
    checkpoint(reference(CASES[NAME], NAME), folder / "model")
    return folder


@pytest.fixture(scope="module")
def latent(made):
    return Ours.load(convert(made / "model", made / "latent.gguf", "F32"), CASES[NAME])


def expanded(source, target, **changes):
    """An older file: one matrix of keys and values, heads as scores see them."""
    with GGUFFile(source) as file:
        old = {**file.metadata}
        drop = ("attention.key_length_mla", "attention.value_length_mla")
        metadata = {key: value for key, value in old.items() if not key.endswith(drop)}
        metadata |= {
            f"deepseek2.attention.{key}": np.uint32(value)
            for key, value in {"head_count_kv": 4, "key_length": 24, "value_length": 12, **changes}.items()
        }
        values = {name: t.numpy() for name, t in file.tensors.items()}
        for name in [n for n in values if n.endswith("attn_k_b.weight")]:
            k, v = values.pop(name), values.pop(name.replace("attn_k_b", "attn_v_b"))
            values[name.replace("attn_k_b", "attn_kv_b")] = np.concatenate([k.swapaxes(1, 2), v], 1).reshape(
                -1, k.shape[1]
            )
        with GGUFWriter(target, metadata, [(name, x.shape, "F32") for name, x in values.items()]) as writer:
            for name, x in values.items():
                writer.write(name, np.ascontiguousarray(x))
    return target


def test_older_files_have_one_matrix_of_keys_and_values(made, latent):
    ours = Ours.load(expanded(made / "latent.gguf", made / "expanded.gguf"), CASES[NAME])
    assert (ours.loaded.hparams.n_kv_heads, latent.loaded.hparams.n_kv_heads) == (4, 1)
    assert error(ours.logits(prompt(150)), latent.logits(prompt(150))) < 1e-5


def test_heads_must_be_of_one_form(made):
    with pytest.raises(
        LoadError,
        match=r"head_count_kv, key_length and value_length are \(4, 24, 16\); expected \(4, 24, 24\)|\(4, 24, 12\)|attn_",
    ):
        Ours.load(expanded(made / "latent.gguf", made / "wrong.gguf", value_length=16), CASES[NAME])


def test_the_latent_cache_is_smaller(latent, made):
    ours = Ours.load(made / "expanded.gguf", CASES[NAME])
    assert latent.loaded.plan.cache_bytes < ours.loaded.plan.cache_bytes


def test_layers_that_predict_further_ahead_are_left_out(made, latent):
    path = made / "model" / "model.safetensors"
    tensors = load_file(path)
    ahead = {
        "model.layers.3.eh_proj.weight": np.ones((64, 128), np.float32),
        "model.layers.3.self_attn.o_proj.weight": np.ones((64, 48), np.float32),
    }
    save_file({**tensors, **ahead}, path, {"format": "pt"})
    with GGUFFile(convert(made / "model", made / "ahead.gguf", "F32")) as file:
        assert not [name for name in file.tensors if name.startswith("blk.3.")]
        assert len(file.tensors) == len(latent.loaded.plan.tensors)
