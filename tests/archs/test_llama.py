"""Logits of the Llama family against transformers in F32, and against llama.cpp's of two fixed files."""

import shutil

import numpy as np
import pytest

from qtransformers.convert import convert
from qtransformers.generate import Request, Sequence, Stream
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.model import Model
from qtransformers.sampling import Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of logits against transformers, everything in F32
STORY = [{"role": "user", "content": "Tell me a story about a brave fox."}]


def load(path, **given):
    return Model.load(path, cache="f32", logits_rows=512, **given)


def greedy(model, ids, n):
    """`n` tokens, no matter which of them would end an answer."""
    request = Request(tuple(ids), n, Sampling(temperature=0))
    return list(
        Stream(model._engine, Sequence(request, model.tokenizer.decoder(), model._engine.n_tokens)).read().tokens
    )


@pytest.fixture(scope="module")
def reference(data):
    """The demo model in transformers, F32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(data / "demo_model", dtype=torch.float32, attn_implementation="eager")  # fmt: skip
    with torch.inference_mode():
        yield model.eval()


@pytest.fixture(scope="module")
def demo(data, tmp_path_factory):
    """The demo model in F32, made by our own converter."""
    with load(convert(data / "demo_model", tmp_path_factory.mktemp("demo") / "demo-F32.gguf", "F32")) as model:
        yield model


def test_logits_of_the_demo_model(demo, reference):
    ids = demo.chat_ids(STORY)
    ids = [*ids, *greedy(demo, ids, 120)]
    expected = reference(torch.tensor([ids])).logits[0].numpy()
    found = demo.logits(ids)
    assert found.shape == expected.shape == (len(ids), 2048) and np.ptp(expected) > 20
    assert np.abs(found - expected).max() < TOLERANCE


def test_two_hundred_greedy_tokens_of_the_demo_model(demo, reference):
    """Each is transformers' choice after those before it, so by induction its greedy tokens are the same."""
    ids = demo.chat_ids(STORY)
    found = greedy(demo, ids, 200)
    expected = reference(torch.tensor([[*ids, *found]])).logits[0, len(ids) - 1 : -1].argmax(-1)
    assert found == expected.tolist() and len(set(found)) > 60


def test_chunks_and_steps_give_the_logits_of_one_pass(demo):
    """The cache: token by token, in chunks across a page's end, and all at once."""
    ids = list(np.random.default_rng(0).integers(0, 1858, 600))
    whole = demo.logits(ids)
    for chunk in (1, 100, 256, 257):
        with load(demo.config.gguf_path, prefill_chunk=chunk) as model:
            assert np.abs(model.logits(ids) - whole).max() < TOLERANCE


@pytest.mark.parametrize(
    "cache, tolerance", [("f32", 1e-5), ("f16", 0.02), ("q8", 0.3), ("q6", 1), ("q4", 4), ("k8v4", 3)]
)
def test_the_cache_types(demo, cache, tolerance):
    ids = list(np.random.default_rng(1).integers(0, 1858, 300))
    with Model.load(demo.config.gguf_path, cache=cache, logits_rows=512) as model:
        assert np.abs(model.logits(ids) - demo.logits(ids)).max() < tolerance


# Of logits, against the F32 product over the same decoded weights; found: 0, 0.0006, 0.14
@pytest.mark.parametrize("accuracy, tolerance", [("exact", 1e-5), ("high", 2e-3), ("fast", 0.4)])
def test_quantised_products_mean_the_decoded_weights(data, tmp_path, accuracy, tolerance):
    with GGUFFile(data / "demo-Q8_0.gguf") as file:
        tensors = file.tensors.values()
        with GGUFWriter(
            tmp_path / "decoded.gguf", file.metadata, [(t.name, t.shape, "F32") for t in tensors]
        ) as writer:
            for t in tensors:
                writer.write(t.name, t.dequantize())
    with load(tmp_path / "decoded.gguf") as model:
        ids = [*model.chat_ids(STORY), *greedy(model, model.chat_ids(STORY), 120)]
        expected = model.logits(ids)
    with load(data / "demo-Q8_0.gguf", accuracy=accuracy) as model:
        found = model.logits(ids)
    assert np.abs(found - expected).max() < tolerance
    if accuracy != "fast":
        assert (found.argmax(1) == expected.argmax(1)).all()


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
CONFIGS = {
    "multi-head": ("Llama", {"num_key_value_heads": 4}),
    "grouped": ("Llama", {}),
    "one kv head": ("Llama", {"num_key_value_heads": 1}),
    "untied output": ("Llama", {"tie_word_embeddings": False}),
    "attention biases": ("Llama", {"attention_bias": True}),
    "all biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "wide heads": ("Llama", {"head_dim": 48}),
    "narrow heads": ("Llama", {"head_dim": 8}),
    "llama 3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama 3 rope, wide heads, biases": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 32, "attention_bias": True}),
    "linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "rope base": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}),
    "large epsilon": ("Llama", {"rms_norm_eps": 0.1}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "sliding window": ("Mistral", {"sliding_window": 16}),
    "mixtral": ("Mixtral", {"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 3}),
    "mixtral, all experts": ("Mixtral", {"sliding_window": 20, "num_local_experts": 3, "num_experts_per_tok": 3}),
    "mixtral, one expert": ("Mixtral", {"sliding_window": None, "num_local_experts": 5, "num_experts_per_tok": 1}),
    "sliding window, wide heads": ("Mistral", {"sliding_window": 50, "head_dim": 40, "tie_word_embeddings": False}),
}


def random_model(kind, options, seed):
    """A tiny transformers model whose every parameter matters: norms and biases random too."""
    config = getattr(transformers, f"{kind}Config")(
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 4,
            **options,
        }
    )
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale, shift = (0.3, 1.0) if "norm" in name else (0.3, 0.0) if name.endswith("bias") else (p.shape[-1] ** -0.5, 0.0)  # fmt: skip
            p.copy_(torch.randn(p.shape, generator=generator) * scale + shift)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_random_models(name, data, tmp_path):
    kind, options = CONFIGS[name]
    reference = random_model(kind, options, seed=len(name))
    folder = tmp_path / "model"
    reference.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data / "demo_model" / file, folder)
    ids = np.random.default_rng(7).integers(0, 1858, 150)
    with torch.inference_mode():
        expected = reference(torch.tensor(ids[None])).logits[0].numpy()
    with load(convert(folder, tmp_path / "model.gguf", "F32"), prefill_chunk=64) as model:
        found = model.logits(ids)
    assert np.abs(expected).max() > 3
    assert np.abs(found - expected).max() < TOLERANCE


def test_the_options_of_random_models_matter():
    """Each of them changes the logits, so none of the comparisons above can pass by ignoring it."""
    ids = torch.tensor(np.random.default_rng(7).integers(0, 1858, (1, 150)))
    with torch.inference_mode():
        plain = {kind: random_model(kind, {} if kind == "Llama" else {"sliding_window": None}, 1)(ids).logits for kind in ("Llama", "Mistral", "Mixtral")}  # fmt: skip
        for name in (
            "llama 3 rope",
            "linear rope",
            "rope base",
            "large epsilon",
            "sliding window",
            "mixtral, one expert",
        ):
            kind, options = CONFIGS[name]
            assert (random_model(kind, options, 1)(ids).logits - plain[kind]).abs().max() > 0.1, name


# llama.cpp's logits, made by tools/goldens_llama.py. Tolerances: it keeps keys and values in f32 here, but rounds the
# activations to 8 bits in products with Q8_0 weights, which we do not.
GOLDENS = {"demo": 0.2, "stories": 1e-4}  # found: 0.085 and 9e-6, of logits that span 29 and 39


@pytest.fixture(scope="module")
def goldens(data):
    with np.load(data / "goldens" / "llama.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request, data, goldens):
    """A model, its golden arrays, and the tolerance of its logits."""
    if request.param == "demo":
        path = data / "demo-Q8_0.gguf"
    else:
        path = request.getfixturevalue("shared") / "models" / "stories260K-f32.gguf"
    arrays = {name.partition("_")[2]: a for name, a in goldens.items() if name.startswith(request.param)}
    with load(path) as model:
        yield model, arrays, GOLDENS[request.param]


def test_logits_as_llama_cpp(golden):
    model, arrays, tolerance = golden
    found = model.logits(arrays["tokens"])[arrays["rows"]]
    assert found.shape == arrays["logits"].shape and len(arrays["rows"]) >= 4 and np.ptp(arrays["logits"]) > 10
    assert np.abs(found - arrays["logits"]).max() < tolerance


def test_greedy_tokens_as_llama_cpp_where_the_margin_allows(golden):
    model, arrays, tolerance = golden
    tokens, n_prompt = arrays["tokens"], int(arrays["prompt"])
    logits = model.logits(tokens)[n_prompt - 1 : -1]
    best = np.sort(logits, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * tolerance
    assert clear.mean() > 0.7
    assert (logits.argmax(1) == tokens[n_prompt:])[clear].all()
