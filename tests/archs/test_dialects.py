"""Files as other converters write them: the same models in other words, and words that must not be passed over."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile, GGUFWriter


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name)`: a case, and the path of its file as we write it."""
    folder, known = tmp_path_factory.mktemp("dialects"), {}

    def make(name):
        if name not in known:
            known[name] = gguf(reference(CASES[name], name), folder, name, CASES[name])
        return CASES[name], known[name]

    return make


@pytest.fixture
def rewritten(made, tmp_path):
    """`rewritten(name, drop, add, tensors)`: the case's file with other metadata (without `<arch>.`) and tensors, loaded."""

    def rewrite(name, drop=(), add=None, tensors=None):
        case, path = made(name)
        with GGUFFile(path) as file:
            values = {t.name: t.dequantize() for t in file.tensors.values()}
            for key, change in (tensors or {}).items():
                names = [n for n in values if n.endswith(key)] or [key]
                values |= {n: np.asarray(change(values.get(n)), np.float32) for n in names}
            metadata = {k: v for k, v in file.metadata.items() if not k.endswith(tuple(drop) or "\0")}
            metadata |= {f"{case.arch}.{k}": v for k, v in (add or {}).items()}
            with GGUFWriter(
                tmp_path / "m.gguf", metadata, [(n, x.shape, "F32") for n, x in values.items()], overwrite=True
            ) as writer:
                for n, x in values.items():
                    writer.write(n, x)
        return Ours.load(tmp_path / "m.gguf", case)

    return rewrite


@pytest.mark.parametrize("name, drop, add", [
    ("phi3", ["rope.scaling.type"], {}),  # llama.cpp's converter leaves it to the tensors of factors
    ("qwen3-yarn", ["rope.scaling.attn_factor"], {"rope.scaling.yarn_attn_factor": np.float32(1.4)}),
    ("llama-linear", ["rope.scaling.type"], {}),
    ("llama-linear", ["rope.scaling.type", "rope.scaling.factor"], {"rope.scale_linear": np.float32(4)}),
    ("olmo3", ["attention.sliding_window_pattern"], {"attention.sliding_window_pattern": [True, True, True, False, True]}),
    ("gemma3", ["attention.sliding_window_pattern"], {"attention.sliding_window_pattern": [True] * 5 + [False, True]}),
])  # fmt: skip
def test_the_same_in_other_words(name, drop, add, made, rewritten):
    case, path = made(name)
    ids = prompt(case.lengths[-1])
    found = rewritten(name, drop, add)
    assert not found.loaded.plan.warnings
    assert error(found.logits(ids), Ours.load(path, case).logits(ids)) < 1e-5


def test_a_vector_may_be_a_matrix_of_one_row(made, rewritten):
    case, path = made("qwen2moe")
    found = rewritten("qwen2moe", tensors={"ffn_gate_inp_shexp.weight": lambda x: x[None]})
    assert np.array_equal(found.logits(prompt(40)), Ours.load(path, case).logits(prompt(40)))


def test_settings_without_meaning_are_told(rewritten):
    found = rewritten("qwen2", add={"rope.scaling.original_context_length": np.uint32(64)})
    assert any("original_context_length = 64 means nothing" in text for text in found.loaded.plan.warnings)


@pytest.mark.parametrize("key, value, fine", [
    ("attention.causal", False, False), ("attention.causal", True, True), ("attention.clamp_kqv", 8.0, False), ("attention.clamp_kqv", 0.0, True),
    ("attention.sliding_window", np.uint32(16), False), ("attention.sliding_window", np.uint32(1 << 20), True), ("attention.scale", 1.0, False),
    ("attention.scale", 0.25, True), ("rope.scaling.alpha", 4.0, False), ("logit_scale", 2.0, False), ("logit_scale", "high", False), ("attention.scale", "high", False),
])  # fmt: skip
def test_settings_that_change_the_result_are_refused(key, value, fine, rewritten):
    if fine:
        assert not rewritten("qwen2", add={key: value}).loaded.plan.warnings
    else:
        with pytest.raises(UnsupportedError, match=rf"qwen2\.{key} = .* changes what qwen2 models compute"):
            rewritten("qwen2", add={key: value})


@pytest.mark.parametrize("factors", [[0.0] * 8, [1.0] * 7 + [float("nan")], [float("inf")] * 8, [-1.0] * 8])
def test_factors_of_rope_that_cannot_be(factors, rewritten):
    with pytest.raises(LoadError, match=r"rope_freqs\.weight has factors from .* expected finite numbers above 0"):
        rewritten("llama-linear", tensors={"rope_freqs.weight": lambda x: factors})


def test_windows_out_of_order_are_refused(rewritten):
    with pytest.raises(UnsupportedError, match="expected every n-th layer to have full attention"):
        rewritten("olmo3", add={"attention.sliding_window_pattern": [True, False, True, True, False]})
    with pytest.raises(LoadError, match="has 3 values"):
        rewritten("olmo3", add={"attention.sliding_window_pattern": [True, True, False]})
