"""What benchmarks/gpu_attention.py measures, on tiny shapes: all but the clock."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import gpu_attention as bench

TINY = bench.Heads("tiny", 4, 2, 32, 32)
PLACE = torch.device("cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu")


@pytest.mark.parametrize("codec", ["f16", "q6"])
def test_errors_are_those_of_the_kernel(codec, monkeypatch):
    assert 0 < bench.worst(TINY, codec, PLACE, (20, 3)) < 1e-3
    right = bench.attention
    monkeypatch.setattr(bench, "attention", lambda *args: right(*args) * 1.5)
    assert bench.worst(TINY, codec, PLACE, (20, 3)) > 0.3


def test_rates_count_what_is_read(monkeypatch):
    """Two sequences of 300 tokens, two heads of 32 keys and values in bytes, in a microsecond."""
    seen = []

    def clock(calls, **more):
        seen.extend(call() for call in calls[:1])
        return 1e-6

    monkeypatch.setattr(bench, "seconds", clock)
    monkeypatch.setattr(bench, "ROTATED", 1 << 18)
    assert bench.rate(TINY, "q8", 2, 300, PLACE, 1e12) == "77 (8%)"
    assert seen[0].shape == (2, 128) and bool(torch.isfinite(seen[0]).all()) and float(seen[0].abs().max()) > 0


def test_prompts_are_compared_with_the_same_work():
    ours, theirs = bench.step(TINY, "f32", [16], [16], PLACE)(), bench.plain(TINY, 16, PLACE)()
    assert ours.shape == (16, 128) and theirs.shape == (1, 4, 16, 32)
    assert bench.operations(TINY, 16) == sum(2 * 2 * 32 * 4 * seen for seen in range(1, 17))
    assert np.isfinite(ours.cpu().numpy()).all()
