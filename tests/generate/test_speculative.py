"""Guesses change how many forwards an answer takes, and nothing else."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from generate.remember import VOCAB, Ids, continuation, engine, forward_of, random_prompt, stream
from qtransformers.generate import Request, Sequence
from qtransformers.generate.costs import Costs, Odds
from qtransformers.generate.speculative import Guess, Speculation, settle
from qtransformers.sampling import Sampler, Sampling


class Flat(Costs):
    """Rows cost nothing: every guess pays."""

    def __call__(self, rows):
        return 1.0

    def learn(self, rows, seconds):
        pass

    def knows(self, rows):
        return True


class Oracle(Speculation):
    """Guesses greedy answers of the remembering forward, as many tokens as there is room for, each wrong in `wrong` of the cases."""

    def __init__(self, few_rows=8, wrong=0.3, seed=1):
        super().__init__(few_rows, costs=Flat())
        self.wrong = wrong
        self.rng = np.random.default_rng(seed)
        self.rows = []

    def guess(self, answers):
        found = {}
        room = self._few_rows - len(answers)
        for s in answers:
            n = min(int(self.rng.integers(0, room + 1)), s.longest - len(s.tokens) - 1)
            room -= n
            tokens = [t if self.rng.random() > self.wrong else VOCAB - 1 - t for t in continuation(s.tokens, n)]
            if tokens:
                found[s] = Guess(tuple(tokens), (1,) * n)
        return found

    def learn(self, n, rows, n_tokens, seconds):
        self.rows.append(rows)


@pytest.mark.parametrize("wrong", [0, 0.3, 1])
def test_a_greedy_answer_is_as_without(wrong):
    for seed in range(10):
        prompt = random_prompt(seed, 3 + seed * 50)
        e = engine(speculation=Oracle(wrong=wrong, seed=seed))
        done = stream(e, prompt, 60).read()
        assert done.tokens == continuation(prompt, 60)
        forwards = len(forward_of(e).batches)
        assert done.timings.accepted_tokens == 60 - forwards
        assert forwards == 60 if wrong == 1 else forwards < 45
        assert done.timings.drafted_tokens >= done.timings.accepted_tokens
        assert e.usage.free_pages == e.usage.pages


def test_wrong_tokens_leave_no_trace_at_the_edges_of_pages():
    for start in range(248, 262):
        prompt = random_prompt(start, start)
        e = engine(speculation=Oracle(wrong=0.2, seed=start))
        first = stream(e, prompt, 270).read().tokens
        assert first == continuation(prompt, 270)
        longer = (*prompt, *first, 7)  # finds all of it in the cache
        computed = forward_of(e).computed
        assert stream(e, longer, 5).read().tokens == continuation(longer, 5)
        assert forward_of(e).computed - computed < 40


def test_many_answers_share_the_rows_and_none_is_changed():
    speculation = Oracle(wrong=0.2)
    e = engine(4096, speculation=speculation)
    prompts = [random_prompt(i, 20 + i) for i in range(5)]
    streams = [stream(e, p, 40 + 3 * i) for i, p in enumerate(prompts)]
    for s in streams:
        s.start()
    for i, (s, p) in enumerate(zip(streams, prompts, strict=True)):
        assert s.read().tokens == continuation(p, 40 + 3 * i)
    assert max(speculation.rows) == 8
    assert e.usage.free_pages == e.usage.pages


def test_pages_that_are_not_there_are_not_taken_from_others_for_guesses():
    e = engine(512, speculation=Oracle(wrong=0))
    prompts = [random_prompt(i, 200) for i in range(2)]
    streams = [stream(e, p, 56) for p in prompts]
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [continuation(p, 56) for p in prompts]
    assert e.usage.free_pages == 2


def test_cancelling_amid_guesses_frees_the_pages():
    for n in range(1, 12):
        e = engine(speculation=Oracle(wrong=0.1, seed=n))
        s = stream(e, random_prompt(n, 250), 100)
        for _ in range(n):
            next(s)
        s.cancel()
        assert [c.finish_reason for c in s][-1] == "cancelled"
        assert e.usage.free_pages == e.usage.pages


def test_what_ends_an_answer_ends_it_amid_a_guess():
    for seed in range(20):
        prompt = random_prompt(seed, 9)
        whole = continuation(prompt, 30)
        e = engine(speculation=Oracle(wrong=0, seed=seed))
        done = stream(e, prompt, 30, stop=(f" {whole[11]} ",)).read()
        end = min(i for i in range(1, 12) if whole[i] == whole[11])
        assert done.text == "".join(f"{t} " for t in whole[:end])[:-1] and done.tokens == whole[: end + 1]
        done = stream(e, prompt, 30, stop_ids=frozenset({whole[10]})).read()
        assert done.tokens == whole[: whole.index(whole[10])] and done.finish_reason == "stop"
        given = {"stop_ids": frozenset({whole[10]}), "min_tokens": 20}
        assert stream(e, prompt, 30, **given).read().tokens == stream(engine(), prompt, 30, **given).read().tokens


def test_a_banned_text_amid_a_guess_is_taken_back():
    for seed in range(20):
        prompt = random_prompt(seed, 240 + seed)
        whole = stream(engine(), prompt, 40).read().tokens
        banned = (f" {whole[9]} {whole[10]} {whole[11]} ", f" {whole[20]} ")
        plain = stream(engine(), prompt, 40, banned=banned).read()
        e = engine(speculation=Oracle(wrong=0.1, seed=seed))
        done = stream(e, prompt, 40, banned=banned).read()
        assert (done.tokens, done.text) == (plain.tokens, plain.text) and done.tokens != whole
        assert e.usage.free_pages == e.usage.pages


def test_hooks_see_the_answer_grow_along_the_guess_and_logprobs_are_of_every_token():
    seen = []

    def hook(tokens, logits):
        seen.append(tuple(tokens.tolist()))
        return logits

    prompt = random_prompt(3, 5)
    plain = stream(engine(), prompt, 20, logprobs=2).read()
    done = stream(engine(speculation=Oracle(wrong=0.3)), prompt, 20, logprobs=2, hooks=(hook,)).read()
    assert seen == [(*prompt, *plain.tokens[:i]) for i in range(20)]
    assert done.logprobs == plain.logprobs


def test_an_error_amid_a_guess_ends_that_answer_alone():
    def hook(tokens, logits):
        if len(tokens) == 12:
            raise ZeroDivisionError
        return logits

    e = engine(speculation=Oracle(wrong=0))
    bad, good = stream(e, random_prompt(1, 5), 20, hooks=(hook,)), stream(e, random_prompt(2, 5), 20)
    bad.start()
    assert good.read().tokens == continuation(random_prompt(2, 5), 20)
    with pytest.raises(ZeroDivisionError):
        bad.read()
    assert e.usage.free_pages == e.usage.pages


def test_a_seed_gives_the_same_text_with_guesses():
    for seed in range(5):
        prompt = random_prompt(seed, 5)
        sampling = Sampling(temperature=0.3, top_p=0.9, seed=seed)
        plain = stream(engine(), prompt, 60, sampling=sampling).read()
        e = engine(speculation=Oracle(wrong=0.1))
        done = stream(e, prompt, 60, sampling=sampling).read()
        assert done.tokens == plain.tokens != continuation(prompt, 60)
        assert done.timings.accepted_tokens > 3


def test_beside_an_event_loop():
    from qtransformers.generate.asynchronous import AsyncStream, Driver

    e = engine(speculation=Oracle(wrong=0.3))
    prompt = random_prompt(5, 30)
    driver = Driver(e)
    assert asyncio.run(AsyncStream(stream(e, prompt, 40), driver).read()).tokens == continuation(prompt, 40)


class Loop:
    """A forward whose greedy answer counts in a circle."""

    def __init__(self, period=12):
        self.period = period
        self.rows = []

    def __call__(self, batch, cache):
        self.rows.append(len(batch.tokens))
        logits = np.zeros((len(batch.output_rows), VOCAB), np.float32)
        for i, row in enumerate(batch.output_rows):
            logits[i, (batch.tokens[row] + 1) % self.period] = 9
        return logits


def loop_engine(forward, **given):
    from qtransformers.cache import PagedCache
    from qtransformers.generate import Engine

    cache = PagedCache.allocate(1, 1, 4, 4, 2048, "f32")
    return Engine(forward, cache, n_tokens=VOCAB, context_length=2048, prefill_chunk=512, **given)


def test_what_repeats_takes_few_forwards():
    forward = Loop()
    done = stream(loop_engine(forward, speculation=Speculation(8, costs=Flat())), [0], 200).read()
    assert done.tokens == tuple((i + 1) % 12 for i in range(200))
    assert len(forward.rows) < 14 + 200 / 6
    assert done.timings.accepted_tokens == 200 - len(forward.rows)


@pytest.mark.parametrize(
    ("given", "most"), [({"speculate": None}, 1), ({"speculate": "draft"}, 1), ({"max_draft": 3}, 4), ({}, 8)]
)
def test_a_request_says_how_much_is_guessed(given, most):
    forward = Loop()
    stream(loop_engine(forward, speculation=Speculation(8, costs=Flat())), [0], 100, **given).read()
    assert max(forward.rows) == most


class Dear(Costs):
    """Every further row costs more than the first."""

    def __call__(self, rows):
        return 1.2 * rows - 0.2

    def learn(self, rows, seconds):
        pass

    def knows(self, rows):
        return True


def test_guesses_that_do_not_pay_are_not_made():
    forward = Loop()
    speculation = Speculation(8, costs=Dear())
    learn = speculation.learn
    speculation.learn = lambda n, rows, n_tokens, seconds: learn(n, rows, n_tokens, 1.2 * rows - 0.2)
    stream(loop_engine(forward, speculation=speculation), [0], 1000).read()
    assert sum(rows > 1 for rows in forward.rows) < 90  # one in 14, to learn


def test_the_ledger_bounds_the_loss_of_guesses_that_are_always_wrong():
    """Guesses that odds and costs praise, and that never come true, cost a known part of the time."""
    clock = np.random.default_rng(1)
    s = Sequence(Request((1, 2, 1, 2, 1, 2), 10**6, Sampling(temperature=0)), Ids(), VOCAB)
    speculation = Speculation(8)
    spent = n = 0
    for _ in range(3000):
        s.tokens += [1, 2]  # repeats, whatever the engine would have taken
        guess = speculation.guess([s]).get(s, Guess())
        seconds = (1 + 0.3 * len(guess.tokens)) * clock.uniform(0.95, 1.05)
        if guess.tokens:
            speculation.judge(s, guess, 0)
        speculation.learn(1, 1 + len(guess.tokens), 1, seconds)
        spent, n = spent + seconds, n + 1
    assert 1 < spent / n < 1.03
    assert s.drafted > 10


def test_costs_follow_what_is_measured():
    costs = Costs()
    assert costs(3) == 0 and not costs.knows(3)
    costs.learn(1, 5.0)
    costs.learn(1, 1.0)
    assert costs(1) == 1  # the first was cold
    assert 1 < costs(4) < 1.2
    costs.learn(5, 3.0)
    assert costs(3) == 2
    for _ in range(60):
        costs.learn(1, 2.0)
    assert costs(1) == pytest.approx(2, rel=0.01)
    costs.learn(1, 1000.0)
    assert costs(1) < 2.3


def test_odds_are_those_of_everybody_until_there_are_own():
    everybody = Odds(500)
    for i in range(400):
        everybody.learn(1, i % 4 == 0)
    own = Odds(30, everybody)
    assert own(1) == pytest.approx(0.25, abs=0.02) and own(2) == 0.5
    for _ in range(100):
        own.learn(1, True)
    assert own(1) > 0.9


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=3),
        Sampling(top_p=0.8, temperature=1.3),
        Sampling(min_p=0.3),
    ],
)
def test_drawn_guesses_leave_the_distribution_as_it_is(sampling):
    """Chi-square of 20,000 tokens settled against what the sampler draws by itself."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1.5, 12).astype(np.float32)
    sampler = Sampler(sampling, 12)
    sampler._rng = np.random.default_rng(7)
    ids = np.array([0, 2, 3, 5, 8, 11])
    q = rng.dirichlet(np.ones(6))
    counts = Counter(
        settle(sampler, logits.copy(), np.array([1], np.int32), 1, int(rng.choice(ids, p=q)), (ids, q))
        for _ in range(20_000)
    )
    wanted_ids, p = sampler.distribution(logits.copy(), np.array([1], np.int32), 1)
    assert set(counts) <= set(wanted_ids.tolist())
    found = np.array([counts[i] for i in wanted_ids.tolist()])
    chi = float((((found - 20_000 * p) ** 2) / (20_000 * p)).sum())
    free = len(p) - 1
    assert chi < free + 4 * np.sqrt(2 * max(free, 1)) + 3  # beyond in one of some 10,000 cases
