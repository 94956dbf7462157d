"""Weights as models read them."""

import numpy as np
import pytest

from qtransformers.archs.llama import SPEC
from qtransformers.gguf import GGUFFile
from qtransformers.load import prepare, resolve
from qtransformers.load.place import place, vector


def placed(path):
    sources = resolve(path)
    p = prepare(sources)
    return place(SPEC, p.plan, sources.gguf.tensors, p.hparams.n_layers), sources.gguf


def test_every_attribute_is_there(data):
    w, _ = placed(data / "demo-Q8_0.gguf")
    assert len(w.layers) == 4
    dense = [t for t in SPEC.layer_tensors if t.when is None or t.when({"n_experts": 0}, 0)]
    assert len(dense) == 9
    for spec in dense:
        for layer in w.layers:
            assert getattr(layer, spec.attr) is not None
            assert getattr(layer, f"{spec.attr}_bias") is None
    assert w.rope_freqs is None and w.output_norm.shape == (256,)
    assert w.output is w.token_embd  # tied, and bound once


def test_matrices_stay_in_the_map_and_vectors_too(data):
    w, file = placed(data / "demo-Q8_0.gguf")
    raw = file.tensors["blk.2.ffn_up.weight"]
    bound = w.layers[2].ffn_up
    assert tuple(bound.shape) == raw.shape == (768, 256)
    assert np.shares_memory(bound.tensor.data, raw.data)
    norm = w.layers[0].attn_norm
    assert norm.dtype == np.float32 and not norm.flags.writeable
    assert np.shares_memory(norm, file.tensors["blk.0.attn_norm.weight"].data)


def test_biases_factors_and_an_output_of_its_own(remake, make):
    rng = np.random.default_rng(0)
    bias, output = rng.standard_normal(256), rng.standard_normal((2048, 256))
    w, _ = placed(remake(add=[*(make.tensor(f"blk.{i}.attn_q.bias", bias + i, "F16") for i in range(4)), make.tensor("rope_freqs.weight", np.arange(1, 33)), make.tensor("output.weight", output)]))  # fmt: skip
    assert w.layers[0].attn_k_bias is None
    np.testing.assert_array_equal(w.layers[1].attn_q_bias, (bias + 1).astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(w.rope_freqs, np.arange(1, 33, dtype=np.float32))
    assert w.output is not w.token_embd
    np.testing.assert_array_equal(w.output.tensor.dequantize(), output.astype(np.float32))


@pytest.mark.parametrize("type", ["F32", "F16"])
def test_vectors(make, type, tmp_path):
    values = np.linspace(-2, 2, 9)
    path = make(tmp_path / "v.gguf", {"general.architecture": "llama"}, [make.tensor("v", values, type)])
    with GGUFFile(path) as file:
        got = vector(file.tensors["v"])
    np.testing.assert_array_equal(got, values.astype({"F32": np.float32, "F16": np.float16}[type]).astype(np.float32))
    assert got.dtype == np.float32
