import pytest
import sentencepiece

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    read_sentencepiece,
)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "bpe"},
        {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": ["<call>"], "pad_id": 3},
        {"model_type": "unigram", "unk_id": 2, "bos_id": 0, "eos_id": 1},
    ],
)
def test_reads_what_the_library_reads(settings, tmp_path, train_sentencepiece):
    data = train_sentencepiece(**settings)
    (tmp_path / "tokenizer.model").write_bytes(data)
    ours = read_sentencepiece(tmp_path / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = range(theirs.vocab_size())
    assert ours.texts == [theirs.id_to_piece(i) for i in ids]
    assert ours.scores == [theirs.get_score(i) for i in ids]
    assert [t == BYTE for t in ours.types] == [theirs.is_byte(i) for i in ids]
    assert [t == CONTROL for t in ours.types] == [theirs.is_control(i) for i in ids]
    assert [t == UNKNOWN for t in ours.types] == [theirs.is_unknown(i) for i in ids]
    assert sum(t == USER_DEFINED for t in ours.types) == len(settings.get("user_defined_symbols", []))
    assert (ours.unk_id, ours.bos_id, ours.eos_id) == (theirs.unk_id(), theirs.bos_id(), theirs.eos_id())
    assert ours.pad_id == theirs.pad_id()
    assert ours.model_type == (BPE if settings["model_type"] == "bpe" else UNIGRAM)
    assert ours.add_dummy_prefix is settings.get("add_dummy_prefix", True)


def test_truncations_are_refused_or_shorter(tmp_path, train_sentencepiece):
    data = train_sentencepiece(model_type="bpe")
    whole = 300
    for n in range(0, len(data), max(97, len(data) // 200)):
        (tmp_path / "m").write_bytes(data[:n])
        try:
            whole = len(read_sentencepiece(tmp_path / "m").texts)
        except TokenizerError as e:
            assert "not a SentencePiece model" in str(e)
        else:
            assert whole <= 300


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"{}", b"\x0a\x03\x0d\x00\x00", b"\x0f", b"\x0a\x02\x08\x01"])
def test_what_is_no_model_is_refused(data, tmp_path):
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"m: not a SentencePiece model"):
        read_sentencepiece(tmp_path / "m")
