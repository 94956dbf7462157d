"""What rendering one chat template may take, and what is left of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.utils import Cycler, Namespace

from qtransformers.load.chat.costs import ITEM, UNBOUNDED

CALL, STEP = 128, 4  # units of work
MAX_DEPTH = 200


@dataclass(frozen=True)
class Limits:
    """What rendering may take. `value` and `work` grow with the size of the messages."""

    value: int = 2**20  # characters or items of any one value, and of the whole text
    work: int = 2**25  # units; one is about a character written or 50 ns
    seconds: float = 5.0

    def grown(self, size: int) -> Limits:
        """The limits for variables of `size` characters and items."""
        return Limits(self.value + 4 * size, self.work + 64 * size, self.seconds)


class OverBudget(Exception):
    """The template wants more than it may have."""


class Budget:
    """What is left for one rendering."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._left = limits.work
        self._deadline = time.monotonic() + limits.seconds

    def spend(self, units: int) -> None:
        """Take `units`; OverBudget when there are not so many, or the time is over."""
        self._left -= units
        if self._left < 0:
            raise OverBudget(f"takes more than {self.limits.work:,} units of work")
        if time.monotonic() > self._deadline:
            raise OverBudget(f"takes longer than {self.limits.seconds:g} s")

    def allow(self, size: int) -> None:
        """Refuse a value of `size` before it exists."""
        if size > self.limits.value:
            found = "of unbounded size" if size >= UNBOUNDED else f"of {size:,} characters or items"
            raise OverBudget(f"makes a value {found}; at most {self.limits.value:,} characters or items are allowed")
        self.spend(max(size, 0))

    def made(self, value: Any) -> Any:
        """Charge for a value that was just made."""
        if isinstance(value, str):
            self.allow(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.allow(ITEM * len(value))
        elif isinstance(value, int) and value.bit_length() > 4096:
            raise OverBudget("makes a number of more than 4,096 bits")
        else:
            self.spend(1)
        return value

    def measure(self, value: Any) -> int:
        """Size of a value with all that is in it, as often as it is in it: its text or a comparison will be as long."""
        size, depth, level = 0, 0, [value]
        while level and size <= self.limits.value:
            deeper: list[Any] = []
            for item in level:
                size += 1
                if isinstance(item, str):
                    size += len(item)
                elif isinstance(item, (list, tuple)):
                    deeper += item
                elif isinstance(item, dict):
                    deeper += [*item, *item.values()]
                elif isinstance(item, int):
                    size += item.bit_length() // 3
                else:
                    deeper += _carried(item)
                if size + len(deeper) > self.limits.value:
                    size = self.limits.value + 1
                    break
            level, depth = deeper, depth + 1
            if depth > MAX_DEPTH:  # Python visits what is nested by recursion, not always with a check
                raise OverBudget(f"nests values more than {MAX_DEPTH} deep")
        if size > self.limits.value:
            raise OverBudget(f"uses a value of more than {self.limits.value:,} characters and items")
        self.spend(1 + size // 8)
        return size

    def listed(self, value: Any) -> Any:
        """A generator as a list, everything else as it is."""
        return list(self.counted(value)) if isinstance(value, GeneratorType) else value

    def counted(self, items: Any) -> Iterator[Any]:
        """The items, each charged."""
        for item in items:
            self.spend(STEP)
            yield item


def _carried(value: Any) -> Iterable[Any]:
    """The values in an object of jinja's: filters and formats reach them by attribute."""
    if isinstance(value, Namespace):
        held: Mapping[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
        return held.values()
    if isinstance(value, Cycler):
        return value.items
    return (value.previtem, value.nextitem) if isinstance(value, LoopContext) else ()


def size_of(value: Any) -> int:
    """Characters and items in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(1 + size_of(k) + size_of(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return sum(1 + size_of(item) for item in value)
    return 1
