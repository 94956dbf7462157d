"""Encoders on random weights: hidden states of transformers, vectors of sentence-transformers' maths and of llama.cpp."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from archs.encoders import ENCODERS, POOLINGS, TEXTS, encoder, gguf, sentence_vectors, wordpiece
from archs.models import Ours, digest, error, none, switched, zeros
from qtransformers.archs import Hyperparameters
from qtransformers.cache import Batch
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.load import load
from qtransformers.model import Model

TOLERANCE = 1e-3  # relative to the largest value; found: 2e-6 and less
LENGTHS = (1, 7, 60, 250)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name)`: the model in transformers, its GGUF file, and what we load from it."""
    folder, known = tmp_path_factory.mktemp("encoders"), {}

    def make(name):
        if name not in known:
            case, theirs, _ = encoder(name)
            path = gguf(theirs, folder, name, POOLINGS[name])
            known[name] = theirs, path, Ours.load(path, case).loaded
        return known[name]

    return make


def hidden(loaded, texts, hparams=None, weights=None):
    """Hidden states of several texts in one forward."""
    h = Hyperparameters.frozen({**loaded.hparams, **(hparams or {})}, {})
    batch = Batch.join([Batch.single(ids, 0, [], outputs=None) for ids in texts])
    return loaded.spec.forward(switched(loaded.weights, weights or {}), h, batch)


def off(found, expected):
    """`error` of vectors, which are of length 1 or longer."""
    assert (np.linalg.norm(expected, axis=1) > 0.999).all()
    return error(found * len(found[0]), expected * len(found[0]))


def ids_of(n):
    return np.random.default_rng(n).integers(5, 180, n).tolist()


def expected(theirs, ids):
    with torch.inference_mode():
        return theirs(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_as_transformers(name, made):
    theirs, _, loaded = made(name)
    assert loaded.spec.id == ENCODERS[name].arch and not loaded.plan.warnings
    texts = [ids_of(n) for n in LENGTHS]
    found = hidden(loaded, texts)
    assert error(found, np.concatenate([expected(theirs, ids) for ids in texts])) < TOLERANCE
    assert np.array_equal(found[8:68], hidden(loaded, texts[2:3])), "texts of a batch do not see each other"


BIASES = ("attn_q_bias", "attn_k_bias", "attn_v_bias", "attn_output_bias", "ffn_up_bias", "ffn_down_bias")
NORM_BIASES = ("token_embd_norm_bias", "attn_output_norm_bias", "layer_output_norm_bias")
OFF = {
    "bert": {
        "positions": {"weights": {"position_embd": zeros}},
        # q . k_bias is the same for every key, so the softmax takes it away
        **{b: {"weights": {b: none}} for b in (*BIASES, *NORM_BIASES) if b != "attn_k_bias"},
    },
    "nomic-bert": {
        "rope": {"hparams": {"rope_base": 1e30}},
        "rope base": {"hparams": {"rope_base": 10_000.0}},
        **{b: {"weights": {b: none}} for b in NORM_BIASES},
    },
}
COMMON = {"token types": {"weights": {"token_types": zeros}}, "epsilon": {"hparams": {"norm_eps": 1.0}}}


@pytest.mark.parametrize("name, feature", [(n, f) for n in OFF for f in (*OFF[n], *COMMON)])
def test_without_a_feature_the_states_are_others(name, feature, made):
    theirs, _, loaded = made(name)
    ids = ids_of(120)
    assert error(hidden(loaded, [ids], **{**COMMON, **OFF[name]}[feature]), expected(theirs, ids)) > 100 * TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_as_sentence_transformers_computes_them(name, pooling, made, tmp_path):
    theirs, _, _ = made(name)
    with Model.load(gguf(theirs, tmp_path, name, pooling), accuracy="exact", prefill_chunk=64) as model:
        for normalize in (True, False):
            found = model.embed(TEXTS, normalize=normalize)
            assert off(found, sentence_vectors(theirs, TEXTS, pooling, normalize)) < TOLERANCE
        assert np.allclose(np.linalg.norm(model.embed(TEXTS), axis=1), 1, atol=1e-6)
        ids = [wordpiece().encode(t).ids for t in TEXTS]
        assert np.array_equal(model.embed(ids), model.embed(TEXTS)), "token ids are a text's"
        for other in {"mean", "cls", "last"} - {pooling}:
            assert off(model.embed(TEXTS, pooling=other), sentence_vectors(theirs, TEXTS, other)) < TOLERANCE
            assert off(model.embed(TEXTS, pooling=other), sentence_vectors(theirs, TEXTS, pooling)) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_as_llama_cpp(name, made, data):
    """Numbers made by tools/goldens_encoders.py from the same files."""
    _, path, _ = made(name)
    with np.load(data / "goldens" / "encoders.npz") as file:
        goldens = dict(file)
    assert str(goldens[f"{name}_file"]) == digest(path), "the file is not the golden's: make the goldens again"
    with Model.load(path, accuracy="exact") as model:
        assert off(model.embed(TEXTS), goldens[f"{name}_vectors"]) < TOLERANCE


@pytest.fixture(scope="module")
def bert(made):
    with Model.load(made("bert")[1]) as model:
        yield model


def test_an_encoder_keeps_no_cache(bert):
    assert bert.plan.cache_bytes == 0 and bert.plan.cache_shape.n_layers == 0
    assert bert._engine._use().cache.nbytes == 0
    width, rows = 64, 512  # two projections of the three are more than what the feed-forward layer needs
    assert bert.plan.activations_bytes >= 4 * rows * width * (2 + 3 + 2)


@pytest.mark.parametrize("use", [
    lambda m: m.generate("a"), lambda m: m.stream([5]), lambda m: m.chat([{"role": "user", "content": "a"}]), lambda m: m.logits([5]),
])  # fmt: skip
def test_an_encoder_generates_nothing_and_says_so(bert, use):
    with pytest.raises(ConfigError, match=r"is an encoder \(bert\).*Use embed\(\)"):
        use(bert)


def test_a_text_beyond_the_context(bert):
    long = "the dog " * 300
    with pytest.raises(ConfigError, match=r"texts\[1\] has 602 tokens; the context is 256.*truncate=True"):
        bert.embed(["a", long])
    kept = [*wordpiece().encode(long).ids[:255], wordpiece().token_to_id("[SEP]")]
    assert np.array_equal(bert.embed([long], truncate=True), bert.embed([kept]))


@pytest.mark.parametrize("texts, options, message", [
    ("a text", {}, r"texts='a text'; expected a list of texts"),
    (3, {}, "texts=3; expected a list"),
    ([7], {}, r"texts\[0\]=7; expected text or a list"),
    ([[]], {}, r"texts\[0\] has no tokens"),
    ([[5, 5_000]], {}, r"texts\[0\]\[1\]=5000"),
    (["a"], {"pooling": "max"}, "pooling='max'; expected 'mean', 'cls', 'last'"),
    (["a"], {"truncate": 1}, "truncate"),
    (["a"], {"normalize": "no"}, "normalize"),
])  # fmt: skip
def test_what_cannot_be_embedded(bert, texts, options, message):
    with pytest.raises(ConfigError, match=message):
        bert.embed(texts, **options)


def test_no_texts_are_no_vectors(bert):
    assert bert.embed([]).shape == (0, 64)


def test_a_file_that_says_nothing_of_pooling(made, tmp_path):
    theirs, _, _ = made("bert")
    with Model.load(gguf(theirs, tmp_path, "bert")) as model:
        with pytest.raises(ConfigError, match=r"does not say how .* Pass pooling"):
            model.embed(["a"])
        assert off(model.embed(TEXTS, pooling="mean"), sentence_vectors(theirs, TEXTS, "mean")) < 0.1


def test_a_language_model_embeds_nothing_and_says_so(data):
    with (
        Model.load(data / "demo-Q8_0.gguf") as model,
        pytest.raises(ConfigError, match=r"is a language model \(llama\).*Load an encoder"),
    ):
        model.embed(["a"])


def test_more_positions_than_there_are(made):
    with pytest.raises(ConfigError, match="context_length=257; the model learned its 256 positions"):
        load(made("bert")[1], context_length=257)
    assert load(made("nomic-bert")[1], context_length=300).plan.context_length == 300


def changed(path, target, metadata):
    """A copy of a file with other metadata."""
    with GGUFFile(path) as file:
        tensors = file.tensors.values()
        new = {k: v for k, v in {**file.metadata, **metadata}.items() if v is not None}
        with GGUFWriter(target, new, [(t.name, t.shape, "F32") for t in tensors]) as writer:
            for t in tensors:
                writer.write(t.name, t.dequantize())
    return target


@pytest.mark.parametrize("key, value, kind, message", [
    ("attention.head_count", 7, LoadError, "embedding_length is 64, no multiple of attention.head_count, 7"),
    ("attention.head_count", 0, LoadError, "head_count"),
    ("attention.layer_norm_epsilon", float("nan"), LoadError, "layer_norm_epsilon"),
    ("attention.causal", True, UnsupportedError, "attention.causal"),
    ("pooling_type", 4, UnsupportedError, "pooling_type"),
    ("block_count", 0, LoadError, "block_count"),
    ("context_length", 300, LoadError, "position_embd"),
])  # fmt: skip
def test_hostile_metadata(made, tmp_path, key, value, kind, message):
    given = {np.dtype("bool"): bool, np.dtype("float64"): np.float32}.get(np.asarray(value).dtype, np.uint32)(value)
    with pytest.raises(kind, match=message):
        load(changed(made("bert")[1], tmp_path / "changed.gguf", {f"bert.{key}": given}))
