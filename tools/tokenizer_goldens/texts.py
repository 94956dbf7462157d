"""Texts that tell tokenizers apart, and random ones."""

import random
from collections.abc import Iterator

TEXTS = (
    "Hello world",
    "  Hello   World  ",
    "I'm you're he'll they've I'd it's can't I'M YOU'RE HE'LL THEY'VE I'D IT'S CAN'T 'S 'sit 'twas o'clock d'être ’s don’t",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 a1 a12b345c6789d 3.14159 1,234,567.89 0x1F 1e-9",
    "٣٤٥٦٧ ௧௨௩ ²³¹ Ⅷ ½ 一二三 ①②③ 12٣٤٥6789 x12345678901234567890y",
    "helloWorld HelloWORLD HTTPServer iPhone ÀÉÎ éàü ÉcoleBleu STRASSE straße ǅ ǈ ʰ ª º ﬁ",
    "今天天气很好，我们去公园吧。「こんにちは」カタカナ한국어 안녕하세요 ㄱㄴㄷ ㄅㄆㄇ 𠀀𠀁 豈 \u3000全角\u3000スペース！？（）",
    "สวัสดีครับ ภาษาไทย ພາສາລາວ ភាសាខ្មែរ မြန်မာ Tiếng Việt đặc biệt",
    "العربية مرحبا بالعالم، كيف حالك؟ עברית שָׁלוֹם हिन्दी नमस्ते। বাংলা தமிழ் తెలుగు ۱۲۳۴ ،۔",
    "e\u0301 a\u0308\u0323 \u0301alone o\u0302\u0301x \u0300\u0301 n\u0303o \u20dd z\u0336\u0337 12\u030134",
    "👩\u200d👩\u200d👧 👍🏽 🇩🇪🇫🇷 ❤\ufe0f ☃ 🦊🐍 :-) ^_^ <3 ¯\\_(ツ)_/¯ 1\ufe0f\u20e3",
    "\n",
    "\n\n",
    "\n\n\n a",
    "a\n\n\nb",
    "a\r\nb\r\n\r\nc\rd",
    "\t",
    "\t\t\tx",
    " \t \n \t y",
    "a  b   c    d     e",
    " ",
    "  ",
    "   ",
    "a ",
    "a  ",
    "a   \n",
    "  \n  \n  x",
    "x\n ",
    "\n \n",
    " \n",
    "...!!!??? \"quoted\" 'single' `tick` (paren) [brack] {brace} <angle> a/b\\c ~!@#$%^&*()_+-={}[]|\\:;\"'<>,.?/",
    "!!a ##b $$c %%d ^^e &&f **g ==h ++i ~~j ||k <<l >>m a+b=c a-b a_b a^b $5 €6 £7",
    "def f(x):\n    return x**2  # comment\n\n\nclass A(B):\n\tpass\n",
    'for(int i=0;i<10;++i){printf("%d\\n",i);}//x\n/* y */ {"key": [1, 2.5, null]}',
    "https://example.com/a/b?c=d&e=f#g user@mail.co.uk /usr/bin/env",
    "\x01b\x02\x1f\x7f\x80\x9f c",
    "a\u00a0b\u2003c\u2009d\u202fe\u205ff\u3000g\u1680h\u2028i\u2029j\u0085k\u200bl\ufeffm\u00adn",
    "\u3000\u3000x \u3000y\u3000 z \u00a0\u00a0 w\u00a0\n\u2028\n a\u00a0\u00a0\u00a0b \u3000",
    "\ufffd\ufffd \ue000\uf8ff \U0010ffff \u0378\u0530 \u200d\u200c\u200e\u202a",
    "<sentinel:12> IMGIMGABCDZ IMGIMGABCDEZ <|im_start|>user\nhi<|im_end|> <s> </s> [INST] <unk> <0x41> ▁▁x ▁",
    "/// a/b //\n/ \n/x ...\n/ !!\r\n//",
    "a  12   345 \n\n6  7\n\n8   9a",
    "'sabc.'sabc! it'sabc, is'sabc;'Tabc.'Tabc! d'Tabc",
    "a\n\n\n\n\n\n\nb",
    "1\n2\n33\n444\n4444 5 55 555 5555",
    "The   quick\tbrown\u00a0fox   jumps over 13 lazy dogs.\n\n\tIt's 9:45pm — “really”? Yes… no!\n",
    "日本語123テスト456、abc。ＡＢＣ１２３ａｂｃ！",
    "Ünïcödé ÇĞİÖŞÜ ığüşöç İstanbul'da Ankara'nın",
    "Привет, мир! ЁЖИК ёжик ПриветМир Ελληνικά ΚαλημέραΚόσμε Հայերեն ქართული ᏣᎳᎩ",
    "a'b''c'''d 'tis 'Re 'vE 'LL 'm's't __init__ --flag ==> <!-- c --> ;; :: .. ,, ?? a...b",
    "ㅎㅎㅎ ㅋㅋ 하하 ᄀᆞᆷ \u0e33\u0e4d\u0e32 ẞ ſ K Å a\u0301\u0302b \u0301 \u0301\n",
)

SNIPPETS = (
    *(
        "'s",
        "'LL",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "a",
        "B",
        "é",
        "É",
        "1",
        "22",
        "333",
        "4444",
        "中",
        "あ",
        "!",
        "?.",
        "$",
    ),
    *("\u0301", "\u3000", "_", "-", "/", "the", "The", "ไ", "ก", "\u00a0"),
)
RANGES = (
    *([(0x20, 0x7E)] * 6),
    *((0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA), (0x610, 0x66F), (0x900, 0x97F), (0xE00, 0xE7F)),
    *((0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x20A0, 0x20BF), (0x2150, 0x218B), (0x2190, 0x22FF)),
    *((0x2E80, 0x303F), (0x3040, 0x30FF), (0x3130, 0x318E), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xFE00, 0xFE0F)),
    *((0xFF00, 0xFFEE), (0x1F300, 0x1F6FF), (0x1D400, 0x1D7FF), (0x20000, 0x200FF)),
)


def random_texts(n: int, seed: int, extra: tuple[str, ...] = ()) -> Iterator[str]:
    """Short texts of characters of TEXTS, of all scripts, of snippets, and of `extra` strings among them."""
    r = random.Random(seed)
    pool = [c for t in TEXTS for c in t]
    for _ in range(n):
        length = r.randint(1, 40)
        kind = r.randrange(5 if extra else 4)
        if kind < 2:
            yield "".join(r.choices(pool, k=length))
        elif kind == 2:
            yield "".join(chr(r.randint(*r.choice(RANGES))) for _ in range(length))
        else:
            yield "".join(r.choices(SNIPPETS if kind == 3 else (*SNIPPETS, *extra), k=length))
