"""/v1/completions: texts go on, with what came before where that is asked for."""

import json

import numpy as np
import openai
import pytest

from servers import until

PROMPT = "Once there lived a proud duck called Arthur near the windmill."


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(served):
    return served[1].models.entries[0].loaded


def expected_logprobs(model, ids):
    logits = model.logits(ids).astype(np.float64)[:-1, : model.tokenizer.n_tokens]
    logits[:, sorted(model.tokenizer.unused_ids)] = -np.inf
    logits -= logits.max(1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("as_ids", [False, True])
def test_several_prompts_in_their_order(client, model, as_ids):
    texts = [PROMPT, "The fox said", "A cold wind", "The fox said"]
    prompts = [model.tokenizer.encode(t) for t in texts] if as_ids else texts
    found = client.completions.create(model="demo", prompt=prompts, max_tokens=8, temperature=0)
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    expected = [model.generate(t, max_tokens=8, temperature=0) for t in texts]
    assert [c.text for c in found.choices] == [e.text for e in expected]
    assert found.usage.prompt_tokens == sum(len(model.tokenizer.encode(t)) for t in texts)
    assert found.usage.completion_tokens == sum(len(e.tokens) for e in expected) > 16


def test_the_usual_length_is_openai_s(client):
    assert client.completions.create(model="demo", prompt=PROMPT, temperature=0).usage.completion_tokens == 16


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_echo_scores_the_prompt(client, model, tokens, caplog):
    caplog.set_level("INFO", "qtransformers.serve")
    found = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=tokens, temperature=0, echo=True, logprobs=2
    )
    choice, ids = found.choices[0], model.tokenizer.encode(PROMPT)
    answer = model.generate(PROMPT, max_tokens=max(1, tokens), temperature=0)
    assert choice.text == PROMPT + (answer.text if tokens else "")
    lp = choice.logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == len(ids) + tokens
    assert lp.token_logprobs[0] is None
    assert "".join(lp.tokens) == choice.text
    assert [choice.text[at : at + len(t)] for at, t in zip(lp.text_offset, lp.tokens, strict=True)] == lp.tokens
    whole = [*ids, *answer.tokens[:tokens]]
    assert np.allclose(lp.token_logprobs[1:], expected_logprobs(model, whole), atol=2e-2)
    assert all(
        max(top.values()) >= own - 1e-6 for top, own in zip(lp.top_logprobs[1:], lp.token_logprobs[1:], strict=True)
    )
    until(lambda: '"seconds"' in caplog.text)  # the log tells of it once it is over
    told = json.loads(caplog.records[-1].message)
    assert (told["prompt_tokens"], told.get("tokens", 0), told["finish"]) == (len(ids), tokens, "length")


def test_echo_of_a_stream_says_the_same(client):
    ask = {
        "model": "demo",
        "prompt": [PROMPT, "The fox"],
        "max_tokens": 4,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    whole = client.completions.create(**ask)
    texts, tokens, offsets = ["", ""], [[], []], [[], []]
    for chunk in client.completions.create(**ask, stream=True):
        c = chunk.choices[0]
        texts[c.index] += c.text
        tokens[c.index] += c.logprobs.tokens
        offsets[c.index] += c.logprobs.text_offset
    assert texts == [c.text for c in whole.choices]
    assert tokens == [c.logprobs.tokens for c in whole.choices]
    assert offsets == [c.logprobs.text_offset for c in whole.choices]


def test_a_grammar_is_followed(client):
    found = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=20, extra_body={"regex": "(yes|no)", "temperature": 2, "seed": 1}
    )
    assert found.choices[0].text in ("yes", "no")
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "given, words",
    [
        ({"prompt": []}, ["prompt", "there is none"]),
        ({"prompt": ["a", 5]}, ["prompt", "mixed"]),
        ({"prompt": [5, 10**9]}, ["prompt[1]=1000000000"]),
        ({"suffix": "x"}, ["suffix"]),
        ({"best_of": 3}, ["best_of", "3"]),
        ({"logprobs": 10**6}, ["logprobs", "0 to 20"]),
        ({"max_tokens": 0}, ["max_tokens"]),
        ({"echo": True, "max_tokens": 0, "logprobs": 0, "prompt": [1] * 2000}, ["2,000", "1,024", "--ctx-size"]),
        ({"prompt": ["x"] * 17}, ["17", "16", "--max-choices"]),
        ({"extra_body": {"regex": "("}}, ["regex"]),
        ({"logit_bias": {"one": 1}}, ["logit_bias", "'one'"]),
        ({"logit_bias": {"999999": 1}}, ["logit_bias", "999999"]),
    ],
)
def test_what_cannot_be_honoured_is_named(client, given, words):
    with pytest.raises(openai.BadRequestError) as e:
        client.completions.create(**{"model": "demo", "prompt": PROMPT, **given})
    assert all(word in e.value.message for word in words), e.value.message


@pytest.mark.parametrize("seed", [2**64, 2**70, -1])
@pytest.mark.parametrize("n", [1, 2])
def test_a_seed_that_is_none_is_refused(http, seed, n):
    found = http.post("/v1/completions", json={"prompt": "A", "max_tokens": 1, "seed": seed, "n": n})
    assert found.status_code == 400
    assert f"seed={seed}" in found.json()["error"]["message"]
    last = http.post("/v1/completions", json={"prompt": "A", "max_tokens": 1, "seed": 2**64 - 1, "n": n})
    assert last.status_code == 200, last.text


def test_too_many_prompts_are_not_called_answers(http):
    error = http.post("/v1/completions", json={"prompt": ["A"] * 1000, "max_tokens": 1}).json()["error"]
    assert error["param"] == "prompt" and error["message"].startswith("prompt: 1,000 prompts with n=1 ask for 1,000")
    error = http.post("/v1/completions", json={"prompt": ["A"] * 2, "n": 1000}).json()["error"]
    assert error["param"] == "n" and error["message"].startswith("n: 1,000")
