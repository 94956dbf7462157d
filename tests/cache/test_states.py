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
    with states.of(Batch.join([single(3, 0, 2), single(1, 0, 5)])) as (first, second):
        assert {k: a.shape for k, a in first.items()} == SHAPES and not any(a.any() for a in first.values())
        first["a"] += 1
        second["b"] += 2
    with states.of(Batch.join([single(1, 1, 5), single(2, 3, 2)])) as (second, first):
        assert (second["b"] == 2).all() and (first["a"] == 1).all() and not first["b"].any()
    assert states.nbytes == 4 * (6 + 4)


def test_position_0_begins_anew():
    states = cache().states
    with states.of(single(3, 0, 2)) as (state,):
        state["a"] += 1
    with states.of(single(1, 0, 2)) as (state,):
        assert not state["a"].any()


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
    with states.of(single(3, 0, 2)) as (state,):
        assert not state["a"].any()


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
