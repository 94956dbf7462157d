"""Small vocabularies of our own, one for each kind, made from the texts alone."""

import json
import random
import re
import struct

from texts import TEXTS, random_texts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from qtransformers.load.tokenizer.bpe import byte_alphabet

BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPACE = "\u2581"


def byte_level() -> dict:
    """Merges that cross every boundary, so that a word cut elsewhere gives other ids; some words only as whole tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=list(alphabet.values()), max_token_length=9, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS * 3, *random_texts(300, seed=1)], trainer)
    tokens, merges = _trained(tokenizer)
    words = sorted({w for t in TEXTS for w in re.findall(r" ?\w{3,}", t)})
    whole = ["".join(alphabet[b] for b in w.encode()) for w in words]
    tokens += [w for w in random.Random(1).sample(whole, 60) if w not in tokens]
    return {"tokens": [*tokens, "<|end|>", "<user>"], "types": [1] * len(tokens) + [3, 4], "merges": merges}


def characters() -> dict:
    """Merges over characters, blanks as U+2581, with tokens for bytes."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=1300, limit_alphabet=300, max_token_length=6, show_progress=False)
    tokenizer.train_from_iterator([t.replace(" ", SPACE) for t in TEXTS * 3], trainer)
    tokens, merges = _trained(tokenizer)
    tokens += [t for t in ("\n" * 7, f"{SPACE}Hello{SPACE * 3}World") if t not in tokens]  # no merge makes these
    types = [3] + [6] * 256 + [1] * len(tokens)
    return {"tokens": ["<pad>", *BYTES, *tokens], "types": types, "merges": merges}


def scored(n: int, seed: int, ties: bool) -> dict:
    """Snippets of the texts with random scores, many of them equal with `ties`."""
    r = random.Random(seed)
    words: dict[str, None] = dict.fromkeys(["a", "aa", "aaa", "aaaa", SPACE, SPACE * 2, SPACE * 3, SPACE * 4])
    while len(words) < n:
        text = r.choice(TEXTS)
        at = r.randrange(len(text))
        words.setdefault(text[at : at + r.randint(1, 5)].replace(" ", SPACE))
    texts = [w for w in words if w not in ("<unk>", "<s>", "</s>")]
    scores = [float(-r.randint(0, 6)) if ties else round(-15 * r.random(), 3) for _ in texts]
    return {
        "tokens": ["<unk>", "<s>", "</s>", *BYTES, *texts, "<user>"],
        "types": [2, 3, 3] + [6] * 256 + [1] * len(texts) + [4],
        "scores": [0.0] * 259 + scores + [0.0],
    }


def word_pieces() -> dict:
    words: dict[str, None] = {}
    for text in TEXTS:
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            words.setdefault(SPACE + word[:3])
            for at in range(1, len(word)):
                words.setdefault(word[at : at + 2])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return {"tokens": [*special, *words], "types": [3] * 5 + [1] * len(words)}


def unigram() -> dict:
    out = scored(900, seed=4, ties=False)
    keep = [i for i, kind in enumerate(out["types"]) if kind != 6]
    out = {key: [values[i] for i in keep] for key, values in out.items()}
    charsmap = {
        "Ａ": "A",
        "Ｂ": "B",
        "ａ": "a",
        "ﬁ": "fi",
        "½": "1⁄2",
        "e\u0301": "é",
        "\u3000": " ",
        "\t": " ",
        "…": "...",
        "\u200b": "",
    }
    return {
        "tokens": [*out["tokens"], "[PAD1]"],
        "types": [*out["types"], 5],
        "scores": [*out["scores"], -10000.0],
        "charsmap": compiled(charsmap).hex(),
    }


def world() -> dict:
    """RWKV's: byte strings with escapes, every single byte among them."""
    snippets = scored(700, seed=5, ties=True)["tokens"][259:-1]
    texts = dict.fromkeys([*(bytes([b]) for b in range(256)), *(t.encode() for t in snippets)])
    return {"tokens": ["<s>", *map(_escaped, texts)], "types": [3] + [1] * len(texts)}


def compiled(replacements: dict[str, str]) -> bytes:
    """A table as `precompiled_charsmap` has it: a double array over UTF-8, then the replacements."""
    trie: dict = {}
    values, text = {}, b""
    for key, value in replacements.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = values.setdefault(value, len(text))
        if values[value] == len(text):
            text += value.encode() + b"\0"
    units = {0: 0}
    bases: set[int] = set()  # no two nodes may share one, or each would have the other's children

    def place(at: int, node: dict) -> None:
        base = next(b for b in range(1, 1 << 20) if b not in bases and not any(b ^ label in units for label in node))
        bases.add(base)
        units[at] |= (at ^ base) << 10 | (0 in node) << 8
        for label, child in node.items():
            units[base ^ label] = label if label else child | 1 << 31
        for label, child in node.items():
            if label:
                place(base ^ label, child)

    place(0, trie)
    array = [units.get(i, 0x1FF) for i in range((max(units) | 255) + 1)]
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + text


def _trained(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), merges


def _escaped(raw: bytes) -> str:
    named = {9: "\\t", 10: "\\n", 13: "\\r", 92: "\\\\"}
    return "".join(named.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in raw)
