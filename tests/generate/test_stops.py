import random

import pytest

from qtransformers.generate.stops import StopText


def run(stops, pieces):
    """What is shown after each piece, and whether a stop was found."""
    s = StopText(stops)
    return [s.push(piece) for piece in pieces], s.found, s.rest()


@pytest.mark.parametrize(
    "stops, pieces, expected",
    [
        ((), ["abc", "def"], (["abc", "def"], False, "")),
        (("END",), ["a E", "N", "D b"], (["a ", "", ""], True, "")),
        (("END",), ["a E", "N", "X"], (["a ", "", "ENX"], False, "")),
        (("END",), ["abE"], (["ab"], False, "E")),
        (("ab", "abc"), ["xabc"], (["x"], True, "")),
        (("bcd", "abcdef"), ["abc", "d"], (["", "a"], True, "")),
        (("bcd", "abcdef"), ["abcdef"], (["a"], True, "")),
        (("aab",), ["a", "a", "a", "b"], (["", "", "a", ""], True, "")),
        (("x",), ["", "ax"], (["", "a"], True, "")),
        (("END",), ["END", "more"], (["", ""], True, "")),
    ],
)
def test_held_back_until_it_is_clear(stops, pieces, expected):
    assert run(stops, pieces) == expected


def test_any_cut_shows_the_same_text_and_never_a_part_of_the_stop():
    rng = random.Random(1)
    for _ in range(300):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        text = "".join(rng.choices("ab", k=30))
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(places)[1]] if places else text
        cuts = sorted(rng.sample(range(31), 6))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 30], strict=True)]
        shown, found, rest = run(stops, pieces)
        assert "".join(shown) + rest == expected and found == bool(places)
