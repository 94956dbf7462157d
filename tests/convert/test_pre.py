import unicodedata

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from qtransformers.convert.pre import PROBE, derive_pre
from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.pretokenizers import PRE_TOKENIZERS

ROWS = {row.splits: name for name, row in reversed(PRE_TOKENIZERS.items()) if row.byte_level}


def saved(tmp_path, pre_tokenizer, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def splits(*patterns):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def test_the_probe_is_stable_under_nfc():
    assert unicodedata.is_normalized("NFC", PROBE)


@pytest.mark.parametrize("name", ROWS.values())
def test_every_row_of_the_table_is_found_again(name, tmp_path):
    row = PRE_TOKENIZERS[name]
    found = PRE_TOKENIZERS[derive_pre(saved(tmp_path, splits(*row.splits), ignore_merges=row.ignore_merges))]
    assert found.ignore_merges == row.ignore_merges
    # Two rows write the same rule in different ways: \s*[\r\n] and \s*[\r\n]+ cut alike.
    assert [s.replace(r"[\r\n]+|", r"[\r\n]|") for s in found.splits] == [
        s.replace(r"[\r\n]+|", r"[\r\n]|") for s in row.splits
    ]


LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    "pre_tokenizer, normalizer, ignore_merges, expected",
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), None, False, "gpt-2"),
        (splits(LLAMA_3), None, True, "llama-bpe"),
        (splits(LLAMA_3.replace("{1,3}", "")), normalizers.NFC(), False, "qwen2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            None,
            False,
            "starcoder",
        ),
    ],
)
def test_tokenizers_as_they_are_published(pre_tokenizer, normalizer, ignore_merges, expected, tmp_path):
    assert derive_pre(saved(tmp_path, pre_tokenizer, normalizer, ignore_merges)) == expected


def test_the_demo_model(data):
    assert derive_pre(data / "demo_model" / "tokenizer.json") == "gpt-2"


def test_what_no_row_cuts_is_refused_with_the_override(tmp_path):
    with pytest.raises(TokenizerError, match=r"none of the known ones cuts alike.*--pre NAME"):
        derive_pre(saved(tmp_path, pre_tokenizers.Whitespace()))


def test_cuts_alike_but_merges_otherwise(tmp_path):
    with pytest.raises(TokenizerError, match="'gpt-2' cuts alike but treats whole words otherwise"):
        derive_pre(saved(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False), ignore_merges=True))
