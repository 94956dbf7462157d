"""What is left of logits, against llama.cpp's samplers and transformers' (tools/goldens_sampling.py)."""

import json

import numpy as np
import pytest

from qtransformers.sampling import Sampler, Sampling


@pytest.fixture(scope="module")
def goldens(data):
    return json.loads((data / "goldens" / "sampling.json").read_text())


@pytest.mark.parametrize("by, n", [("llama", 23), ("transformers", 10)])
def test_theirs_are_ours(goldens, by, n):
    assert len(goldens[by]) == n
    for case in goldens[by]:
        x = np.array(goldens["logits"], np.float32)
        settings = Sampling(**{"dry_breakers": (), **case["settings"]})
        ids, p = Sampler(settings, len(x)).distribution(x, goldens["history"], 0)
        assert ids.tolist() == case["ids"], case["settings"]
        np.testing.assert_allclose(p, case["p"], rtol=1e-4, atol=1e-7, err_msg=str(case["settings"]))
