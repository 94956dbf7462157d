"""Files that convert makes, read by llama.cpp (tools/goldens_convert.py) and by us: the same greedy tokens."""

import hashlib
import json

import numpy as np
import pytest

from convert.peers import NAMES, PROMPT, made
from qtransformers import Model

pytestmark = pytest.mark.filterwarnings("ignore:.*quantised already")
CLOSE = 0.5  # logits of which the first two are nearer may be chosen either way: llama.cpp rounds activations
CLOSE_ANEW = 4.0  # the same in a file whose weights are rounded otherwise than those that llama.cpp has read


@pytest.fixture(scope="module")
def goldens(data):
    return json.loads((data / "goldens" / "convert.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_says_the_same(name, goldens, data, tmp_path):
    golden = goldens[name]
    tokens, n_prompt, margins = golden["tokens"], golden["prompt"], np.array(golden["margins"])
    path = made(name, data / "demo_model", tmp_path)
    same = hashlib.sha256(path.read_bytes()).hexdigest()[:16] == golden["file"]
    with Model.load(path, cache="f32", accuracy="exact", logits_rows=512) as model:
        assert model.tokenizer.encode(PROMPT, encode_special=True) == tokens[:n_prompt]
        chosen = model.logits(tokens)[n_prompt - 1 : -1].argmax(axis=1)
    sure = margins >= (CLOSE if same else CLOSE_ANEW)
    assert sure.sum() >= (20 if same else 10)
    assert chosen[sure].tolist() == np.array(tokens[n_prompt:])[sure].tolist()
