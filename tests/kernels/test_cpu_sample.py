"""Drawing tokens: the kernels against the definition in sampling.py."""

import math

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu
from qtransformers.sampling import Sampling
from qtransformers.sampling.definition import draw

NAN, INF = float("nan"), float("inf")
SETTINGS = [
    {}, {"temperature": 0.7}, {"temperature": 3.0}, {"temperature": 1e-300}, {"temperature": 5e-324}, {"temperature": 0.0},
    {"top_k": 1}, {"top_k": 40}, {"top_k": 5000, "temperature": 1.5}, {"top_k": 10**6},
    {"top_p": 0.0}, {"top_p": 0.3}, {"top_p": 0.95, "temperature": 0.8}, {"top_p": 0.9999}, {"top_p": 1 - 1e-9},
    {"min_p": 0.05}, {"min_p": 1.0}, {"min_p": 1e-6, "temperature": 2.0}, {"min_p": 1e-300},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02}, {"top_k": 3000, "top_p": 0.8123, "temperature": 1.3},
]  # fmt: skip


def kinds():
    """Distributions that cuts and histograms find hard, by name."""
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(30_011).astype(np.float32)
    ties = np.round(normal * 4) / 4
    banned = normal.copy()
    banned[rng.integers(0, len(banned), 20_000)] = -INF
    outlier = normal.copy()
    outlier[17] = 3e38
    outlier[18] = -3e38
    return {
        "peaked": normal * 6, "flat": normal * 0.01, "ties": ties.astype(np.float32), "equal": np.zeros(5003, np.float32),
        "banned": banned, "outlier": outlier, "huge": np.float32([3.4e38, -3.4e38, 3.3e38, 0]), "one": np.float32([-7.5]),
        "one left": np.float32([-INF, -3, -INF]), "tiny": (normal * 1e-42).astype(np.float32), "few": normal[:19],
        "far apart": np.linspace(-2000, 0, 4099, dtype=np.float32), "two values": np.where(normal > 1, 5, 1).astype(np.float32),
    }  # fmt: skip


@pytest.mark.parametrize("name, logits", kinds().items(), ids=kinds())
def test_drawing_is_its_definition(name, logits, isa):
    rng = np.random.default_rng(1)
    with cpu.Pool(1, isa):
        for given in SETTINGS:
            s = Sampling(**given)
            for u in (0.0, 1 - 2**-53, 0.5, *rng.random(9)):
                found = cpu.sample(logits, s.temperature, s.top_k, s.top_p, s.min_p, float(u))
                assert found == draw(logits, s, u), (given, u)


@pytest.mark.parametrize("settings", [{"top_k": 40}, {"top_p": 0.95}, {"top_k": 500, "top_p": 0.9, "min_p": 0.01}, {"temperature": 0.9}])  # fmt: skip
@pytest.mark.parametrize("spread", [0.3, 3, 8])
def test_a_large_vocabulary(settings, spread, isa):
    rng = np.random.default_rng(int(spread * 10))
    s = Sampling(**settings)
    with cpu.Pool(1, isa):
        for _ in range(3):
            logits = (rng.standard_normal(151_936) * spread).astype(np.float32)
            for u in rng.random(3):
                assert cpu.sample(logits, s.temperature, s.top_k, s.top_p, s.min_p, u) == draw(logits, s, u)


def test_what_is_kept_and_how_often(isa):
    """By sweeping u: the ids in their order, each over a stretch as long as its probability."""
    logits = np.log(np.float32([0.05, 0.4, 0.15, 0.3, 0.1]))
    sweep = (np.arange(4000) + 0.5) / 4000
    for given, expected in (
        ({}, [0.05, 0.4, 0.15, 0.3, 0.1]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.8}, [0, 4 / 8.5, 1.5 / 8.5, 3 / 8.5, 0]),
        ({"min_p": 0.3, "temperature": 0.5}, np.array([0, 16, 2.25, 9, 0]) / 27.25),
    ):
        s = Sampling(**given)
        with cpu.Pool(1, isa):
            ids = [cpu.sample(logits, s.temperature, s.top_k, s.top_p, s.min_p, u) for u in sweep]
        assert ids == sorted(ids)
        np.testing.assert_allclose(np.bincount(ids, minlength=5) / 4000, expected, atol=3e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 5, 16, 33, 1000])
def test_broken_logits_are_pointed_at(temperature, n, isa):
    with cpu.Pool(1, isa):
        for at in {0, n // 2, n - 1}:
            for bad in (NAN, INF):
                logits = np.zeros(n, np.float32)
                logits[at] = bad
                assert cpu.sample(logits, temperature, 0, 1.0, 0.0, 0.5) == -1 - at
        assert cpu.sample(np.full(n, -INF, np.float32), temperature, 0, 1.0, 0.0, 0.5) == -1


def test_what_cannot_be_drawn_from():
    assert cpu.sample(np.zeros(0, np.float32), 1.0, 0, 1.0, 0.0, 0.5) == -1
    for bad in (np.zeros((2, 2), np.float32), None, "logits"):
        with pytest.raises(ConfigError, match="logits"):
            cpu.sample(bad, 1.0, 0, 1.0, 0.0, 0.5)
    with pytest.raises(ConfigError, match="sample expects"):
        cpu.sample(np.zeros(3, np.float32), 1.0, -1, 1.0, 0.0, math.pi)
