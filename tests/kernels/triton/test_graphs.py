"""What the CPU computes between graphs: taken from and given to the same memory at every replay."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch

from qtransformers.kernels.triton import graphs, hybrid
from qtransformers.kernels.triton.graphs import RECORDING, Recording


class Tape:
    """A graph of a card that there is not: what is captured has been computed, and a replay is counted."""

    replays = 0

    def capture_begin(self, pool, capture_error_mode):
        pass

    def capture_end(self):
        pass

    def replay(self):
        Tape.replays += 1


@pytest.fixture
def recording(monkeypatch):
    """Of a device in main memory, whose batch has one array that is known there."""
    stream = SimpleNamespace(synchronize=lambda: None)
    for name, value in {"Stream": lambda device: stream, "synchronize": lambda device: None, "current_stream": lambda device: stream, "CUDAGraph": Tape}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: hybrid.current(torch.device("cpu")))
    monkeypatch.setattr(Tape, "replays", 0)
    positions = torch.arange(4)
    return (
        Recording(torch.device("cpu"), stream, None, {positions.data_ptr(): (known := np.arange(4))}),
        positions,
        known,
    )


def test_operations_of_the_cpu_part_graphs(recording):
    recording, positions, known = recording
    seen = []

    def double(x, weight, at):
        seen.append((x.copy(), weight, at))
        return 2 * x

    def both(xs):
        return [x + 1 for x in xs]

    def forward(x):
        y, _ = hybrid.on_host(double, torch.device("cpu"), (x, "a weight", positions))
        (a, b), _ = hybrid.on_host(both, torch.device("cpu"), ([y, x],))
        return a + b

    x = torch.tensor([1.0, 2.0])
    with recording.rehearse():
        assert forward(x).tolist() == [5.0, 8.0]
    assert RECORDING.get() is None and recording.n_graphs == 0
    x.fill_(10.0)
    with recording.capture():
        forward(x)
    assert len(seen) == 1, "a capture computes nothing on the CPU"
    recording.replay()
    assert recording.n_graphs == 3 and Tape.replays == 3
    values, weight, at = seen[1]
    assert values.tolist() == [10.0, 10.0] and weight == "a weight" and np.shares_memory(at, known)
    recording.replay()
    assert len(seen) == 3 and Tape.replays == 6


def test_what_is_computed_beside_the_cpu_is_launched_before_it_begins(recording, monkeypatch):
    """Also where that has operations of the CPU itself; waiting is for what came before, not for what is beside."""
    recording, _, _ = recording
    log = []
    monkeypatch.setattr(Tape, "replay", lambda self: log.append("graph"))
    monkeypatch.setattr(graphs, "mark", lambda device: log.append("mark") or (lambda: log.append("wait")))

    def on_cpu(name, factor):
        def operation(x):
            log.append(name)
            return factor * x

        return operation

    def forward(x):
        inner = partial(hybrid.on_host, on_cpu("inner", 10), torch.device("cpu"), (x,))
        y, more = hybrid.on_host(on_cpu("outer", 2), torch.device("cpu"), (x,), lambda: inner()[0] + 1)
        return y + more

    x = torch.tensor([1.0, 2.0])
    with recording.rehearse():
        assert forward(x).tolist() == [13.0, 25.0]
    log.clear()
    with recording.capture():
        forward(x)
    assert not log and recording.n_graphs == 4
    recording.replay()
    assert log == ["graph", "mark", "graph", "mark", "wait", "inner", "graph", "wait", "outer", "graph"]


def test_a_forward_that_fails_leaves_no_recording(recording):
    recording, _, _ = recording
    with pytest.raises(ValueError, match="so"), recording.rehearse():
        raise ValueError("so")
    with pytest.raises(ValueError, match="so"), recording.capture():
        raise ValueError("so")
    assert RECORDING.get() is None


def test_a_capture_that_fails_amid_the_forward_says_its_own_error(recording, monkeypatch):
    """Graphs that could not end are not ended again."""
    recording, _, _ = recording

    def forward(x):
        return hybrid.on_host(lambda x: 2 * x, torch.device("cpu"), (x,))[0]

    def capture_end(self):
        raise RuntimeError("the capture was invalidated")

    with recording.rehearse():
        forward(torch.ones(2))
    monkeypatch.setattr(Tape, "capture_end", capture_end)
    with pytest.raises(RuntimeError, match="was invalidated"), recording.capture():
        forward(torch.ones(2))
    assert RECORDING.get() is None
