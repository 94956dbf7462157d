"""/v1/chat/completions with OpenAI's own client."""

import openai
import pytest

MESSAGES = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_answer_and_stream_are_the_model_s(client, served):
    model = served[1].models.entries[0].loaded
    expected = model.chat(MESSAGES, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=24, temperature=0)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected.prompt_tokens, 24)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=MESSAGES, max_completion_tokens=24, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert len(chunks) > 20
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 24


def test_choices_differ_and_a_seed_repeats_them(client):
    def ask():
        found = client.chat.completions.create(
            model="demo", messages=MESSAGES, max_tokens=16, n=3, seed=7, temperature=2.0
        )
        return [c.message.content for c in sorted(found.choices, key=lambda c: c.index)]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=16, n=3, seed=7, temperature=2.0, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == first


def test_logprobs(client):
    found = client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    content = found.choices[0].logprobs.content
    assert "".join(t.token for t in content) == found.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(t.logprob for t in token.top_logprobs) <= 0
        assert bytes(token.bytes).decode() == token.token


def test_stop_and_logit_bias(client, served):
    text = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=24, temperature=0)
    word = text.choices[0].message.content.split()[4]
    cut = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=24, temperature=0, stop=[word])
    assert cut.choices[0].message.content == text.choices[0].message.content.partition(word)[0]
    assert cut.choices[0].finish_reason == "stop"
    model = served[1].models.entries[0].loaded
    first = model.chat(MESSAGES, max_tokens=1, temperature=0).tokens[0]
    other = client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=1, temperature=0, logit_bias={str(first): -100}
    )
    assert other.choices[0].message.content != model.tokenizer.decode([first])


@pytest.mark.parametrize(
    "given, code, words",
    [
        ({"max_tokens": 5000}, "context_length_exceeded", ["11 tokens", "5,000", "1,024", "--ctx-size"]),
        ({"model": "other"}, "model_not_found", ["other", "demo", "gpt-test"]),
        ({"temperature": -1}, "invalid_value", ["temperature=-1", "from 0 to 100"]),
        ({"n": 10**9}, "invalid_value", ["1,000,000,000", "16"]),
        ({"extra_body": {"frequenzy_penalty": 1}}, "unknown_field", ["frequenzy_penalty"]),
        ({"verbosity": "low"}, "unsupported", ["verbosity='low'", "expected medium"]),
        ({"service_tier": "priority"}, "unsupported", ["service_tier='priority'", "auto or default"]),
        ({"extra_body": {"top_k": "many"}}, "invalid_type", ["top_k", "found str", "expected int"]),
        ({"messages": [{"role": "king", "content": "x"}]}, "invalid_value", ["messages[0].role", "'king'", "system"]),
    ],
)
def test_errors_say_what_was_found_and_expected(client, given, code, words):
    with pytest.raises(openai.APIStatusError) as e:
        client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, **given})
    assert e.value.code == code
    assert e.value.type in ("invalid_request_error", "not_found_error")
    assert all(word in e.value.message for word in words), e.value.message
