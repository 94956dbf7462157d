"""Perplexity as llama.cpp's logits have it; divergences against plain sums."""

import sys
from pathlib import Path

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFWriter
from qtransformers.load import load
from qtransformers.model import Model
from qtransformers.quantize import evaluate
from qtransformers.quantize.passes import text_chunks
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

ROOT = Path(__file__).parents[2]
GOLDEN = 30, 1530, 1.75390  # documents, tokens scored, perplexity: tools/goldens_perplexity.py


def corpus(n, seed=1000):
    sys.path.insert(0, str(ROOT / "tools" / "demo_model"))
    from stories import documents

    made = documents(seed)
    return "".join(f"{user or ''}\n{answer}\n" for _, user, answer in (next(made) for _ in range(n)))


@pytest.fixture(scope="module")
def text():
    return corpus(GOLDEN[0])


@pytest.fixture(scope="module")
def demo(data):
    return load(data / "demo-Q8_0.gguf", context_length=512)


def changed(source, target, name, change):
    """A copy of a file with one tensor of other values."""
    specs = [(n, t.shape, t.type) for n, t in source.tensors.items()]
    with GGUFWriter(target, dict(source.metadata), specs) as writer:
        for n, t in source.tensors.items():
            writer.write(n, change(t) if n == name else t)
    return target


@pytest.fixture(scope="module")
def other(demo, tmp_path_factory):
    """The demo model with a louder last norm."""
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    return load(
        changed(demo.sources.gguf, path, "output_norm.weight", lambda t: t.numpy() * np.float32(1.3)),
        context_length=512,
    )


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def test_perplexity_is_that_of_llama_cpps_logits(demo, text):
    found = evaluate.perplexity(demo, text)
    assert found.n_tokens == GOLDEN[1]
    assert found.value == pytest.approx(GOLDEN[2], rel=1e-3)
    assert 0 < found.value_error < 0.2 * found.value


def test_perplexity_is_what_the_logits_of_the_model_say(demo, data, text):
    rows = text_chunks(demo.tokenizer, text, 64)[:5]
    with Model.load(data / "demo-Q8_0.gguf", context_length=64, logits_rows=64) as model:
        own = np.concatenate([-log_softmax(model.logits(row)[32:63])[np.arange(31), row[33:]] for row in rows])
    found = evaluate.perplexity(demo, text, chunk=64, n_chunks=5)
    assert found.n_tokens == len(own) == 155
    assert found.nats == pytest.approx(own.mean(), rel=1e-5)
    assert found.error == pytest.approx(own.std() / np.sqrt(154), rel=1e-4)


def test_divergence_is_what_the_logits_of_both_say(demo, other, data, text):
    rows = text_chunks(demo.tokenizer, text, 64)[:4]
    with (
        Model.load(data / "demo-Q8_0.gguf", context_length=64, logits_rows=64) as a,
        Model.load(other.plan.file, context_length=64, logits_rows=64) as b,
    ):
        p, q = (np.concatenate([log_softmax(m.logits(row)[32:63]) for row in rows]) for m in (a, b))
    found = evaluate.divergence(other, demo, text, chunk=64, n_chunks=4)
    targets = np.concatenate([row[33:] for row in rows])
    at = np.arange(len(targets))
    kl = (np.exp(p) * (p - q)).sum(1)
    assert kl.mean() > 1e-3
    assert (found.mean, found.median, found.largest) == pytest.approx(
        (kl.mean(), np.median(kl), kl.max()), rel=1e-3, abs=1e-6
    )
    assert found.p99_9 == pytest.approx(np.quantile(kl, 0.999), rel=1e-3)
    assert found.same_top == (p.argmax(1) == q.argmax(1)).mean()
    assert found.rms_dp == pytest.approx(
        np.sqrt(np.mean((np.exp(p[at, targets]) - np.exp(q[at, targets])) ** 2)), rel=1e-3
    )
    ratio = p[at, targets] - q[at, targets]
    assert found.log_ratio == pytest.approx(ratio.mean(), rel=1e-3, abs=1e-7)
    assert found.log_ratio_error == pytest.approx(ratio.std() / np.sqrt(len(at) - 1), rel=1e-3)
    assert found.log_ratio == pytest.approx(found.model.nats - found.base.nats, rel=1e-4)


def test_a_model_does_not_differ_from_itself(demo, text):
    found = evaluate.divergence(demo, demo, text, n_chunks=2)
    assert (found.mean, found.largest, found.same_top, found.rms_dp, found.log_ratio) == (0, 0, 1, 0, 0)


@pytest.mark.parametrize(
    "given, words", [({"chunk": 3}, "chunk=3"), ({"chunk": 513}, "context_length"), ({"text": "too short"}, "1,024")]
)
def test_what_cannot_be_scored(demo, text, given, words):
    with pytest.raises(ConfigError, match=words):
        evaluate.perplexity(demo, **{"text": text, **given})


def test_compare_measures_each_tensor():
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    y = x.copy()
    y[1, 2] += 2
    a, b = (
        {n: QTensor(n, BY_NAME["F32"], v.shape, v.reshape(-1).view(np.uint8)) for n, v in values.items()}
        for values in ({"w": y, "only": x}, {"w": x})
    )
    (found,) = evaluate.compare(a, b)
    assert found.name == "w" and found.bits == (32, 32)
    assert found.rmse == pytest.approx((4 / 8) ** 0.5) and found.largest == 2
    assert found.relative == pytest.approx((4 / np.square(x).sum()) ** 0.5)
    assert found.sqnr == pytest.approx(10 * np.log10(np.square(x).sum() / 4))


def test_compare_refuses_other_shapes():
    a, b = (QTensor("w", BY_NAME["F32"], (n,), np.zeros(4 * n, np.uint8)) for n in (2, 3))
    with pytest.raises(ConfigError, match=r"\[2\].*\[3\]"):
        list(evaluate.compare({"w": a}, {"w": b}))
