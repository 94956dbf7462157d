"""Drawing tokens: the kernels against the definition in sampling/definition.py."""

import math

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu
from qtransformers.sampling import Breaks, Sampling, definition
from qtransformers.sampling.definition import draw
from qtransformers.sampling.sampler import STAGE_FIELDS

NAN, INF = float("nan"), float("inf")
SETTINGS = [
    {}, {"temperature": 0.7}, {"temperature": 3.0}, {"temperature": 1e-300}, {"temperature": 5e-324}, {"temperature": 0.0},
    {"top_k": 1}, {"top_k": 40}, {"top_k": 5000, "temperature": 1.5}, {"top_k": 10**6},
    {"top_p": 0.0}, {"top_p": 0.3}, {"top_p": 0.95, "temperature": 0.8}, {"top_p": 0.9999}, {"top_p": 1 - 1e-9},
    {"min_p": 0.05}, {"min_p": 1.0}, {"min_p": 1e-6, "temperature": 2.0}, {"min_p": 1e-300},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02}, {"top_k": 3000, "top_p": 0.8123, "temperature": 1.3},
    {"typical_p": 0.0}, {"typical_p": 0.2003}, {"typical_p": 0.95, "temperature": 0.8}, {"typical_p": 0.9999}, {"top_k": 307, "typical_p": 0.7, "top_p": 0.9},
    {"top_n_sigma": 0.1}, {"top_n_sigma": 1.0, "temperature": 2.0}, {"top_n_sigma": 3.0, "top_k": 100}, {"top_n_sigma": 1000.0},
    {"xtc_probability": 1.0}, {"xtc_probability": 0.5, "xtc_threshold": 0.01}, {"xtc_probability": 1.0, "xtc_threshold": 0.0}, {"xtc_probability": 1.0, "xtc_threshold": 1e-5, "min_p": 1e-4},
    {"xtc_probability": 1.0, "xtc_threshold": 1.0}, {"dynatemp_range": 0.5}, {"temperature": 0.5, "dynatemp_range": 2.0, "dynatemp_exponent": 0.3}, {"dynatemp_range": 1.0, "top_k": 50},
    {"dynatemp_range": 0.7, "dynatemp_exponent": 0.0}, {"mirostat_tau": 3.0}, {"mirostat_tau": 8.0, "temperature": 0.6}, {"mirostat_tau": 0.1, "top_k": 100},
    {"top_n_sigma": 4.0, "top_k": 2003, "typical_p": 0.9711, "top_p": 0.9037, "min_p": 1e-4, "xtc_probability": 1.0, "xtc_threshold": 0.03, "temperature": 1.2, "dynatemp_range": 0.4},
]  # fmt: skip


def stages(s):
    return cpu.Stages(*(getattr(s, name) for name in STAGE_FIELDS), mirostat=bool(s.mirostat_tau))


def sample(logits, s, u, coin=0.3, mu=5.0):
    return cpu.sample(logits, stages(s), u, coin, mu)[0]


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
                assert sample(logits, s, float(u)) == draw(logits, s, u, 0.3, 5.0), (given, u)


@pytest.mark.parametrize("name, logits", kinds().items(), ids=kinds())
def test_distributions_are_their_definition(name, logits, isa):
    with cpu.Pool(2, isa):
        for given in SETTINGS:
            s = Sampling(**given)
            for mu in (0.0, 5.0, 12.0) if s.mirostat_tau else (0.0,):
                ids, w, part = definition.weights(logits, s, 0.3, mu)
                found, p, found_part = cpu.distribution(logits, stages(s), 0.3, mu)
                # beyond e^-700 the kernels need not know who is out
                assert found[p > 0].tolist() == ids[w > 0].tolist(), (given, mu)
                np.testing.assert_allclose(p[p > 0], (w / w.sum())[w > 0], rtol=1e-9, err_msg=str(given))
                assert found_part == pytest.approx(part, rel=1e-9)


def test_surprise_is_that_before_mirostat_cut(isa):
    logits = np.log(np.float32([0.05, 0.4, 0.15, 0.3, 0.1]))
    with cpu.Pool(1, isa):
        token, bits = cpu.sample(logits, cpu.Stages(mirostat=True), 0.99, mu=2.0)
        assert (token, bits) == (3, pytest.approx(-math.log2(0.3), abs=1e-6))
        assert cpu.sample(logits, cpu.Stages(), 0.99, mu=2.0)[1] == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    logits = (np.random.default_rng(8).standard_normal(151_936) * 2).astype(np.float32)
    chosen = [stages(Sampling(**given)) for given in SETTINGS]
    alone = [cpu.sample(logits, s, 0.37, 0.3, 5.0) for s in chosen]
    with cpu.Pool(threads):
        assert [cpu.sample(logits, s, 0.37, 0.3, 5.0) for s in chosen] == alone


@pytest.mark.parametrize("settings", [{"top_k": 40}, {"top_p": 0.95}, {"top_k": 500, "top_p": 0.9, "min_p": 0.01}, {"temperature": 0.9}, {"typical_p": 0.9}, {"top_n_sigma": 1.0}, {"xtc_probability": 1.0, "top_p": 0.95}, {"dynatemp_range": 0.5}, {"mirostat_tau": 5.0}, {"top_k": 20_000}])  # fmt: skip
@pytest.mark.parametrize("spread", [0.3, 3, 8])
def test_a_large_vocabulary(settings, spread, isa):
    rng = np.random.default_rng(int(spread * 10))
    s = Sampling(**settings)
    with cpu.Pool(1, isa):
        for _ in range(3):
            logits = (rng.standard_normal(151_936) * spread).astype(np.float32)
            for u in rng.random(3):
                assert sample(logits, s, u) == draw(logits, s, u, 0.3, 5.0)


@pytest.mark.parametrize("kind", ["ties", "banned", "by rank", "in lumps", "a favourite"])
def test_masses_of_a_large_vocabulary(kind, isa):
    """Where what a few logits tell of the rest is wrong, or the cut goes through equals."""
    rng = np.random.default_rng(12)
    logits = rng.standard_normal(100_003).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits * 8) / 8
    elif kind == "banned":
        logits[rng.random(len(logits)) < 0.7] = -INF
    elif kind == "by rank":
        logits = np.sort(logits)
    elif kind == "in lumps":
        logits[np.arange(len(logits)) % 128 < 16] *= 3
    else:
        logits[777] = 14
    with cpu.Pool(1, isa):
        for given in ({"top_p": 0.95}, {"top_p": 0.3}, {"typical_p": 0.95}, {"typical_p": 0.4, "top_p": 0.9}):
            s = Sampling(**given)
            ids, w, _ = definition.weights(logits, s)
            found, p, _ = cpu.distribution(logits, stages(s))
            assert found.tolist() == ids.tolist(), given
            np.testing.assert_allclose(p, w / w.sum(), rtol=1e-9)


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
            ids = [sample(logits, s, u) for u in sweep]
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
                for s in ({}, {"top_k": 3}, {"typical_p": 0.5}, {"mirostat_tau": 2.0}):
                    chosen = stages(Sampling(temperature=temperature, **s))
                    assert cpu.sample(logits, chosen, 0.5)[0] == -1 - at
                    assert cpu.distribution(logits, chosen)[0].tolist() == [-1 - at]
                assert cpu.logprobs(logits, 0, 1)[1].tolist() == [-1 - at]
        nothing = np.full(n, -INF, np.float32)
        assert cpu.sample(nothing, cpu.Stages(temperature), 0.5)[0] == -1
        assert (
            cpu.distribution(nothing, cpu.Stages(temperature))[0].tolist()
            == cpu.logprobs(nothing, 0, 1)[1].tolist()
            == [-1]
        )


def test_what_cannot_be_drawn_from():
    assert cpu.sample(np.zeros(0, np.float32), cpu.Stages(), 0.5)[0] == -1
    for bad in (np.zeros((2, 2), np.float32), None, "logits"):
        for call in (
            lambda x: cpu.sample(x, cpu.Stages(), 0.5),
            lambda x: cpu.distribution(x, cpu.Stages()),
            lambda x: cpu.logprobs(x, 0, 1),
        ):
            with pytest.raises(ConfigError, match="logits"):
                call(bad)
    with pytest.raises(ConfigError, match="sample expects"):
        cpu.sample(np.zeros(3, np.float32), None, math.pi)
    with pytest.raises(ConfigError, match="logprobs expects"):
        cpu.logprobs(np.zeros(3, np.float32), 0, -1)
    with pytest.raises(ConfigError, match="token is 3"):
        cpu.logprobs(np.zeros(3, np.float32), 3, 1)


@pytest.mark.parametrize("name, logits", kinds().items(), ids=kinds())
def test_logprobs_are_their_definition(name, logits, isa):
    with cpu.Pool(1, isa):
        for n_top in (0, 1, 20, len(logits)):
            for token in {0, len(logits) // 2, int(np.argmax(logits))}:
                value, ids, values = cpu.logprobs(logits, token, n_top)
                expected = definition.logprobs(logits, token, n_top)
                assert ids.tolist() == expected[1].tolist()
                np.testing.assert_allclose([value, *values], [expected[0], *expected[2]], rtol=1e-12, atol=1e-12)


# Penalties


@pytest.mark.parametrize("seed", range(6))
def test_penalties_are_their_definition(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    logits = (rng.standard_normal(n) * rng.choice([1, 5, 1e30])).astype(np.float32)
    logits[rng.integers(0, n, 3)] = [-INF, INF, NAN]
    tokens = rng.integers(0, n, int(rng.integers(0, 300))).astype(np.int32)
    for given in (
        {"repetition_penalty": 1.3}, {"repetition_penalty": 0.001}, {"frequency_penalty": 0.7, "presence_penalty": -2.0},
        {"repetition_penalty": 1.1, "frequency_penalty": 100, "presence_penalty": 0.3, "penalty_range": 40}, {"repetition_penalty": 9, "penalty_range": 0},
    ):  # fmt: skip
        s = Sampling(**given)
        for n_prompt in (0, len(tokens) // 2, len(tokens)):
            ours, theirs = logits.copy(), logits.copy()
            width = len(tokens) if s.penalty_range < 0 else s.penalty_range
            cpu.penalise(ours, tokens, n_prompt, width, s.repetition_penalty, s.frequency_penalty, s.presence_penalty)
            definition.penalise(theirs, s, tokens, n_prompt)
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(12))
def test_dry_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 5))  # few tokens, so that much repeats
    tokens = rng.integers(0, n, int(rng.integers(0, 200))).astype(np.int32)
    tokens = np.concatenate([tokens, tokens[: len(tokens) // 2]])
    logits = rng.standard_normal(n).astype(np.float32)
    logits[0] = rng.choice([0, -INF])
    breaks = Breaks(rng.random(n) < 0.2, ((0, 1), (1, 1, 2)) if seed % 2 else ())
    for given in ({}, {"dry_base": 1.0}, {"dry_base": 100.0}, {"dry_allowed_length": 1}, {"dry_allowed_length": 7}, {"dry_range": 30}, {"dry_range": 0}):  # fmt: skip
        s = Sampling(dry_multiplier=0.8, **given)
        for b in (Breaks(), breaks):
            ours, theirs = logits.copy(), logits.copy()
            width = len(tokens) if s.dry_range < 0 else s.dry_range
            cpu.dry(
                ours,
                tokens,
                b.tokens,
                b.limit(tokens.tolist()),
                width,
                s.dry_multiplier,
                s.dry_base,
                s.dry_allowed_length,
            )
            definition.dry(theirs, s, tokens, b)
            np.testing.assert_array_equal(ours, theirs)


def test_tokens_that_are_none_are_passed_over():
    logits = np.ones(3, np.float32)
    tokens = np.array([-1, 3, 2**31 - 1, 1, -1, 3, 2**31 - 1], np.int32)
    cpu.penalise(logits, tokens, 0, 99, 2.0, 0.0, 0.0)
    cpu.dry(logits, tokens, np.zeros(3, bool), 99, 99, 1.0, 2.0, 1)
    assert logits.tolist() == [1, 0.5 - 4, 1]


def test_penalties_of_what_cannot_be():
    good, tokens = np.zeros(3, np.float32), np.zeros(2, np.int32)
    frozen = good.copy()
    frozen.flags.writeable = False
    for bad in (frozen, good.astype(np.float64), np.zeros((2, 2), np.float32), np.zeros(6, np.float32)[::2], None):
        with pytest.raises(ConfigError, match="penalise expects"):
            cpu.penalise(bad, tokens, 0, 9, 1.1, 0.0, 0.0)
        with pytest.raises(ConfigError, match="dry expects"):
            cpu.dry(bad, tokens, None, 9, 9, 1.0, 1.75, 2)
    with pytest.raises(ConfigError, match="breaks is"):
        cpu.dry(good, tokens, np.zeros(4, bool), 9, 9, 1.0, 1.75, 2)
