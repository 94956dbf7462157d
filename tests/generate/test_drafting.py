"""A draft model's guesses: its pages follow the sequences, and what comes out is the model's own."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from generate.remember import VOCAB, Remember, continuation, engine, forward_of, random_prompt, scores, stream
from generate.test_speculative import Flat
from qtransformers.cache import PAGE_TOKENS, PagedCache
from qtransformers.errors import ConfigError
from qtransformers.generate.drafting import Draft, check_vocabulary
from qtransformers.generate.speculative import Speculation
from qtransformers.sampling import Sampling


class Small(Remember):
    """Mostly says what the model says; what it was asked after is kept."""

    def __init__(self, wrong=0.3):
        super().__init__()
        self.wrong = wrong
        self.seen = []

    def __call__(self, batch, cache):
        logits = super().__call__(batch, cache)
        slots = cache.pages[0, :, 0].view(np.int32)
        for i, row in enumerate(batch.output_rows):
            s = int(np.searchsorted(batch.starts, row, "right")) - 1
            n = int(batch.positions[row]) + 1
            pages = batch.page_tables[s][: -(-n // PAGE_TOKENS)]
            seen = slots[pages][:, :PAGE_TOKENS].reshape(-1)[:n]
            self.seen.append(tuple(seen.tolist()))
            logits[i] = self.opinion(seen)
        return logits

    def opinion(self, seen):
        logits = scores(np.asarray(seen))
        return logits[::-1].copy() if int(abs(logits[0]) * 1e4) % 100 < 100 * self.wrong else logits

    def explains(self, seen, text):
        """Whether these are tokens of `text`, and then what this model itself guessed."""
        n = next((i for i, (a, b) in enumerate(zip(seen, text, strict=False)) if a != b), min(len(seen), len(text)))
        for start in range(n, max(0, n - 9), -1):
            guess = list(seen[:start])
            while len(guess) < len(seen):
                guess.append(int(self.opinion(guess).argmax()))
            if tuple(guess) == seen:
                return True
        return False


def drafting(small, n_tokens=2048, context_length=2048, chunk=64, **given):
    cache = PagedCache.allocate(1, 1, 4, 4, n_tokens, "f32")
    draft = Draft(small, cache, n_tokens=VOCAB, context_length=context_length, chunk=chunk)
    return Speculation(8, draft, costs=Flat(), **given)


@pytest.mark.parametrize("wrong", [0, 0.3, 1])
def test_a_greedy_answer_is_as_without_and_the_draft_sees_its_text(wrong):
    for seed in range(6):
        small = Small(wrong)
        prompt = random_prompt(seed, 4 + 70 * seed)
        e = engine(speculation=drafting(small))
        done = stream(e, prompt, 60, speculate="draft").read()
        assert done.tokens == continuation(prompt, 60)
        assert all(small.explains(seen, prompt + done.tokens) for seen in small.seen)
        n_plain = 59 - done.timings.accepted_tokens
        assert n_plain < 20 if not wrong else n_plain == 59 if wrong == 1 else n_plain < 45
        assert done.timings.accepted_tokens == done.timings.drafted_tokens or wrong


def test_at_the_edges_of_pages_and_over_rejected_tokens():
    for start in range(250, 262):
        small = Small(0.3)
        e = engine(speculation=drafting(small))
        prompt = random_prompt(start, start)
        done = stream(e, prompt, 280).read()
        assert done.tokens == continuation(prompt, 280)
        assert all(small.explains(seen, prompt + done.tokens) for seen in small.seen[::5])


def test_several_answers_are_drafted_in_one_forward():
    small = Small(0)
    e = engine(4096, speculation=drafting(small, 4096))
    prompts = [random_prompt(i, 30) for i in range(3)]
    streams = [stream(e, p, 50) for p in prompts]
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [continuation(p, 50) for p in prompts]
    assert max(len(b.output_rows) for b in small.batches) == 3
    assert max(len(b.output_rows) for b in forward_of(e).batches) in (6, 7, 8)


def test_what_another_answer_had_drafted_is_shared_and_pages_come_back():
    small = Small(0)
    speculation = drafting(small)
    e = engine(speculation=speculation)
    prompt = random_prompt(1, 600)
    stream(e, prompt, 30).read()
    before = small.computed
    stream(e, (*prompt, 5), 30).read()
    assert small.computed - before < 300  # all but what it had left is found
    stream(e, random_prompt(2, 5), 3).read()
    speculation.draft.follow([])
    assert speculation.draft._pages.n_free == speculation.draft._pages.n_pages


def test_a_draft_without_pages_or_context_only_guesses_less():
    for given in ({"n_tokens": 256}, {"context_length": 300}):
        small = Small(0)
        e = engine(speculation=drafting(small, **given))
        prompt = random_prompt(3, 200)
        done = stream(e, prompt, 200, speculate="draft").read()
        assert done.tokens == continuation(prompt, 200)
        assert 30 < done.timings.accepted_tokens < 120


def test_tokens_taken_back_are_forgotten_by_the_draft_too():
    for seed in range(10):
        prompt = random_prompt(seed, 240 + seed)
        whole = continuation(prompt, 40)
        banned = (f" {whole[9]} {whole[10]} {whole[11]} ", f" {whole[20]} ")
        plain = stream(engine(), prompt, 40, banned=banned).read()
        small = Small(0.1)
        done = stream(engine(speculation=drafting(small)), prompt, 40, banned=banned).read()
        assert (done.tokens, done.text) == (plain.tokens, plain.text)
        assert done.timings.accepted_tokens > 5


def test_a_seed_gives_the_same_text():
    for seed in range(5):
        prompt = random_prompt(seed, 9)
        sampling = Sampling(temperature=0.3, seed=seed)
        done = stream(engine(speculation=drafting(Small(0.2))), prompt, 50, sampling=sampling).read()
        assert done.tokens == stream(engine(), prompt, 50, sampling=sampling).read().tokens
        assert done.timings.accepted_tokens > 5


class Few:
    """A forward over 5 tokens whose logits depend on the last token and on nothing else, sharper or flatter."""

    def __init__(self, seed, sharpness):
        self.table = np.full((VOCAB, VOCAB), -np.inf, np.float32)
        self.table[:, :5] = np.random.default_rng(seed).normal(0, sharpness, (VOCAB, 5))

    def __call__(self, batch, cache):
        return self.table[batch.tokens[batch.output_rows]]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.6, top_k=3), Sampling(temperature=1.4, min_p=0.1)]
)
def test_drawn_answers_are_distributed_as_without(sampling):
    """Chi-square of 20,000 pairs of tokens of a chain, most of them drawn guesses."""
    from qtransformers.cache import PagedCache
    from qtransformers.generate import Engine

    model, small = Few(1, 1.0), Few(2, 1.0)
    cache = PagedCache.allocate(1, 1, 4, 4, 20480, "f32")
    speculation = drafting(small, 20480, 20480)
    e = Engine(model, cache, n_tokens=VOCAB, context_length=20480, prefill_chunk=512, speculation=speculation)
    n = 20_000
    done = stream(
        e, (7,), 1 + n, sampling=sampling, speculate="draft"
    ).read()  # a chain: each token depends on the one before
    assert (
        done.timings.drafted_tokens > 1000 and 0.2 < done.timings.accepted_tokens / done.timings.drafted_tokens < 0.95
    )
    from qtransformers.sampling import Sampler

    pairs = Counter(zip(done.tokens, done.tokens[1:], strict=False))
    chi = free = 0.0
    for a in range(5):
        total = sum(c for (x, _), c in pairs.items() if x == a)
        if total < 200:
            continue
        ids, p = Sampler(sampling, VOCAB).distribution(model.table[a].copy(), np.array([a], np.int32), 0)
        wanted = dict(zip(ids.tolist(), (total * p).tolist(), strict=True))
        assert {b for x, b in pairs if x == a} <= set(wanted)
        chi += sum((pairs[a, b] - w) ** 2 / w for b, w in wanted.items())
        free += len(ids) - 1
    assert free >= 5
    assert chi < free + 4 * np.sqrt(2 * free) + 3


def test_another_vocabulary_is_refused_by_its_first_difference():
    check_vocabulary(["a", "b"], ["a", "b"], "x.gguf", "y.gguf")
    with pytest.raises(ConfigError, match=r"^draft: token 1 is 'c' in y.gguf, 'b' in x.gguf"):
        check_vocabulary(["a", "b"], ["a", "c"], "x.gguf", "y.gguf")
    with pytest.raises(ConfigError, match=r"^draft: token 2 is none in y.gguf, 'c' in x.gguf"):
        check_vocabulary(["a", "b", "c"], ["a", "b"], "x.gguf", "y.gguf")


def ticking(forward, now, once, each):
    """A forward that moves the clock: so many seconds, and for each row."""

    def compute(batch, cache):
        now[0] += once + each * len(batch.tokens)
        return forward(batch, cache)

    return compute


def seconds(monkeypatch, wrong, n_tokens, n_prompt, drafted, requests=20):
    """What requests one after another take, by the clock that their forwards move."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    small = Small(wrong)
    cache = PagedCache.allocate(1, 1, 4, 4, 2048, "f32")
    draft = Draft(ticking(small, now, 0.1, 0.05), cache, n_tokens=VOCAB, context_length=2048, chunk=512)
    e = engine(speculation=Speculation(8, draft))
    e._parts = replace(e._parts, forward=ticking(forward_of(e), now, 1.0, 0.05))
    for i in range(requests):
        prompt = random_prompt(i, n_prompt)
        done = stream(e, prompt, n_tokens, speculate="draft" if drafted else None).read()
        assert done.tokens == continuation(prompt, n_tokens)
    return now[0], small.computed


def test_a_draft_that_is_wrong_stops_reading_long_prompts(monkeypatch):
    plain, _ = seconds(monkeypatch, 1, 15, 500, drafted=False)
    found, read = seconds(monkeypatch, 1, 15, 500, drafted=True)
    assert 500 <= read < 5 * 500  # of twenty prompts
    assert found < 1.12 * plain


def test_a_draft_that_is_right_pays_its_prompts_back(monkeypatch):
    plain, _ = seconds(monkeypatch, 0, 80, 200, drafted=False, requests=8)
    found, read = seconds(monkeypatch, 0, 80, 200, drafted=True, requests=8)
    assert read > 8 * 200
    assert found < 0.75 * plain
