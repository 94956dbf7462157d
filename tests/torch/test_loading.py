"""GGUF weights in classes of transformers: the numbers of their decoded twins, the same tokens, and every refusal."""

import copy
import json
import pickle
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers

from archs import encoders
from archs.cases import CASES
from archs.models import error
from qtransformers.convert import convert
from qtransformers.errors import ConfigError, LoadError, MissingExtraError, ModelNotFoundError, UnsupportedError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.gguf.split import split
from qtransformers.torch import QuantEmbedding, QuantExperts, QuantLinear, dequantized, load_transformers
from torch_models import decoded, ids, in_type, make, outputs, wide

TOLERANCE = 1e-4  # relative to the largest; found: 2e-5 (gpt-oss) and less
# Settings of a feature, which change no weight, are left to tests/archs.
NAMES = [n for n in CASES if n not in ("llama-linear", "qwen2-yarn", "qwen3-yarn", "phi3-short", "gemma2-scale", "gpt-oss-unrounded")]  # fmt: skip
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "TQ2_0")


def write(path, metadata, tensors):
    """A GGUF file of these tensors, for what a damaged one would have."""
    with GGUFWriter(path, metadata, [(t.name, t.shape, t.type) for t in tensors]) as writer:
        for t in tensors:
            writer.write(t.name, t)
    return path


@pytest.mark.parametrize("name", [*NAMES, *encoders.ENCODERS])
def test_the_numbers_of_the_decoded_twin(name, tmp_path):
    """The twin is the class itself with floats; that its weights are those of the file is what our converter says of it."""
    folder, path = make(name, tmp_path)
    model = load_transformers(folder, path, accuracy="exact", attn_implementation="eager")
    twin = dequantized(model)
    assert type(twin) is type(model) and not any(isinstance(m, QuantLinear) for m in twin.modules())
    tokens = ids(below=50 if name in encoders.ENCODERS else 256)
    assert error(outputs(model, tokens), outputs(twin, tokens)) < TOLERANCE
    if name in CASES:
        ours, theirs = (m.generate(tokens, min_new_tokens=6, max_new_tokens=6, do_sample=False) for m in (model, twin))
        assert torch.equal(ours, theirs) and ours.shape[1] == tokens.shape[1] + 6
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for weights in again.glob("*.safetensors*"):
        weights.unlink()
    twin.save_pretrained(again)
    expected, found = decoded(path), decoded(convert(again, tmp_path / "again.gguf", "F32"))
    assert expected.keys() == found.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, rtol=1e-5, atol=1e-6, err_msg=tensor)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints and F32 files that blocks of 256 fit, by name."""
    folder = tmp_path_factory.mktemp("wide")
    return {name: wide(name, folder, **more) for name, more in (("llama-llama3", {}), ("gpt-oss", {}), ("qwen3moe", {"moe_intermediate_size": 256}))}  # fmt: skip


@pytest.mark.parametrize("name, type_", [*(("llama-llama3", t) for t in TYPES), ("gpt-oss", "MXFP4"), ("qwen3moe", "Q5_K")])  # fmt: skip
def test_types(name, type_, files):
    folder, path = files[name]
    path = in_type(path, type_)
    model = load_transformers(folder, path, accuracy="exact", attn_implementation="eager")
    assert {m.weight.quant_type.name for m in model.modules() if isinstance(m, QuantLinear)} == {type_}
    assert error(outputs(model, ids()), outputs(dequantized(model), ids())) < TOLERANCE
    for accuracy, bound in (("high", 0.01), ("fast", 0.3)):  # random weights make much of what is rounded
        found = outputs(load_transformers(folder, path, accuracy=accuracy, attn_implementation="eager"), ids())
        assert not np.array_equal(found, outputs(model, ids())) or type_ in ("F32", "F16", "BF16")
        assert error(found, outputs(model, ids())) < bound


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make("llama-llama3", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen3moe(tmp_path_factory):
    return make("qwen3moe", tmp_path_factory.mktemp("qwen3moe"))


def test_no_weights_are_needed_beside_the_config(llama, tmp_path):
    folder, path = llama
    expected = outputs(load_transformers(folder, path), ids())
    for name in ("config.json", "generation_config.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    model = load_transformers(tmp_path, path)
    np.testing.assert_array_equal(outputs(model, ids()), expected)


def test_only_quantised_weights_are_held_and_those_of_the_file(qwen3moe):
    folder, path = qwen3moe
    model = load_transformers(folder, path)
    with GGUFFile(path) as file:
        matrices = sum(t.nbytes for t in file.tensors.values() if len(t.shape) > 1 and "gate_inp" not in t.name)
    held = {b.data_ptr(): b.nbytes for name, b in model.named_buffers() if name.endswith(".blocks")}
    assert sum(held.values()) == matrices
    assert all(p.ndim == 1 or "mlp.gate" in name for name, p in model.named_parameters())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    with open("/proc/self/maps") as maps:
        mapped = [range(*(int(x, 16) for x in line.split()[0].split("-"))) for line in maps if str(path) in line]
    assert all(any(address in area for area in mapped) for address in held)


def test_biases_are_as_in_the_file(llama, tmp_path):
    """The config says nothing of them in half of the families; here both have them."""
    folder, path = llama
    model = load_transformers(folder, path)
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.bias is not None and layer.mlp.down_proj.bias is not None
    assert model.lm_head.bias is None
    qwen2, file = make("qwen2", tmp_path)
    layer = load_transformers(qwen2, file).model.layers[0]
    assert layer.self_attn.q_proj.bias is not None and layer.self_attn.o_proj.bias is None


def test_a_bias_that_the_class_does_not_expect_is_installed(llama, tmp_path):
    folder, path = llama
    config = json.loads((folder / "config.json").read_text())
    twin = dequantized(load_transformers(folder, path, accuracy="exact", attn_implementation="eager"))
    del config["attention_bias"], config["mlp_bias"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_transformers(tmp_path, path, accuracy="exact", attn_implementation="eager")
    assert error(outputs(model, ids()), outputs(twin, ids())) < TOLERANCE


def test_the_text_part_of_a_multimodal_config(tmp_path):
    folder, path = make("gemma3", tmp_path)
    text = json.loads((folder / "config.json").read_text())
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {"num_hidden_layers": 1}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_transformers(tmp_path, path)
    assert type(model) is transformers.Gemma3ForCausalLM
    assert np.array_equal(outputs(model, ids()), outputs(load_transformers(folder, path), ids()))


def test_what_nothing_reads_is_said(llama, tmp_path):
    folder, path = llama
    with GGUFFile(path) as file:
        metadata = {**{key: file.metadata.encoded(key) for key in file.metadata}, "llama.new_setting": 3}
        odd = write(tmp_path / "odd.gguf", metadata, list(file.tensors.values()))
    with pytest.warns(UserWarning, match=r"llama\.new_setting = 3 is not read"):
        load_transformers(folder, odd)


def test_code_of_a_repository_is_not_run(llama, tmp_path):
    config = json.loads((llama[0] / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    assert type(load_transformers(tmp_path, llama[1])) is transformers.LlamaForCausalLM


def test_tied_embeddings_share_their_blocks(tmp_path):
    folder, path = make("gemma3", tmp_path)
    model = load_transformers(folder, path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.get_input_embeddings(), QuantEmbedding)
    twin = dequantized(model)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight and all(p.requires_grad for p in twin.parameters())


def test_methods_that_would_take_blocks_for_floats_are_refused(llama, tmp_path):
    model = load_transformers(*llama)
    with pytest.raises(UnsupportedError, match="save_gguf"):
        model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="cannot add rows"):
        model.resize_token_embeddings(999)
    with pytest.raises(UnsupportedError, match="would upload"):
        model.push_to_hub("somebody/something")
    assert not list(tmp_path.iterdir())
    model.tie_weights()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(outputs(other, ids()), outputs(model, ids()))
        with pytest.raises(UnsupportedError, match="save_gguf"):
            other.save_pretrained(tmp_path)


def test_an_output_of_its_own_beside_a_config_that_ties(tmp_path):
    """Converters may write both: the file's own counts."""
    folder, path = make("gemma3", tmp_path)
    with GGUFFile(path) as file:
        metadata = {key: file.metadata.encoded(key) for key in file.metadata}
        tensors = list(file.tensors.values())
        own = next(t for t in tensors if t.name == "token_embd.weight")
        other = type(own)("output.weight", own.type, own.shape, own.data[::-1].reshape(-1, 34)[:, ::-1].reshape(-1))
        write(tmp_path / "both.gguf", metadata, [*tensors, other])
    model = load_transformers(folder, tmp_path / "both.gguf")
    assert model.lm_head.weight.name == "output.weight"
    assert not torch.equal(model.lm_head.weight.blocks, model.model.embed_tokens.weight.blocks)


def test_shards_and_the_other_byte_order(llama, tmp_path):
    folder, path = llama
    expected = outputs(load_transformers(folder, path), ids())
    first, *_ = split(path, tmp_path / "parts", max_tensors=9)
    assert np.array_equal(outputs(load_transformers(folder, first), ids()), expected)
    with GGUFFile(path) as file:
        metadata = {key: file.metadata[key] for key in file.metadata}
        tensors = list(file.tensors.values())
        specs = [(t.name, t.shape, t.type) for t in tensors]
        with GGUFWriter(tmp_path / "big.gguf", metadata, specs, big_endian=True) as writer:
            for t in tensors:
                writer.write(t.name, t)
    assert np.array_equal(outputs(load_transformers(folder, tmp_path / "big.gguf"), ids()), expected)


def test_dtype(llama):
    folder, path = llama
    model = load_transformers(folder, path, dtype="bfloat16", accuracy="exact")
    assert model.dtype == torch.bfloat16 and model.model.embed_tokens(ids()).dtype == torch.bfloat16
    found = model(ids()).logits
    assert found.dtype == torch.bfloat16
    exact = outputs(load_transformers(folder, path, accuracy="exact"), ids())
    assert error(found[0].float().detach().numpy(), exact) < 0.05
    assert model.float().model.embed_tokens(ids()).dtype == torch.float32
    for wrong in ("int8", "float33", 7):
        with pytest.raises(ConfigError, match="floating dtype"):
            load_transformers(folder, path, dtype=wrong)


def test_options_reach_the_class(llama):
    folder, path = llama
    model = load_transformers(folder, path, model_class=transformers.LlamaForCausalLM, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(UnsupportedError, match=r"config\.json.*cannot build a model"):
        load_transformers(folder, path, no_such_option=1)
    headless = load_transformers(folder, path, model_class=transformers.LlamaModel)
    assert outputs(headless, ids()).shape == (24, 64)


def test_generation_config_comes_along(llama, tmp_path):
    folder, path = llama
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5], "temperature": 0.25, "do_sample": true}')
    found = load_transformers(tmp_path, path).generation_config
    assert (found.eos_token_id, found.temperature) == ([3, 5], 0.25)


def test_a_wrong_config_names_both(llama, qwen3moe, tmp_path):
    folder, path = llama
    with pytest.raises(LoadError) as e:
        load_transformers(qwen3moe[0], path)
    assert str(path) in str(e.value) and str(qwen3moe[0] / "config.json") in str(e.value)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(LoadError, match=r"feed_forward_length is 96.*intermediate_size is 128") as e:
        load_transformers(tmp_path, path)
    assert str(path) in str(e.value) and str(tmp_path / "config.json") in str(e.value)


def test_everything_that_does_not_fit_the_class_is_reported_at_once(llama, tmp_path):
    """A class that is another than the file's: nothing is half-filled."""
    folder, path = llama
    with pytest.raises(LoadError) as e:
        load_transformers(folder, path, model_class=transformers.LlamaForSequenceClassification)
    assert "score.weight is missing" in str(e.value) and str(path) in str(e.value)


class Odd(transformers.LlamaForCausalLM):
    """A class with less, more and other than the file has."""

    def __init__(self, config):
        super().__init__(config)
        self.more = torch.nn.Linear(3, 4)
        self.model.norm = torch.nn.LayerNorm(64, elementwise_affine=False)
        self.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 100)
        self.model.layers[2].input_layernorm = torch.nn.RMSNorm(63)


def test_missing_misshapen_and_homeless_tensors_together(llama):
    folder, path = llama
    with pytest.raises(LoadError) as e:
        load_transformers(folder, path, model_class=Odd)
    for text in (
        "more.weight is missing",
        "more.bias is missing",
        "output_norm.weight [64] has no place in Odd",
        "blk.1.ffn_up.weight [96, 64] does not fit model.layers.1.mlp.up_proj.weight [100, 64]",
        "blk.1.ffn_up.bias [96] does not fit model.layers.1.mlp.up_proj.bias [100]",
        "blk.2.attn_norm.weight [64] does not fit model.layers.2.input_layernorm.weight [63]",
        "6 problems",
    ):
        assert text in str(e.value)


def test_tensors_that_lack_or_are_too_many(llama, tmp_path):
    folder, path = llama
    with GGUFFile(path) as file:
        metadata = {key: file.metadata.encoded(key) for key in file.metadata}
        tensors = [t for t in file.tensors.values() if t.name not in ("blk.1.ffn_up.weight", "blk.2.attn_norm.weight")]
        broken = write(tmp_path / "broken.gguf", metadata, tensors)
    with pytest.raises(LoadError) as e:
        load_transformers(folder, broken)
    assert "blk.1.ffn_up.weight is missing" in str(e.value) and "blk.2.attn_norm.weight is missing" in str(e.value)


def test_a_config_is_needed(llama, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"no config\.json"):
        load_transformers(tmp_path, llama[1])
    with pytest.raises(ModelNotFoundError):
        load_transformers(tmp_path / "nowhere", llama[1])


def test_devices_without_kernels_are_refused(llama):
    for device in ("meta", "xpu:0"):
        with pytest.raises((ConfigError, UnsupportedError), match="device"):
            load_transformers(*llama, device=device)


def test_without_transformers_the_extra_is_named(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qtransformers\[torch\]'"):
        load_transformers(*llama)


def test_without_torch_the_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n == "qtransformers.torch" or n.startswith("qtransformers.torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qtransformers\[torch\]'"):
        import qtransformers.torch  # noqa: F401


def test_experts_are_stacks_of_the_file(qwen3moe):
    model = load_transformers(*qwen3moe)
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts, QuantExperts) and list(experts.gate.shape) == [8, 32, 64]
    assert np.isfinite(outputs(model, ids())).all()
