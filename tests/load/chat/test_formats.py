import pytest

from qtransformers.errors import ConfigError, ModelNotFoundError, TemplateError
from qtransformers.load.chat import ChatTemplate
from qtransformers.load.chat.formats import FORMATS, prompt_format

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]
EXPECTED = {
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] Bye? [/INST]",
    "mistral": "<s>[INST] Be brief.\n\nHi! [/INST] Hello.</s>[INST] Bye? [/INST]",
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nHi!<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye?<end_of_turn>\n<start_of_turn>model\n"
    ),
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nHi!\n\n### Response:\nHello.\n\n### Instruction:\nBye?\n\n### Response:\n"
    ),
}


def render(name, messages, **given):
    template = ChatTemplate(prompt_format(name), special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages, **given).text


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_chat(name):
    assert render(name, CHAT) == EXPECTED[name]


@pytest.mark.parametrize("name", FORMATS)
def test_one_question(name):
    text = render(name, CHAT[1:2])
    assert "Hi!" in text and "SYS" not in text and "Be brief" not in text
    assert EXPECTED[name].endswith(text[text.index("Hi!") + 3 :])


def test_alpaca_without_a_system_text_has_its_usual_one():
    assert render("alpaca", CHAT[1:2]).startswith("<s>Below is an instruction that describes a task.")


@pytest.mark.parametrize("name", ["chatml", "llama-3", "gemma", "alpaca"])
def test_without_the_invitation_to_answer(name):
    assert EXPECTED[name].startswith(render(name, CHAT, add_generation_prompt=False))
    assert not render(name, CHAT, add_generation_prompt=False).endswith(EXPECTED[name][-12:])


@pytest.mark.parametrize("name", ["llama-2", "mistral", "gemma", "alpaca"])
def test_roles_without_a_place_are_refused(name):
    with pytest.raises(TemplateError, match=f"the format {name} has no place for the role tool"):
        render(name, [*CHAT, {"role": "tool", "content": "42"}])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_stop(name):
    assert FORMATS[name].stop and all(FORMATS[name].stop)


def test_a_file_is_a_format(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages[0].content }}→", encoding="utf-8")
    for name in (path, str(path)):
        assert render(name, CHAT) == "Be brief.→" and prompt_format(name).stop == ()


@pytest.mark.parametrize("name", ["chatlm", "", 5, True, None, ["chatml"], "ChatML"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(
        ConfigError, match=r"^prompt_format=.*expected llama-2, mistral, chatml, llama-3, gemma, alpaca, or the path"
    ):
        prompt_format(name)


def test_files_that_are_no_template(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"prompt_format='.*missing\.jinja': No such file"):
        prompt_format(tmp_path / "missing.jinja")
    with pytest.raises(ModelNotFoundError, match="prompt_format="):
        prompt_format(tmp_path)
    with pytest.raises(ModelNotFoundError, match="prompt_format="):
        prompt_format("a\0b.jinja")
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match="not UTF-8"):
        prompt_format(tmp_path / "binary.jinja")
    (tmp_path / "huge.jinja").write_text("x" * 2_000_000)
    with pytest.raises(TemplateError, match="more than 1,048,576 bytes"):
        prompt_format(tmp_path / "huge.jinja")
