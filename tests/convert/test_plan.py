import json
import shutil

import numpy as np
import pytest

from qtransformers.convert import plan_conversion
from qtransformers.convert.plan import size_label
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, TokenizerError, UnsupportedError
from qtransformers.types import BY_NAME


def test_the_demo_model(data):
    plan = plan_conversion(data / "demo_model", "q8_0")
    assert len(plan.tensors) == 38
    assert plan.tensors[0].name == "token_embd.weight" and plan.tensors[-1].name == "output_norm.weight"
    assert plan.metadata["general.name"] == "demo_model" and plan.metadata["general.file_type"] == 7
    assert plan.nbytes == 3_670_016 // 32 * 34 + 2304 * 4


def test_metadata_of_a_model(tiny_model):
    found = plan_conversion(tiny_model()).metadata
    expected = {
        "llama.block_count": 2, "llama.context_length": 128, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16,
        "llama.attention.value_length": 16, "llama.rope.dimension_count": 16, "llama.rope.freq_base": 500000.0,
        "llama.vocab_size": 340, "general.architecture": "llama", "general.name": "tiny",
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert found["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    assert not [k for k in found if "expert" in k or "sliding" in k or "scaling" in k]


def test_recommendations_of_the_authors(tiny_model):
    folder = tiny_model()
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "top_p": 0.9, "eos_token_id": [3]}'
    )
    found = plan_conversion(folder).metadata
    assert {k: v for k, v in found.items() if "sampling" in k} == {
        "general.sampling.temp": np.float32(0.6),
        "general.sampling.top_k": 20,
        "general.sampling.top_p": np.float32(0.9),
    }


def test_tied_output_is_not_written_twice(tiny_model):
    names = {t.name for t in plan_conversion(tiny_model()).tensors}
    assert "output.weight" in names
    tied = plan_conversion(tiny_model({"tie_word_embeddings": True}, name="tied"))
    assert {t.name for t in tied.tensors} == names - {"output.weight"}


def test_biases(tiny_model):
    biases = {f"model.layers.{i}.self_attn.{p}_proj.bias": np.ones(n, np.float32) for i in range(2) for p, n in (("q", 64), ("k", 32), ("v", 32), ("o", 64))}  # fmt: skip
    plan = plan_conversion(tiny_model({"attention_bias": True}, biases))
    found = {t.name: t for t in plan.tensors if t.name.endswith(".bias")}
    assert sorted(found) == sorted(f"blk.{i}.attn_{p}.bias" for i in range(2) for p in ("q", "k", "v", "output"))
    assert all(t.type is BY_NAME["F32"] for t in found.values())
    assert found["blk.0.attn_q.bias"].order is not None and found["blk.0.attn_v.bias"].order is None
    with pytest.raises(LoadError, match=r"self_attn\.q_proj\.bias is missing"):
        plan_conversion(tiny_model({"attention_bias": True}, name="without"))


def test_biases_of_zeros_are_left_out(tiny_model):
    """AutoGPTQ writes them for layers that have none."""
    zeros = {f"model.layers.{i}.{p}.bias": np.zeros(n, np.float32) for i in range(2) for p, n in (("self_attn.q_proj", 64), ("mlp.down_proj", 64), ("input_layernorm", 64))}  # fmt: skip
    assert not [t for t in plan_conversion(tiny_model(tensors=zeros)).tensors if t.name.endswith(".bias")]


def test_rope_factors_of_llama_3(tiny_model):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    plan = plan_conversion(tiny_model({"rope_scaling": scaling}))
    target = next(t for t in plan.tensors if t.name == "rope_freqs.weight")
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_theta=500000.0, rope_scaling=dict(scaling), max_position_embeddings=128)  # fmt: skip
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / target.source, theirs.numpy(), rtol=1e-5)
    assert not [k for k in plan.metadata if "scaling" in k]


def test_linear_rope_scaling(tiny_model):
    found = plan_conversion(tiny_model({"rope_scaling": {"type": "linear", "factor": 4.0}})).metadata
    assert found["llama.rope.scaling.type"] == "linear" and found["llama.rope.scaling.factor"] == 4


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"model_type": "mamba"},
            r"model_type is 'mamba'; convert knows bert, cohere, .* 12 kinds of tensors: lm_head\.weight, model\.embed_tokens\.weight, model\.layers\.{i}\.input",
        ),
        ({"rope_scaling": {"rope_type": "unheard", "factor": 4.0}}, "unheard"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quantised by bitsandbytes; convert reads awq, gptq, ",
        ),
    ],
)
def test_what_is_not_supported(config, message, tiny_model):
    with pytest.raises(UnsupportedError, match=message):
        plan_conversion(tiny_model(config))


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (
            {"model.norm.weight": np.ones(32, np.float32)},
            r"model\.norm\.weight is \[32\]; config\.json makes it \[64\]",
        ),
        ({"vision.patch.weight": np.ones(4, np.float32)}, r"vision\.patch\.weight has no place in a llama model"),
        ({"model.norm.bias": np.ones(64, np.float32)}, r"model\.norm\.bias has no place"),
        ({"lm_head.weight": None}, r"lm_head\.weight is missing"),
    ],
)
def test_weights_that_do_not_fit_the_config(tensors, message, tiny_model):
    with pytest.raises(LoadError, match=message):
        plan_conversion(tiny_model(tensors=tensors))


def test_every_misfit_is_listed_at_once(tiny_model):
    folder = tiny_model(tensors={"model.norm.weight": None, "lm_head.weight": None, "x": np.ones(1, np.float32)})
    with pytest.raises(LoadError) as e:
        plan_conversion(folder)
    assert all(name in str(e.value) for name in ("model.norm.weight", "lm_head.weight", "x has no place"))


def test_what_follows_from_the_config_may_lie_in_old_checkpoints(tiny_model):
    folder = tiny_model(tensors={"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    assert not [t for t in plan_conversion(folder).tensors if "rotary" in t.name]


def test_wrong_arguments(data, tmp_path):
    with pytest.raises(ConfigError, match=r"type is 'Q9'; expected one of F32, F16, BF16, Q8_0"):
        plan_conversion(data / "demo_model", "Q9")
    with pytest.raises(ConfigError, match=r"'norm' finds only tensors that are not quantised"):
        plan_conversion(data / "demo_model", "Q4_K_M", overrides=[("norm", "Q8_0")])
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        plan_conversion(tmp_path)


def test_a_model_type_that_is_no_text(tiny_model):
    folder = tiny_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": ["llama"]}))
    with pytest.raises(UnsupportedError, match=r"model_type is \['llama'\]"):
        plan_conversion(folder)


def test_an_importance_matrix_of_more_layers(data):
    plan = plan_conversion(data / "demo_model", "Q4_K_M")
    importance = {t.name: np.ones(t.shape[-1], np.float32) for t in plan.tensors if len(t.shape) > 1}
    importance["blk.9.ffn_up.weight"] = importance["blk.1.ffn_up.weight"]
    with pytest.warns(UserWarning, match=r"has 1 weights that this model lacks \(blk\.9\.ffn_up"):
        plan_conversion(data / "demo_model", "Q4_K_M", importance=importance)


def test_vocabulary_of_another_model(data, tiny_model):
    folder = tiny_model()
    shutil.copy(data / "demo_model" / "tokenizer.json", folder)
    with pytest.raises(LoadError, match="1858 tokens, the embedding 340 rows"):
        plan_conversion(folder)


def test_a_broken_config(tiny_model):
    folder = tiny_model()
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadError, match=r"config\.json"):
        plan_conversion(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(LoadError, match=r"hidden_size|embedding_length"):
        plan_conversion(folder)


@pytest.mark.parametrize("n, label", [(260_000, "260K"), (3_672_320, "3.7M"), (999_600_000, "1B"), (8_030_261_248, "8B"), (1_500_000_000, "1.5B"), (12, "12"), (70_553_706_496, "71B")])  # fmt: skip
def test_size_label(n, label):
    assert size_label(n) == label


def test_a_vocabulary_that_reads_other_tokens_is_refused(tiny_model):
    folder = tiny_model()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "round"}, "content": "squad"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match=r"differs from tokenizer\.json's, at '.*squad"):
        plan_conversion(folder)
    assert plan_conversion(folder, pre="gpt-2").metadata["tokenizer.ggml.pre"] == "gpt-2"


def test_a_wrong_hyperparameter_is_told_once(tiny_model):
    with pytest.raises(LoadError, match="num_hidden_layers is 0") as caught:
        plan_conversion(tiny_model({"num_hidden_layers": 0}))
    assert str(caught.value).count("num_hidden_layers") == 1


def test_errors_of_weights_name_their_folder(tiny_model):
    folder = tiny_model(tensors={"strange.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(LoadError, match=str(folder / "model.safetensors") + ": strange.weight has no place"):
        plan_conversion(folder)


def test_what_is_neither_folder_nor_file():
    with pytest.raises(ModelNotFoundError, match="/dev/null is neither a folder nor a file"):
        plan_conversion("/dev/null")


def test_a_file_of_weights_stands_for_its_folder(tiny_model):
    folder = tiny_model()
    assert plan_conversion(folder / "model.safetensors").fingerprint() == plan_conversion(folder).fingerprint()


def test_types_of_weights_that_will_learn_are_those_with_importance(data):
    with pytest.raises(ConfigError, match="no use without an importance matrix"):
        plan_conversion(data / "demo_model", "IQ2_XS")
    plan = plan_conversion(data / "demo_model", "IQ2_XS", learns=True)
    assert "IQ2_XS" in {t.type.name for t in plan.tensors} and all(t.importance is None for t in plan.tensors)


def test_an_importance_matrix_of_zeros_is_refused_and_zeros_of_some_are_told(data):
    plan = plan_conversion(data / "demo_model", "Q4_K_M")
    importance = {t.name: np.zeros(t.shape[-1], np.float32) for t in plan.tensors if len(t.shape) > 1}
    with pytest.raises(ConfigError, match=r"is all zeros \(.*collected from\. Collect it again"):
        plan_conversion(data / "demo_model", "Q4_K_M", importance=importance)
    idle = "blk.1.ffn_up.weight"
    some = {name: values + (name != idle) for name, values in importance.items()}
    with pytest.warns(UserWarning, match=rf"zeros alone for 1 weights \({idle}, \.\.\.\)"):
        plan = plan_conversion(data / "demo_model", "Q4_K_M", importance=some)
    assert {t.name for t in plan.tensors if t.importance is None and t.type.is_quantized} == {idle}
