import random

import pytest

from qtransformers.generate.text import AnswerText


class Pieces:
    """Tokens are texts."""

    def __init__(self):
        self.state = ""

    def push(self, token):
        self.state += token
        return token

    def finish(self):
        return ""

    def restore(self, state):
        self.state = state


def run(stops, pieces):
    """What is shown after each piece, whether a stop was found, and what is left."""
    t = AnswerText(Pieces(), stops)
    shown, stopped = [], False
    for piece in pieces:
        found = t.push(piece)
        shown.append(found.text)
        stopped = found.stopped
        if stopped:
            break
    return shown, stopped, "" if stopped else t.finish().text


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
        (("bc", "abc"), ["abc"], ([""], True, "")),
        (("x",), ["", "ax"], (["", "a"], True, "")),
    ],
)
def test_stops_are_held_back_until_it_is_clear(stops, pieces, expected):
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
        shown, stopped, rest = run(stops, pieces)
        assert "".join(shown) + rest == expected and stopped == bool(places)


def test_a_stop_that_may_not_stop_yet():
    t = AnswerText(Pieces(), ["END", "x"])
    assert [t.push(p, stops=False).text for p in ("a", "E", "N", "D", "b", "x", "x")] == [
        "a",
        "",
        "",
        "",
        "ENDb",
        "",
        "x",
    ]
    assert t.push("E").text == "x" and t.push("ND").stopped
    held = AnswerText(Pieces(), ["END"])
    assert held.push("EN", stops=False).text == "" and held.push("D!").stopped  # complete only now


def test_a_banned_text_goes_back_to_the_token_in_which_it_began():
    t = AnswerText(Pieces(), banned=["very bad"])
    shown = [(t.push(p), t.uncertain) for p in ("a", " ve", "ry", " b")]
    assert shown == [(("a", False, 0), 0), (("", False, 0), 1), (("", False, 0), 2), (("", False, 0), 3)]
    assert t.push("ad day").back == 4 and t.uncertain == 0
    assert t.push(" good") == (" good", False, 0)
    assert t.push("very ") == ("", False, 0) and t.push("b") == ("", False, 0) and t.push("ook").text == "very book"
    assert t.push("very ba").text == "" and t.finish().text == "very ba"


def test_stops_and_banned_texts_together():
    t = AnswerText(Pieces(), stop=["stop"], banned=["bad"])
    assert t.push("a bad stop").back == 1  # it is complete first
    found = t.push("a stop bad")
    assert found.stopped and found.text == "a "
    both = AnswerText(Pieces(), stop=["abcX"], banned=["cdY"])
    assert [both.push(p).text for p in "abcd"] == [""] * 4  # c may yet be taken back, and X come in its place
    assert both.push("Y").back == 3 and both.push("cX") == ("", True, 0)


def test_what_can_no_more_be_taken_back_is_not():
    """`ab` was shown because `cd` had come; when that is taken back, `abcX` may be complete after all."""
    t = AnswerText(Pieces(), banned=["abcX", "cdY"])
    assert [t.push(p).text for p in "abcd"] == ["", "", "", "ab"] and t.push("Y").back == 3
    assert t.push("cX").back == 1 and t.push("cZ").text == "cZ"


def test_the_shortest_of_those_that_end_alike_takes_back_least():
    t = AnswerText(Pieces(), banned=["foobar", "bar"])
    t.push("foo")
    assert t.push("bar").back == 1 and t.push("l").text == "fool"


def test_an_incomplete_character_can_complete_a_banned_text():
    class Broken(Pieces):
        def finish(self):
            return "\ufffd"

    t = AnswerText(Broken(), banned=["b\ufffd"])
    t.push("a"), t.push("b")
    assert t.finish().text == ""
    assert AnswerText(Broken(), banned=["\ufffd"]).finish().text == ""
    assert AnswerText(Broken(), stop=["\ufffd"]).finish() == ("", True, 0)


def test_no_banned_text_ever_comes_out_whatever_the_model_wants():
    rng = random.Random(5)
    rewinds = 0
    for _ in range(500):
        banned = ["".join(rng.choices("ab", k=rng.randint(2, 5))) for _ in range(rng.randint(1, 4))]
        stops = ["".join(rng.choices("abc", k=6))] if rng.random() < 0.3 else []
        decoder = Pieces()
        t, out, tokens = AnswerText(decoder, stops, banned), "", []
        for _ in range(60):
            token = "".join(rng.choices("aabbc", k=rng.randint(0, 3)))
            found = t.push(token)
            tokens.append(token)
            out += found.text
            if found.back:
                rewinds += 1
                assert found.back <= len(tokens)
                del tokens[len(tokens) - found.back :]
                assert decoder.state == "".join(tokens)
            if found.stopped:
                break
            assert "".join(tokens).startswith(out) and not any(b in "".join(tokens) for b in banned)
            assert len(out) <= len("".join(tokens[: len(tokens) - t.uncertain]))
        else:
            out += t.finish().text
            assert out == "".join(tokens)
        assert not any(text in out for text in (*banned, *stops))
    assert rewinds > 500
