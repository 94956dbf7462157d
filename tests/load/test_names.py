"""Names of both worlds come from one spec."""

from qtransformers.archs.llama import SPEC
from qtransformers.load.names import by_gguf_name, by_hf_name


def test_names_there_and_back():
    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.0.self_attn.o_proj.bias": "blk.0.attn_output.bias",
        "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for hf, gguf in pairs.items():
        assert by_hf_name(SPEC, {"n_layers": 2, "n_experts": 0})[hf].name == gguf
        assert by_gguf_name(SPEC, {"n_layers": 2, "n_experts": 0})[gguf].hf == hf


def test_names_nobody_knows():
    assert "model.layers.2.self_attn.q_proj.weight" not in by_hf_name(SPEC, {"n_layers": 2, "n_experts": 0})
    assert "blk.0.attn_sinks.weight" not in by_gguf_name(SPEC, {"n_layers": 2, "n_experts": 0})
    assert not by_gguf_name(SPEC, {"n_layers": 2, "n_experts": 0})[
        "rope_freqs.weight"
    ].hf  # computed from config.json, in no checkpoint


def test_both_directions_cover_the_same_tensors():
    gguf, hf = by_gguf_name(SPEC, {"n_layers": 3, "n_experts": 0}), by_hf_name(SPEC, {"n_layers": 3, "n_experts": 0})
    assert {s.name for s in gguf.values() if s.hf} == {s.name for s in hf.values()}
    h = {"n_layers": 3, "n_experts": 0}
    always = [t for t in SPEC.tensors if t.when is None]
    layer = [t for t in SPEC.layer_tensors if t.when is None or t.when(h, 0)]
    assert len(gguf) == 2 * (len(always) + 3 * len(layer))
