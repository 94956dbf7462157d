"""Which `tokenizer.ggml.pre` a `tokenizer.json` needs: the one whose row cuts a telling text at the same places.

Names are not stored in a tokenizer.json, and hashes of vocabularies know only models already seen; the cuts tell by themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer

# Every rule of the table shows in here somewhere. It is NFC and without case beyond ASCII, so normalisers and the
# letter cases that llama.cpp tells apart differently leave it alone.
PROBE = (
    "I'm sure we'll see: DON'T they've, HE'S or it'd... camelCase HTMLParser aB Ab AB'S x'Sy\n"
    "  two  spaces\tand\t\ttabs   \n\n \n\r\n\r   end of   lines \n\n\n  7 42 365 1024 65536 1234567 12345678 3.14159 1,000,000 2nd x86\n"
    "a/b//c /d/\n http://x.y/z?q=1&r=2#s (round) [square] {curly} <tag> </tag> #hash $5 +6 =7 ^8 ~9 `q` |p| \"quoted\", _a_b_ -- !? ?!\n"
    "!word ?word .word (word \"word @word £5 €6 ½ ² ① naïve über señor ß ø ж слово ещё σοφία שלום مرحبا 中文字符 中 ひらがな カタカナ 한국어 한글\n"
    "हिन्दी में ไทย น้ำ 12१२३४५ 中1文2 日本語。「はい」、…—‘’“”！？：；，． 🦊🦊 ❤️ 👩‍👩‍👧 ... !!!\n/ )\n/]\r\n  IMGIMGABZ <sentinel:12> 1.2.3-4 A1b2C3 if(x){return x+1;}//c\n"
    + " " * 43 + "x" + " " * 600 + "y    z  "
)  # fmt: skip
_USUAL_NAME = {"llama3": "llama-bpe"}  # where the first name of a row is not the one that files carry


def derive_pre(path: Path) -> str:
    """The name for the byte-level BPE in the tokenizer.json at `path`; TokenizerError when it is broken or no row of the table fits."""
    from qtransformers.load.tokenizer.from_hf import parse_tokenizer

    tokenizer = parse_tokenizer(path.read_bytes(), str(path))
    ignore_merges = bool(tokenizer.model.ignore_merges)
    text = tokenizer.normalizer.normalize_str(PROBE) if tokenizer.normalizer else PROBE
    found = _cuts(tokenizer.pre_tokenizer, text)
    near = []
    for name, row in PRE_TOKENIZERS.items():
        if row.byte_level and _cuts(_splitter(row), PROBE) == found:
            if row.ignore_merges == ignore_merges:
                return _USUAL_NAME.get(name, name)
            near.append(name)
    hint = f"{near[0]!r} cuts alike but treats whole words otherwise" if near else "none of the known ones cuts alike"
    raise TokenizerError(
        f"{path}: its pre-tokenizer has no name in GGUF ({hint}). If you know which one fits, pass pre (--pre NAME)."
    )


def check_round_trip(folder: Path, metadata: Mapping[str, Any]) -> None:
    """TokenizerError when the vocabulary in `metadata` cuts the probe other than the tokenizer.json of `folder` does."""
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.load.tokenizer.from_gguf import gguf_tokenizer

    if not (folder / "tokenizer.json").exists():
        return
    theirs = Tokenizer.from_pretrained(folder)
    ours = Tokenizer(gguf_tokenizer(metadata, f"{folder}, converted", None))
    probe = PROBE
    if (
        metadata["tokenizer.ggml.model"] == "bert"
    ):  # its accents are stripped otherwise in some scripts, in every GGUF file
        lines = PROBE.splitlines()
        odd = [s for s in lines if theirs.encode(s) != ours.encode(s) and not s.isascii()]
        if odd:
            warnings.warn(
                f"{folder}: GGUF's WordPiece reads some scripts other than tokenizer.json does, in {odd[0]!r} for instance; "
                "load with model_path to use tokenizer.json",
                stacklevel=4,
            )
        probe = "\n".join(s for s in lines if s not in odd)
    expected, found = theirs.encode(probe, add_bos=False), ours.encode(probe, add_bos=False)
    if found != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
        )
        text = theirs.decode(expected[max(0, at - 3) : at + 5])
        raise TokenizerError(
            f"{folder}: GGUF's way of cutting text differs from tokenizer.json's, at {text!r} for instance. The model would read "
            "other tokens than it was trained on. If you know which pre-tokenizer fits, pass pre (--pre NAME)."
        )


def _splitter(row: PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(s), "isolated") for s in row.splits])


def _cuts(pre_tokenizer: Any, text: str) -> list[int]:
    """Where the pieces of `text` end."""
    if pre_tokenizer is None:
        return [len(text)]
    return [end for _, (_, end) in pre_tokenizer.pre_tokenize_str(text)]
