"""Grammars that let an answer call only as its family writes calls, with arguments that follow the tools' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qtransformers.constrain.sources import json_in_lark
from qtransformers.serve.tools.schemas import TEXT, is_text, properties, types

if TYPE_CHECKING:
    from qtransformers.serve.tools.parser import Thoughts

Control = Callable[[str], "int | None"]  # the id of a control token, None for text that is none
_MARK = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|\[/?[A-Z_]+\]|</?[\w:|]+>")
_HOLES = re.compile(r"([@#%])")
MOST_CALLS = 32  # of one answer, where it has to call: small models know no end
_ANY = "/(?s:.*)/"
JSON: Literal["json"] = "json"
PYTHON: Literal["python"] = "python"
QUOTED: Literal["quoted"] = "quoted"
QUOTE = '<|"|>'


@dataclass(frozen=True)
class Parameter:
    """What stands before an argument's name, between name and value, and behind; `?` says whether the value is a text."""

    before: str
    between: str
    after: str


@dataclass(frozen=True)
class Written:
    """A call as its family writes it, `@` for the name, `#` for the arguments, `%` for a number, and what stands around calls."""

    call: str
    start: str = ""
    between: str = ""
    finish: str = ""
    arguments: Literal["json", "python", "quoted"] | Parameter = JSON
    several: bool = True


class Rules:
    """Rules of a Lark grammar as they are made."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.rules: list[str] = []

    def add(self, body: str, suffix: str = "", terminal: bool = False) -> str:
        """A rule; its name. `suffix`: a text that ends it where it first occurs."""
        name = f"{'T' if terminal else 'r'}{len(self.rules)}"
        self.rules.append(f"{name}{f'[suffix={json.dumps(suffix, ensure_ascii=False)}]' if suffix else ''}: {body}")
        return name

    def text(self, text: str) -> str:
        """A text, the control tokens in it as such."""
        parts, at = [], 0
        for mark in _MARK.finditer(text):
            id = self._control(mark[0])
            if id is not None:
                parts += [*_literal(text[at : mark.start()]), f"<[{id}]>"]
                at = mark.end()
        return " ".join([*parts, *_literal(text[at:])])

    def until(self, end: str) -> str:
        """Any text, and what ends it where it first occurs."""
        mark = _MARK.search(end)
        if mark and self._control(mark[0]) is not None:  # blanks before it are the text's
            return f"{self.add(_ANY)} {self.text(end[mark.start() :])}"
        return self.add(_ANY, suffix=end)

    def without(self, marks: Sequence[str], text: str = _ANY) -> str:
        """Any text, or what `text` matches, in which none of these marks is."""
        texts = [mark for mark in marks if self._control(mark) is None]
        return self.add(" & ".join([text, *(f"~/(?s:.*{_escaped(t)}.*)/" for t in texts)]), terminal=True)


def grammar_of(
    written: Written,
    thoughts: Thoughts | None,
    tools: Mapping[str, Mapping[str, Any]],
    control: Control,
    *,
    thinking: bool = False,
    optional: bool = False,
    several: bool = True,
    begins: Sequence[str] = (),
    schema: Any = None,
) -> str:
    """A Lark grammar for answers that call `tools` (name -> schema of parameters).

    thinking: the prompt has opened a thought. optional: text may come first, up to a mark of `begins`, or alone, or JSON that follows
    `schema` may come instead.
    ConstraintError for a schema that is none.
    """
    rules = Rules(control)
    lead, *holes = _HOLES.split(written.call)
    tails = [_call(rules, written, holes, name, schema) for name, schema in tools.items()]
    tail = rules.add(" | ".join(tails))
    call = rules.add(f"{rules.text(lead)} {tail}")
    more = f"({rules.text(written.between)} {call}){{0,{MOST_CALLS - 1}}}" if several and written.several else ""
    rest = f"{more} {rules.text(written.finish)}"
    if optional and schema is not None:
        calls = rules.add(f"{rules.text(written.start)} {call} {rest} | {rules.add(json_in_lark(schema))}")
    elif optional:
        lead, first = (written.start, call) if written.start else (lead, tail)
        mark = min((m for m in begins if m in lead), key=lead.index, default="")
        if mark:
            opened = f"{rules.until(mark)} {rules.text(lead.partition(mark)[2])}"
            calls = rules.add(f"{opened} {first} {rest} | {rules.without(begins)}")
        else:  # calls without a mark are the whole answer
            other = rules.without(begins, f"/[^{_escaped(lead[0])}\\s](?s:.*)/")
            calls = rules.add(f"{rules.text(lead)} {first} {rest} | {other}")
    else:
        calls = rules.add(f"{rules.text(written.start)} {call} {rest}")
    return _grammar(rules, _thought(rules, thoughts, thinking), calls)


def json_grammar(schema: Any, thoughts: Thoughts, control: Control, *, thinking: bool) -> str:
    """A Lark grammar for answers that are a thought, or none, and then JSON."""
    rules = Rules(control)
    return _grammar(rules, _thought(rules, thoughts, thinking), json_in_lark(schema))


def _grammar(rules: Rules, thought: str, answer: str) -> str:
    return "\n".join([f"start: {thought} {answer}", *rules.rules])


def _thought(rules: Rules, thoughts: Thoughts | None, thinking: bool) -> str:
    if thoughts is None:
        return ""
    close = f"{rules.until(thoughts.close[0])} {rules.text(thoughts.then)}"
    blanks = r"/[ \n]{0,4}/"
    if thinking or thoughts.assumed:
        return f"{close} {blanks}"
    return f"({rules.text(thoughts.open[0])} {close} {blanks})?" if thoughts.open else ""


def _call(rules: Rules, written: Written, pieces: Sequence[str], name: str, schema: Mapping[str, Any]) -> str:
    parts = []
    for piece in pieces:
        if piece == "@":
            parts.append(rules.text(name))
        elif piece == "%":
            parts.append("/[0-9]{1,3}/")
        elif piece == "#":
            parts.append(_arguments(rules, written, schema))
        else:
            parts.append(rules.text(piece))
    return rules.add(" ".join(filter(None, parts)))


def _arguments(rules: Rules, written: Written, schema: Mapping[str, Any]) -> str:
    closed = {"additionalProperties": False} if "properties" in schema or not schema else {}
    whole = {"type": "object", **closed, **schema}
    if written.arguments == JSON:
        return rules.add(json_in_lark(whole))
    json_in_lark(whole)  # its checks
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required")
    needed = frozenset(r for r in required if isinstance(r, str)) if isinstance(required, list) else frozenset()
    names = sorted(properties(schema), key=lambda name: name not in needed)  # optional ones last
    if isinstance(written.arguments, Parameter):
        rows = [
            (_xml(rules, written.arguments, name, properties(schema)[name], shared), name in needed) for name in names
        ]
        return " ".join(row if must else f"({row})?" for row, must in rows)
    one = _python if written.arguments == PYTHON else _quoted
    rows = [(one(rules, name, properties(schema)[name], shared), name in needed) for name in names]
    return _listed(rules, rows, ", " if written.arguments == PYTHON else ",")


def _xml(rules: Rules, p: Parameter, name: str, schema: Any, shared: Mapping[str, Any]) -> str:
    between = p.between.replace("?", "true" if is_text(schema) else "false")
    head, after, texts = rules.text(p.before + name + between), rules.text(p.after), _texts(schema)
    if texts is not None:
        value = rules.add(" | ".join(rules.text(t) or '""' for t in texts)) + f" {after}"
    elif is_text(schema) or (TEXT in types(schema) and "null" not in types(schema)):
        value = rules.until(p.after)
    else:
        value = rules.add(_json(schema, shared)) + f" {after}"
    return rules.add(f"{head} {value}")


def _python(rules: Rules, name: str, schema: Any, shared: Mapping[str, Any]) -> str:
    value = '"True" | "False"' if types(schema) == {"boolean"} else _json(schema, shared)
    return rules.add(f"{rules.text(name + '=')} ({value})")


def _quoted(rules: Rules, name: str, schema: Any, shared: Mapping[str, Any]) -> str:
    texts, quote = _texts(schema), rules.text(QUOTE)
    if texts is not None:
        value = " | ".join(" ".join(filter(None, (quote, rules.text(t), quote))) for t in texts)
    else:
        value = f"{quote} {rules.until(QUOTE)}" if is_text(schema) else _json(schema, shared)
    return rules.add(f"{rules.text(name + ':')} ({value})")


def _json(schema: Any, shared: Mapping[str, Any]) -> str:
    return json_in_lark({**schema, **shared} if isinstance(schema, Mapping) else schema)


def _listed(rules: Rules, rows: Sequence[tuple[str, bool]], comma: str) -> str:
    """Required rows, then optional ones, with commas between."""
    must, may = [row for row, needed in rows if needed], [row for row, needed in rows if not needed]
    between = rules.text(comma)
    if must:
        return rules.add(f" {between} ".join(must) + "".join(f" ({between} {row})?" for row in may))
    rest = ""
    for i, row in reversed([*enumerate(may)]):  # the first of them has no comma before it, whichever it is
        tail = "".join(f" ({between} {later})?" for later in may[i + 1 :])
        rest = f"({row}{tail})" + (f" | {rest}" if rest else "")
    return f"({rules.add(rest)})?" if rest else ""


def _texts(schema: Any) -> list[str] | None:
    """The texts of an enum or a const."""
    if not isinstance(schema, Mapping):
        return None
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return values if isinstance(values, list) and values and all(isinstance(v, str) for v in values) else None


def _literal(text: str) -> Iterator[str]:
    if text:
        yield json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r".^$*+?{}[]\|()/&~-" else c for c in text)
