"""Chats and their templates."""

import pytest

from model.talk import ASK, rewritten
from qtransformers.errors import (
    ConfigError,
    TemplateError,
)
from qtransformers.model import Model


def test_prompt_format_replaces_the_template(data, tmp_path):
    jinja = tmp_path / "own.jinja"
    jinja.write_text("Q: {{ messages[-1].content }} A:")
    for choice, expected in [
        ("alpaca", "### Response:"),
        ("chatml", "<|im_start|>assistant"),
        (jinja, "Q: What is 7 plus 5? A:"),
    ]:
        with Model.load(data / "demo-Q8_0.gguf", prompt_format=choice) as model:
            assert expected in model.tokenizer.decode(model.chat_ids(ASK), decode_special=True)


def test_stop_texts_of_a_format(data):
    with Model.load(data / "demo-Q8_0.gguf", prompt_format="chatml") as model:
        request = model.chat(ASK, stream=True, stop="own")._sequence.request
        assert request.stop == ("<|im_end|>", "<|im_start|>", "own")


def test_without_a_template(data, tmp_path):
    path = rewritten(data / "demo-Q8_0.gguf", tmp_path / "m.gguf", tokenizer__chat_template=None)
    with Model.load(path) as model:
        with pytest.raises(
            ConfigError, match=r"m\.gguf carries no chat template.*prompt_format=: llama-2, mistral, chatml"
        ):
            model.chat(ASK)
        assert model.generate("Once upon", max_tokens=3, temperature=0).text


def test_a_broken_template_spoils_only_the_chat(data, tmp_path):
    path = rewritten(data / "demo-Q8_0.gguf", tmp_path / "m.gguf", tokenizer__chat_template="{% for x in %}")
    with Model.load(path) as model:
        with pytest.raises(TemplateError, match="line 1"):
            model.chat(ASK)
        assert model.generate("Once upon", max_tokens=3, temperature=0).text


def test_template_variables_and_tools_reach_the_template(data, tmp_path):
    jinja = tmp_path / "own.jinja"
    jinja.write_text("{{ mood }} {{ tools[0].function.name }} {{ documents[0].title }} {{ messages[0].content }}")
    with Model.load(data / "demo-Q8_0.gguf", prompt_format=jinja) as model:
        ids = model.chat_ids(
            ASK, template_variables={"mood": "calm"}, tools=[{"function": {"name": "f"}}], documents=[{"title": "T"}]
        )
        assert model.tokenizer.decode(ids) == "calm f T What is 7 plus 5?"
