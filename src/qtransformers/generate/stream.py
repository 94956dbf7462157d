"""The answer as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from qtransformers.generate.engine import Engine
from qtransformers.generate.sequence import Chunk, Completion, Sequence


class Stream(Iterator[Chunk]):
    """Chunks of an answer. Dropping it, `close()`, an error or the end of a `with` block frees its pages.

    Its first `next` makes it part of what the engine computes; from then on the steps of other streams continue it too.
    """

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._sequence = sequence
        self._submitted = False
        self._closed = False

    def start(self, run_ahead: int | None = None) -> None:
        """Take part from now on, not only from the first `next` on; `run_ahead` chunks may lie unread before it pauses."""
        if not self._submitted:
            self._sequence.run_ahead = run_ahead or self._sequence.run_ahead
            self._submitted = True
            self._engine.submit(self._sequence)

    def __next__(self) -> Chunk:
        try:
            ended = self.ended  # before it looks: another thread may bring the last chunk and the end meanwhile
            while (chunk := self.ready()) is None and not ended:
                self._engine.advance(self._sequence)
                ended = self.ended
        except BaseException:
            self.close()
            raise
        if chunk is None:
            raise StopIteration
        return chunk

    def ready(self) -> Chunk | None:
        """A chunk that is there already, else None; what ended the answer in error is raised."""
        if self._closed:
            return None
        self.start()
        s = self._sequence
        if s.chunks:
            with suppress(IndexError):  # another thread may have been quicker
                return s.chunks.popleft()
        if s.error is None:
            return None
        self.close()
        raise s.error

    @property
    def ended(self) -> bool:
        """Whether no more chunks will come beyond those that are `ready`."""
        return self._closed or self._sequence.ended

    @property
    def news(self) -> bool:
        """Whether a chunk or an end is there to be read."""
        return self._closed or self._sequence.news

    @property
    def has_room_again(self) -> bool:
        """Whether it has just come to have room for half of the chunks that may lie unread."""
        return len(self._sequence.chunks) == self._sequence.run_ahead // 2

    def cancel(self) -> None:
        """End the answer after the token under way; the last chunk has `finish_reason` "cancelled"."""
        self._sequence.cancelled = True

    def close(self) -> None:
        """End without another chunk and free the pages; where a thread computes right now, it does so when it is done."""
        if not self._closed:
            self._closed = self._submitted = True
            self._engine.drop(self._sequence)

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens of the prompt computed so far, and all of them."""
        return min(self._sequence.past, self._sequence.n_prompt), self._sequence.n_prompt

    @property
    def completion(self) -> Completion:
        """The answer so far; all of it once the stream has ended."""
        done = self._sequence.completion
        # A thread that computes right now will drop it when it is done.
        return replace(done, finish_reason="cancelled") if self._closed and done.finish_reason is None else done

    def read(self) -> Completion:
        """Run to the end."""
        with self:
            for _ in self:
                pass
        return self.completion

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
