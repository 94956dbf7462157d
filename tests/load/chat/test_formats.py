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


# What the makers of each format show of it, and where.
PUBLISHED = [
    (
        "llama-2",  # github.com/meta-llama/llama, generation.py; llama.com/docs/model-cards-and-prompt-formats/meta-llama-2
        [("system", "{{ system_prompt }}"), ("user", "{{ user_message_1 }}"), ("assistant", "{{ model_answer_1 }}"), ("user", "{{ user_message_2 }}")],
        "<s>[INST] <<SYS>>\n{{ system_prompt }}\n<</SYS>>\n\n{{ user_message_1 }} [/INST] {{ model_answer_1 }} </s><s>[INST] {{ user_message_2 }} [/INST]",
    ),
    (
        "mistral",  # the card of Mistral-7B-Instruct
        [
            ("user", "What is your favourite condiment?"),
            ("assistant", "Well, I'm quite partial to a good squeeze of fresh lemon juice. It adds just the right amount of zesty flavour to whatever I'm cooking up in the kitchen!"),
            ("user", "Do you have mayonnaise recipes?"),
        ],
        "<s>[INST] What is your favourite condiment? [/INST]Well, I'm quite partial to a good squeeze of fresh lemon juice. It adds just the right amount of "
        "zesty flavour to whatever I'm cooking up in the kitchen!</s> [INST] Do you have mayonnaise recipes? [/INST]",
    ),
    (
        "chatml",  # github.com/openai/openai-python, chatml.md
        [
            ("system", "You are ChatGPT, a large language model trained by OpenAI. Answer as concisely as possible.\nKnowledge cutoff: 2021-09-01\nCurrent date: 2023-03-01"),
            ("user", "How are you"), ("assistant", "I am doing well!"), ("user", "How are you now?"),
        ],
        "<|im_start|>system\nYou are ChatGPT, a large language model trained by OpenAI. Answer as concisely as possible.\nKnowledge cutoff: 2021-09-01\n"
        "Current date: 2023-03-01<|im_end|>\n<|im_start|>user\nHow are you<|im_end|>\n<|im_start|>assistant\nI am doing well!<|im_end|>\n"
        "<|im_start|>user\nHow are you now?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "llama-3",  # llama.com/docs/model-cards-and-prompt-formats/meta-llama-3
        [("system", "You are a helpful AI assistant for travel tips and recommendations"), ("user", "What can you help me with?")],
        "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful AI assistant for travel tips and recommendations<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat can you help me with?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "gemma",  # ai.google.dev/gemma/docs/formatting; BOS, which it leaves to the tokenizer, is the format's
        [("user", "knock knock"), ("assistant", "who is there"), ("user", "Gemma")],
        "<s><start_of_turn>user\nknock knock<end_of_turn>\n<start_of_turn>model\nwho is there<end_of_turn>\n<start_of_turn>user\nGemma<end_of_turn>\n"
        "<start_of_turn>model\n",
    ),
    (
        "gemma",  # the same page: what is the system's goes into the user's turn
        [("system", "Only reply like a pirate."), ("user", "What is the answer to life the universe and everything?")],
        "<s><start_of_turn>user\nOnly reply like a pirate.\n\nWhat is the answer to life the universe and everything?<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "alpaca",  # github.com/tatsu-lab/stanford_alpaca, README
        [("user", "{instruction}")],
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
]  # fmt: skip


def render(name, messages, **given):
    template = ChatTemplate(prompt_format(name), special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages, **given).text


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_chat(name):
    assert render(name, CHAT) == EXPECTED[name]


@pytest.mark.parametrize("name, messages, published", PUBLISHED)
def test_the_published_example(name, messages, published):
    text = render(name, [{"role": role, "content": content} for role, content in messages])
    if name == "mistral":  # its card writes blanks otherwise than its tokenizer does, which begins each text with one
        text, published = (t.replace("[/INST] W", "[/INST]W").replace("</s> [", "</s>[") for t in (text, published))
    assert text == published


def test_every_format_has_a_published_example():
    assert {name for name, _, _ in PUBLISHED} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_bos_is_written_once_or_left_to_the_tokenizer(name):
    """chatml leaves it to the tokenizer; llama-2 writes one for each question that was answered."""
    text = render(name, CHAT)
    assert text.count("<s>") == {"chatml": 0, "llama-2": 2}.get(name, 1)
    assert text.startswith("<s>") == (name != "chatml") and "<s><s>" not in text


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
