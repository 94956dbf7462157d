"""From two paths to logits."""

import json
import re
import time

import numpy as np
import pytest

from qtransformers.cache import Batch, PagedCache
from qtransformers.convert.vocabulary import tokenizer_metadata
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.load import load
from qtransformers.load.hub import Hub

OFFLINE = Hub(offline=True)
CHAT = "<|user|>\nTell me a story about a brave fox.<|end|>\n<|assistant|>\n"


def greedy(m, prompt, n):
    """Token ids and the logits that chose them."""
    h = m.hparams
    cache = PagedCache.allocate(h.n_layers, h.n_kv_heads, h.head_dim, h.head_dim_v, m.plan.context_length, "f32")
    pages, new, past = cache.take(1), m.tokenizer.encode(prompt, encode_special=True), 0
    ids, rows = [], []
    for _ in range(n):
        rows.append(m.spec.forward(m.weights, h, Batch.single(new, past, pages), cache)[0])
        past += len(new)
        new = [int(rows[-1].argmax())]
        ids += new
        if new[0] in m.generation.eos:
            break
    return ids, np.stack(rows)


@pytest.fixture
def demo(data):
    return data / "demo-Q8_0.gguf"


def test_one_path_and_two_paths_answer_alike(demo, data):
    alone, both = load(demo), load(demo, data / "demo_model", hub=OFFLINE)
    ids, logits = greedy(alone, CHAT, 60)
    ids2, logits2 = greedy(both, CHAT, 60)
    assert ids == ids2
    np.testing.assert_array_equal(logits, logits2)
    text = alone.tokenizer.decode(ids)
    assert "fox" in text and text == both.tokenizer.decode(ids)
    assert set(alone.generation.eos) == set(both.generation.eos) == {0, 4}
    assert alone.chat_templates.default == both.chat_templates.default
    assert both.chat_templates.origin.endswith("chat_template.jinja")
    assert both.generation.origin.endswith("generation_config.json")


def test_stories(shared):
    m = load(shared / "models/stories260K-f32.gguf")
    ids, _ = greedy(m, "Once upon a time", 30)
    assert m.tokenizer.decode(ids).startswith(", there was a little girl named Lily.")
    assert m.chat_templates.default is None


def test_what_is_loaded_is_frozen(demo):
    m = load(demo)
    with pytest.raises(AttributeError):
        m.plan = None
    assert "saves 3.3" in m.notes


def test_opening_is_quick(demo, data):
    load(demo, data / "demo_model", hub=OFFLINE)
    start = time.process_time()
    load(demo, data / "demo_model", hub=OFFLINE)
    assert time.process_time() - start < 1  # of the processor; it takes 20 ms


def test_model_path_alone_has_no_weights(data, hf_dir):
    with pytest.raises(LoadError, match=r"weights come from a GGUF file.*qtransformers convert"):
        load(model_path=data / "demo_model", hub=OFFLINE)
    folder = hf_dir()
    (folder / "model-Q8_0.gguf").write_bytes((data / "demo-Q8_0.gguf").read_bytes())
    with pytest.raises(LoadError, match=r"It holds model-Q8_0\.gguf: pass gguf_path="):
        load(model_path=folder, hub=OFFLINE)
    assert load(folder, folder, hub=OFFLINE).weights


def change_tokenizer(folder, change):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer["model"]["vocab"], tokenizer["added_tokens"])
    path.write_text(json.dumps(tokenizer))


def test_more_tokens_than_rows(demo, hf_dir):
    folder = hf_dir()

    def grow(vocab, added):
        template = added[-1]
        added += [{**template, "id": i, "content": f"<extra{i}>"} for i in range(len(vocab), 2100)]

    change_tokenizer(folder, grow)
    with pytest.raises(LoadError) as e:
        load(demo, folder, hub=OFFLINE)
    assert f"{folder} has 2100 tokens; {demo}: token_embd.weight has 2048 rows" in str(e.value)


def test_more_tokens_than_rows_in_the_file_itself(remake, demo):
    from qtransformers.gguf import GGUFFile

    with GGUFFile(demo) as file:
        tokens = [*file.metadata["tokenizer.ggml.tokens"], "extra"]
        types = np.append(file.metadata["tokenizer.ggml.token_type"], 1).astype(np.int32)
    path = remake(metadata={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    with pytest.raises(LoadError, match=r"has 2049 tokens; .*has 2048 rows"):
        load(path)


def test_another_tokenizer(demo, hf_dir):
    folder = hf_dir()

    def shift(vocab, added):
        names = sorted(vocab, key=vocab.get)
        plain = [n for n in names if all(t["content"] != n for t in added)]
        ids = [vocab[n] for n in plain]
        vocab.update(zip(plain, ids[1:] + ids[:1], strict=True))

    change_tokenizer(folder, shift)
    with pytest.raises(LoadError) as e:
        load(demo, folder, hub=OFFLINE)
    text = str(e.value)
    assert str(folder) in text and str(demo) in text and "disagree on" in text and "different models" in text


def test_config_without_a_tokenizer(demo, hf_dir):
    folder = hf_dir(drop=("model.safetensors", "tokenizer.json", "tokenizer_config.json"))
    (folder / "vocab.txt").write_text("one\ntwo\n")
    m = load(demo, folder, hub=OFFLINE)
    assert m.tokenizer.n_tokens == 2048
    assert "vocab.txt cannot be read as a tokenizer; the GGUF's vocabulary is used" in m.notes


def test_a_directory_with_a_sentencepiece_model(demo, hf_dir, remake, train_sentencepiece):
    folder = hf_dir(drop=("model.safetensors", "tokenizer.json", "tokenizer_config.json"))
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(model_type="bpe"))
    keys = {key: int(v) if isinstance(v, np.integer) else v for key, v in tokenizer_metadata(folder, 2048).items()}
    fitting = remake(metadata={"tokenizer.ggml.merges": None, "tokenizer.ggml.pre": None, **keys})
    m = load(fitting, folder, hub=OFFLINE)
    assert "tokenizer.model" in repr(m.tokenizer) and m.tokenizer.n_tokens < 2048
    theirs, ours = (model.tokenizer.encode("the quick fox", add_bos=False) for model in (m, load(fitting)))
    assert theirs == ours
    with pytest.raises(LoadError, match="belong to different models"):
        load(demo, folder, hub=OFFLINE)


def test_pre_is_for_the_files_vocabulary(demo, data):
    assert load(demo, pre="llama-bpe").tokenizer
    with pytest.raises(ConfigError, match="pre='llama-bpe'"):
        load(demo, data / "demo_model", pre="llama-bpe", hub=OFFLINE)


def test_a_mixture_needs_its_experts_and_no_dense_layers(remake):
    mixture = {"llama.expert_count": 8, "llama.expert_used_count": 2}
    with pytest.raises(LoadError) as e:
        load(remake(metadata=mixture))
    for part in (
        r"ffn_gate_inp\.weight.* missing",
        r"ffn_down_exps\.weight.* missing",
        r"ffn_gate\.weight.* in the file",
    ):
        assert re.search(part, str(e.value))
    with pytest.raises(LoadError, match="expert_used_count is 9; expected 1 to expert_count, 8"):
        load(remake(metadata=mixture | {"llama.expert_used_count": 9}))


def test_of_an_unsupported_model_neither_tensors_nor_config_are_judged(remake, make, hf_dir):
    file = remake(
        metadata={"llama.rope.scaling.type": "spiral"},
        drop=[f"blk.{i}.ffn_up.weight" for i in range(4)],
        add=[make.tensor(f"blk.{i}.ffn_gate_exps.weight", np.zeros((8, 4, 32))) for i in range(4)],
    )
    for folder in (None, hf_dir({"model_type": "mixtral", "num_local_experts": 8})):
        with pytest.raises(UnsupportedError) as e:
            load(file, folder, hub=OFFLINE)
        assert str(e.value).count("\n") == 0 and "llama.rope.scaling.type is 'spiral'" in str(e.value)


def test_generation_defaults_of_the_original_model_win(demo, hf_dir):
    folder = hf_dir()
    (folder / "generation_config.json").write_text('{"eos_token_id": 4, "temperature": 0.6, "top_p": 0.9}')
    g = load(demo, folder, hub=OFFLINE).generation
    assert (g.temperature, g.top_p, g.eos) == (0.6, 0.9, (4, 0))
    (folder / "generation_config.json").unlink()
    assert load(demo, folder, hub=OFFLINE).generation.origin.endswith("config.json")
