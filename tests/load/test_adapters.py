"""LoRA adapters of both formats against weights that were merged in the checkpoint, and what does not fit."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from qtransformers.cache import Batch
from qtransformers.convert import convert
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.gguf import GGUFWriter
from qtransformers.load import load
from qtransformers.load.adapters import load_adapter
from qtransformers.load.checkpoint import interleave, open_file
from qtransformers.model import Model
from qtransformers.nn.adapted import adapted
from qtransformers.quants import dequantize
from qtransformers.types import BY_NAME

RANK, ALPHA = 4, 6.0
MODULES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
ASK = [{"role": "user", "content": "Tell me a story about a brave fox."}]


class Made:
    """The demo model in F32, an adapter of it in both formats, and the model with the adapter merged."""

    def __init__(self, data, folder, seed):
        rng = np.random.default_rng(seed)
        self.base = folder / "base.gguf"
        if not self.base.exists():
            convert(data / "demo_model", self.base, "F32")
        config = json.loads((data / "demo_model" / "config.json").read_text())
        self.peft, self.gguf = folder / f"peft{seed}", folder / f"lora{seed}.gguf"
        merged = folder / f"merged{seed}"
        shutil.copytree(data / "demo_model", merged)
        weights = {
            k: dequantize(np.array(t.data), t.type).reshape(t.shape)
            for k, t in open_file(merged / "model.safetensors").items()
        }
        factors, named = {}, {}
        heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
        for i in range(config["num_hidden_layers"]):
            for module, short in MODULES.items():
                name = f"model.layers.{i}.{module}"
                out, n = weights[name + ".weight"].shape
                a = rng.standard_normal((RANK, n)).astype(np.float32) * 0.1
                b = rng.standard_normal((out, RANK)).astype(np.float32) * 0.05
                weights[name + ".weight"] += ALPHA / RANK * b @ a
                factors[f"base_model.model.{name}.lora_A.weight"] = a
                factors[f"base_model.model.{name}.lora_B.weight"] = b
                named[f"blk.{i}.{short}.weight.lora_a"] = a
                named[f"blk.{i}.{short}.weight.lora_b"] = b[interleave(out, heads[module])] if module in heads else b
        self.peft.mkdir()
        self.factors = factors
        self.write_peft()
        self.named = named
        write_gguf(self.gguf, named)
        save_file(weights, merged / "model.safetensors")
        self.merged = folder / f"merged{seed}.gguf"
        convert(merged, self.merged, "F32")

    def write_peft(self, folder=None, factors=None, **config):
        folder = folder or self.peft
        folder.mkdir(exist_ok=True)
        given = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **config}
        (folder / "adapter_config.json").write_text(json.dumps(given))
        save_file(self.factors if factors is None else factors, folder / "adapter_model.safetensors")
        return folder


def write_gguf(path, tensors, **metadata):
    given = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": "llama",
        "adapter.lora.alpha": np.float32(ALPHA),
    }
    given |= {key.replace("__", "."): value for key, value in metadata.items()}
    kept = {key: value for key, value in given.items() if value is not None}
    with GGUFWriter(path, kept, [(n, t.shape, BY_NAME["F32"]) for n, t in tensors.items()]) as writer:
        for name, values in tensors.items():
            writer.write(name, np.ascontiguousarray(values))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def made(data, folder):
    return Made(data, folder, 1)


@pytest.fixture(scope="module")
def other(data, folder, made):
    return Made(data, folder, 2)


def logits(loaded, tokens, parts=(), outputs=None):
    batch = Batch.single(tokens, 0, list(range(len(tokens) // 256 + 1)), outputs=outputs)
    w = adapted(loaded.weights, parts, batch.output_rows) if parts else loaded.weights
    return loaded.spec.forward(w, loaded.hparams, batch, loaded.new_cache())


def test_both_formats_are_as_if_merged(made):
    base, merged = (load(path, context_length=512, cache="f32", accuracy="exact") for path in (made.base, made.merged))
    tokens = list(range(5, 45))
    expected, plain = logits(merged, tokens), logits(base, tokens)
    assert np.abs(expected - plain).max() > 1
    for path in (made.peft, made.gguf):
        adapter = load_adapter(path, base.spec, base.hparams)
        assert len(adapter.updates) == len(made.named) // 2
        found = logits(base, tokens, [(0, len(tokens), adapter.updates, 1.0)])
        np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_array_equal(logits(base, tokens), plain)


def test_rows_of_one_batch_have_different_adapters(made, other):
    base, one, two = (
        load(p, context_length=512, cache="f32", accuracy="exact") for p in (made.base, made.merged, other.merged)
    )
    first, second = (load_adapter(m.peft, base.spec, base.hparams) for m in (made, other))
    tokens = list(range(5, 25))
    parts = [Batch.single(tokens, 0, [i], outputs=n) for i, n in enumerate((1, 3, 1))]
    batch = Batch.join(parts)
    w = adapted(base.weights, [(0, 20, first.updates, 1.0), (40, 60, second.updates, 1.0)], batch.output_rows)
    found = base.spec.forward(w, base.hparams, batch, base.new_cache(1024))
    expected = np.concatenate(
        [logits(one, tokens, outputs=1), logits(base, tokens, outputs=3), logits(two, tokens, outputs=1)]
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_requests_with_and_without_side_by_side(made, other):
    given = {"temperature": 0, "max_tokens": 24}
    with Model.load(made.merged) as model:
        expected = model.chat(ASK, **given).text
    with Model.load(made.base) as model:
        first, second = model.load_lora(made.gguf), model.load_lora(other.peft)
        plain = model.chat(ASK, **given).text
        asked = [{"lora": first}, {}, {"lora": second}, {"lora": [first, (second, 0.5)]}, {"lora": [(first, 0.0)]}]
        alone = [model.chat(ASK, **given, **one).text for one in asked]
        assert alone[0] == expected != plain and alone[1] == alone[4] == plain
        assert len(set(alone)) == 4
        streams = [model.chat(ASK, stream=True, **given, **one) for one in asked]
        together = ["".join(c.text for c in pieces) for pieces in map(list, streams)]
        assert together == alone
        for bad in (5, [5], [(first, "x")], [(first, float("nan"))], "path"):
            with pytest.raises(ConfigError, match="lora"):
                model.chat(ASK, lora=bad)
        with Model.load(made.base) as another, pytest.raises(ConfigError, match="this model's load_lora"):
            another.chat(ASK, lora=first)


def test_deterministic_and_guesses_hold_with_adapters(made):
    """The bits of an update's product do not depend on how many rows a forward gives it."""
    with Model.load(made.base, context_length=512, deterministic=True) as model:
        adapter = model.load_lora(made.peft)
        given = {"lora": adapter, "max_tokens": 60, "temperature": 0, "logprobs": 1}
        plain = model.generate("a b c a b c a b c a b", speculate=False, **given)
        assert model.generate("a b c a b c a b c a b", speculate="ngram", **given).logprobs == plain.logprobs
        many = model.generate_many(
            ["a b c a b c a b c a b", "Once upon", "The fox", "a b c d"], speculate=False, **given
        )
        assert many[0].logprobs == plain.logprobs


def test_scales_by_pattern_and_rslora(made, folder):
    base = load(made.base, context_length=512)
    plain = load_adapter(made.peft, base.spec, base.hparams).updates
    changed = made.write_peft(
        folder / "patterns", alpha_pattern={"q_proj": 12}, rank_pattern={r"layers\.0\.mlp\.up_proj": 8}
    )
    found = load_adapter(changed, base.spec, base.hparams).updates
    rs = load_adapter(made.write_peft(folder / "rs", use_rslora=True), base.spec, base.hparams).updates
    for place, update in plain.items():
        factor = 2 if place[1] == "attn_q" else 0.5 if place == (0, "ffn_up") else 1
        b = update.b.tensor.dequantize()
        np.testing.assert_allclose(found[place].b.tensor.dequantize(), b * factor, rtol=1e-6)
        np.testing.assert_allclose(rs[place].b.tensor.dequantize(), b * 2, rtol=1e-6)  # sqrt(4)


@pytest.mark.parametrize(
    "config, error, message",
    [
        ({"use_dora": True}, UnsupportedError, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedError, "modules_to_save"),
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type 'IA3'"),
        ({"bias": "all"}, UnsupportedError, "bias 'all'"),
        ({"r": 0}, LoadError, "r is 0"),
        ({"lora_alpha": "x"}, LoadError, "lora_alpha is 'x'"),
        ({"rank_pattern": {"(.|.)*x": 3}}, LoadError, "expected the name of a layer"),
        ({"rank_pattern": {"(": 3}}, LoadError, "expected the name of a layer"),
        ({"alpha_pattern": [1]}, LoadError, "alpha_pattern"),
    ],
)
def test_configs_that_are_no_plain_lora(made, tmp_path, config, error, message):
    base = load(made.base, context_length=512)
    with pytest.raises(error, match=message):
        load_adapter(made.write_peft(tmp_path / "x", **config), base.spec, base.hparams)


def test_all_that_does_not_fit_is_told_at_once(made, tmp_path):
    base = load(made.base, context_length=512)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{name}.lora_A.weight": np.zeros((4, 7), np.float32),
        f"{name}.lora_B.weight": np.zeros((3, 4), np.float32),
        "base_model.model.model.layers.99.mlp.up_proj.lora_A.weight": np.zeros((4, 7), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, 7), np.float32),
        "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight": np.zeros((4, 7), np.float32),
    }
    with pytest.raises(LoadError) as e:
        load_adapter(made.write_peft(tmp_path / "x", factors=factors), base.spec, base.hparams)
    for part in (
        "blk.0.attn_q.weight is [3, 7] in the adapter",
        "layers.99.mlp.up_proj",
        "lora_embedding_A",
        "only one of its two factors",
    ):
        assert part in str(e.value)


@pytest.mark.parametrize(
    "metadata, error, message",
    [
        ({"general__type": "model"}, LoadError, "general.type is 'model'"),
        ({"adapter__type": "ia3"}, LoadError, "adapter.type is 'ia3'"),
        ({"general__architecture": "qwen2"}, LoadError, "the model is 'llama'"),
        ({"adapter__lora__alpha": None}, LoadError, "alpha is None"),
    ],
)
def test_files_that_are_no_adapter_of_this_model(made, tmp_path, metadata, error, message):
    base = load(made.base, context_length=512)
    with pytest.raises(error, match=message):
        load_adapter(write_gguf(tmp_path / "a.gguf", made.named, **metadata), base.spec, base.hparams)


def test_what_is_not_there(made, tmp_path):
    base = load(made.base, context_length=512)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelNotFoundError):
            load_adapter(path, base.spec, base.hparams)
    with pytest.raises(LoadError, match="no LoRA tensors"):
        load_adapter(made.write_peft(tmp_path / "x", factors={}), base.spec, base.hparams)
    embd = {
        "token_embd.weight.lora_a": np.zeros((2, 3), np.float32),
        "token_embd.weight.lora_b": np.zeros((3, 2), np.float32),
    }
    with pytest.raises(UnsupportedError, match="adapters of embed weights"):
        load_adapter(write_gguf(tmp_path / "e.gguf", embd), base.spec, base.hparams)
