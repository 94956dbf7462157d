"""Improved models, of every way they are built: nearer to the original than plain rounding, files that load, floats that stay."""

import numpy as np
import pytest

from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFWriter
from qtransformers.load import load
from qtransformers.quantize.improve import _inputs, improve, plain_types
from qtransformers.quantize.observe import sites
from qtransformers.quantize.relay import relay
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

ROWS = np.random.default_rng(6).integers(0, 250, (8, 32)).astype(np.int32)


def written(improved, path):
    source = improved.model.sources.gguf
    specs = [(name, t.shape, improved.types[name]) for name, t in source.tensors.items()]
    with GGUFWriter(path, dict(source.metadata), specs) as writer:
        for name, data in improved.tensors():
            writer.write(name, data)
    return path


@pytest.mark.parametrize("name", ["mistral", "qwen2moe", "gpt-oss", "phi3"])
def test_nearer_than_plain_rounding_in_a_file_that_loads(name, tmp_path):
    case = CASES[name]
    ours = Ours.load(gguf(reference(case, name), tmp_path, "m", case), case)
    types = plain_types(ours.loaded, "Q4_0")
    assert sum(t.name == "Q4_0" for t in types.values()) > 5
    plain = ours.logits(prompt(60))
    off, products = {}, {}
    for fold, compensate in ((False, False), (True, True)):
        made = improve(ours.loaded, ROWS, types, fold=fold, compensate=compensate)
        path = written(made, tmp_path / f"{fold}.gguf")
        products[fold] = sum(relative for _, relative in made.errors.values())
        off[fold] = np.square(Ours.load(path, case).logits(prompt(60)) - plain).mean()
    assert 0 < products[True] < 0.85 * products[False]
    assert 0 < off[True] < 1.2 * off[False]  # of few tokens, of random models that magnify every error


def test_folds_alone_leave_a_model_of_floats_as_it_was(tmp_path):
    """Types that round are asked for in one weight of each pair; what is folded into the others must cancel."""
    case = CASES["qwen2"]
    ours = Ours.load(gguf(reference(case, "qwen2"), tmp_path, "m", case), case)
    types = plain_types(ours.loaded, "F32") | {f"blk.{i}.attn_output.weight": BY_NAME["Q8_0"] for i in range(3)}
    made = improve(ours.loaded, ROWS, types, fold=True, compensate=False)
    found = Ours.load(written(made, tmp_path / "f.gguf"), case).logits(prompt(40))
    assert error(found, ours.logits(prompt(40))) < 0.02
    assert any(f.rows is not None for (_, attr), f in made.folded.factors.items() if attr in ("attn_v", "attn_v_bias"))


def test_errors_of_every_weight_are_told(data):
    model = load(data / "demo-Q8_0.gguf", accuracy="exact", cache="f32", logits_rows=512)
    types = plain_types(model, "Q3_K")
    coarse, fine = (improve(model, ROWS, types, fold=False, compensate=c).errors for c in (False, True))
    assert set(coarse) == {site.name for site in sites(model)} == set(fine)
    assert all(0 < relative < 0.1 for _, relative in coarse.values())
    first = next(iter(coarse))
    assert sum(e for e, _ in fine.values()) < 0.8 * sum(e for e, _ in coarse.values()), first


@pytest.mark.parametrize("type", [None, "Q4_K"])
def test_types_that_are_missing_or_do_not_fit(type, tmp_path):
    case = CASES["mistral"]
    ours = Ours.load(gguf(reference(case, "mistral"), tmp_path, "m", case), case)
    types = plain_types(ours.loaded, "F32")
    types["blk.1.ffn_down.weight"] = BY_NAME.get(type) if type else None
    with pytest.raises(ConfigError, match=r"blk\.1\.ffn_down"):
        improve(ours.loaded, ROWS, types)


def test_a_given_importance_takes_the_place_of_what_texts_say_of_columns(data):
    model = load(data / "demo-Q8_0.gguf", accuracy="exact", cache="f32", logits_rows=512)
    types = plain_types(model, "Q3_K")
    squares = {}
    relay(model, ROWS, lambda site, moments: squares.setdefault(site.name, moments.mean_product().diagonal()) is None or site.weight)  # fmt: skip
    first = "blk.0.attn_q.weight"
    alone = improve(model, ROWS, types, fold=False, compensate=False)
    same = improve(model, ROWS, types, fold=False, compensate=False, importance={first: squares[first]})
    assert np.array_equal(alone.tensor(first), same.tensor(first))
    few = np.where(np.arange(len(squares[first])) < 8, 1e4, 1).astype(np.float32) * squares[first]
    for compensate in (False, True):
        found = {}
        for name, given in (("texts", {}), ("given", {first: few})):
            made = improve(model, ROWS, types, fold=compensate, compensate=compensate, importance=given)
            factors = made.folded.of(0, "attn_q")
            off = factors.undo(QTensor(first, types[first], model.sources.gguf.tensors[first].shape, made.tensor(first)).dequantize()) - model.sources.gguf.tensors[first].dequantize()  # fmt: skip
            found[name] = np.square(off[:, :8]).mean() / np.square(off[:, 8:]).mean()
        assert found["given"] < 0.75 * found["texts"]


def test_inputs_keep_how_they_go_together():
    x = np.random.default_rng(0).standard_normal((50, 4)) @ np.random.default_rng(1).standard_normal((4, 4))
    product, given = x.T @ x / 50, np.array([1.0, 4.0, 0.0, 9.0], np.float32)
    h = _inputs("w", 0, product, {"w": given})
    expected = np.where(given > 0, given, product.diagonal())  # of columns that the matrix never met, what texts say
    assert np.allclose(h.diagonal(), expected)
    together = [m / np.sqrt(np.outer(m.diagonal(), m.diagonal())) for m in (h, product)]
    assert np.allclose(*together)
    by_expert = np.stack([given, given + 1])
    assert np.allclose(_inputs("w", 1, product, {"w": by_expert}).diagonal()[0], 2)
