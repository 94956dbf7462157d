"""The largest of logits, as a sampler on the CPU finds them."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch

from qtransformers.kernels.triton.candidates import best, largest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def logits(rows=3, n=5000, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, n), np.float32)).to(DEVICE)


def test_the_first_of_the_largest():
    x = logits()
    x[1, [4, 4097, 4999]] = 50.0
    x[2] = 0.0
    assert best(x, 5000).tolist() == [int(x[0].argmax()), 4, 0]
    assert best(x[:, :10], 7).tolist() == [int(row[:7].argmax()) for row in x]


def test_padding_of_the_vocabulary_is_never_chosen():
    x = logits()
    unused = torch.zeros(5000, dtype=torch.bool, device=DEVICE)
    unused[x[0].argmax()] = True
    x[:, 4990:] = 99.0
    kept = x.cpu()[:, :4990].masked_fill(unused.cpu()[:4990], -torch.inf)
    assert best(x, 4990, unused).tolist() == kept.argmax(-1).tolist()
    ids, values = largest(x, 20, 4990, unused)
    expected = kept.topk(20, -1)
    assert (ids.cpu() == expected.indices).all() and (values.cpu() == expected.values).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_broken_are_named(value):
    x = logits()
    x[1, 4500] = value
    x[2] = -torch.inf
    assert best(x, 5000).tolist() == [int(x[0].argmax()), -1, -1]
    assert best(x[:0], 5000).tolist() == []
