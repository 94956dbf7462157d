"""Requests that are malformed: the field is named, and nothing is left behind."""

import asyncio
import inspect
import warnings

import pytest

from model.talk import ASK, NAN
from qtransformers.errors import (
    ConfigError,
)
from qtransformers.model import Model
from qtransformers.options import Options
from qtransformers.sampling.settings import RANGES

HOSTILE_REQUESTS = [
    ("max_tokens", [0, -1, NAN, 1.5, "5", True, 2**31, [5]]),
    ("temperature", [-1, NAN, float("inf"), "1", True, 1e9]),
    ("top_k", [-1, NAN, 1.5, "1", True, 2**40]),
    ("top_p", [-0.1, NAN, 1.1, "1", True]),
    ("min_p", [-0.1, NAN, 1.1, "1", False]),
    ("seed", [-1, NAN, 0.5, "1", True, 2**64]),
    ("repetition_penalty", [0, -1, NAN, "1", True]),
    ("banned_tokens", [5, "5", [10**6], [-1], [0.5]]),
    ("allowed_tokens", [[], [10**6], "5"]),
    ("logit_bias", [5, {10**6: 1}, {0: NAN}, {0: "1"}]),
    ("dry_breakers", ["text", [""], [5]]),
    ("stop", [5, True, "", [""], [None], ["x"] * 20_000, {"a": 1}, "x" * 5000, ["\ud800"]]),
    ("banned", [5, True, "", [""], [None], ["x"] * 20_000, {"a": 1}, "x" * 5000, ["\ud800"], b"x"]),
    ("min_tokens", [-1, NAN, 1.5, "5", True, 2**31, [5], None, 5000]),
    ("max_repeats", [-1, 0, 1, NAN, 1.5, "5", True, 2**31, [5]]),
    ("heal", [1, 0, "yes", None, NAN]),
    ("decode_special", [1, 0, "yes", None, NAN]),
    ("logprobs", [-1, NAN, 1.5, "1", True, 2**20]),
    ("hooks", [5, True, "x", [None], [5], len, {"a": len}]),
    ("speculate", [1, "fast", "", 0.5, ["ngram"], {}]),
    ("max_draft", [0, -1, NAN, 1.5, "3", True, 17, None]),
    ("lora", [5, "x", [5], [None], {}, True]),
    ("json_schema", [5, NAN, "{", b"{}", [], {"type": "x"}, {1: 2}, False]),
    ("regex", [5, NAN, "(", b"a", ["a"], True, "a\ud800"]),
    ("grammar", [5, NAN, "", "root ::= x", "start: x", b"a", {}, True]),
    ("sampling", [5, {"top_k": 1}, "greedy"]),
    ("encode_special", [1, "yes", None]),
    ("salt", [5, True, "\ud800"]),
]
HOSTILE_REQUESTS += [(name, [NAN, "1", True, -200]) for name in RANGES if name not in dict(HOSTILE_REQUESTS)]


@pytest.mark.parametrize(
    "name, value", [pytest.param(n, v, id=f"{n}-{i}") for n, vs in HOSTILE_REQUESTS for i, v in enumerate(vs)]
)
def test_a_bad_request_field_is_named(demo, name, value):
    free = demo._engine.usage.free_pages
    for use in (
        demo.generate,
        demo.stream,
        lambda p, **o: demo.chat(ASK, **o),
        lambda p, **o: demo.chat(ASK, stream=True, **o),
    ):
        with pytest.raises(ConfigError, match=f"^{name}"):
            use("Once", **{name: value})
    assert demo._engine.usage.free_pages == free


def test_every_request_field_is_tried():
    assert {name for name, _ in HOSTILE_REQUESTS} == set(Options.__annotations__) | {"encode_special"}


@pytest.mark.parametrize("prompt, message", [(None, "^prompt=None"), (5, "^prompt=5"), (["a"], r"^prompt\[0\]='a'"), ([1, 99999], r"^prompt\[1\]=99999"), ([[1]], r"^prompt\[0\]="), ([], "no tokens"), ("", "no tokens"), (b"ab", r"^prompt=b'ab'"), (ASK, r"^prompt=\[\{.*Messages are for chat"), ({1: 2}, r"^prompt=\{1: 2\}"), ("a\ud800", "^prompt has a lone surrogate")])  # fmt: skip
def test_bad_prompts(demo, prompt, message):
    with pytest.raises(ConfigError, match=message):
        demo.generate(prompt)


def test_prompts_that_look_as_if_bos_were_wrong_are_told(data, demo, shared):
    with Model.load(shared / "models" / "stories260K-f32.gguf") as model:
        once = model.tokenizer.encode("Once", add_bos=False)
        bos = model.tokenizer.bos_id
        trapped = [
            ("<s>Once", {}, r"begins with '<s>', which is read as plain text"),
            ("<s><s>Once", {"encode_special": True}, r"BOS \(<s>\) twice"),
            ([bos, bos, *once], {}, r"BOS \(<s>\) twice"),
            (once, {}, rf"the ids of the prompt begin with .*but this model expects \[{bos}\] \(<s>\) in front.*add_bos=False"),
        ]  # fmt: skip
        for prompt, given, message in trapped:
            with pytest.warns(UserWarning, match=message):
                model.generate(prompt, max_tokens=1, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for prompt, given in [("Once", {}), ("<s>Once", {"encode_special": True}), ([bos, *once], {}), (once, {"add_bos": False}), ("Once", {"add_bos": False})]:  # fmt: skip
                model.generate(prompt, max_tokens=1, **given)
            demo.generate(demo.tokenizer.encode("Once"), max_tokens=1)


@pytest.mark.parametrize("name", ["add_bos", "encode_special"])
def test_options_of_text_are_refused_for_ids(demo, name):
    with pytest.raises(ConfigError, match="are for text"):
        demo.generate([1, 2], **{name: True})
    with pytest.raises(ConfigError, match=f"^{name}=1"):
        demo.generate("a", **{name: 1})


@pytest.mark.parametrize("call", ["generate", "stream", "chat", "chat_ids", "load", "from_pretrained", "agenerate", "astream", "achat", "logits"])  # fmt: skip
def test_nothing_unknown_is_swallowed(demo, call):
    target = getattr(Model if call in ("load", "from_pretrained") else demo, call)
    first = ASK if "chat" in call else [1] if call == "logits" else "demo"
    with pytest.raises(TypeError, match="temprature"):
        result = target(first, temprature=1)
        if inspect.iscoroutine(result):
            asyncio.run(result)
