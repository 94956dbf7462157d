"""The engine and its stream over a scripted forward: its logits want token t + 1 after token t."""

import codecs
import gc
import threading

import numpy as np
import pytest

from qtransformers.cache import PagedCache
from qtransformers.errors import ConfigError, InsufficientMemoryError
from qtransformers.generate import Engine, Request, Sequence, Stream
from qtransformers.sampling import Sampling

ROWS = 300  # rows of the embedding; tokens from 256 on are padding


class Bytes:
    """Tokens are bytes."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        return self.decoder.decode(bytes([token]))

    def finish(self):
        return self.decoder.decode(b"", final=True)


class Script:
    """A forward that continues a fixed text, keeps what it was asked, and checks that rows arrive in order."""

    def __init__(self, text, n_prompt):
        self.text = text if isinstance(text, bytes) else text.encode()
        self.n_prompt = n_prompt
        self.batches = []

    def __call__(self, batch, cache):
        self.batches.append(batch)
        logits = np.zeros((len(batch.output_rows), ROWS), np.float32)
        for row, i in enumerate(batch.output_rows):
            n = batch.positions[i] + 1 - self.n_prompt
            logits[row, self.text[n] if 0 <= n < len(self.text) else ord("?")] = 50
            logits[row, 256:] = 99  # padding is likeliest everywhere
        return logits


def engine(script, n_tokens=2000, chunk=100, context_length=2000):
    cache = PagedCache.allocate(1, 1, 4, 4, n_tokens, "f32")
    return Engine(script, cache, n_tokens=256, context_length=context_length, prefill_chunk=chunk)


def stream(e, n_prompt=3, max_tokens=1000, **given):
    given = {"sampling": Sampling(temperature=0), "stop_ids": frozenset({0}), **given}
    return Stream(e, Sequence(Request(tuple(range(1, n_prompt + 1)), max_tokens, **given), Bytes(), 256))


def test_an_answer_until_the_stop_token():
    e = engine(Script("Hello.\0never", 3))
    done = stream(e).read()
    assert (done.text, done.finish_reason, done.prompt_tokens) == ("Hello.", "stop", 3)
    assert bytes(done.tokens) == b"Hello."
    assert e.usage.free_pages == 8
    assert done.timings.tokens == 6 and done.timings.seconds > 0 and done.timings.prompt_seconds > 0


def test_every_stop_id_counts():
    for stop_id in (0, 1, 2):
        assert (
            stream(engine(Script(b"ab" + bytes([stop_id]) + b"cd", 3)), stop_ids=frozenset({0, 1, 2})).read().text
            == "ab"
        )


def test_length_ends_it_too():
    done = stream(engine(Script("Hello.", 3)), max_tokens=4).read()
    assert (done.text, done.finish_reason, len(done.tokens)) == ("Hell", "length", 4)


def test_the_prompt_is_computed_in_chunks_and_only_its_last_row_gives_logits():
    script = Script("ok\0", 250)
    assert stream(engine(script, chunk=100), n_prompt=250).read().text == "ok"
    assert [len(b.tokens) for b in script.batches] == [100, 100, 50, 1, 1]
    assert [b.output_rows.tolist() for b in script.batches] == [[], [], [49], [0], [0]]
    assert np.concatenate([b.positions for b in script.batches]).tolist() == list(range(252))
    assert np.concatenate([b.tokens for b in script.batches]).tolist() == [*range(1, 251), ord("o"), ord("k")]


def test_pages_are_taken_as_the_sequence_grows():
    script = Script("x" * 300 + "\0", 250)
    stream(engine(script, chunk=1000), n_prompt=250).read()
    assert [b.page_tables.shape[1] for b in script.batches] == [1] + [1] * 6 + [2] * 256 + [3] * 38


def test_padding_is_never_sampled():
    for temperature in (0, 5.0):
        done = stream(
            engine(Script("abc", 3)), max_tokens=50, sampling=Sampling(temperature=temperature, seed=3)
        ).read()
        assert max(done.tokens) < 256


def test_whole_characters_only():
    text = "né 🦊!"
    chunks = list(stream(engine(Script(text + "\0", 3))))
    assert [c.text for c in chunks] == ["n", "é", " ", "🦊", "!", ""]
    assert [len(c.tokens) for c in chunks] == [1, 2, 1, 4, 1, 0]
    assert [c.finish_reason for c in chunks] == [None] * 5 + ["stop"]
    assert [c.timings is None for c in chunks] == [True] * 5 + [False] and chunks[-1].timings.tokens == 9


def test_broken_bytes_at_the_end_become_a_replacement_character():
    done = stream(engine(Script(b"a\xf0\x9f\0", 3))).read()
    assert done.text == "a\ufffd"


def test_stop_texts_are_not_shown_not_even_in_part():
    chunks = list(stream(engine(Script("One. STOP two", 3)), stop=("STOP",)))
    assert "".join(c.text for c in chunks) == "One. "
    assert chunks[-1].finish_reason == "stop"
    assert b"".join(bytes(c.tokens) for c in chunks) == b"One. STOP"


def test_what_was_held_back_comes_at_the_end():
    assert stream(engine(Script("One. STO\0", 3)), stop=("STOP",)).read().text == "One. STO"
    done = stream(engine(Script("One. STO", 3)), stop=("STOP",), max_tokens=8).read()
    assert (done.text, done.finish_reason) == ("One. STO", "length")


def test_leaving_the_loop_frees_the_pages():
    e = engine(Script("x" * 900, 3))
    for chunk in stream(e):
        assert e.usage.free_pages == 7
        if chunk.text:
            break
    gc.collect()
    assert e.usage.free_pages == 8


def test_close_ends_it_and_is_harmless_twice():
    e = engine(Script("x" * 900, 3))
    s = stream(e)
    next(s)
    s.close()
    s.close()
    assert e.usage.free_pages == 8 and list(s) == []
    assert (s.completion.text, s.completion.finish_reason) == ("x", "cancelled")


def test_a_stream_never_read_costs_nothing():
    e = engine(Script("x", 3))
    s = stream(e)
    s.close()
    assert e.usage.free_pages == 8 and s.completion.tokens == ()


def test_what_waits_and_leaves_is_forgotten_by_an_engine_that_nobody_steps():
    e = engine(Script("x", 3))
    streams = stream(e), stream(e)  # kept: a stream that is collected drops its sequence
    left, stays = (s._sequence for s in streams)
    for sequence in (left, stays):
        e.submit(sequence)
    assert e.usage.waiting == 2
    e.drop(left)
    assert (e.usage.waiting, left.finish_reason, stays.ended) == (1, "cancelled", False)
    e.step()
    assert (e.usage.waiting, e.usage.running) == (0, 1)
    e.drop(stays)
    assert (e.usage.waiting, e.usage.running) == (0, 0)


def test_cancel_gives_a_last_chunk():
    e = engine(Script("x" * 900, 3))
    s = stream(e)
    next(s)
    s.cancel()
    last = next(s)
    assert last.finish_reason == "cancelled" and list(s) == [] and e.usage.free_pages == 8


def test_cancel_shows_what_was_held_back():
    s = stream(engine(Script("x ST" + "y" * 900, 3)), stop=("STOP",))
    assert [next(s).text for _ in range(2)] == ["x", " "]
    assert next(s).text == "STy"


def test_close_from_another_thread_while_computing():
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Script):
        def __call__(self, batch, cache):
            if len(self.batches) == 3:
                inside.set()
                go_on.wait(10)
            return super().__call__(batch, cache)

    e = engine(Slow("x" * 900, 3))
    s = stream(e)
    got = []
    reader = threading.Thread(target=lambda: got.extend(s))
    reader.start()
    assert inside.wait(10)
    s.close()
    assert e.usage.free_pages == 7  # the forward still writes to its page
    go_on.set()
    reader.join(10)
    assert not reader.is_alive() and e.usage.free_pages == 8 and 3 <= len(got) <= 4


def test_an_error_in_the_forward_frees_the_pages_and_ends_the_stream():
    class Broken(Script):
        def __call__(self, batch, cache):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().__call__(batch, cache)

    e = engine(Broken("x" * 900, 3))
    s = stream(e)
    with pytest.raises(KeyboardInterrupt):
        list(s)
    assert e.usage.free_pages == 8 and list(s) == []


def test_a_sequence_that_outgrows_the_cache_is_an_error_that_frees_what_it_held():
    e = engine(Script("x", 3), n_tokens=512, chunk=400)
    with pytest.raises(InsufficientMemoryError, match=r"0 free pages of 256 tokens, 1 are needed"):
        stream(e, n_prompt=400).read()
    assert e.usage.free_pages == 2 and e.usage.running == e.usage.waiting == 0


def test_seeds_reproduce_whatever_runs_beside():
    class Flat(Script):
        def __call__(self, batch, cache):
            self.batches.append(batch)
            return np.zeros((len(batch.output_rows), ROWS), np.float32)

    e = engine(Flat("", 3))

    def drawn(seed):
        return stream(e, max_tokens=20, sampling=Sampling(seed=seed), stop_ids=frozenset())

    alone = drawn(4).read().tokens
    a, b = drawn(4), drawn(5)
    for _ in zip(a, b, strict=False):
        pass
    assert a.read().tokens == alone != b.read().tokens


def test_logits_of_all_rows_in_chunks():
    script = Script("abcdef", 1)
    e = engine(script, chunk=4)
    logits = np.concatenate(list(e.logits([1, 2, 3, 4, 5, 6])))
    assert logits.shape == (6, ROWS) and logits[:, :256].argmax(1).tolist() == list(b"abcdef")
    assert [len(b.tokens) for b in script.batches] == [4, 2] and e.usage.free_pages == 8


def test_a_closed_engine_says_so():
    e = engine(Script("x" * 900, 3))
    s = stream(e)
    next(s)
    e.close()
    e.close()
    assert e.closed
    for use in (lambda: next(s), lambda: next(e.logits([1])), lambda: stream(e).read()):
        with pytest.raises(ConfigError, match="the model is closed"):
            use()
