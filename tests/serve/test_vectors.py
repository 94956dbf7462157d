"""/v1/embeddings, /tokenize, /detokenize."""

import base64

import numpy as np
import openai
import pytest

pytest.importorskip("torch")

from archs.encoders import encoder, gguf
from qtransformers.serve.models import ModelSpec
from servers import running


def test_tokens_and_back(http, served):
    model = served[1].models.entries[0].loaded
    found = http.post("/tokenize", json={"prompt": "A fox ran.", "return_token_strs": True}).json()
    assert found["tokens"] == model.tokenizer.encode("A fox ran.", add_bos=None)
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == model.context_length
    assert "".join(found["token_strs"]).endswith("A fox ran.")
    bare = http.post("/tokenize", json={"content": "A fox ran.", "add_special_tokens": False}).json()
    assert http.post("/detokenize", json={"tokens": bare["tokens"]}).json()["prompt"] == "A fox ran."
    messages = [{"role": "user", "content": "Hi"}]
    assert http.post("/tokenize", json={"messages": messages}).json()["tokens"] == list(model.chat_ids(messages))


@pytest.mark.parametrize(
    "path, body, words",
    [
        ("/tokenize", {}, ["prompt"]),
        ("/tokenize", {"prompt": "a", "content": "b"}, ["2 of them"]),
        ("/detokenize", {"tokens": [10**9]}, ["tokens[0]=1000000000"]),
        ("/detokenize", {"tokens": [-1]}, ["tokens[0]=-1"]),
        ("/v1/embeddings", {"input": "a"}, ["demo-Q8_0.gguf", "encoder"]),
    ],
)
def test_what_cannot_be_honoured_is_named(http, path, body, words):
    found = http.post(path, json=body)
    assert found.status_code == 400
    assert all(word in found.json()["error"]["message"] for word in words), found.text


def test_vectors(tmp_path):
    path = gguf(encoder("bert")[1], tmp_path, "bert", "mean")
    with running([ModelSpec(str(path), ("bert",), {"threads": 1})]) as (url, server):
        model = server.models.entries[0].loaded
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        texts = ["a fox", "the quick brown fox jumps", "dogs sleep"]
        found = client.embeddings.create(model="bert", input=texts)  # the client asks for base64
        assert np.array_equal(np.array([d.embedding for d in found.data], np.float32), model.embed(texts))
        plain = client.embeddings.create(model="bert", input=texts[1], encoding_format="float")
        assert np.allclose(plain.data[0].embedding, model.embed(texts[1:2])[0], atol=1e-7)
        assert plain.usage.prompt_tokens == len(model.tokenizer.encode(texts[1]))
        raw = client.embeddings.with_raw_response.create(model="bert", input=texts[0], encoding_format="base64")
        data = raw.http_response.json()["data"][0]["embedding"]
        assert len(base64.b64decode(data)) == 4 * model.hparams["n_embd"]
        cut = client.embeddings.create(model="bert", input=texts[0], dimensions=8, encoding_format="float")
        assert np.isclose(np.linalg.norm(cut.data[0].embedding), 1, atol=1e-6)
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="bert", input="a", dimensions=10**6)
        with pytest.raises(openai.BadRequestError, match="encoder"):
            client.completions.create(model="bert", prompt="a")
