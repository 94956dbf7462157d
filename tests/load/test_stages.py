"""Models in parts: every architecture, cut between any two layers, gives the bits it gives in one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from qtransformers.cache import Batch
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.load import load
from qtransformers.load.stages import Part, bytes_of, cuts, mark
from qtransformers.nn.stages import Elsewhere, Stage


def logits_of(parts, ids, first=5):
    """Of every token, by two forwards through all parts, `x` carried from one to the next."""
    caches = [part.new_cache(256) for part in parts]
    pages = caches[0].take(1)
    found: list = []
    between: list = []
    for past, chunk in ((0, ids[:first]), (first, ids[first:])):
        for i, (part, cache) in enumerate(zip(parts, caches, strict=True)):
            if part.layers is not None:
                part.weights.stage = Stage(
                    part.layers.start,
                    (lambda x: x.__setitem__(..., between.pop())) if i else None,
                    None if part is parts[-1] else lambda x: between.append(x.copy()),
                )
            batch = Batch.single(chunk, past, pages, outputs=None)
            if part is not parts[-1]:
                batch = replace(batch, output_rows=np.zeros(1, np.int32))
            logits = part.spec.forward(part.weights, part.hparams, batch, cache)
        assert not between
        found.append(logits)
    return np.concatenate(found)


def names():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from archs.cases import CASES

    return list(CASES)


@pytest.mark.parametrize("name", names())
def test_the_same_bits(name, tmp_path):
    from archs.cases import CASES
    from archs.models import gguf, prompt, reference

    case = CASES[name]
    path = gguf(reference(case, name), tmp_path, name, case)
    options = {"cache": "f32", "accuracy": "exact", "context_length": case.context_length, "logits_rows": 512}
    whole = load(path, **options)
    n_layers = whole.hparams["n_layers"]
    parts = [load(path, part=Part(i, n_layers), **options) for i in range(n_layers)]
    assert [list(part.layers) for part in parts] == [[i] for i in range(n_layers)]
    ids = prompt(9)
    assert np.array_equal(logits_of(parts, ids), logits_of([whole], ids))
    for part in parts[:-1]:
        assert isinstance(part.weights.output, Elsewhere)
    assert sum(part.plan.weights_bytes for part in parts) >= whole.plan.weights_bytes
    assert sum(part.plan.cache_bytes for part in parts) == whole.plan.cache_bytes
    assert all(part.plan.weights_bytes < whole.plan.weights_bytes for part in parts)


def test_layers_by_bytes():
    def plan(sizes, head=0, tail=0, ties=None):
        tensors = [tensor(None, "embed", "token_embd", head), *(tensor(i, "attn", "q", n) for i, n in enumerate(sizes))]
        tensors.append(tensor(None, "output", "output", tail))
        return SimpleNamespace(tensors=tensors, kept=lambda i: 1, ties=ties or {}, file="m.gguf")

    def tensor(layer, role, attr, nbytes):
        return SimpleNamespace(slot=SimpleNamespace(layer=layer, attr=attr), role=role, nbytes=nbytes)

    def lengths(n, *args, **more):
        found = cuts(plan(*args, **more), len(args[0]), n)
        assert [i for part in found for i in part] == list(range(len(args[0])))
        return [len(part) for part in found]

    assert lengths(2, [10] * 8) == [4, 4]
    assert lengths(3, [10] * 9) == [3, 3, 3]
    assert lengths(2, [10] * 8, head=44) == [2, 6]
    assert lengths(2, [10] * 8, tail=44) == [6, 2]
    assert lengths(2, [10] * 8, head=44, ties={"output": "token_embd"}) == [4, 4]
    assert lengths(4, [100, 1, 1, 1]) == [1, 1, 1, 1]
    assert lengths(4, [1, 1, 1, 100]) == [1, 1, 1, 1]
    for n in (0, 9):
        with pytest.raises(ConfigError, match="stages"):
            cuts(plan([10] * 8), 8, n)


def test_what_a_part_reads_is_its_own(data):
    path = data / "demo-Q8_0.gguf"
    parts = [load(path, part=Part(i, 2)) for i in range(2)]
    seen = []
    for part in parts:
        views = bytes_of(part.plan, part.sources.gguf)
        begins = [view.ctypes.data for view in views]
        assert begins == sorted(begins)
        seen.append({t.slot.name for t in part.plan.tensors})
    assert {t.slot.name for t in load(path).plan.tensors} == seen[0] | seen[1]
    assert {name for name in seen[0] & seen[1] if "blk" in name} == set()
    assert mark(parts[0].plan, parts[0].sources.gguf) == mark(parts[1].plan, parts[1].sources.gguf)
    assert mark(parts[0].plan, parts[0].sources.gguf) != mark(
        parts[0].plan, load(data / "demo-draft-Q8_0.gguf").sources.gguf
    )


def test_an_encoder_is_not_cut(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from archs.encoders import encoder, gguf

    _, theirs, _ = encoder("bert")
    path = gguf(theirs, tmp_path, "bert", "mean")
    with pytest.raises(UnsupportedError, match="one process only"):
        load(path, part=Part(0, 2))
