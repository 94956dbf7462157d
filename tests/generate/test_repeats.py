"""The automaton against a search through the text."""

import numpy as np
import pytest

from qtransformers.generate.repeats import Repeats


def longest_repeat(text):
    """The length of the longest end that occurred before, by trying."""
    for n in range(len(text) - 1, 0, -1):
        if any(text[i : i + n] == text[-n:] for i in range(len(text) - n)):
            return n
    return 0


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 20])
def test_the_longest_repeated_end_is_found_and_what_followed_it(n_tokens):
    for seed in range(20):
        text = np.random.default_rng(seed).integers(0, n_tokens, 60).tolist()
        repeats = Repeats()
        for i, token in enumerate(text, 1):
            repeats.push(token)
            n = longest_repeat(text[:i])
            assert repeats.length == n
            if n:
                followed = {tuple(text[j + n : j + n + 1]) for j in range(i - n) if text[j : j + n] == text[i - n : i]}
                assert tuple(repeats.guess(1)) in followed


def test_the_latest_occurrence_counts():
    assert Repeats([1, 2, 3, 1, 2, 4, 1, 2]).guess(2) == [4, 1]


def test_a_loop_goes_on():
    assert Repeats([9, 1, 2, 3, 1, 2, 3]).guess(8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert Repeats([5, 5]).guess(3) == [5, 5, 5]


def test_states_and_steps_are_linear_in_the_text():
    for text in ([7] * 3000, [i % 50 for i in range(3000)], np.random.default_rng(1).integers(0, 4, 3000).tolist()):
        repeats = Repeats(text)
        assert len(repeats._link) <= 2 * len(text)
        assert sum(map(len, repeats._next)) <= 3 * len(text)
