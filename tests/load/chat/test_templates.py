"""Chat templates, wherever a model keeps them."""

import json

import pytest

from qtransformers.errors import LoadError
from qtransformers.load.chat.templates import templates_from_files, templates_from_gguf
from qtransformers.load.files import auxiliary_files


@pytest.fixture
def found(tmp_path):
    def read(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return templates_from_files(auxiliary_files(tmp_path))

    return read


def test_files_of_their_own_come_first(found):
    t = found({"chat_template.jinja": "A", "additional_chat_templates/tools.jinja": "B", "tokenizer_config.json": {"chat_template": "C"}})  # fmt: skip
    assert t.by_name == {"default": "A", "tools": "B"}
    assert t.default == "A" and t.origin.endswith("chat_template.jinja")


def test_one_in_the_tokenizer_config(found):
    t = found({"tokenizer_config.json": {"chat_template": "C"}})
    assert t.by_name == {"default": "C"} and t.origin.endswith("tokenizer_config.json")


def test_several_in_the_tokenizer_config(found):
    t = found({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]}})  # fmt: skip
    assert t.by_name == {"default": "D", "rag": "R"} and t.default == "D"


def test_a_json_of_its_own(found):
    t = found({"tokenizer_config.json": {"chat_template": None}, "chat_template.json": {"chat_template": "J"}})
    assert t.default == "J"


def test_none(found):
    t = found({"config.json": {}})
    assert t.by_name == {} and t.default is None


@pytest.mark.parametrize("bad", [5, {"a": 1}, [{"name": "x"}], [["default", "x"]], [{"name": "x", "template": 5}]])
def test_what_is_no_template(found, bad):
    with pytest.raises(LoadError, match=r"tokenizer_config\.json: chat_template is neither"):
        found({"tokenizer_config.json": {"chat_template": bad}})


def test_no_utf8(found, tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(LoadError, match="no UTF-8"):
        found({})


def test_in_a_gguf_file():
    metadata = {"tokenizer.chat_template": "A", "tokenizer.chat_template.rag": "R", "tokenizer.chat_templates": ["rag"]}
    t = templates_from_gguf(metadata, "m.gguf")
    assert t.by_name == {"default": "A", "rag": "R"} and t.origin == "m.gguf"
    assert templates_from_gguf({"tokenizer.chat_template.only": "O"}, "m").default == "O"
    with pytest.raises(LoadError, match=r"m\.gguf: tokenizer\.chat_template\.x is int"):
        templates_from_gguf({"tokenizer.chat_template.x": 5}, "m.gguf")
