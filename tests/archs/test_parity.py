"""Every architecture on random weights: the logits of transformers and of llama.cpp, and every feature on its own."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from archs.cases import CASES
from archs.models import Ours, digest, error, gguf, prompt, reference
from qtransformers.archs import SPECS
from qtransformers.load import prepare, resolve
from qtransformers.load.hub import Hub

TOLERANCE = 1e-3  # of logits, relative to the largest; found: 4e-6 and less
FEATURES = [(name, feature) for name, case in CASES.items() for feature in case.features]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name)`: the case, its reference, its GGUF file and the model loaded from it."""
    folder, known = tmp_path_factory.mktemp("archs"), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small, and its threads spin while they wait

    def make(name):
        if name not in known:
            case = CASES[name]
            theirs = reference(case, name)
            path = gguf(theirs, folder, name, case)
            known[name] = case, theirs, path, Ours.load(path, case)
        return known[name]

    yield make
    torch.set_num_threads(threads)


def expected(theirs, ids):
    with torch.inference_mode():
        return theirs(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def test_every_architecture_has_a_case():
    assert {case.arch for case in CASES.values()} >= {s.id for s in SPECS.values() if s.kind == "language"}


@pytest.mark.parametrize("name", CASES)
def test_logits_as_transformers(name, made):
    case, theirs, _, ours = made(name)
    assert ours.loaded.spec.id == case.arch and not ours.loaded.plan.warnings
    for n in case.lengths:
        assert error(ours.logits(prompt(n)), expected(theirs, prompt(n))) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_config_and_file_agree(name, made):
    """The checkpoint's own config.json and tokenizer beside the file made from it: not a word against it."""
    case, _, path, _ = made(name)
    prepared = prepare(resolve(path, path.with_suffix(""), hub=Hub(offline=True)), context_length=case.context_length)
    assert prepared.spec.id == case.arch and not prepared.plan.warnings


@pytest.mark.parametrize("name, feature", FEATURES)
def test_without_a_feature_the_logits_are_others(name, feature, made):
    case, theirs, _, ours = made(name)
    ids = prompt(case.lengths[-1])
    assert error(ours.logits(ids, case.features[feature]), expected(theirs, ids)) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def goldens(data):
    found = {}
    for path in sorted((data / "goldens").glob("archs*.npz")):
        with np.load(path) as file:
            found.update(file)
    return found


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.golden])
def test_logits_as_llama_cpp(name, made, goldens):
    """Numbers made by tools/goldens_archs.py from the same files."""
    case, _, path, ours = made(name)
    assert str(goldens[f"{name}_file"]) == digest(path), "the file is not the golden's: make the goldens again"
    ids, rows = prompt(case.lengths[-1]), goldens[f"{name}_rows"]
    assert len(rows) >= 3
    assert error(ours.logits(ids)[rows], goldens[f"{name}_logits"]) < case.golden_tolerance
