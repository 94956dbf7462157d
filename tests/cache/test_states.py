"""States of sequences: made, continued, forgotten."""

import pytest

from qtransformers.cache import Batch, PagedCache
from qtransformers.errors import QTransformersError

SHAPES = {"a": (2, 3), "b": (4,)}


def cache():
    return PagedCache.allocate(1, 1, 4, 4, 1024, "f32", SHAPES)


def single(n, past, page):
    return Batch.single([1] * n, past, [page])


def test_a_sequence_finds_its_state_again():
    states = cache().states
    with states.of(Batch.join([single(3, 0, 2), single(1, 0, 5)])) as layer:
        found = [layer(i) for i in range(4)]
        assert [list(x) for x in found] == [["a", "b"], ["a", "b"], ["b"], ["b"]]
        for i, names in enumerate(found):
            for name, (first, second) in names.items():
                assert first.shape == second.shape == SHAPES[name][1:] and not first.any() and not second.any()
                first += 10 * i + (name == "b")
                second -= 1
    with states.of(Batch.join([single(1, 1, 5), single(2, 3, 2)])) as layer:
        for i in range(4):
            for name, (second, first) in layer(i).items():
                assert (first == 10 * i + (name == "b")).all() and (second == -1).all()
    assert states.nbytes == 4 * (6 + 4)


def test_position_0_begins_anew():
    states = cache().states
    with states.of(single(3, 0, 2)) as layer:
        layer(1)["a"][0][:] = 1
    with states.of(single(1, 0, 2)) as layer:
        assert not layer(1)["a"][0].any()


@pytest.mark.parametrize("past", [1, 2, 4])
def test_a_gap_is_an_error(past):
    states = cache().states
    with states.of(single(3, 0, 2)):
        pass
    with pytest.raises(QTransformersError, match=f"goes on at position {past}, but its recurrent state is of 3 tokens"), states.of(single(1, past, 2)):  # fmt: skip
        pass
    with pytest.raises(QTransformersError, match="is of none tokens"), states.of(single(1, past, 3)):
        pass


def test_after_a_forward_that_failed_a_sequence_cannot_go_on():
    states = cache().states
    with pytest.raises(ZeroDivisionError), states.of(single(3, 0, 2)):
        raise ZeroDivisionError
    with pytest.raises(QTransformersError, match="goes on at position 3"), states.of(single(1, 3, 2)):
        pass
    with states.of(single(3, 0, 2)) as layer:
        assert not layer(0)["a"][0].any()


def test_states_go_with_the_first_page():
    c = cache()
    pages = c.take(2)
    with c.states.of(Batch.single([1] * 300, 0, pages)):
        pass
    assert len(c.states) == 1
    c.give_back(pages)
    assert len(c.states) == 0


def test_a_page_given_back_amid_a_forward():
    c = cache()
    pages = c.take(1)
    with c.states.of(Batch.single([1], 0, pages)):
        c.give_back(pages)
    assert len(c.states) == 0


def test_on_a_device_a_batch_says_where_its_states_are():
    """The same memory for a sequence that goes on, and each layer's place in it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    states = PagedCache.allocate(1, 1, 4, 4, 1024, "f32", SHAPES, states_place="cuda:0").states
    with states.placed(Batch.join([single(3, 0, 2), single(1, 0, 5)])) as before:
        pass
    with states.placed(Batch.join([single(1, 1, 5), single(2, 3, 2)])) as batch:
        assert (batch.states == before.states[::-1]).all() and (batch.states[0] != batch.states[1]).any()
        there = batch.on(torch.device("cpu"))
        with states.of(there) as layer:
            assert [{k: (x.first, x.shape) for k, x in layer(i).items()} for i in (1, 3)] == [
                {"a": (3, (3,)), "b": (7, ())},
                {"b": (9, ())},
            ]
            assert (layer(1)["a"].addresses.numpy() == batch.states).all()
    with pytest.raises(QTransformersError, match="goes on at position 2"), states.placed(single(1, 2, 2)):
        pass
    plain = PagedCache.allocate(1, 1, 4, 4, 1024, "f32", states_place="cuda:0").states
    with plain.placed(single(1, 0, 2)) as batch:
        assert batch.states is None
