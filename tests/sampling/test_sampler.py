"""A request's sampler: what it draws, and what becomes of its state."""

import math

import numpy as np
import pytest

from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.sampling import Breaks, Sampler, Sampling, breaks_of, logprobs

NAN, INF = float("nan"), float("inf")
LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32))  # likeliest: 1, 3, 2, 4, 0


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


@pytest.mark.parametrize("n_top", [0, 3, 20, 5000])
def test_logprobs_of_a_large_vocabulary(n_top):
    x = (np.random.default_rng(2).standard_normal(50_000) * 3).astype(np.float32)
    x[7] = -INF
    p = np.exp(x.astype(np.float64) - x.max())
    expected = np.log(p[42] / p.sum())
    found = logprobs(x, 42, n_top)
    assert found.logprob == pytest.approx(expected, rel=1e-12) and logprobs(x, 7).logprob == -INF
    order = np.argsort(-x, kind="stable")[:n_top]
    assert [i for i, _ in found.top] == order.tolist()
    np.testing.assert_allclose([v for _, v in found.top], np.log(p[order] / p.sum()), rtol=1e-12)


def test_logprobs_that_cannot_be():
    for token, n_top, name in ((5, 0, "token"), (-1, 0, "token"), (True, 0, "token"), (0, -1, "n_top"), (0, 6, "n_top"), (0, 1.5, "n_top")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"^{name}="):
            logprobs(LOGITS, token, n_top)
    for bad in (NAN, INF):
        with pytest.raises(QTransformersError, match="token 1"):
            logprobs(np.array([0, bad, 1], np.float32), 0, 2)


# Tokens that settings name


def seen(logits, history=(), n_prompt=0, **settings):
    """The logits after all edits."""
    x = np.array(logits, np.float32)
    sampler = Sampler(Sampling(**settings), len(x), settings.get("dry_multiplier") and Breaks())
    return sampler._edited(x, np.array(history, np.int32), n_prompt).tolist()


def test_named_tokens():
    assert seen([1, 2, 3], logit_bias={2: -1.5, 0: 0.25}) == [1.25, 2, 1.5]
    assert seen([1, 2, 3], banned_tokens=[1]) == [1, -INF, 3]
    assert seen([1, 2, 3], allowed_tokens=[1, 2], logit_bias={1: 5}, banned_tokens=[2]) == [-INF, 7, -INF]
    assert seen([1, -INF, 3], logit_bias={1: 100}) == [1, -INF, 3]  # what is impossible stays so


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"banned_tokens": [5]}, "banned_tokens names token 5; expected ids below 5"),
        ({"allowed_tokens": [0, 2**31 - 1]}, "allowed_tokens names token 2147483647"),
        ({"logit_bias": {7: 1.0}}, "logit_bias names token 7"),
        ({"banned_tokens": range(5)}, "banned_tokens leave none of the 5 tokens"),
        ({"banned_tokens": [1, 2], "allowed_tokens": [1]}, "banned_tokens leave none of the allowed_tokens"),
        ({"dry_multiplier": 1.0}, "dry_breakers are texts"),
    ],
)
def test_tokens_that_cannot_be_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampler(Sampling(**settings), 5)


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_left_to_draw_names_the_fields(temperature):
    logits = np.array([-INF, 2, -INF], np.float32)
    with pytest.raises(ConfigError, match="banned_tokens leave no token to draw"):
        Sampler(Sampling(banned_tokens=[1], temperature=temperature), 3)(logits.copy())
    with pytest.raises(ConfigError, match="allowed_tokens leave no token"):
        Sampler(Sampling(allowed_tokens=[0, 2], temperature=temperature), 3).distribution(logits.copy())
    with pytest.raises(QTransformersError, match="logits hold -inf at token 0"):
        Sampler(Sampling(temperature=temperature), 3)(np.full(3, -INF, np.float32))


# Penalties, by hand


def test_penalties():
    x = [2.0, -2.0, 1.0, 0.0, 3.0]
    history = [0, 1, 0, 3, 1, 1]  # a prompt of 3
    assert seen(x, history, 3, repetition_penalty=2.0) == [1.0, -4.0, 1.0, 0.0, 3.0]
    assert seen(x, history, 3, frequency_penalty=0.5) == [2.0, -3.0, 1.0, -0.5, 3.0]  # the answer alone
    assert seen(x, history, 3, presence_penalty=0.5) == [2.0, -2.5, 1.0, -0.5, 3.0]
    assert seen(x, history, 0, frequency_penalty=-1, presence_penalty=0.25) == [3.75, 0.75, 1.0, 0.75, 3.0]
    assert seen(x, history, 3, repetition_penalty=2.0, penalty_range=3) == [2.0, -4.0, 1.0, 0.0, 3.0]
    assert seen(x, history, 3, repetition_penalty=2.0, frequency_penalty=1.0, penalty_range=2) == [2, -6, 1, 0, 3]
    assert seen(x, history, 3, repetition_penalty=2.0, penalty_range=0) == x
    assert seen([3e38, -3e38], [0, 1], 0, repetition_penalty=0.001) == pytest.approx([3.4028235e38, -3e35])
    assert seen([-INF, 1], [0, 0, 1], 0, repetition_penalty=3, presence_penalty=-9) == [-INF, pytest.approx(1 / 3 + 9)]


def test_dry():
    x = [0.0] * 6
    repeats = [1, 2, 3, 4, 1, 2, 3]  # "1 2 3" came before, and 4 after it
    assert seen(x, repeats, dry_multiplier=1, dry_base=2, dry_breakers=()) == [0, 0, 0, 0, -2, 0]  # 2 ** (3 - 2)
    assert seen(x, repeats, dry_multiplier=0.5, dry_base=3, dry_allowed_length=3, dry_breakers=()) == [0, 0, 0, 0, -0.5, 0]  # fmt: skip
    assert seen(x, repeats, dry_multiplier=1, dry_allowed_length=4, dry_breakers=()) == x
    assert seen(x, repeats, dry_multiplier=1, dry_range=6, dry_base=2, dry_breakers=()) == [
        0,
        0,
        0,
        0,
        -1,
        0,
    ]  # 2 3 alone
    assert seen(x, [0, 0, 0, 0], dry_multiplier=1, dry_base=2, dry_breakers=()) == [-2, 0, 0, 0, 0, 0]  # overlapping
    longest = [1, 2, 5, 3, 1, 2, 5, 4, 3, 1, 2]  # after 1 2 came 5, once of them after 3 1 2
    assert seen(x, longest, dry_multiplier=1, dry_base=2, dry_breakers=()) == [0, 0, 0, 0, 0, -2]
    assert seen(x, [1], dry_multiplier=1, dry_breakers=()) == seen(x, [], dry_multiplier=1, dry_breakers=()) == x
    far = seen([0.0, 1.0], [0] * 5000, dry_multiplier=1, dry_base=100, dry_breakers=())
    assert far == [-1e9, 1.0]  # 100 ** 4997 is no number


def test_dry_stops_at_breakers():
    repeats = np.array([1, 2, 3, 4, 1, 2, 3], np.int32)
    at = lambda *ids: np.isin(np.arange(6), ids)  # noqa: E731
    for breaks, penalty in (
        (Breaks(at(5)), 2),
        (Breaks(at(1)), 1),  # 2 3 remain
        (Breaks(at(2)), 0),
        (Breaks(at(3)), 0),  # the last token
        (Breaks(at(4)), 0),  # what would come next is none of the repetition
        (Breaks(None, ((1, 2),)), 0),
        (Breaks(None, ((4, 1),)), 1),
        (Breaks(None, ((2, 4), (9,))), 2),
    ):
        x = np.zeros(6, np.float32)
        s = Sampling(dry_multiplier=1, dry_base=2)
        x = Sampler(s, 6, breaks)._edited(x, repeats, 0)
        assert x.tolist() == [0, 0, 0, 0, -penalty, 0]


def test_breakers_of_a_vocabulary():
    class Words:
        words = (b"a", b"\n", b"b:\n", b"#", b"*", b"c#")
        n_tokens = len(words)

        def token_bytes(self, i):
            return self.words[i]

        def encode(self, text, add_bos=None):
            assert add_bos is False
            return [3] * len(text)

    breaks = breaks_of(("\n", "*", "##"), Words())
    assert breaks.tokens.tolist() == [False, True, True, False, True, False] and breaks.runs == ((3, 3),)
    assert breaks.limit([3, 3, 0, 1]) == 2 and breaks.limit([0, 3]) == 2 and breaks.limit([]) == 0


# Random stages


def test_xtc_leaves_out_by_chance():
    """Of 0.4, 0.3, 0.15, 0.1 the last stays with 0.05, one time in four."""
    mixed = 0.75 * np.array([0.05, 0.4, 0.15, 0.3, 0.1]) + 0.25 * np.array([1, 0, 0, 0, 2]) / 3
    ids, p = Sampler(Sampling(xtc_probability=0.25, xtc_threshold=0.09), 5).distribution(LOGITS)
    assert ids.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(p, mixed, rtol=1e-6)
    sigma = np.sqrt(mixed * (1 - mixed) / 20_000)
    assert (np.abs(frequencies(xtc_probability=0.25, xtc_threshold=0.09) - mixed) <= 4.5 * sigma).all()


def test_mirostat_follows_the_surprise():
    """Over a fixed distribution of 10 bits, with answers of 4 bits on average: mu settles where truncation gives those."""
    x = -1.2 * np.log(np.arange(1, 20_001)).astype(np.float32)  # Zipf
    log_p = x - np.log(np.exp(x.astype(np.float64)).sum())
    sampler = Sampler(Sampling(mirostat_tau=4.0, mirostat_eta=0.1, seed=1), len(x))
    assert sampler.state == 8.0
    surprises = [-log_p[sampler(x)] / math.log(2) for _ in range(3000)]
    assert np.mean(surprises[200:]) == pytest.approx(4.0, abs=0.02)  # mu is bounded, so the mean cannot drift
    assert sampler.state == pytest.approx(8.0 - 0.1 * (np.sum(surprises) - 4.0 * 3000), abs=1e-6)


def test_mirostat_by_distribution_or_by_calls_is_the_same():
    settings = Sampling(mirostat_tau=1.2, mirostat_eta=0.5, temperature=1.3, seed=9)
    calls, steps = Sampler(settings, 5), Sampler(settings, 5)
    for _ in range(200):
        ids, p = steps.distribution(LOGITS)
        token = steps.draw(ids, p)
        steps.accepted(token, float(p[ids.tolist().index(token)]))
        assert calls(LOGITS) == token
        assert calls.state == pytest.approx(steps.state, abs=1e-9)
    before = steps.state
    steps.distribution(LOGITS)
    steps.accepted(1, 0.9)
    assert steps.state != before
    steps.restore(before)
    assert steps.state == before


def test_other_stages_have_no_state():
    sampler = Sampler(Sampling(seed=1), 5)
    sampler(LOGITS)
    sampler.accepted(1, 0.5)
    assert sampler.state == Sampler(Sampling(), 5).state == 0


def test_logits_that_cannot_be_written_to_are_copied():
    frozen = LOGITS.copy()
    frozen.flags.writeable = False
    sampler = Sampler(Sampling(banned_tokens=[1], repetition_penalty=1.5), 5)
    assert 1 not in sampler.distribution(frozen, [0], 0)[0] and sampler(frozen, [0], 0) != 1
    assert frozen.tolist() == LOGITS.tolist()
