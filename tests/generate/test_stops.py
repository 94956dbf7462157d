import random

from qtransformers.generate.stops import Texts


def found(texts, text):
    """After each character: the longest end that begins a text, and the lengths of the texts that end there."""
    t, tail = Texts(texts), ""
    out = []
    for c in text:
        tail = t.advance(tail, c)
        out.append((tail, t.endings(tail)))
    return out


def test_beginnings_and_ends():
    assert found(["END", "ND"], "aENDx") == [("", []), ("E", []), ("EN", []), ("END", [2, 3]), ("", [])]
    assert found([], "ab") == [("", []), ("", [])] and not Texts([]) and len(Texts(["a", "a", "b"])) == 2


def test_against_a_plain_search():
    rng = random.Random(2)
    for _ in range(300):
        texts = ["".join(rng.choices("abc", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 12))]
        text = "".join(rng.choices("abc", k=40))
        for n, (tail, endings) in enumerate(found(texts, text), 1):
            ends = [text[:n][n - k :] for k in range(n, 0, -1)]
            assert tail == next((e for e in ends if any(t.startswith(e) for t in texts)), "")
            assert endings == sorted({len(t) for t in texts if text[:n].endswith(t)})


def test_work_is_bounded_by_the_text_not_by_the_number_of_texts():
    """Comparisons counted, not timed: at most two searches a character beyond what the tails cost."""

    class Counting(Texts):
        searches = 0

        def _begins(self, part):
            Counting.searches += 1
            return super()._begins(part)

    t, tail = Counting(["a" * 1024, *(f"a{i:05d}" for i in range(16_000))]), ""
    for c in ("a" * 1020 + "b") * 10:
        tail = t.advance(tail, c)
        assert t.endings(tail) == []
    assert Counting.searches <= 2 * 10_210
