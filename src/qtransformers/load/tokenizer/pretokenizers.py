r"""How each `tokenizer.ggml.pre` cuts text into words before byte-pair merging: one row a name.

Facts from llama.cpp (src/llama-vocab.cpp, src/unicode.cpp), written for the Onigruma dialect of the `tokenizers` library
so that the result is llama.cpp's, including where its own regex engine departs from the original tokenizer.json:
letter case is not told apart by \p{Lu} and \p{Ll}, only by A-Z and a-z; `\d` is 0-9; blanks beyond ASCII never match a
range of characters. Characters first assigned in Unicode 16 are known to the library but not to llama.cpp.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from qtransformers.errors import TokenizerError

CONTRACTION = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
OTHER = r" ?[^\s\p{L}\p{N}]+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{OTHER}|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{OTHER}[\r\n]*|{BLANKS}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{OTHER}[\r\n]*|{BLANKS}"
QWEN35 = rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{BLANKS}"
JAIS2 = (
    rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{OTHER}[\r\n]*|\s*[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)|\s{{128}}(?!\S)"
    r"|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s"
)
SEED_CODER = rf"{CONTRACTION}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{BLANKS}"
BAILING = rf"{CONTRACTION}|{WORD}|\p{{N}}|{OTHER}[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
UFAKZEKA = rf"{WORD}|\p{{N}}|{OTHER}[\r\n]*|{BLANKS}"
MINICPM5 = rf"{CONTRACTION}|{WORD}|\p{{N}}+|{OTHER}[\r\n]*|{BLANKS}"
EXAONE_MOE = (
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|{OTHER}[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Words that begin at a change from a-z to A-Z; every other letter counts as both.
UPPER, LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?:{CONTRACTION})?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?:{CONTRACTION})?"
GPT4O = rf"{CASED}|\p{{N}}{{1,3}}|{OTHER}[\r\n/]*|{BLANKS}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|{OTHER}[\r\n/]*|{BLANKS}"
)
GRANITE_MULTI = GPT4O.replace(r"[\p{L}&&", r"[[\p{L}\p{M}]&&")
UNCASED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{CONTRACTION})?"
TINY_AYA = rf"{UNCASED}|\p{{N}}{{1,3}}|{OTHER}[\r\n/]*|{BLANKS}"
YOUTU = rf"{UNCASED}|\p{{N}}|{OTHER}[\r\n/]*|{BLANKS}"

ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
DEEPSEEK_WORD = rf"{ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
DEEPSEEK3 = rf"{DEEPSEEK_WORD}[\r\n]*|{BLANKS}"
SPARK = rf"{DEEPSEEK_WORD}|[\r\n]|\s+(?!\S)|\s+"
CJK_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
CJK_HANGUL = r"[[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&[^\s]]+"
YOUTU_SCRIPTS = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
    r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}-\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+"
    rf"|[\x{{3105}}-\x{{312F}}]+|{CJK_KANA}"
)
AFMOE_SCRIPTS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{D7FF}\x{E000}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}"
    r"\x{E40}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{1100}-\x{11FF}]+"
)
LATIN_LIKE = (  # Latin, Greek, Cyrillic, Armenian and their kin
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}"
    r"\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}"
    r"\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}"
    r"\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}"
    r"\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}"
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}"
    r"\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}"
    r"\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}"
    r"\x{2CEB0}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
KIMI = rf"[{HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{HAN}]]+(?:{CONTRACTION})?|\p{{N}}{{1,3}}|{OTHER}[\r\n]*|{BLANKS}"
# Digits in threes from the right; the text before them stays with the first group.
THREES_WITH_TEXT = r"\P{N}*+(?:\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\z)"
THREES = r"(?=(?:[0-9]{3})+(?![0-9]))"
UP_TO_MARKS = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
FALCON_MARKS = r"[\p{P}$+<=>\^~|`]+"
DEFAULT_MARKS = r"[\p{P}$+<=>\^~|]+"
NEWLINES = r"[^\n]+|\n+"


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut text: `splits` are applied one after another, each inside the pieces of the one before."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole
    add_bos: bool = False  # when the file does not say
    byte_level: bool = True  # GPT-2's byte alphabet; False: characters, with <0xXX> tokens for unknown ones
    escape_spaces: bool = False  # blanks become U+2581 before anything else
    whole_newlines: bool = False  # a run of newlines that is a token is taken whole
    digit_groups: str = ""  # the digits whose long runs are cut in threes from the right


_DIGITS = r"\p{N}"
_ROWS: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer((DEFAULT_MARKS, GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((LLAMA3,))),
    ("glm4 glm5", PreTokenizer((LLAMA3,), ignore_merges=True)),
    ("jais-2", PreTokenizer((JAIS2,))),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", MINICPM5), ignore_merges=True)),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{LATIN_LIKE}]+",
                r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+",
                r"(?<!\s)\s++\z",
                CJK_HANGUL,
                r"\p{N}+",
            )
        ),
    ),
    ("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_HANGUL, r"\p{N}"))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer((r"\p{N}{1,3}", CJK_KANA, DEEPSEEK3))),
    ("spark2_5", PreTokenizer((r"\p{N}{1,3}", CJK_KANA, SPARK, r"\p{N}"))),
    ("youtu", PreTokenizer((YOUTU_SCRIPTS, YOUTU), ignore_merges=True)),
    ("falcon", PreTokenizer((FALCON_MARKS, GPT2, r"[0-9][0-9][0-9]"))),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", PreTokenizer((r"\p{N}", GPT2))),
    (
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code"
        " roberta-bpe mpt olmo jais trillion granite-docling exaone4",
        PreTokenizer((GPT2,)),
    ),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2", PreTokenizer((QWEN2,))),
    ("qwen35", PreTokenizer((QWEN35,))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((UP_TO_MARKS,))),
    ("viking", PreTokenizer((UP_TO_MARKS, r"\p{N}"))),
    ("tekken", PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True)),
    (
        "chameleon",
        PreTokenizer(
            (
                r"<sentinel:[0-9]+>",
                r"IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ),
            add_bos=True,
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((GPT4O,))),
    ("granite-embed-multi-97m", PreTokenizer((GRANITE_MULTI,), ignore_merges=True)),
    ("tiny_aya cohere2moe", PreTokenizer((THREES_WITH_TEXT, TINY_AYA), digit_groups=_DIGITS)),
    ("afmoe", PreTokenizer((THREES_WITH_TEXT, AFMOE_SCRIPTS, DEEPSEEK3), digit_groups=_DIGITS)),
    ("superbpe", PreTokenizer((r"\p{N}+", THREES), digit_groups="[0-9]")),
    ("kimi-k2", PreTokenizer((KIMI,))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((BAILING,))),
    ("seed-coder", PreTokenizer((SEED_CODER,))),
    ("ufakzeka", PreTokenizer((UFAKZEKA,))),
    ("laguna", PreTokenizer((NEWLINES, QWEN2))),
    ("exaone-moe", PreTokenizer((EXAONE_MOE,))),
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer((NEWLINES,), add_bos=True, byte_level=False, escape_spaces=True, whole_newlines=True),
    ),
    ("sarvam-moe", PreTokenizer((NEWLINES,), byte_level=False, escape_spaces=True)),
    ("whitespace", PreTokenizer((r"\S+",), byte_level=False)),
)
PRE_TOKENIZERS = {name: row for names, row in _ROWS for name in names.split()}


def pre_tokenizer(name: str, file: str) -> PreTokenizer:
    """The row of `name`; TokenizerError with the nearest known names and the override for an unknown one."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    near = difflib.get_close_matches(name, PRE_TOKENIZERS, n=4, cutoff=0.5)
    known = f"Nearest known: {', '.join(near)}. " if near else ""
    override = near[0] if near else "qwen2"
    raise TokenizerError(
        f"{file}: tokenizer.ggml.pre is {name!r:.60}, a pre-tokenizer this version does not know. {known}"
        f'If you know which one fits, override it: pre="{override}" (on the command line: --pre {override}).'
    )
