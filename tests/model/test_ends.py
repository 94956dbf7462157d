"""Contexts that are full, streams that are left, event loops, and the end of a model: nothing stays behind."""

import asyncio
import gc
import os
import signal
import threading
import warnings

import pytest

from model.talk import ASK, STORY
from qtransformers.errors import (
    ConfigError,
    InsufficientMemoryError,
)
from qtransformers.model import Model


def test_what_exceeds_the_context_is_refused_before_anything_is_computed(data):
    with Model.load(data / "demo-Q8_0.gguf", context_length=64) as model:
        assert model.context_length == 64
        with pytest.raises(
            ConfigError,
            match=r"the prompt has 100 tokens and 5 tokens are asked for \(max_tokens\), but the context holds 64",
        ):
            model.generate([5] * 100, max_tokens=5)
        with pytest.raises(ConfigError, match=r"64 tokens and the answer needs at least 1"):
            model.generate([5] * 64)
        answer = model.generate([5] * 60, stop=[], temperature=1.0, seed=4)
        assert len(answer.tokens) <= 4
        with pytest.raises(ConfigError, match="1 to 64"):
            model.logits([5] * 65)


def test_a_full_context_ends_the_answer(data):
    with Model.load(data / "demo-Q8_0.gguf", context_length=300) as model:
        ids = (model.tokenizer.encode("One warm evening, ") * 90)[:290]
        answer = model.generate(ids, seed=1)
        assert len(answer.tokens) == 10 and answer.finish_reason == "length"


def test_more_context_than_trained_is_a_visible_warning(data):
    with pytest.warns(UserWarning, match=r"context_length 5000 exceeds the 1024 tokens"), Model.load(data / "demo-Q8_0.gguf", context_length=5000) as model:  # fmt: skip
        assert model.context_length == 5000 and "exceeds the 1024" in model.notes


def test_a_context_beyond_memory_is_refused(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            InsufficientMemoryError, match=r"keys and values in f32 of 2,147,483,647 tokens take .* GiB"
        ):
            Model.load(data / "demo-Q8_0.gguf", context_length=2**31 - 1, cache="f32")


def test_leaving_a_stream_frees_its_pages(demo):
    free = demo._engine.usage.free_pages
    for chunk in demo.chat(STORY, stream=True):
        assert demo._engine.usage.free_pages == free - 1
        if chunk.text:
            break
    gc.collect()
    assert demo._engine.usage.free_pages == free


def test_a_stream_can_be_cancelled(demo):
    with demo.chat(STORY, stream=True) as stream:
        next(stream)
        stream.cancel()
        assert [c.finish_reason for c in stream] == ["cancelled"]
    assert stream.completion.finish_reason == "cancelled"


def test_async_twins_give_the_same(demo):
    async def run():
        chunks = [c async for c in demo.astream("Once upon", max_tokens=8, temperature=0)]
        streamed = [c async for c in await demo.achat(ASK, stream=True, temperature=0)]
        one, two = await asyncio.gather(
            demo.agenerate("Once upon", max_tokens=8, temperature=0), demo.achat(ASK, temperature=0)
        )
        return "".join(c.text for c in chunks), "".join(c.text for c in streamed), one, two

    chunks, streamed, one, two = asyncio.run(run())
    expected = demo.generate("Once upon", max_tokens=8, temperature=0)
    assert chunks == expected.text == one.text and one.tokens == expected.tokens
    assert streamed == two.text == "7 plus 5 is 12."


def test_cancelling_a_task_frees_its_pages(demo):
    free = demo._engine.usage.free_pages

    async def run():
        task = asyncio.create_task(demo.agenerate("Once", temperature=1.0, seed=3, max_tokens=900))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = demo.astream("Once", max_tokens=900)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(run())
    demo._engine.step()  # after the one under way
    assert demo._engine.usage.free_pages == free


def test_errors_come_before_the_loop_starts(demo):
    async def run():
        with pytest.raises(ConfigError, match="top_k"):
            demo.astream("a", top_k=-1)
        with pytest.raises(ConfigError, match="messages"):
            await demo.achat([])

    asyncio.run(run())


def test_after_close_every_use_is_an_error(data):
    model = Model.load(data / "demo-Q8_0.gguf")
    stream = model.stream("Once")
    next(stream)
    with model:
        pass
    model.close()
    assert model.closed and "closed" in repr(model)
    uses = [
        lambda: model.generate("a"), lambda: model.stream("a"), lambda: model.chat(ASK), lambda: model.logits([1]),
        lambda: model.chat_ids(ASK), lambda: next(stream), lambda: asyncio.run(model.agenerate("a")), lambda: asyncio.run(model.achat(ASK)),
        lambda: model.astream("a"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ConfigError, match="closed"):
            use()


def test_close_waits_for_the_forward_under_way(data):
    model = Model.load(data / "demo-Q8_0.gguf")
    errors = []

    def work():
        try:
            model.generate("Once", max_tokens=900, temperature=1.0, seed=1)
        except ConfigError as e:
            errors.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    while not model._engine.usage.free_pages < 4 and thread.is_alive():
        pass
    model.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(errors) <= 1


def test_an_answer_that_is_dropped_beside_a_loop_leaves_no_thread(demo):
    async def leave():
        async for _ in demo.astream("Once upon a time", max_tokens=900, temperature=1.0, seed=3):
            await asyncio.sleep(0.3)  # until it pauses
            break

    asyncio.run(leave())
    gc.collect()
    for _ in range(100):
        if not any(t.name == "qtransformers" for t in threading.enumerate()):
            break
        threading.Event().wait(0.05)
    assert not any(t.name == "qtransformers" for t in threading.enumerate())
    demo._engine.step()
    assert demo.usage.free_pages == demo.usage.pages


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_grammars_after_a_fork(demo):
    assert demo.generate("Number: ", regex="[0-9]{3}", temperature=0).text.isdigit()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        fine = demo.generate("Number: ", regex="[0-9]{3}", temperature=0).text.isdigit()
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
