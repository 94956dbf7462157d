"""Watched models compute what they are watched at, of every architecture, and each of their products is seen."""

import numpy as np
import pytest

from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from qtransformers.kernels import cpu
from qtransformers.quantize.observe import sites, watched

NAMES = [name for name in CASES if CASES[name].type == "F32"]


@pytest.mark.parametrize("name", NAMES)
def test_a_watched_model_gives_the_same_logits_and_misses_nothing(name, tmp_path):
    case = CASES[name]
    ours = Ours.load(gguf(reference(case, name), tmp_path, name, case), case)
    seen = {}

    def arrive(site, x, which):
        assert x.shape[1] == site.tensor.shape[-1] and x.dtype == np.float32
        assert (which is None) == (len(site.tensor.shape) == 2)
        seen[site.place] = seen.get(site.place, 0) + len(x)
        return site.weight

    ids = prompt(40)
    plain = ours.logits(ids)
    found = ours._logits(watched(ours.loaded, arrive), ours.loaded.hparams, ids, 64)
    assert error(found, plain) < 1e-5
    expected = {site.place for site in sites(ours.loaded)}
    assert set(seen) == expected and all(n >= 40 for n in seen.values())


def test_sites_are_the_matrices_of_the_file(data):
    from qtransformers.load import load

    model = load(data / "demo-Q8_0.gguf")
    found = list(sites(model))
    assert len(found) == 4 * 7 + 1
    assert found[-1].name == "token_embd.weight" and found[-1].place == (None, "output")
    assert all(isinstance(site.weight, cpu.Weight) for site in found)
