import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "the",
    "dog",
    "sleeps",
    "in",
    "the",
    "sun",
    "while",
    "the",
    "fox",
    "runs",
    "on",
    "and",
    "on",
]
LINES = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]


@pytest.fixture
def byte_bpe():
    """A tiny byte-level BPE as tokenizers trains it, with Llama 3's special tokens and template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]),
        ]
    )
    return tokenizer


@pytest.fixture
def tiny_model(tmp_path, byte_bpe):
    """A folder with a Llama of two layers in float32, everything in it written by the usual libraries.

    `tiny_model(config={...}, tensors={...})` overrides keys of config.json and tensors (None removes one).
    """
    from safetensors.numpy import save_file

    def make(config=None, tensors=None, name="tiny"):
        folder = tmp_path / name
        folder.mkdir()
        settings = {
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "vocab_size": 340, "rope_theta": 500000.0, "tie_word_embeddings": False, "hidden_act": "silu",
            "eos_token_id": [1, 2, 3],
        }  # fmt: skip
        shapes = {"model.embed_tokens": (340, 64), "model.norm": (64,), "lm_head": (340, 64)}
        for i in range(2):
            layer = {
                "input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
                "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
                "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
            }  # fmt: skip
            shapes |= {f"model.layers.{i}.{part}": shape for part, shape in layer.items()}
        rng = np.random.default_rng(7)
        weights = {f"{n}.weight": rng.standard_normal(s).astype(np.float32) * 0.2 for n, s in shapes.items()}
        weights |= tensors or {}
        (folder / "config.json").write_text(json.dumps(settings | (config or {})))
        save_file({n: w for n, w in weights.items() if w is not None}, folder / "model.safetensors")
        byte_bpe.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>"}})
        )
        return folder

    return make
