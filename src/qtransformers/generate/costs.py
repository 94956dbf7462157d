"""What is measured while answers are under way: how often guesses are right, and what steps cost."""

from __future__ import annotations


class Odds:
    """How often guesses of a kind are right, what came last counting most; unknown kinds are as `before`, or even."""

    def __init__(self, memory: float, before: Odds | None = None) -> None:
        self._keep = 1 - 1 / memory  # tokens
        self._before = before
        self._counts: dict[int, tuple[float, float]] = {}  # right, all

    def __call__(self, kind: int) -> float:
        """The chance of one."""
        right, n = self._counts.get(kind, (0.0, 0.0))
        return (right + 3 * (self._before(kind) if self._before else 0.5)) / (n + 3)

    def learn(self, kind: int, was_right: bool) -> None:
        """A guess of this kind has been judged."""
        right, n = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = right * self._keep + was_right, n * self._keep + 1
        if self._before:
            self._before.learn(kind, was_right)


class Costs:
    """Seconds of a step by its rows, following the machine and the contexts; between and beyond what was measured, a guess."""

    SLOPE = 0.05  # of one row's time for each further row, as far as is known: little, so that it is tried

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}

    def __call__(self, rows: int) -> float:
        """Of such a step; 0 where nothing is known."""
        known = self._seconds
        if rows in known:
            return known[rows]
        less, more = (max((r for r in known if r < rows), default=0), min((r for r in known if r > rows), default=0))
        if less and more:
            return known[less] + (known[more] - known[less]) * (rows - less) / (more - less)
        near = less or more
        return known[near] * max(0.5, 1 + self.SLOPE * (rows - near)) if near else 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """A step took so long. The first ones are slow; single hiccups count little."""
        n = self._measured[rows] = self._measured.get(rows, 0) + 1
        old = self._seconds.get(rows, seconds)
        self._seconds[rows] = min(old, seconds) if n <= 3 else old + (min(seconds, 2 * old) - old) / 8

    def knows(self, rows: int) -> bool:
        """Whether such a step was measured."""
        return rows in self._seconds
