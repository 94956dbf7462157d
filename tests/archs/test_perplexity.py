"""Rounding activations must not show in perplexity: the demo model on texts like those it was trained on."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def documents():
    import accuracy

    return accuracy.texts(40)


@pytest.fixture(scope="module")
def perplexity(documents):
    import accuracy

    def measure(name):
        total, count = accuracy.surprise(ROOT / "tests" / "data" / "demo-Q8_0.gguf", name, documents)
        assert count > 4000
        return np.exp(total / count)

    return measure


def test_the_demo_model_knows_its_corpus(perplexity):
    assert perplexity("exact") < 2


@pytest.mark.parametrize("name", ["high", "fast"])
def test_rounded_activations_change_perplexity_by_less_than_a_thousandth(name, perplexity):
    assert abs(perplexity(name) / perplexity("exact") - 1) < 1e-3
