"""config.json against the GGUF file, and what a model recommends for generating."""

import json

import numpy as np
import pytest

from qtransformers.archs.llama import SPEC
from qtransformers.errors import LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.load import prepare, resolve
from qtransformers.load.config import (
    generation_from_gguf,
    generation_from_json,
    hparams_from_config,
    read_json,
    spoken,
    text_config,
)
from qtransformers.load.hub import Hub

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 10000.0}  # fmt: skip


@pytest.fixture
def both(data):
    def load(folder, gguf=data / "demo-Q8_0.gguf"):
        return prepare(resolve(gguf, folder, hub=Hub(offline=True)))

    return load


def test_the_demo_agrees_with_itself(both, data):
    p = both(data / "demo_model")
    assert not p.plan.warnings
    config = json.loads((data / "demo_model/config.json").read_text())
    h = hparams_from_config(SPEC, config, "config.json")
    assert {n: v for n, v in h.items() if n != "rms_eps"} == {
        n: v for n, v in p.hparams.items() if n not in ("rms_eps", "loaded_context")
    }
    assert h.rms_eps == pytest.approx(p.hparams.rms_eps)


@pytest.mark.parametrize("change, key, ours", [
    ({"num_hidden_layers": 5}, "num_hidden_layers is 5", "llama.block_count is 4"),
    ({"hidden_size": 512}, "hidden_size is 512", "llama.embedding_length is 256"),
    ({"intermediate_size": 700}, "intermediate_size is 700", "llama.feed_forward_length is 768"),
    ({"num_attention_heads": 8}, "num_attention_heads is 8", "llama.attention.head_count is 4"),
    ({"num_key_value_heads": 4}, "num_key_value_heads is 4", "llama.attention.head_count_kv is 2"),
    ({"head_dim": 32}, "head_dim is 32", "llama.attention.key_length is 64"),
    ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06", "layer_norm_rms_epsilon is 1e-05"),
    ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, "rope_parameters.rope_theta is 500000", "llama.rope.freq_base is 10000"),
    ({"rope_parameters": ..., "rope_theta": 1e6}, "rope_theta is 1000000", "llama.rope.freq_base is 10000"),
    ({"vocab_size": 2049}, "vocab_size is 2049", "token_embd has 2048 rows"),
    ({"model_type": "qwen2"}, "model_type is 'qwen2'", "general.architecture is llama"),
    ({"attention_bias": True}, "attention_bias is true", "blk.0-3.attn_q.bias is absent"),
    ({"mlp_bias": True}, "mlp_bias is true", "blk.0-3.ffn_up.bias is absent"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is false", "output.weight is absent"),
    ({"rope_parameters": LLAMA3}, "asks for 32 factors from 1 to 8", "rope_freqs.weight is absent"),
    ({"num_hidden_layers": "four"}, "num_hidden_layers is 'four'", ""),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan", ""),
])  # fmt: skip
def test_a_difference_that_changes_the_maths(both, hf_dir, data, change, key, ours):
    folder = hf_dir(change)
    with pytest.raises(LoadError) as e:
        both(folder)
    text = str(e.value)
    assert key in text and ours in text
    assert str(folder / "config.json") in text
    assert not ours or (str(data / "demo-Q8_0.gguf") in text and "They belong to different models" in text)


def test_all_differences_at_once(both, hf_dir):
    with pytest.raises(LoadError, match="5 problems") as e:
        both(hf_dir({"num_hidden_layers": 5, "hidden_size": 512, "rms_norm_eps": 1e-6, "intermediate_size": 1, "vocab_size": 9999}))  # fmt: skip
    assert len(str(e.value).splitlines()) == 6


@pytest.mark.parametrize("change", [
    {"max_position_embeddings": 4096},  # how far it was trained is no maths
    {"vocab_size": 1858},  # fewer tokens than rows is padding
    {"head_dim": None, "num_key_value_heads": ..., "rope_parameters": ..., "rope_scaling": None},  # saying nothing
    {"rope_parameters": ..., "rope_theta": 10000, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rms_norm_eps": 1.00000002e-5},  # as 32 bits it is the same
    {"sliding_window": None},
    {"torch_dtype": "float32", "unknown_key": [1, 2, 3]},
    {"model_type": "mistral"},
])  # fmt: skip
def test_differences_that_do_not_matter(both, hf_dir, change):
    assert not both(hf_dir(change)).plan.warnings


def test_a_sliding_window_only_config_knows_of(both, hf_dir):
    p = both(hf_dir({"sliding_window": 512}))
    assert p.hparams.sliding_window == 512
    assert "sliding_window; 512 is taken from config.json" in p.plan.warnings[0]


def test_unsupported_by_config(both, hf_dir):
    with pytest.raises(UnsupportedError, match="hidden_act is 'gelu'"):
        both(hf_dir({"hidden_act": "gelu"}))
    yarn = hf_dir({"rope_parameters": {"rope_type": "unheard", "factor": 4.0}}, name="yarn")
    with pytest.raises(UnsupportedError, match=r"yarn/config\.json: rope_parameters\.rope_type is 'unheard'; expected none or linear or ntk or yarn or longrope"):  # fmt: skip
        both(yarn)


def test_metadata_of_the_wrong_kind_beside_a_config(remake, hf_dir):
    folder = hf_dir({"rope_parameters": {"rope_type": "linear", "factor": 4.0}})
    with pytest.raises(LoadError, match=r"llama\.rope\.scaling\.type is 5 \(int\); expected text"):
        prepare(resolve(remake(metadata={"llama.rope.scaling.type": 5}), folder, hub=Hub(offline=True)))


def test_rope_factors(both, hf_dir, remake, make):
    """The factors of the file must be those that config.json asks for."""
    from qtransformers.archs.rotary import llama3 as rope_factors

    folder = hf_dir({"rope_parameters": LLAMA3})
    factors = rope_factors({"rope_parameters": LLAMA3}, {"rope_dim": 64, "rope_base": 10000.0})
    good = remake("good.gguf", add=[make.tensor("rope_freqs.weight", factors)])
    assert not both(folder, good).plan.warnings
    bad = remake("bad.gguf", add=[make.tensor("rope_freqs.weight", np.sqrt(factors))])
    with pytest.raises(LoadError, match=r"rope_freqs\.weight has 32 factors from 1 to 2\.828.*asks for 32 factors from 1 to 8"):  # fmt: skip
        both(folder, bad)
    with pytest.raises(LoadError, match="asks for none"):
        both(hf_dir(name="plain"), good)
    ones = remake("ones.gguf", add=[make.tensor("rope_freqs.weight", np.ones(32))])
    assert not both(hf_dir(name="plain2"), ones).plan.warnings
    with pytest.raises(LoadError, match=r"cannot be compared: .*KeyError"):
        both(hf_dir({"rope_parameters": {"rope_type": "llama3"}}, name="broken"))


def test_remedies_fit_the_file(both, hf_dir, remake):
    with pytest.raises(LoadError, match=r"hidden_size is 'x'.*whole number of at least 1 and at most 2147483647\. Fetch the file again"):  # fmt: skip
        both(hf_dir({"hidden_size": "x"}))
    differing = remake(metadata={"llama.attention.head_count_kv": np.array([2, 2, 1, 2], np.uint32)})
    with pytest.raises(UnsupportedError, match=r"differs between layers \(\[2, 2, 1, 2\]\)"):
        prepare(resolve(differing))


def test_biases_that_config_denies(both, hf_dir, remake, make):
    biased = remake(add=[make.tensor(f"blk.{i}.attn_q.bias", np.ones(256)) for i in range(4)])
    with pytest.raises(LoadError, match=r"blk\.0-3\.attn_q\.bias is there; .*attention_bias is false"):
        both(hf_dir(), biased)
    assert both(hf_dir({"attention_bias": ...}, name="silent"), biased)


def test_config_of_a_checkpoint_alone():
    config = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "vocab_size": 100, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}}  # fmt: skip
    h = hparams_from_config(SPEC, config, "config.json")
    assert (h.n_layers, h.head_dim, h.vocab_size, h.rope_scaling, h.rope_factor, h.rope_base) == (2, 8, 100, "linear", 4.0, 5e5)  # fmt: skip
    assert h.origins["rope_factor"] == "config.json: rope_scaling.factor"
    assert hparams_from_config(SPEC, {"vision_config": {}, "text_config": config}, "x").n_layers == 2
    with pytest.raises(LoadError, match="2 problems") as e:
        hparams_from_config(SPEC, {k: v for k, v in config.items() if k not in ("hidden_size", "vocab_size")}, "config.json")  # fmt: skip
    assert "config.json has no hidden_size" in str(e.value)


def test_llama3_factor_is_no_rope_factor():
    said, problems = spoken(SPEC, {"rope_scaling": LLAMA3}, "c")
    assert not problems and said["rope_scaling"].value == "none"
    config = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "vocab_size": 100, "rope_scaling": LLAMA3}  # fmt: skip
    assert hparams_from_config(SPEC, config, "c").rope_factor == 1.0


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "null", "{" * 100_000, '{"a": "\\ud800', "\xff"])
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=r"config\.json"):
        read_json(path)


def test_a_pointer_is_no_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 700\n")
    with pytest.raises(ModelNotFoundError, match=r"config\.json is a git-LFS pointer.*git lfs pull --include"):
        read_json(path)


def test_text_config_wins_over_the_outside():
    assert text_config({"hidden_size": 1, "text_config": {"hidden_size": 2}})["hidden_size"] == 2
    assert text_config({"hidden_size": 1, "text_config": None})["hidden_size"] == 1


def test_generation_config():
    config = {"eos_token_id": [128001, 128008, 128009], "temperature": 0.6, "top_p": 0.9, "top_k": 50, "do_sample": True, "min_p": None}  # fmt: skip
    g = generation_from_json(config, 128256, "g.json")
    assert g.eos == (128001, 128008, 128009)
    assert (g.temperature, g.top_p, g.top_k, g.min_p, g.do_sample, g.origin) == (0.6, 0.9, 50, None, True, "g.json")
    assert generation_from_json({"eos_token_id": 2}, 10, "g").eos == (2,)
    assert generation_from_json({"top_k": -1}, 10, "g").top_k == 0
    assert generation_from_json({}, 10, "g").eos == ()


@pytest.mark.parametrize("config, found", [
    ({"eos_token_id": 10}, "eos_token_id is 10; expected ids from 0 to 9"), ({"eos_token_id": [1, -1]}, "is -1"), ({"eos_token_id": "2"}, "is '2'"),
    ({"eos_token_id": True}, "is True"), ({"temperature": "hot"}, "temperature is 'hot'"), ({"temperature": -1}, "temperature is -1"),
    ({"top_p": 1.5}, "top_p is 1.5"), ({"top_k": 2.5}, "top_k is 2.5"), ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
])  # fmt: skip
def test_bad_generation_config(config, found):
    with pytest.raises(LoadError) as e:
        generation_from_json(config, 10, "g.json")
    assert found in str(e.value) and str(e.value).startswith("g.json: ")


def test_generation_from_gguf():
    metadata = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 4294967295, "general.sampling.temp": 0.7, "general.sampling.top_k": 20}  # fmt: skip
    g = generation_from_gguf(metadata, 10, "m.gguf")
    assert (g.eos, g.temperature, g.top_k) == ((2, 5), 0.7, 20)
    with pytest.raises(LoadError, match="eos"):
        generation_from_gguf({"tokenizer.ggml.eos_token_id": 10}, 10, "m.gguf")


HOSTILE = [None, True, -1, 0, 2**31, 10**400, 1.5, float("nan"), float("inf"), "", "x" * 10_000, [], [None], [4] * 4, {}, {"rope_type": [], "type": {}}, {"factor": "x", "rope_type": "llama3"}, {**LLAMA3, "factor": "{x}"}, {**LLAMA3, "high_freq_factor": 1.0}]  # fmt: skip


def test_hostile_config(both, hf_dir, data):
    """Any value in any place is an error of ours, or harmless."""
    folder = hf_dir()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    refused = 0
    for key in (*config, "rope_scaling", "text_config", "sliding_window"):
        for value in HOSTILE:
            path.write_text(json.dumps({**config, key: value}))
            try:
                both(folder)
            except (LoadError, UnsupportedError) as e:
                refused += 1
                assert str(path) in str(e) and len(str(e)) < 2000
    assert refused > 100
