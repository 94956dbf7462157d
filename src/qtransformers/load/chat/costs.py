"""What templates may call, and how large its result can become: asked before the result exists."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any, NamedTuple

Size = Callable[..., int]
UNBOUNDED = 2**62
ITEM = 8  # an item of a list weighs as much as so many characters


class Cost(NamedTuple):
    """A filter's cost: `size` bounds its result; `whole` says that it reads all that is in the value it is put on."""

    size: Size
    whole: bool = True


def none(*args: Any, **kwargs: Any) -> int:
    """Nothing to fear: the result is no larger than what is put in."""
    return 0


def result_size(size: Size, *args: Any, **kwargs: Any) -> int:
    """The bound, or 0 where the arguments have types that the operation itself will refuse."""
    try:
        return int(size(*args, **kwargs))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else len(str(value))


def _padded(text: Any, width: Any = 80, fill: Any = " ") -> int:
    return max(_length(text), int(width))


def _tabs(text: str, tabsize: Any = 8) -> int:
    return len(text) + text.count("\t") * max(0, int(tabsize))


def _replaced(text: Any, old: Any, new: Any, count: Any = None) -> int:
    text, old = str(text), str(old)
    n = text.count(old) if old else len(text) + 1
    return len(text) + n * _length(new)


def _joined(items: Any, separator: Any = "", attribute: Any = None) -> int:
    return len(items) * _length(separator) + sum(len(item) if isinstance(item, str) else 1 for item in items)


def _method_joined(separator: str, items: Any) -> int:
    return _joined(items, separator)


def _listed(items: Any, *args: Any, **kwargs: Any) -> int:
    return ITEM * len(items)


def _split(text: str, separator: Any = None, *args: Any) -> int:
    n = text.count(separator) if separator else sum(text.count(blank) for blank in " \n\t\r\v\f")
    return len(text) + ITEM * (n + 1)


def _split_lines(text: str, *args: Any) -> int:
    return _split(text)


def _indented(text: Any, width: Any = 4, first: Any = False, blank: Any = False) -> int:
    step = len(width) if isinstance(width, str) else int(width)
    return _length(text) + max(0, step) * (len(str(text).splitlines()) + 1)


def _formatted(pattern: Any, *values: Any, **named: Any) -> int:
    """`%` formatting: widths and precisions are refused beyond three digits, `*` (a width among the values) entirely."""
    pattern = str(pattern)
    if re.search(r"%(\([^)]*\))?[-+ #0]*(\*|\d{4}|\d*\.(\*|\d{4}))", pattern):
        return UNBOUNDED
    fields = pattern.count("%")
    given = [v for value in (*values, *named.values()) for v in _flat(value)]
    longest = max((_length(v) for v in given), default=0)
    return len(pattern) + fields * (1000 + (longest if "(" in pattern else 0)) + sum(_length(v) for v in given)


def formatted_size(pattern: str, given: int) -> int:
    """`str.format` with arguments of `given` characters; widths are refused beyond three digits, nested ones entirely."""
    if any(re.search(r"\d{4}|\{", spec or "") for _, _, spec, _ in Formatter().parse(pattern)):
        return UNBOUNDED
    return len(pattern) + pattern.count("{") * (1000 + given)


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, tuple) else (value,)


def _batched(items: Any, linecount: Any, fill_with: Any = None) -> int:
    return ITEM * (len(items) + int(linecount)) + int(linecount) * _length(fill_with)


def _rounded(value: Any, precision: Any = 0, method: Any = "common") -> int:
    return UNBOUNDED if abs(int(precision)) > 300 else 0


def _integer(value: Any, default: Any = 0, base: Any = 10) -> int:
    return UNBOUNDED if isinstance(value, str) and len(value) > 4000 else 0  # parsing takes the square of the length


def _json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> int:
    nodes, depth = _nodes(value)
    step = 0 if indent is None else len(indent) if isinstance(indent, str) else int(indent)
    between = sum(len(s) for s in separators) if separators else 4
    return nodes * (max(0, step) * depth + between)


def _nodes(value: Any) -> tuple[int, int]:
    """Values in a value, and the depth of their nesting."""
    count = deepest = 0
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        count += 1
        deepest = max(deepest, depth)
        if isinstance(item, dict):
            stack += [(v, depth + 1) for v in item.values()]
        elif isinstance(item, (list, tuple)):
            stack += [(v, depth + 1) for v in item]
    return count, deepest


def _added(left: Any, right: Any) -> int:
    return (len(left) + len(right)) * (1 if isinstance(left, str) else ITEM)


def _multiplied(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return 0  # the product of two bounded numbers; its own size is checked after
    items, times = (left, right) if hasattr(left, "__len__") else (right, left)
    return len(items) * max(0, times) * (1 if isinstance(items, str) else ITEM)


def _power(base: Any, exponent: Any) -> int:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > 4096:
        return UNBOUNDED
    return 0


def _all(names: str, cost: Any) -> dict[str, Any]:
    """The same cost for each of several names."""
    return dict.fromkeys(names.split(), cost)


OPERATORS: dict[str, Size] = {
    "+": _added,
    "-": none,
    "*": _multiplied,
    "/": none,
    "//": none,
    "%": _formatted,
    "**": _power,
}

METHODS: dict[type, dict[str, Size]] = {
    str: {
        **_all(
            """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier
            islower isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind
            rindex rpartition rstrip startswith strip swapcase title upper""",
            none,
        ),
        "center": _padded,
        "ljust": _padded,
        "rjust": _padded,
        "zfill": _padded,
        "expandtabs": _tabs,
        "join": _method_joined,
        "rsplit": _split,
        "split": _split,
        "splitlines": _split_lines,
        "replace": _replaced,
    },
    dict: _all("copy get items keys values", none),
    list: _all("copy count index", none),
    tuple: _all("count index", none),
    bool: {},
    int: {},
    float: {"is_integer": none},
}

FILTERS: dict[str, Cost] = {
    **_all(
        """abs capitalize dictsort e escape filesizeformat float forceescape groupby lower max
        min safe string title trim truncate upper wordcount""",
        Cost(none),
    ),
    **_all(
        "attr count d default first items last length map reject rejectattr reverse select selectattr sum",
        Cost(none, whole=False),
    ),
    "batch": Cost(_batched),
    "center": Cost(_padded),
    "format": Cost(_formatted),
    "indent": Cost(_indented),
    "int": Cost(_integer),
    "join": Cost(_joined),
    "list": Cost(_listed, whole=False),
    "replace": Cost(_replaced),
    "round": Cost(_rounded),
    "slice": Cost(_batched),
    "sort": Cost(_listed),
    "tojson": Cost(_json),
    "unique": Cost(_listed),
}

TESTS = tuple(
    _all(
        """boolean callable defined divisibleby eq equalto escaped even false filter float ge greaterthan gt in integer
        iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true undefined upper
        == != > >= < <=""",
        none,
    )
)
