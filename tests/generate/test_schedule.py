"""Requests that share an engine: what they compute together, what they reuse, who waits."""

import gc
import threading

import numpy as np
import pytest

from generate.remember import VOCAB, continuation, engine, forward_of, random_prompt, stream
from qtransformers.errors import ConfigError


def lengths(e):
    return [np.diff(b.starts).tolist() for b in forward_of(e).batches]


def test_answers_are_computed_together():
    e = engine()
    streams = [stream(e, random_prompt(i, 10), 5) for i in range(4)]
    for s in streams:
        s.start()
    answers = [s.read().tokens for s in streams]
    assert answers == [continuation(random_prompt(i, 10), 5) for i in range(4)]
    assert lengths(e) == [[10] * 4, [1] * 4, [1] * 4, [1] * 4, [1] * 4]
    assert e.usage.free_pages == e.usage.pages == 8


def test_prompts_come_in_between_answers_a_little_at_a_time():
    e = engine()
    first = stream(e, random_prompt(0, 10), 30)
    next(first)
    second = stream(e, random_prompt(1, 300), 3)
    assert second.read().tokens == continuation(random_prompt(1, 300), 3)
    assert lengths(e)[1:7] == [[1, 64]] * 4 + [[1, 44], [1, 1]]
    assert first.read().tokens == continuation(random_prompt(0, 10), 30)


def test_prompts_take_turns():
    e = engine(n_tokens=4096)
    long, short = stream(e, random_prompt(0, 2000), 2), stream(e, random_prompt(1, 30), 2)
    long.start(), short.start()
    assert short.read().finish_reason == "length"
    assert lengths(e)[:2] == [[512], [30, 482]]  # the short one does not wait for the end of the long one
    assert long.read().tokens == continuation(random_prompt(0, 2000), 2)


def test_a_beginning_is_computed_once():
    e = engine()
    prompt = random_prompt(0, 700)
    assert stream(e, prompt, 5).read().timings.cached_tokens == 0
    n = forward_of(e).computed
    done = stream(e, prompt, 5).read()
    assert done.tokens == continuation(prompt, 5) and done.timings.cached_tokens == 699
    assert forward_of(e).computed - n == 1 + 4
    other = prompt[:600] + random_prompt(9, 50)
    done = stream(e, other, 5).read()
    assert done.tokens == continuation(other, 5) and done.timings.cached_tokens == 600
    assert e.usage.free_pages == 8


def test_the_next_turn_of_a_chat_reuses_the_answer_too():
    e = engine()
    prompt = random_prompt(0, 100)
    answer = stream(e, prompt, 50).read().tokens
    done = stream(e, prompt + answer + (7, 8, 9), 5).read()
    assert done.timings.cached_tokens == 149 and done.tokens == continuation(prompt + answer + (7, 8, 9), 5)


def test_shared_pages_are_not_written_to():
    e = engine(n_tokens=4096)
    prompt = random_prompt(0, 400)
    streams = [stream(e, (*prompt, i), 30) for i in range(5)]
    stream(e, prompt, 1).read()
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [continuation((*prompt, i), 30) for i in range(5)]
    assert stream(e, prompt, 30).read().tokens == continuation(prompt, 30)
    assert e.usage.free_pages == e.usage.pages


def test_requests_at_the_same_time_compute_a_common_beginning_once():
    e = engine(n_tokens=8192)
    prompt = random_prompt(0, 1500)
    streams = [stream(e, (*prompt, i), 3) for i in range(4)]
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [continuation((*prompt, i), 3) for i in range(4)]
    assert forward_of(e).computed < 1.7 * 1500
    assert e.usage.free_pages == e.usage.pages


def test_short_requests_at_the_same_time_wait_for_the_page_they_share():
    e = engine(n_tokens=8192)
    prompt = random_prompt(0, 300)
    streams = [stream(e, (*prompt, i), 3) for i in range(6)]
    for s in streams:
        s.start()
    answers = [s.read() for s in streams]
    assert [a.tokens for a in answers] == [continuation((*prompt, i), 3) for i in range(6)]
    cached = [a.timings.cached_tokens for a in answers]
    assert cached[0] == 0 and min(cached[1:]) >= 256


def test_only_the_same_salt_shares():
    e = engine()
    prompt = random_prompt(0, 600)
    stream(e, prompt, 1, salt="a").read()
    assert stream(e, prompt, 1, salt="b").read().timings.cached_tokens == 0
    assert stream(e, prompt, 1, salt="a").read().timings.cached_tokens == 599


def test_what_was_let_go_first_is_forgotten_first():
    e = engine(n_tokens=1024, context_length=1024)
    a, b = random_prompt(1, 510), random_prompt(2, 510)
    stream(e, a, 1).read(), stream(e, b, 1).read(), stream(e, a, 1).read()
    stream(e, random_prompt(3, 400), 1).read()
    assert stream(e, a, 1).read().timings.cached_tokens == 509
    assert stream(e, b, 1).read().timings.cached_tokens < 300
    assert e.usage.free_pages == 4


def test_what_is_asked_again_and_again_takes_one_page():
    e = engine(n_tokens=2048, context_length=1024)
    long, short = random_prompt(1, 700), random_prompt(2, 100)
    stream(e, long, 1).read()
    for i in range(30):
        stream(e, short, 1 + i % 3).read()
    assert stream(e, long, 1).read().timings.cached_tokens == 699


def test_each_turn_of_a_short_chat_finds_the_one_before():
    e = engine()
    prompt = random_prompt(0, 20)
    for turn in range(20):
        cached = stream(e, prompt, 1).read().timings.cached_tokens
        assert cached == 0 if turn == 0 else len(prompt) - 20 - 15 <= cached <= len(prompt) - 20
        prompt += random_prompt(turn + 1, 20)
    assert e.usage.free_pages == e.usage.pages


def test_what_is_dropped_while_it_is_submitted_does_not_wait_for_ever():
    e = engine()
    s = stream(e, random_prompt(0, 20), 5)
    e.drop(s._sequence)
    e.submit(s._sequence)
    assert (e.usage.running, e.usage.waiting) == (0, 0)


def test_without_pages_the_last_one_waits_and_goes_on_where_it_was():
    e = engine(n_tokens=1024, context_length=1024)
    prompts = [random_prompt(i, 200) for i in range(4)]
    streams = [stream(e, p, 300) for p in prompts]
    for s in streams:
        s.start()
    got = [s.read() for s in streams]
    assert [g.tokens for g in got] == [continuation(p, 300) for p in prompts]
    assert e.usage.free_pages == 4 and max(len(b.starts) for b in forward_of(e).batches) == 5


def test_no_more_than_parallel_at_a_time():
    e = engine(parallel=2)
    streams = [stream(e, random_prompt(i, 10), 5) for i in range(5)]
    for s in streams:
        s.start()
    assert [len(s.read().tokens) for s in streams] == [5] * 5
    assert max(len(b.starts) - 1 for b in forward_of(e).batches) == 2


def test_who_is_not_read_pauses_and_blocks_nobody():
    e = engine(n_tokens=512, context_length=512, parallel=1)
    idle = stream(e, random_prompt(0, 300), 150, run_ahead=5)
    next(idle)
    other = stream(e, random_prompt(1, 300), 100)
    assert other.read().tokens == continuation(random_prompt(1, 300), 100)
    assert idle.read().tokens == continuation(random_prompt(0, 300), 150)
    assert e.usage.free_pages == 2


def test_deterministic_lets_nothing_of_one_depend_on_others():
    e = engine(n_tokens=8192, deterministic=True, few_rows=4, parallel=16)
    streams = [stream(e, random_prompt(i, 100 + 70 * i), 20) for i in range(6)]
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [continuation(random_prompt(i, 100 + 70 * i), 20) for i in range(6)]
    for batch in forward_of(e).batches:
        rows = np.diff(batch.starts)
        assert ((rows == 1).all() and len(rows) <= 4) or len(rows) == 1
        ends = batch.positions[batch.starts[1:] - 1] + 1
        if rows[0] > 1:
            assert batch.positions[0] % 256 == 0 and (ends[0] % 256 == 0 or len(batch.output_rows) == 1)


def test_deterministic_recomputes_with_the_kernels_of_the_first_time():
    e = engine(n_tokens=512, context_length=512, deterministic=True, few_rows=4)
    streams = [stream(e, random_prompt(i, 100), 200) for i in range(3)]
    for s in streams:
        s.start()
    assert [s.read().tokens for s in streams] == [continuation(random_prompt(i, 100), 200) for i in range(3)]
    for batch in forward_of(e).batches:  # 100 tokens of a prompt in one piece, those of an answer few at a time
        assert len(batch.tokens) in (1, 2, 3, 4, 100)


def test_many_threads():
    e = engine(n_tokens=2048, parallel=4)
    answers = {}

    all_are_there = threading.Barrier(24)

    def ask(i):
        s = stream(e, random_prompt(i % 7, 40 + i), 30)
        s.start()
        all_are_there.wait(60)
        answers[i] = s.read().tokens

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert answers == {i: continuation(random_prompt(i % 7, 40 + i), 30) for i in range(24)}
    assert e.usage.free_pages == 8
    assert max(len(b.starts) - 1 for b in forward_of(e).batches) > 1


def test_an_error_in_ones_own_sampling_ends_nobody_else():
    def broken(tokens, logits):
        raise ValueError("mine")

    e = engine()
    good, bad = stream(e, random_prompt(0, 10), 9), stream(e, random_prompt(1, 10), 9, hooks=(broken,))
    good.start()
    with pytest.raises(ValueError, match="mine"):
        bad.read()
    assert good.read().tokens == continuation(random_prompt(0, 10), 9)
    assert e.usage.free_pages == 8 and list(bad) == []


def test_hooks_see_tokens_and_change_logits():
    seen = []

    def only_even(tokens, logits):
        seen.append(tokens.copy())
        logits[1::2] = -np.inf
        return logits

    prompt = random_prompt(0, 10)
    done = stream(engine(), prompt, 5, hooks=(only_even, lambda tokens, logits: logits * 2)).read()
    assert all(t % 2 == 0 for t in done.tokens)
    assert [tuple(s) for s in seen] == [prompt + done.tokens[:i] for i in range(5)]
    nothing, broken = np.full(VOCAB, -np.inf, np.float32), np.full(VOCAB, np.nan, np.float32)
    for wrong in (None, 3, np.zeros(3, np.float32), np.zeros(VOCAB, np.int64), nothing, broken, -nothing):
        with pytest.raises(ConfigError, match="hook returned"):
            stream(engine(), prompt, 5, hooks=(lambda tokens, logits, wrong=wrong: wrong,)).read()


def test_a_hook_cannot_change_what_was_said():
    def forges(tokens, logits):
        tokens[:] = 7
        return logits

    with pytest.raises(ValueError, match="read-only"):
        stream(engine(), random_prompt(0, 10), 5, hooks=(forges,)).read()


def test_a_hook_that_uses_the_engine_it_runs_in_is_told_so():
    e = engine()

    def asks(tokens, logits):
        stream(e, random_prompt(1, 5), 1).read()
        return logits

    with pytest.raises(ConfigError, match="a hook or callback used the model that is computing for it"):
        stream(e, random_prompt(0, 10), 5, hooks=(asks,)).read()
    assert stream(e, random_prompt(0, 10), 5).read().tokens == continuation(random_prompt(0, 10), 5)
    assert e.usage.free_pages == 8


def test_no_end_before_the_fewest_tokens():
    prompt = random_prompt(0, 10)
    first = continuation(prompt, 1)
    done = stream(engine(), prompt, 20, stop_ids=frozenset(first), min_tokens=4).read()
    assert len(done.tokens) >= 4 and first[0] not in done.tokens[:4]
    assert stream(engine(), prompt, 20, stop_ids=frozenset(first)).read().tokens == ()


@pytest.mark.parametrize("deterministic", [False, True])
def test_random_requests_with_cancellations_end_as_alone(deterministic):
    """Prompts that share beginnings, in a cache too small for all, some ended at every stage."""
    rng = np.random.default_rng(0)
    e = engine(n_tokens=2560, context_length=1024, parallel=5, deterministic=deterministic, prefill_chunk=100)
    stems = [random_prompt(100 + i, 700) for i in range(3)]
    open_streams = []
    for i in range(150):
        prompt = stems[rng.integers(3)][: rng.integers(1, 700)] + random_prompt(i, int(rng.integers(0, 30)))
        s = stream(e, prompt, int(rng.integers(1, 60)), run_ahead=int(rng.integers(1, 20)))
        open_streams.append([s, prompt, []])
        s.start()
        for item in list(open_streams):
            for _ in range(int(rng.integers(0, 4))):
                chunk = next(item[0], None)
                if chunk is None:
                    check(*item)
                    open_streams.remove(item)
                    break
                item[2].extend(chunk.tokens)
            else:
                if rng.random() < 0.05:
                    item[0].cancel()
                elif rng.random() < 0.05:
                    item[0].close()
                elif rng.random() < 0.03:
                    open_streams.remove(item)
    for s, prompt, tokens in open_streams:
        tokens.extend(t for chunk in s for t in chunk.tokens)
        check(s, prompt, tokens)
    item = s = None
    open_streams.clear()
    gc.collect()
    assert (e.usage.running, e.usage.waiting, e.usage.free_pages) == (0, 0, 10)


def check(s, prompt, tokens):
    assert tuple(tokens) == continuation(prompt, len(tokens))
    done = s.completion
    assert done.finish_reason in ("length", "cancelled")
    assert done.tokens == continuation(prompt, len(done.tokens))
    assert done.finish_reason == "cancelled" or len(done.tokens) == s._sequence.request.max_tokens
