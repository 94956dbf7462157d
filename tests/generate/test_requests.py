import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.generate.requests import MAX_TEXTS, answer_limit, prompt_ids, texts


def test_one_stop_is_one_stop_not_its_letters():
    assert texts("stop", "</s>") == ("</s>",)
    assert texts("stop", ["a", "b", "a"]) == ("a", "b")
    assert texts("stop", None) == texts("stop", []) == ()
    assert texts("stop", {"b", "a"}) == ("a", "b")
    assert len(texts("stop", [str(i) for i in range(MAX_TEXTS)])) == MAX_TEXTS


@pytest.mark.parametrize("stop", [5, True, b"x", {"a": 1}, [""], "", ["a", None], [["a"]], ["\ud800"], ["x"] * (MAX_TEXTS + 1), "x" * 2000, ["x"] * 10**6])  # fmt: skip
def test_bad_stops(stop):
    with pytest.raises(ConfigError, match=r"^stop"):
        texts("stop", stop)
    with pytest.raises(ConfigError, match=r"^banned"):
        texts("banned", stop)


def test_too_many_are_refused_with_their_number_and_the_limit():
    with pytest.raises(ConfigError, match=r"^stop has 16,385 texts; expected at most 16,384\.$"):
        texts("stop", ["x"] * (MAX_TEXTS + 1))
    with pytest.raises(ConfigError, match=r"^stop\[1\] has 2,000 characters; expected 1 to 1,024\.$"):
        texts("stop", ["x", "x" * 2000])


def test_prompt_ids():
    assert prompt_ids(np.array([1, 2], np.int64), 3) == (1, 2)
    assert prompt_ids((), 3) == ()


@pytest.mark.parametrize("prompt", [[1, -1], [1, 3], [1, 2.0], [1, "2"], [1, True], [1, None], [1, 2**70]])
def test_bad_prompt_ids(prompt):
    with pytest.raises(ConfigError, match=r"^prompt\[1\]=.*expected a whole number from 0 to 2"):
        prompt_ids(prompt, 3)


@pytest.mark.parametrize("prompt", [5, None, 1.5])
def test_bad_prompts(prompt):
    with pytest.raises(ConfigError, match=r"^prompt=.*expected text or a list of token ids"):
        prompt_ids(prompt, 3)


def test_an_answer_fits_the_context_or_both_counts_are_named():
    assert answer_limit(10, None, 100) == 90
    assert answer_limit(10, 90, 100) == 90
    assert answer_limit(99, None, 100) == 1
    with pytest.raises(ConfigError, match=r"10 tokens and 91 tokens are asked for .* holds 100 .*context_length"):
        answer_limit(10, 91, 100)
    with pytest.raises(ConfigError, match=r"1,000 tokens and the answer needs at least 1, but the context holds 1,000"):
        answer_limit(1000, None, 1000)
    with pytest.raises(ConfigError, match=r"no tokens"):
        answer_limit(0, None, 100)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5", float("nan"), 10**4000], ids=str)
def test_bad_max_tokens(value):
    with pytest.raises(ConfigError, match=r"^max_tokens="):
        answer_limit(10, value, 100)
