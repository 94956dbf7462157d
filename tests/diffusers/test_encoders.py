"""Text encoders from GGUF files: the states of transformers' classes, in the names of both worlds, and inside a pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from qtransformers.archs.diffusion.text import CLIP, CLIP_PROJECTED, QWEN2_VL, T5
from qtransformers.diffusers import Picture, load_pipeline, load_text_encoder, paint
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.torch import QuantWeight
from tiny_diffusion.files import error, original_layout, write
from tiny_diffusion.pipelines import saved

T5_SIZES = {"vocab_size": 40, "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4}
CLIP_SIZES = {"vocab_size": 40, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 256, "max_position_embeddings": 16, "hidden_act": "quick_gelu", "eos_token_id": 2}  # fmt: skip
CASES = {
    "t5": (T5, transformers.T5EncoderModel, {**T5_SIZES, "feed_forward_proj": "gated-gelu"}, None),
    "t5-plain": (T5, transformers.T5EncoderModel, {**T5_SIZES, "feed_forward_proj": "relu"}, None),
    "umt5": (T5, transformers.UMT5EncoderModel, {**T5_SIZES, "feed_forward_proj": "gated-gelu"}, None),
    "clip": (CLIP, transformers.CLIPTextModel, CLIP_SIZES, {"num_attention_heads": 4, "hidden_act": "quick_gelu", "eos_token_id": 2}),
    "clip-projected": (CLIP_PROJECTED, transformers.CLIPTextModelWithProjection, CLIP_SIZES, {"num_attention_heads": 4, "hidden_act": "quick_gelu", "eos_token_id": 2}),
}  # fmt: skip
DATA = Path(__file__).parent.parent / "data"
TOKENS = torch.tensor([[3, 9, 27, 5, 2, 0]])


def made(name):
    spec, cls, config, told = CASES[name]
    model = cls(cls.config_class(**config)).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(3)
    for path, p in model.named_parameters():
        p.copy_((1.0 if p.ndim == 1 and path.endswith("weight") else 0.0) + (0.3 if p.ndim == 1 else 1.2 / p.shape[-1] ** 0.5) * torch.randn(p.shape, generator=g))  # fmt: skip
    return spec, model, told


def state_of(spec, model, layout):
    state = {k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    if layout == "diffusers":
        return state
    config = {**model.config.to_dict(), "gated": "gated" in str(getattr(model.config, "feed_forward_proj", "")), "biases_each_layer": "UMT5" in type(model).__name__}  # fmt: skip
    return original_layout(spec, config, state)


def states(model):
    out = model(TOKENS)
    return torch.cat([v.flatten() for v in out.values() if isinstance(v, torch.Tensor)])


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("name", CASES)
def test_states_are_those_of_the_class(name, layout, tmp_path):
    spec, model, told = made(name)
    if layout not in spec.marks:
        pytest.skip("one layout only")
    state = state_of(spec, model, layout)
    ours = load_text_encoder(write(tmp_path / "f.gguf", spec.id, state), told, accuracy="exact")
    assert type(ours) is type(model)
    assert error(states(ours), states(model)) < 1e-5
    quantised = load_text_encoder(write(tmp_path / "q.gguf", spec.id, state, "Q8_0"), told, accuracy="exact")
    assert sum(isinstance(m, QuantWeight) and m.quant_type.name == "Q8_0" for m in quantised.modules()) > 8
    assert 1e-4 < error(states(quantised), states(model)) < 0.1


def test_a_whole_t5_gives_its_encoder(tmp_path):
    spec, model, _ = made("t5")
    state = {
        **state_of(spec, model, "original"),
        "dec.blk.0.attn_q.weight": torch.ones(8, 8),
        "output.weight": torch.ones(8, 8),
    }
    ours = load_text_encoder(write(tmp_path / "f.gguf", "t5", state), accuracy="exact")
    assert error(states(ours), states(model)) < 1e-5


def test_a_language_model_by_the_class_that_its_config_names(tmp_path):
    demo = DATA / "demo-Q8_0.gguf"
    config = json.loads((DATA / "demo_model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    model = load_text_encoder(demo, tmp_path)
    assert type(model) is transformers.LlamaModel
    assert model(TOKENS).last_hidden_state.shape[-1] == config["hidden_size"]
    with pytest.raises(ConfigError, match=r"pass config=, the folder with its config\.json"):
        load_text_encoder(demo)
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Nonsense"]}))
    with pytest.raises(UnsupportedError, match="expected a class of transformers"):
        load_text_encoder(demo, tmp_path)


QWEN = {
    "vocab_size": 40, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}, "rms_norm_eps": 1e-6,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SAYS = {"qwen2vl.attention.head_count": 4, "qwen2vl.attention.head_count_kv": 2, "qwen2vl.attention.layer_norm_rms_epsilon": 1e-6, "qwen2vl.rope.freq_base": 1e6}  # fmt: skip


@pytest.fixture(scope="module")
def qwen():
    """Qwen2.5-VL whole, as the pipeline of Qwen-Image has it, and its text part in llama.cpp's names."""
    sees = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 256}
    whole = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(text_config=QWEN, vision_config=sees))  # fmt: skip
    g = torch.Generator().manual_seed(3)
    whole.eval().requires_grad_(False)
    for path, p in whole.named_parameters():
        p.copy_((1.0 if p.ndim == 1 and path.endswith("weight") else 0.0) + (0.3 if p.ndim == 1 else 1.2 / p[0].numel() ** 0.5) * torch.randn(p.shape, generator=g))  # fmt: skip
    state = original_layout(QWEN2_VL, {**QWEN, "kv_size": 128}, whole.model.language_model.state_dict())
    return whole, {**state, "output.weight": whole.lm_head.weight}


@pytest.mark.filterwarnings("ignore:.*does not read output")
@pytest.mark.parametrize("told", ["config", "flat", "metadata"])
def test_the_text_part_of_qwen_vl_reads_prompts_as_the_whole_does(told, qwen, tmp_path):
    whole, state = qwen
    older = {**{k: v for k, v in QWEN.items() if k != "rope_parameters"}, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}  # fmt: skip
    config = {"config": whole.config.to_dict(), "flat": older, "metadata": {"mrope_section": [8, 12, 12]}}[told]
    asked = {
        "input_ids": torch.tensor([[3, 9, 27, 5, 2, 0], [4, 8, 2, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]), "output_hidden_states": True,
    }  # fmt: skip
    there = asked["attention_mask"].bool()
    wanted = whole(**asked).hidden_states[-1][there]
    for type, most in (("F32", 1e-5), ("Q8_0", 0.1)):
        path = write(tmp_path / f"{type}.gguf", "qwen2vl", state, type, SAYS if told == "metadata" else {})
        ours = load_text_encoder(path, config, accuracy="exact")
        assert len(ours(**asked).hidden_states) == len(whole(**asked).hidden_states)
        off = error(ours(**asked).hidden_states[-1][there], wanted)
        assert off < most and (type == "F32" or off > 1e-4)


@pytest.mark.filterwarnings("ignore:.*does not read output")
def test_the_text_part_of_qwen_vl_refuses_what_it_cannot(qwen, tmp_path):
    whole, state = qwen
    path = write(tmp_path / "m.gguf", "qwen2vl", state, metadata=SAYS)
    ours = load_text_encoder(path, whole.config.to_dict())
    with pytest.raises(
        UnsupportedError, match=r"m\.gguf has the text part of Qwen2\.5-VL only, and cannot see pixel_values"
    ):
        ours(TOKENS, pixel_values=torch.ones(4, 1176))
    with pytest.raises(ConfigError, match="no tensor shows num_attention_heads"):
        load_text_encoder(write(tmp_path / "n.gguf", "qwen2vl", state))
    with pytest.raises(ConfigError, match="no tensor shows mrope_section"):
        load_text_encoder(path)
    told = whole.config.to_dict()["text_config"]
    with pytest.raises(LoadError, match=r"num_attention_heads is 8, but .*m\.gguf: metadata says 4"):
        load_text_encoder(path, {**told, "num_attention_heads": 8})
    with pytest.raises(LoadError, match="num_key_value_heads 4 do not fit hidden_size 256 and 128 rows"):
        load_text_encoder(write(tmp_path / "n.gguf", "qwen2vl", state), {**told, "num_key_value_heads": 4})
    with pytest.raises(UnsupportedError, match="rope type is 'yarn'; expected default or mrope"):
        load_text_encoder(path, {**told, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}})
    with pytest.raises(UnsupportedError, match="use_sliding_window is True"):
        load_text_encoder(path, {**told, "use_sliding_window": True})


def test_what_does_not_fit_is_told(tmp_path):
    spec, model, _ = made("t5")
    state = state_of(spec, model, "original")
    del state["enc.blk.1.attn_k.weight"]
    with pytest.raises(LoadError, match=r"enc\.blk\.1\.attn_k\.weight is missing; expected \[128, 256\]"):
        load_text_encoder(write(tmp_path / "f.gguf", "t5encoder", state))
    with pytest.raises(UnsupportedError, match="no text encoder that this version knows"):
        load_text_encoder(write(tmp_path / "x.gguf", "what", {"a.weight": torch.ones(4, 4)}))
    spec, model, _ = made("clip")
    with pytest.raises(ConfigError, match="num_attention_heads and hidden_act"):
        load_text_encoder(write(tmp_path / "c.gguf", "", state_of(spec, model, "diffusers")))


def test_a_pipeline_with_its_text_encoder_from_a_file(tmp_path):
    pipe, base = saved(tmp_path / "base")
    transformer = write(tmp_path / "m.gguf", "aura", pipe.transformer.state_dict())
    state = state_of(T5, pipe.text_encoder, "original")
    encoder = write(tmp_path / "t5.gguf", "t5encoder", state)
    for weights in (base / "text_encoder").glob("*.safetensors"):
        weights.unlink()
    ours = load_pipeline(transformer, base, text_encoders={"text_encoder": encoder}, accuracy="exact")
    wish = Picture("a red fox", steps=1, width=32, height=32, seed=1)
    pictures = [paint(p, wish, output_type="np").images[0] for p in (ours, pipe)]
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-4
    with pytest.raises(ConfigError, match=r"text_encoders='text_encoder_2'; .*model_index\.json has text_encoder"):
        load_pipeline(transformer, base, text_encoders={"text_encoder_2": encoder})
