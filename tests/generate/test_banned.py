"""Answers without banned texts, and other ends of answers, over engines whose next token depends on all in the cache."""

import numpy as np
import pytest

from generate.remember import VOCAB, Ids, Remember, continuation, engine, random_prompt, scores, stream
from qtransformers.cache import PagedCache
from qtransformers.errors import ConfigError
from qtransformers.generate import Engine, Request, Sequence, Stream
from qtransformers.generate.sequence import LONGEST_LOOP, MAX_TRIES, loops
from qtransformers.sampling import Sampling, logprobs


def text(tokens):
    return "".join(f"{t} " for t in tokens)


def without(prompt, n, banned):
    """The greedy answer of `n` tokens, going back to where a banned text began, written plainly; and how often it went back."""
    tokens, forbidden, backs = [], {}, 0
    while len(tokens) < n:
        logits = scores(np.array([*prompt, *tokens]))
        logits[list(forbidden.get(len(tokens), ()))] = -np.inf
        tokens.append(int(logits.argmax()))
        places = [(text(tokens).find(b) + len(b), len(b)) for b in banned if b in text(tokens)]
        if places:
            backs += 1
            end, length = min(places)
            begin = end - length
            place = next(i for i in range(len(tokens)) if len(text(tokens[: i + 1])) > begin)
            forbidden = {p: ids for p, ids in forbidden.items() if p <= place}
            forbidden.setdefault(place, set()).add(tokens[place])
            del tokens[place:]
    return tuple(tokens), backs


def wanted(prompt, at, n):
    """A text that the greedy answer holds from token `at` on, `n` tokens long."""
    return text(continuation(prompt, at + n)[at:])


@pytest.mark.parametrize("n_prompt", [1, 10, 255, 256, 257, 300])
@pytest.mark.parametrize("at, n", [(0, 1), (0, 4), (5, 1), (5, 3)])
def test_the_answer_goes_back_and_takes_another_way(n_prompt, at, n):
    prompt = random_prompt(n_prompt, n_prompt)
    banned = (wanted(prompt, at, n),)
    expected, backs = without(prompt, 20, banned)
    assert backs and banned[0] not in text(expected)
    e = engine()
    s = stream(e, prompt, 20, banned=banned)
    chunks = list(s)
    assert s.completion.tokens == expected == sum((c.tokens for c in chunks), ())
    assert s.completion.text == text(expected) == "".join(c.text for c in chunks)
    assert banned[0] not in s.completion.text and chunks[-1].finish_reason == "length"
    assert e.usage.free_pages == e.usage.pages


def test_many_at_once_across_the_edges_of_pages_beside_others():
    e = engine(n_tokens=4096)
    prompts = [random_prompt(i, 240 + 4 * i) for i in range(6)]
    bans = [(*(wanted(p, at, 3) for at in range(0, 36, 4)), f"{i}", "7 7") for i, p in enumerate(prompts)]
    streams = [stream(e, p, 40, banned=b, run_ahead=1000) for p, b in zip(prompts, bans, strict=True)]
    plain = stream(e, prompts[0], 40, run_ahead=1000)
    for s in (*streams, plain):
        s.start()
    for s, p, b in zip(streams, prompts, bans, strict=True):
        expected, backs = without(p, 40, b)
        assert s.read().tokens == expected and backs > 5
    assert plain.read().tokens == continuation(prompts[0], 40)
    again = stream(e, (*prompts[0], *continuation(prompts[0], 40)), 5)  # finds in the cache what the others left
    assert again.read().tokens == continuation((*prompts[0], *continuation(prompts[0], 40)), 5)
    assert again.completion.timings.cached_tokens > 0 and e.usage.free_pages == e.usage.pages


def test_when_pages_are_short():
    e = engine(n_tokens=768)
    prompts = [random_prompt(i, 250) for i in range(3)]
    bans = [tuple(wanted(p, at, 3) for at in range(0, 20, 4)) for p in prompts]
    streams = [stream(e, p, 30, banned=b, run_ahead=1000) for p, b in zip(prompts, bans, strict=True)]
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [without(p, 30, b)[0] for p, b in zip(prompts, bans, strict=True)]


def test_nothing_that_was_given_out_is_taken_back():
    prompt = random_prompt(3, 20)
    banned = [wanted(prompt, at, 3) for at in range(0, 30, 4)]
    s = stream(engine(), prompt, 30, banned=tuple(banned))
    expected, _ = without(prompt, 30, banned)
    given = ()
    for chunk in s:
        given += chunk.tokens
        assert expected[: len(given)] == given


def test_logprobs_are_those_of_the_tokens_that_stay():
    prompt = random_prompt(4, 20)
    banned = (wanted(prompt, 2, 3),)
    answer = stream(engine(), prompt, 12, banned=banned, logprobs=2).read()
    assert [p.token for p in answer.logprobs] == list(answer.tokens)
    for i, found in enumerate(answer.logprobs):
        assert found == logprobs(scores(np.array([*prompt, *answer.tokens[:i]])), answer.tokens[i], 2)
    chunks = list(stream(engine(), prompt, 12, banned=banned, logprobs=2))
    assert sum((c.logprobs for c in chunks), ()) == answer.logprobs


def test_a_place_where_everything_is_banned_ends_the_answer():
    prompt = random_prompt(5, 20)
    answer = stream(engine(), prompt, 20, banned=(" ",)).read()  # every token has one
    assert (answer.tokens, answer.text, answer.finish_reason) == ((), "", "banned")
    few = [str(d) for d in range(10)]
    assert stream(engine(), prompt, 20, banned=tuple(few)).read().finish_reason == "banned"
    e = engine()
    hook = lambda tokens, logits: np.where(np.arange(VOCAB) < 5, logits, np.float32(-np.inf))  # noqa: E731
    answer = stream(e, prompt, 20, banned=("1", "2", "3", "4", "0 0 0 "), hooks=(hook,)).read()
    assert answer.finish_reason == "banned" and answer.text == "" and answer.tokens == ()  # no way but 0
    assert e.usage.free_pages == e.usage.pages


def test_tries_are_bounded():
    class Many(Remember):
        def __call__(self, batch, cache):
            super().__call__(batch, cache)
            return np.zeros((len(batch.output_rows), 100_000), np.float32)

    e = engine()
    e = Engine(
        Many(), PagedCache.allocate(1, 1, 4, 4, 512, "f32"), n_tokens=100_000, context_length=512, prefill_chunk=64
    )
    request = Request((1, 2, 3), 20, Sampling(seed=1), banned=(" ",))
    answer = Stream(e, Sequence(request, Ids(), 100_000)).read()
    assert answer.finish_reason == "banned" and len(e._use().forward.batches) <= MAX_TRIES + 2


def test_the_sampler_comes_back_to_where_it_was():
    class Counting:
        """A sampler whose state is how many tokens it has given."""

        def __init__(self):
            self.state, self.restored = 0, []

        def __call__(self, logits, tokens, n_prompt):
            assert self.state == len(tokens) - n_prompt
            self.state += 1
            return int(logits.argmax())

        def restore(self, state):
            self.state = state
            self.restored.append(state)

    prompt = random_prompt(6, 20)
    s = stream(engine(), prompt, 20, banned=(wanted(prompt, 3, 4), wanted(prompt, 0, 2)))
    s._sequence.sampler = sampler = Counting()
    s._sequence._before = [0]
    s.read()
    assert s.completion.finish_reason == "length" and 0 in sampler.restored


def test_cancelling_amid_a_text_that_is_held_back():
    prompt = random_prompt(7, 20)
    held = wanted(prompt, 3, 10) + "x"
    s = stream(engine(), prompt, 20, banned=(held,))
    given = []
    for chunk in s:
        given.append(chunk)
        if len(s._sequence.tokens) == 20 + 8:
            s.cancel()
    tokens = sum((c.tokens for c in given), ())
    assert given[-1].finish_reason == "length" and tokens == continuation(prompt, 20)
    s = stream(engine(), prompt, 20, banned=(held,))
    for _ in range(3):
        next(s)
    s._engine.step()
    s.cancel()
    last = list(s)[-1]
    assert (
        last.finish_reason == "cancelled"
        and last.tokens == continuation(prompt, 4)[3:]
        and last.text == text(last.tokens)
    )


def test_recurrent_models_cannot_go_back():
    cache = PagedCache.allocate(1, 1, 4, 4, 512, "f32", {"state": (4,)})
    e = Engine(Remember(), cache, n_tokens=VOCAB, context_length=512, prefill_chunk=64)
    with pytest.raises(ConfigError, match=r"^banned=\('a',\): .*recurrent"):
        stream(e, (1, 2), banned=("a",)).start()
    assert e.usage.waiting == 0 and stream(e, (1, 2), 3).read().finish_reason == "length"


# Other ends


def test_stop_texts_wait_for_min_tokens():
    prompt = random_prompt(8, 20)
    answer = continuation(prompt, 20)
    stop = text(answer[2:3])
    places = [i for i in range(20) if text(answer[: i + 1]).endswith(stop)]
    assert stream(engine(), prompt, 20, stop=(stop,)).read().tokens == answer[: places[0] + 1]
    for n in (2, 3, 10):
        later = next((i for i in places if i >= n), 19)
        found = stream(engine(), prompt, 20, stop=(stop,), min_tokens=n).read()
        assert found.tokens == answer[: later + 1] and found.finish_reason == ("stop" if later in places else "length")


def test_stop_ids_wait_for_min_tokens():
    prompt = random_prompt(9, 20)
    first = continuation(prompt, 1)[0]
    assert stream(engine(), prompt, 20, stop_ids=frozenset({first})).read().tokens == ()
    answer = stream(engine(), prompt, 20, stop_ids=frozenset({first}), min_tokens=4).read()
    assert len(answer.tokens) >= 4 and first not in answer.tokens


def test_loops():
    def tail(*tokens):
        return np.array(tokens, np.int32)

    assert loops(tail(1, 2, 2), 2) and not loops(tail(1, 2, 2), 3) and loops(tail(2, 2, 2), 3)
    assert loops(tail(9, 1, 2, 1, 2), 2) and not loops(tail(1, 2, 1), 2) and not loops(tail(1, 2, 1, 2, 9), 2)
    assert not loops(tail(), 2) and not loops(tail(1), 2)
    run = np.arange(LONGEST_LOOP)
    assert loops(np.tile(run, 3), 3) and not loops(np.tile(np.arange(LONGEST_LOOP + 1), 3), 3)
    rng = np.random.default_rng(1)
    for _ in range(500):
        t, times = rng.integers(0, 2, 24), int(rng.integers(2, 5))
        expected = any((t[-times * n :].reshape(times, n) == t[-n:]).all() for n in range(1, 24 // times + 1))
        assert loops(t, times) == expected


def test_an_answer_that_goes_in_circles_ends():
    class Circle(Remember):
        def __call__(self, batch, cache):
            logits = super().__call__(batch, cache)
            for row, i in enumerate(batch.output_rows):
                logits[row, 5 + (int(batch.positions[i]) % 3 if batch.positions[i] > 15 else batch.positions[i])] = 99
            return logits

    def answer(**given):
        cache = PagedCache.allocate(1, 1, 4, 4, 512, "f32")
        e = Engine(Circle(), cache, n_tokens=VOCAB, context_length=512, prefill_chunk=64)
        return stream(e, random_prompt(1, 10), 60, **given).read()

    assert answer().finish_reason == "length"
    found = answer(max_repeats=4)
    assert found.finish_reason == "loop" and len(found.tokens) == 7 + 12 and found.text == text(found.tokens)
    assert found.tokens[-12:] == found.tokens[-3:] * 4
    assert len(answer(max_repeats=4, min_tokens=30).tokens) == 31
