"""Jinja for chat templates that come with a model and are trusted with nothing: no attribute of Python, bounded work.

jinja2's immutable sandbox keeps a template away from Python; it bounds neither time nor memory. So every loop, call,
filter, operator and output is charged to a budget before its result exists, and a template that spends it all ends in a
TemplateError. The charges are deterministic; a deadline backs them up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import GeneratorType
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, object_type_repr

from qtransformers.errors import TemplateError
from qtransformers.load.chat.budget import CALL, STEP, Budget, Limits, OverBudget, size_of
from qtransformers.load.chat.costs import (
    FILTERS,
    METHODS,
    OPERATORS,
    TESTS,
    Cost,
    formatted_size,
    none,
    result_size,
)
from qtransformers.load.chat.metering import Generation, metered

BUDGET = " budget"  # its key among the variables: no template can spell it
MAX_SOURCE = 64 * 1024
MAX_RANGE = 100_000  # as jinja's own sandbox
MAX_MESSAGE = 1000  # characters of what a template says when it refuses


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


class _PlainNamespace(Namespace):
    """A namespace whose repr does not show what is in it, which may hold itself a million times over."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Undefined(Undefined):
    """A value that is not there; its message does not write out the key that found none."""

    @property
    def _undefined_message(self) -> str:
        name = self._undefined_name
        if name is not None and not isinstance(name, (str, int)):
            return f"{object_type_repr(self._undefined_obj)} has no element {type(name).__name__!r}"
        return str(super()._undefined_message)


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
        if not isinstance(__obj, Macro):
            args = tuple(budget.listed(arg) for arg in args)
            for arg in (*args, *kwargs.values()):
                budget.measure(arg)
            budget.allow(result_size(size or none, owner, *args, **kwargs))
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`; a tuple in there would be hashed, with all that is in it."""
        if isinstance(argument, tuple):
            raise TypeError("a tuple is no key of messages")
        return super().getitem(obj, argument)

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
        made: str = budget.made("".join(str(value) for value in values))
        return made

    def on_made(self, context: Context, value: Any) -> Any:
        """A list, tuple, dict or slice."""
        if isinstance(value, tuple):  # hashing one visits all that is in it
            _budget(context).measure(value)
        return _budget(context).made(value)

    def on_used(self, context: Context, value: Any) -> Any:
        """A side of a comparison, or the key of a dict."""
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
        for arg in (*(args if cost.whole else args[1:]), *kwargs.values()):
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


@jinja2.pass_context
def _raise_exception(context: Context, message: Any = "") -> None:
    _budget(context).measure(message)
    raise _Refused(str(message)[:MAX_MESSAGE])


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
            extensions=[loopcontrols, Generation],
            finalize=_written,
            optimized=False,
            undefined=_Undefined,
        )
        try:
            tree = metered(self._environment.parse(source))
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
