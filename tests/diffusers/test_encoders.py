"""Text encoders from GGUF files: the states of transformers' classes, in the names of both worlds, and inside a pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from qtransformers.archs.diffusion.text import CLIP, CLIP_PROJECTED, T5
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
