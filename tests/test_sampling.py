import dataclasses

import numpy as np
import pytest

from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.sampling import Sampler, Sampling, logprobs
from qtransformers.sampling.definition import STAGES, _head

NAN, INF = float("nan"), float("inf")
LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32))  # likeliest: 1, 3, 2, 4, 0


def kept(logits, **settings):
    """Ids that can still be drawn, likeliest first."""
    s = Sampling(**settings)
    candidates = _head(logits, s)
    for stage in STAGES:
        candidates = stage(candidates, s)
    return candidates.ids.tolist()


def plain(logits, top_k=0, top_p=1.0, min_p=0.0):
    """The definition, by sorting everything."""
    ids = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    if top_k:
        ids = ids[:top_k]
    p = np.exp(logits[ids].astype(np.float64) - logits.max())
    p /= p.sum()
    if top_p < 1:
        ids = ids[: np.searchsorted(np.cumsum(p), top_p) + 1]
    if min_p:
        ids = ids[np.exp(logits[ids].astype(np.float64) - logits.max()) >= min_p]
    return ids.tolist()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 2]),
        ({"top_k": 99}, [1, 3, 2, 4, 0]),
        ({"top_p": 0.5}, [1, 3]),  # 0.4 is below a half: the token that crosses it stays
        ({"top_p": 0.8}, [1, 3, 2]),
        ({"top_p": 0.0}, [1]),
        ({"top_p": 0.999}, [1, 3, 2, 4, 0]),
        ({"min_p": 0.3}, [1, 3, 2]),  # at least 0.12
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.5}, [1]),  # 0.4 of the 0.7 that top_k left is 0.57
        ({"top_k": 4, "min_p": 0.5}, [1, 3]),
    ],
)
def test_cuts(settings, expected):
    assert kept(LOGITS, **settings) == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("settings", [{"top_k": 40}, {"top_p": 0.95}, {"top_p": 0.2}, {"min_p": 0.05}, {"top_k": 500, "top_p": 0.9, "min_p": 0.01}])  # fmt: skip
def test_cuts_of_a_large_vocabulary_are_the_definition(seed, settings):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(50_000) * rng.choice([0.5, 3, 8])).astype(np.float32)
    logits[rng.integers(0, 50_000, 2_000)] = logits[0]  # ties
    assert kept(logits, **settings) == plain(logits, **settings)


def test_ties_at_the_edge_go_to_the_first_ids():
    assert kept(np.zeros(1000, np.float32), top_k=3) == [0, 1, 2]


def test_greedy_is_the_first_largest():
    assert Sampler(Sampling(temperature=0), 5)(np.array([1, 3, 3, 2], np.float32)) == 1


def frequencies(n=20_000, **settings):
    sampler = Sampler(Sampling(seed=5, **settings), 5)
    return np.bincount([sampler(LOGITS) for _ in range(n)], minlength=5) / n


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.05, 0.4, 0.15, 0.3, 0.1]),
        ({"temperature": 0.5}, np.array([0.0025, 0.16, 0.0225, 0.09, 0.01]) / 0.285),
        ({"temperature": 2.0, "top_k": 2}, np.array([0, 0.4**0.5, 0, 0.3**0.5, 0]) / (0.4**0.5 + 0.3**0.5)),
        ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability(settings, expected):
    expected = np.asarray(expected)
    sigma = np.sqrt(expected * (1 - expected) / 20_000)
    assert (np.abs(frequencies(**settings) - expected) <= 4.5 * sigma).all()


def test_a_temperature_near_zero_is_greedy_without_a_warning():
    with np.errstate(all="raise", under="ignore"):
        assert Sampler(Sampling(temperature=1e-300), 5)(LOGITS) == 1


def test_impossible_tokens_are_never_drawn():
    logits = np.array([-INF, 0, -INF, 0], np.float32)
    sampler = Sampler(Sampling(seed=1), 5)
    assert {sampler(logits) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(QTransformersError, match=r"logits hold .* at token 2"):
        Sampler(Sampling(temperature=temperature), 5)(logits)


def test_the_same_seed_draws_the_same_tokens_whatever_others_draw():
    def draw(sampler):
        return [sampler(LOGITS) for _ in range(50)]

    alone = draw(Sampler(Sampling(seed=7), 5))
    first, other = Sampler(Sampling(seed=7), 5), Sampler(Sampling(seed=8), 5)
    among_others = []
    for _ in range(50):
        among_others.append(first(LOGITS))
        other(LOGITS)
    assert among_others == alone
    assert draw(Sampler(Sampling(seed=8), 5)) != alone
    assert draw(Sampler(Sampling(), 5)) != draw(Sampler(Sampling(), 5))


HOSTILE = {
    "temperature": [-0.1, NAN, INF, 101, 1e300, "1", True, None, [1]],
    "top_k": [-1, NAN, 2**31, 10**6000, 1.5, "1", True, None],
    "top_p": [-0.1, NAN, 1.01, INF, "1", True, None],
    "min_p": [-0.1, NAN, 1.01, 10**6000, "1", False, None],
    "seed": [-1, NAN, 2**64, 1.5, "1", True],
}


@pytest.mark.parametrize(
    "name, value",
    [pytest.param(name, value, id=f"{name}-{i}") for name, values in HOSTILE.items() for i, value in enumerate(values)],
)
def test_a_bad_value_is_an_error_with_the_name_of_its_field(name, value):
    with pytest.raises(ConfigError, match=f"^{name}="):
        Sampling(**{name: value})


def test_every_field_is_tried_and_settings_are_frozen():
    assert set(HOSTILE) == {field.name for field in dataclasses.fields(Sampling)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().top_k = 3
    with pytest.raises(TypeError, match="temprature"):
        Sampling(temprature=1)


def test_defaults_come_from_the_generation_config():
    assert Sampling.from_generation_config({}) == Sampling()
    assert Sampling.from_generation_config({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": 2}) == Sampling(temperature=0.6, top_p=0.9)  # fmt: skip
    assert Sampling.from_generation_config({"temperature": 0.6, "do_sample": False}).temperature == 0
    assert Sampling.from_generation_config({"top_k": None}) == Sampling()
    with pytest.raises(ConfigError, match="generation_config: top_k="):
        Sampling.from_generation_config({"top_k": -5})


def test_override_replaces_only_what_is_given():
    base = Sampling(temperature=0.6, top_k=20)
    assert base.override(top_k=None, seed=3) == Sampling(temperature=0.6, top_k=20, seed=3)
    with pytest.raises(TypeError):
        base.override(topk=3)


def test_a_distribution_is_what_calls_draw_from():
    ids, p = Sampler(Sampling(top_p=0.8), 5).distribution(LOGITS)
    assert ids.tolist() == [1, 2, 3]
    np.testing.assert_allclose(p, np.array([0.4, 0.15, 0.3]) / 0.85, rtol=1e-6)
    one, two = (Sampler(Sampling(top_p=0.8, seed=4), 5) for _ in range(2))
    assert [one(LOGITS) for _ in range(50)] == [two.draw(*two.distribution(LOGITS)) for _ in range(50)]
    ids, p = Sampler(Sampling(temperature=0), 5).distribution(LOGITS)
    assert (ids.tolist(), p.tolist()) == ([1], [1.0])


def test_logprobs_are_the_models_own():
    found = logprobs(LOGITS, 0, 2)
    assert found.token == 0 and [i for i, _ in found.top] == [1, 3]
    np.testing.assert_allclose([found.logprob, *(p for _, p in found.top)], np.log([0.05, 0.4, 0.3]), rtol=1e-6)
