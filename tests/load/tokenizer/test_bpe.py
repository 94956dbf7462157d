import time

import numpy as np
import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.bpe import bpe_encoder, byte_alphabet
from qtransformers.load.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer
from qtransformers.load.tokenizer.vocab import KINDS, make_vocab


def vocab(tokens, types=None):
    kinds = np.array(types or [1] * len(tokens), np.uint8)
    scores = np.zeros(len(tokens), np.float32)
    return make_vocab(
        "f", KINDS["gpt2"], "gpt2", tokens, kinds, scores, {}, add_bos=None, add_eos=False, add_space_prefix=False
    )


def words(pre, text):
    """The words a row cuts a text into, seen by a vocabulary without merges that ends every word."""
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(s), "isolated") for s in pre.splits]
    return [word for word, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def merged(tokens, merges, text):
    """The tokens that the whole of a text becomes."""
    made = vocab([*tokens, *merges_to_tokens(tokens, merges)])
    return [made.tokens[i] for i in bpe_encoder(made, merges, PreTokenizer((), byte_level=False))(text)]


def merges_to_tokens(tokens, merges):
    """What the merges make, at the first blank that is not in first place, where it is not among the tokens."""
    whole = [m[: m.find(" ", 1)] + m[m.find(" ", 1) + 1 :] for m in merges]
    return [w for w in dict.fromkeys(whole) if w not in tokens]


def test_merges_with_more_or_fewer_blanks():
    letters = ["a", "b", "c", " ", "\0"]
    assert merged([*letters, " a"], ["  a", " a b"], " ab") == [" ab"]  # one begins with a blank
    assert merged([*letters, " c", "b c"], ["  c", "b  c", "a b c"], "ab c") == ["ab c"]  # the first blank parts
    assert merged([*letters, "a\0"], ["a \0", "a\0 b"], "a\0bc") == ["a\0b", "c"]
    with pytest.raises(TokenizerError, match=r"merges\[1\] is 'ab'; expected two tokens"):
        merged(["a", "b", "c", "b c"], ["a b c", "ab"], "a")
    with pytest.raises(TokenizerError, match=r"merges\[0\] is 'a '; expected two tokens"):
        merged(["a"], ["a "], "a")


@pytest.mark.parametrize("n_merges", [40, 3000])
@pytest.mark.parametrize("bytewise", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_as_the_tokenizers_library_merges(n_merges, bytewise, whole):
    """Random merges over random texts, short words and long ones, some characters without a token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    rng = np.random.default_rng(n_merges + bytewise)
    alphabet = (
        list(byte_alphabet().values()) if bytewise else [*"abcdef", "é", "中", *(f"<0x{b:02X}>" for b in range(256))]
    )
    letters = ["a", "b", "c", *([alphabet[0xC3], alphabet[0xA9]] if bytewise else ["é", "中"])]
    tokens, merges = list(alphabet), []
    parts = list(letters)
    while len(merges) < n_merges:
        left, right = (parts[int(i)] for i in rng.integers(0, len(parts), 2))
        if len(left + right) > 12 or f"{left} {right}" in merges:
            continue
        merges.append(f"{left} {right}")
        if left + right not in tokens:
            tokens.append(left + right)
            parts.append(left + right)
    row = PreTokenizer((r"\S+",), byte_level=bytewise, ignore_merges=whole)
    ours = bpe_encoder(vocab(tokens), merges, row)
    unknown = {"\0?": len(tokens)}
    pairs = [tuple(m.split(" ")) for m in merges]
    theirs = Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)} | unknown,
            pairs,
            ignore_merges=whole,
            byte_fallback=not bytewise,
            unk_token="\0?",
        )
    )
    steps = [pre_tokenizers.Split(Regex(r"\S+"), "isolated")]
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)] * bytewise
    )
    for _ in range(200):
        n = int(rng.choice([1, 2, 5, 20, 24, 25, 26, 60, 400]))
        text = "".join(rng.choice(["a", "b", "c", "é", "中", "z", " "], n, p=[0.3, 0.25, 0.2, 0.1, 0.05, 0.05, 0.05]))
        expected = [i for i in theirs.encode(text, add_special_tokens=False).ids if i < len(tokens)]
        assert ours(text) == expected, text


def test_the_byte_alphabet_is_gpt_2s():
    alphabet = byte_alphabet()
    assert len(set(alphabet.values())) == 256
    assert "".join(alphabet[b] for b in b" a\n\x00\x7f\xad") == "ĠaĊĀġŃ"


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "I'm 12  x\n", ["I", "'m", " 12", " ", " x", "\n"]),
        ("llama-bpe", "I'M 1234  x\n\n", ["I", "'M", " ", "123", "4", " ", " x", "\n\n"]),
        ("qwen2", "a123", ["a", "1", "2", "3"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("falcon", "12345 a.b", ["123", "45", " a", ".", "b"]),
        ("tekken", "helloWorld HTTPServer", ["hello", "World", " HTTPServer"]),
        ("gpt-4o", "HelloWorld's", ["Hello", "World's"]),
        ("kimi-k2", "中文abcDEF", ["中文", "abcDEF"]),
        ("superbpe", "a 1234567 b", ["a ", "1", "234", "567", " b"]),
        ("tiny_aya", "a 12345", ["a", " ", "12", "345"]),
        ("bloom", "ab, cd.", ["ab", ",", " cd", "."]),
        ("deepseek-llm", "ab 中文 12\n", ["ab", " ", "中文", " ", "12", "\n"]),
        ("chameleon", "IMGIMGABZ<sentinel:3>", ["IMGIMGABZ", "<", "sentinel", ":", "3", ">"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ],
)
def test_words(pre, text, expected):
    assert words(PRE_TOKENIZERS[pre], text) == expected


def test_merges_by_rank_and_words_as_tokens():
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    plain, whole = PreTokenizer((r"\S+",)), PreTokenizer((r"\S+",), ignore_merges=True)
    assert bpe_encoder(vocab(tokens), ["b c", "a b"], plain)("abc") == [0, 4]
    assert bpe_encoder(vocab(tokens), ["b c", "a b"], whole)("abc") == [5]


def test_of_repeated_merges_the_first_counts():
    tokens = ["a", "b", "c", "ab", "bc"]
    assert merged(tokens, ["a b", "b c", "a b"], "abc") == ["ab", "c"]
    assert merged(tokens, ["b c", "a b", "b c"], "abc") == ["a", "bc"]


def test_merges_of_tokens_that_do_not_exist():
    with pytest.raises(TokenizerError, match=r"merges\[1\] is 'b c', but 'bc' is not in tokenizer\.ggml\.tokens"):
        bpe_encoder(vocab(["a", "b", "c", "ab"]), ["a b", "b c"], PreTokenizer(()))


def test_characters_without_a_token_part_their_neighbours():
    encode = bpe_encoder(vocab(["a", "b", "ab"]), ["a b"], PreTokenizer((r"\S+",), byte_level=False))
    assert encode("ab a?b") == [2, 0, 1]


def test_tokens_that_are_no_utf_8_are_left_out():
    encode = bpe_encoder(vocab(["a", "\udcff", "b"]), [], PreTokenizer((r"\S+",)))
    assert encode("ab") == [0, 2]


def test_control_tokens_are_no_words():
    encode = bpe_encoder(vocab(["<", "x", ">", "<x>"], [1, 1, 1, 3]), [], PreTokenizer((r"\S+",), ignore_merges=True))
    assert encode("<x>") == [0, 1, 2]


def test_merges_never_make_control_tokens():
    made = vocab(["a", "b", "ab", "aba"], [1, 1, 3, 1])
    assert bpe_encoder(made, ["a b", "ab a"], PreTokenizer((r"\S+",)))("aba") == [0, 1, 0]


def test_a_run_of_newlines_that_is_a_token():
    row = PreTokenizer((r"[^\n]+|\n+",), byte_level=False, whole_newlines=True)
    assert bpe_encoder(vocab(["a", "\n", "\n\n\n"]), [], row)("a\n\n\na\n\n") == [0, 2, 0, 1, 1]


@pytest.mark.parametrize("pre", ["tiny_aya", "afmoe", "superbpe"])
@pytest.mark.parametrize(
    "text", ["1" * 5000, "a  " + "1" * 1800 + "  b" + "2" * 1801, "٣" * 1802 + "4" * 700, "5" * 600]
)
def test_long_runs_of_digits_are_cut_where_short_ones_are(pre, text):
    row = pre_tokenizer(pre, "f")
    alphabet = list(byte_alphabet().values())
    digits = [a + b + c for a in "12345" for b in "12345" for c in "12345"]
    pairs = sorted({d[:2] for d in digits})
    merges = [f"{p[0]} {p[1]}" for p in pairs] + [f"{d[:2]} {d[2]}" for d in digits]
    made = vocab([*alphabet, *pairs, *digits])
    whole = bpe_encoder(made, merges, PreTokenizer(row.splits))
    assert bpe_encoder(made, merges, row)(text) == whole(text)


ROWS = {row: name for name, row in PRE_TOKENIZERS.items()}


@pytest.mark.parametrize("pre", ROWS.values())
def test_long_texts_take_linear_time(pre):
    row = PRE_TOKENIZERS[pre]
    alphabet = list(byte_alphabet().values()) if row.byte_level else [f"<0x{b:02X}>" for b in range(256)]
    encode = bpe_encoder(vocab(alphabet), [], row)
    start = time.process_time()
    for unit in ("a", "A", "1", " ", "\n", " \n", "!", "é", "中", "a1", "\u0301", "'s"):
        assert encode((unit * 20_000)[:20_000] + "x")
    assert time.process_time() - start < 20  # a quadratic search takes minutes


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(
        TokenizerError, match=r"f\.gguf: tokenizer\.ggml\.pre is 'lama-bpe'.*llama-bpe.*pre=\"llama-bpe\""
    ):
        pre_tokenizer("lama-bpe", "f.gguf")
