"""Directories with tokenizer.json: against the tokenizers library itself, and transformers."""

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from qtransformers.errors import ModelNotFoundError, TokenizerError
from qtransformers.load.tokenizer import Tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 9085657\n".format("0" * 64)
TEXTS = [
    "Hello world",
    "  two  blanks ",
    "Ünïcödé 🦊 日本\n\n\tx",
    "",
    " ",
    "<|user|>\nhi<|end|>\n<|assistant|>\n",
    "a<|endoftext|>b <|end|>",
]


@pytest.fixture
def folder(data, tmp_path):
    """A copy of the demo model's directory."""
    shutil.copytree(data / "demo_model", tmp_path / "demo", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "demo"


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_demo_model_as_transformers_has_it(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        for special in (False, True):
            ids = ours.encode(text, encode_special=special)
            assert ids == theirs.encode(text, split_special_tokens=not special)
            assert ours.decode(ids, decode_special=True) == text == theirs.decode(ids)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_the_directory_and_the_file_agree(folder, data):
    ours, file = Tokenizer.from_pretrained(folder), Tokenizer.from_gguf(data / "demo-Q8_0.gguf")
    for text in TEXTS:
        for special in (False, True):
            assert ours.encode(text, encode_special=special) == file.encode(text, encode_special=special)
    assert ours.special_ids == file.special_ids
    assert ours.eos_ids == file.eos_ids == {0, 4}
    assert [ours.token_text(i) for i in range(ours.n_tokens)] == [file.token_text(i) for i in range(ours.n_tokens)]


def test_user_text_makes_no_control_tokens(folder):
    ours = Tokenizer.from_pretrained(folder)
    assert not set(ours.encode("a <|end|> <|user|>")) & ours.special_ids
    assert ours.encode("<|end|>", encode_special=True) == [4]


def test_a_named_token_is_a_control_token_whatever_its_flag(folder):
    described = json.loads((folder / "tokenizer.json").read_text())
    for token in described["added_tokens"]:
        token["special"] = token["content"] != "<|end|>"
    (folder / "tokenizer.json").write_text(json.dumps(described))
    ours = Tokenizer.from_pretrained(folder)
    assert 4 in ours.special_ids
    assert 4 not in ours.encode("<|end|>")


def test_a_token_known_by_its_text_is_a_control_token_too(folder):
    n = Tokenizer.from_pretrained(folder).n_tokens
    added = {str(n): {"content": "<|im_end|>", "special": False}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=added)
    ours = Tokenizer.from_pretrained(folder)
    assert n in ours.special_ids & ours.eos_ids
    assert n not in ours.encode("<|im_end|>")
    assert ours.encode("<|im_end|>", encode_special=True) == [n]


@pytest.mark.parametrize("present", [True, False])
def test_bos_and_eos_as_tokenizer_config_says(folder, present):
    change(folder / "tokenizer_config.json", add_bos_token=present, add_eos_token=not present)
    ours = Tokenizer.from_pretrained(folder)
    ids = ours.encode("a", add_bos=False)
    assert ours.encode("a") == ([0, *ids] if present else [*ids, 4])
    assert ours.encode("a", add_bos=True)[0] == 0


def test_bos_as_the_post_processor_says(folder):
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(
        single="<|system|> $A <|end|>", special_tokens=[("<|system|>", 1), ("<|end|>", 4)]
    )
    library.save(str(folder / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(folder)
    assert (ours.before, ours.after) == ([1], [4])
    assert ours.encode("a b") == library.encode("a b").ids


def test_tokens_that_only_the_config_adds(folder):
    n = Tokenizer.from_pretrained(folder).n_tokens
    added = {str(n): {"content": "<tool>", "special": False}, str(n + 1): {"content": "<|call|>", "special": True}}
    change(folder / "tokenizer_config.json", added_tokens_decoder=added)
    ours = Tokenizer.from_pretrained(folder)
    assert ours.n_tokens == n + 2
    assert ours.encode("<tool>") == [n]
    assert n + 1 in ours.special_ids & ours.eos_ids
    assert n + 1 not in ours.encode("<|call|>")


def test_threads_may_ask_for_different_things(folder):
    ours = Tokenizer.from_pretrained(folder)
    text = "a<|end|>b " * 50
    wanted = {special: ours.encode(text, encode_special=special) for special in (False, True)}
    assert wanted[False] != wanted[True]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: ours.encode(text, encode_special=n % 3 == 0), range(400)))
    assert all(ids == wanted[n % 3 == 0] for n, ids in enumerate(found))


def test_padding_and_truncation_of_the_file_are_left_out(folder):
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(3)
    library.enable_padding(length=64)
    library.save(str(folder / "tokenizer.json"))
    text = "a longer text than three tokens"
    assert Tokenizer.from_pretrained(folder).decode(Tokenizer.from_pretrained(folder).encode(text)) == text


CORPUS = ["the quick brown fox jumps over the lazy dog", "Dogs and foxes: 12 of them, naïve & 日本!"] * 5


def byte_level():
    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return library, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


def sentencepiece_like():
    """As Llama 2's: blanks as U+2581, tokens for bytes, one blank in front."""
    library = Library(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    special = ["<unk>", *[f"<0x{b:02X}>" for b in range(256)]]
    return library, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)


def metaspace():
    library = Library(models.Unigram())
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return library, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )


def word_piece():
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(cleanup=False)
    return library, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]"], show_progress=False)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like, metaspace, word_piece])
def test_every_decoder_is_the_librarys(make, tmp_path):
    library, trainer = make()
    library.train_from_iterator(CORPUS, trainer)
    if make is sentencepiece_like:  # the byte tokens are part of the vocabulary, not special
        described = json.loads(library.to_str())
        described["added_tokens"] = described["added_tokens"][:1]
        library = Library.from_str(json.dumps(described))
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    library.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_pretrained(tmp_path)
    r = random.Random(5)
    texts = [
        *CORPUS[:2],
        "fox  dog ",
        "é🦊 x",
        "the <tool> dog",
        *("".join(r.choices("thequickfox é日🦊 ", k=20)) for _ in range(50)),
    ]
    for text in texts:
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_bos=False) == ids
        decoder = ours.decoder()
        assert ours.decode(ids) == library.decode(ids) == "".join([decoder.push(i) for i in ids]) + decoder.finish()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_in_its_place_names_the_remedy(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(ModelNotFoundError, match=rf"{name} is a git-LFS pointer.*git lfs pull --include=\"{name}\""):
        Tokenizer.from_pretrained(folder)


def test_no_directory_and_no_tokenizer(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere is no directory"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match=r"no tokenizer\.json, nor tokenizer\.model.*leave out model_path"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', '{"version": "1.0"}', "\x00\x01", "[" * 100_000])
def test_what_is_no_tokenizer_is_refused(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(folder)


def test_a_config_that_is_no_json(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is no valid JSON"):
        Tokenizer.from_pretrained(folder)
