"""Jinja for chat templates that come with a model and are trusted with nothing: no attribute of Python, bounded work.

jinja2's immutable sandbox keeps a template away from Python; it bounds neither time nor memory. So every loop, call,
filter, operator and output is charged to a budget before its result exists, and a template that spends it all ends in a
TemplateError. The charges are deterministic; a deadline backs them up.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from qtransformers.errors import TemplateError
from qtransformers.load.costs import (
    FILTERS,
    ITEM,
    METHODS,
    OPERATORS,
    TESTS,
    UNBOUNDED,
    Cost,
    formatted_size,
    none,
    result_size,
)

BUDGET = " budget"  # its key among the variables: no template can spell it
MAX_SOURCE = 128 * 1024
MAX_RANGE = 100_000  # as jinja's own sandbox
CALL, STEP = 128, 4  # units of work


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
        """Size of a value with all that is in it, as often as it is in it; charged, for its text or a comparison will be as long."""
        if isinstance(value, str):
            size = len(value)
        else:
            size = 0
            stack = [value]
            while stack:
                item = stack.pop()
                size += 1
                if isinstance(item, str):
                    size += len(item)
                elif isinstance(item, (list, tuple)):
                    stack += item
                    size += len(item)
                elif isinstance(item, dict):
                    stack += [*item, *item.values()]
                    size += len(item)
                elif isinstance(item, int):
                    size += item.bit_length() // 3
                if size > self.limits.value:
                    break
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


def _budget(context: Context) -> Budget:
    return context.parent[BUDGET]  # type: ignore[no-any-return]


class _PlainNamespace(Namespace):
    """A namespace whose repr does not show what is in it, which may hold itself a million times over."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with every operation charged. Methods named `on_...` are called by the code of rewritten templates."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        filters: dict[str, Any] = {**self.filters, "tojson": _tojson, "sum": _sum}
        tests: dict[str, Any] = dict(self.tests)
        self.filters = {name: _charged_filter(filters[name], cost) for name, cost in FILTERS.items()}
        self.tests = {name: _charged_test(tests[name]) for name in TESTS}
        self.globals = dict(GLOBALS)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Data of messages, the listed methods of their types, and what jinja's own objects show."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, methods in METHODS.items():
            if isinstance(obj, kind):
                return not callable(value) or attr in methods
        return isinstance(
            obj, (LoopContext, Macro, Cycler, Joiner, Namespace, BlockReference, TemplateReference, Undefined)
        )

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls: charged before, by what it will give, and after."""
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(__context, *args)
        budget = _budget(__context)
        budget.spend(CALL)
        if isinstance(__obj, LoopContext):  # a recursive loop calls itself
            budget.spend(3 * CALL)
            return __obj(__self.on_loop(__context, *args))
        size = METHODS.get(_kind_of(owner), {}).get(getattr(__obj, "__name__", ""))
        if size is not None or isinstance(owner, LoopContext):
            args = tuple(budget.listed(arg) for arg in args)
            for arg in (*args, *kwargs.values()):
                budget.measure(arg)
            budget.allow(result_size(size or none, owner, *args, **kwargs))
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in the sandbox's own form, charged."""
        format_ = super().wrap_str_format(value)
        if format_ is None:
            return None

        @jinja2.pass_context
        def charged(context: Context, *args: Any, **kwargs: Any) -> str:
            budget = _budget(context)
            given = sum(budget.measure(arg) for arg in (*args, *kwargs.values()))
            budget.allow(formatted_size(value.__self__, given))
            return format_(*args, **kwargs)

        return charged

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, charged by the size of its result before there is one."""
        budget = _budget(context)
        budget.spend(STEP)
        if operator == "%" and isinstance(left, str):
            budget.measure(right)
        budget.allow(result_size(OPERATORS[operator], left, right))
        return budget.made(self.binop_table[operator](left, right))

    def on_loop(self, context: Context, items: Any) -> Any:
        """What a loop runs over."""
        budget = _budget(context)
        if isinstance(items, GeneratorType) or not hasattr(items, "__len__"):
            return budget.counted(items)
        budget.spend(STEP * len(items))
        return items

    def on_join(self, context: Context, *values: Any) -> str:
        """The operator `~`."""
        budget = _budget(context)
        budget.allow(sum(budget.measure(value) for value in values))
        return budget.made("".join(str(value) for value in values))  # type: ignore[no-any-return]

    def on_made(self, context: Context, value: Any) -> Any:
        """A list, tuple, dict or slice."""
        if isinstance(value, tuple):  # hashing one visits all that is in it
            _budget(context).measure(value)
        return _budget(context).made(value)

    def on_compared(self, context: Context, value: Any) -> Any:
        """A side of a comparison."""
        _budget(context).measure(value)
        return value

    def on_text(self, context: Context, length: int) -> None:
        """Text of the template itself, about to be written."""
        _budget(context).spend(length)


@jinja2.pass_context
def _written(context: Context, value: Any) -> Any:
    """A value about to become output."""
    budget = _budget(context)
    if not isinstance(value, str):
        budget.measure(value)
        value = str(value)
    return budget.made(value)


def _kind_of(value: Any) -> type:
    return next((kind for kind in METHODS if isinstance(value, kind)), object)


def _charged_filter(function: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    wants = _passed_first(function)

    @jinja2.pass_context
    def charged(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend(CALL)
        args = tuple(budget.listed(arg) for arg in args)
        if cost.whole:
            for arg in (*args, *kwargs.values()):
                budget.measure(arg)
        budget.allow(result_size(cost.size, *args, **kwargs))
        return budget.made(function(*wants(context), *args, **kwargs))

    return charged


def _charged_test(function: Callable[..., Any]) -> Callable[..., Any]:
    wants = _passed_first(function)

    @jinja2.pass_context
    def charged(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend(STEP)
        if len(args) > 1:
            for arg in args:
                budget.measure(arg)
        return function(*wants(context), *args, **kwargs)

    return charged


def _passed_first(function: Callable[..., Any]) -> Callable[[Context], tuple[Any, ...]]:
    """What jinja passes to a filter or test in front of its arguments."""
    wish = getattr(function, "jinja_pass_arg", None)
    return {
        None: lambda context: (),
        "context": lambda context: (context,),
        "eval_context": lambda context: (context.eval_ctx,),
        "environment": lambda context: (context.environment,),
    }[wish and wish.name]


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as Hugging Face's templates expect it: nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _sum(items: Any, attribute: Any = None, start: Any = 0) -> Any:
    """The sum of numbers; of lists it could take the square of their length."""
    values = [item[attribute] for item in items] if attribute is not None else list(items)
    if not all(isinstance(value, (int, float)) for value in (start, *values)):
        raise TypeError("sum adds numbers only")
    return sum(values, start)


class _Refused(Exception):
    """`raise_exception` of a template."""


def _raise_exception(message: Any = "") -> None:
    raise _Refused(str(message))


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if numbers and abs(numbers[-1] - numbers[0]) // abs(numbers.step) >= MAX_RANGE:
        raise OverBudget(f"makes a range of more than {MAX_RANGE:,} numbers")
    return numbers


def _dict(*items: Any, **named: Any) -> dict[Any, Any]:
    return dict(*items, **named)


def _namespace(*items: Any, **named: Any) -> Namespace:
    return _PlainNamespace(*items, **named)


def _cycler(*items: Any) -> Cycler:
    return Cycler(*items)


def _joiner(sep: str = ", ") -> Joiner:
    return Joiner(sep)


# Functions, not the classes themselves: what a template may call has no attributes.
GLOBALS: dict[str, Callable[..., Any]] = {
    "range": _range,
    "dict": _dict,
    "namespace": _namespace,
    "cycler": _cycler,
    "joiner": _joiner,
    "raise_exception": _raise_exception,
}


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's part for training; rendering shows what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)  # type: ignore[no-any-return]


FORBIDDEN: dict[type[nodes.Node], str] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from ... import",
    nodes.Extends: "extends",
    nodes.ScopedEvalContextModifier: "autoescape",
}


class _Metered(NodeTransformer):
    """Puts the charges into a template's syntax tree."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node) in FORBIDDEN:
            raise TemplateError(
                f"chat template, line {node.lineno}: {{% {FORBIDDEN[type(node)]} %}} is not available to chat templates, "
                "which are one file and plain text. Pass another template with prompt_format=."
            )
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _charge("on_loop", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_join", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_made", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_made", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _charge("on_made", node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides: list[Any] = [node, *node.ops]
        for side in sides:
            if not isinstance(side.expr, nodes.Const):
                side.expr = _charge("on_compared", side.expr)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        length = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        if not length:
            return node
        return [nodes.ExprStmt(_charge("on_text", nodes.Const(length, lineno=node.lineno)), lineno=node.lineno), node]


def _charge(method: str, *args: Any) -> nodes.Call:
    line = args[0].lineno if args else 1
    return nodes.Call(nodes.EnvironmentAttribute(method, lineno=line), list(args), [], None, None, lineno=line)


class Template:
    """A compiled chat template. Rendering is thread-safe: what it takes is kept per rendering."""

    def __init__(self, source: str) -> None:
        """Compile; TemplateError naming the line for a template that is invalid, too long or uses other files."""
        if len(source) > MAX_SOURCE:
            raise TemplateError(
                f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are allowed. Pass another with prompt_format=."
            )
        self._environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=_written,
            optimized=False,
        )
        try:
            tree = _Metered().visit(self._environment.parse(source))
            code = self._environment.compile(tree)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)
        except jinja2.TemplateSyntaxError as e:
            raise TemplateError(
                f"chat template, line {e.lineno}: {_what(e)}. Pass another with prompt_format=."
            ) from None
        except (RecursionError, SyntaxError, MemoryError, ValueError, OverflowError) as e:
            raise TemplateError(
                f"the chat template cannot be compiled: {_what(e)}. Pass another with prompt_format=."
            ) from None

    def render(self, variables: Mapping[str, Any], *, now: datetime | None = None, limits: Limits | None = None) -> str:
        """The text for `variables`, which hold nothing but JSON values; TemplateError naming line and cause."""
        budget = Budget((limits or Limits()).grown(size_of(variables)))
        context = self._template.new_context({**variables, "strftime_now": _clock(now), BUDGET: budget})
        parts = []
        total = 0
        try:
            for part in self._template.root_render_func(context):
                parts.append(part)
                total += len(part)
                if total > budget.limits.value:
                    raise OverBudget(f"writes more than {budget.limits.value:,} characters")
            return "".join(parts)
        except _Refused as e:
            raise TemplateError(f"the chat template refuses these messages: {e}") from None
        except OverBudget as e:
            raise TemplateError(
                f"{self._place(e)}: it {e}. Send fewer or shorter messages, or pass another template with prompt_format=."
            ) from None
        except Exception as e:
            raise TemplateError(
                f"{self._place(e)}: {_what(e)}. Check the messages, or pass another template with prompt_format=."
            ) from None

    def _place(self, error: BaseException) -> str:
        """Where in the template an error arose."""
        line = None
        trace = error.__traceback__
        while trace is not None:
            if (
                trace.tb_frame.f_globals.get("__jinja_template__") is not None
                or trace.tb_frame.f_code.co_filename == "<template>"
            ):
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return f"chat template, line {line}" if line else "chat template"


def size_of(value: Any) -> int:
    """Characters and items in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(1 + size_of(k) + size_of(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return sum(1 + size_of(item) for item in value)
    return 1


def _clock(now: datetime | None) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:
        if not isinstance(form, str) or len(form) > 256 or re.search(r"%[^A-Za-z%-]|%-[^A-Za-z]", form):
            raise ValueError("strftime_now takes a date format of at most 256 characters, without widths")
        return (now or datetime.now()).strftime(form)

    return strftime_now


def _what(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
