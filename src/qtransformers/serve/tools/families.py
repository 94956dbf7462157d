"""How the models of the field write calls and thoughts: one row a family, found by what a chat template holds.

A row's `marks` all stand in the templates of its family; the first row that fits counts. Sources: the chat templates that
the models are published with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.serve.tools.forms import Json, Named, Quoted, Xml
from qtransformers.serve.tools.parser import HARMONY, Frame, Parser, Thoughts, call_id, short_id
from qtransformers.serve.tools.python import Python
from qtransformers.serve.tools.written import PYTHON, QUOTED, Control, Parameter, Written, grammar_of, json_grammar


@dataclass(frozen=True)
class Family:
    """One way to write calls: how they are read, and how they are written where an answer has to call."""

    name: str
    marks: tuple[str, ...]  # of its templates
    frame: Frame | None = None
    written: Written | None = None
    new_id: Callable[[], str] = call_id
    tools_in_system: bool = False  # its template reads tools from the system's message

    @property
    def short_ids(self) -> bool:
        """Whether its template takes ids of nine letters and digits only."""
        return self.new_id is short_id


@dataclass(frozen=True)
class ThoughtFamily:
    """One way to write thoughts."""

    name: str
    marks: tuple[str, ...]
    thoughts: Thoughts | None


_WORD = r"(?P<name>[\w.:/-]+)"
_INVOKE = Xml(('">',), '<parameter name="', ">", "</parameter>")
_LINES = Xml((">",), "<parameter=", ">", "</parameter>", lines=True)
_DSML = Xml(('">',), '<｜DSML｜parameter name="', ">", "</｜DSML｜parameter>")
_PARAMETER = Parameter("<parameter=", ">\n", "\n</parameter>\n")
_LIST = '{"name": "@", "arguments": #}'
_HERMES = Frame(Json(), ("<tool_call>",), ("</tool_call>",))
_HERMES_WRITTEN = Written('<tool_call>\n{"name": "@", "arguments": #}\n</tool_call>', between="\n")
_LFM2 = Frame(Python(), ("<|tool_call_start|>",), ("<|tool_call_end|>",))
_LFM2_WRITTEN = Written("@(#)", "<|tool_call_start|>[", ", ", "]<|tool_call_end|>", PYTHON)

FAMILIES = (
    Family("gpt-oss", ("<|channel|>", "<|message|>", "<|start|>"), HARMONY,
        Written("<|channel|>commentary to=functions.@ <|constrain|>json<|message|>#", several=False)),
    Family("deepseek-v3.2", ("｜DSML｜",), Frame(
        _DSML, ('<｜DSML｜invoke name="',), ("</｜DSML｜invoke>",), ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"),
        ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"), wrapped=True),
        Written('<｜DSML｜invoke name="@">\n#</｜DSML｜invoke>\n', "<｜DSML｜function_calls>\n", "", "</｜DSML｜function_calls>",
            Parameter('<｜DSML｜parameter name="', '" string="?">', "</｜DSML｜parameter>\n"))),
    Family("deepseek-v3", ("<｜tool▁sep｜>", "```json"), Frame(
        Named(re.compile(rf"\s*function<｜tool▁sep｜>\s*{_WORD}\s*"), ("```json",), within=("<｜tool▁sep｜>",)),
        ("<｜tool▁call▁begin｜>",), ("```", "<｜tool▁call▁end｜>"), ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",)),
        Written("<｜tool▁call▁begin｜>function<｜tool▁sep｜>@\n```json\n#\n```<｜tool▁call▁end｜>", "<｜tool▁calls▁begin｜>", "\n",
            "<｜tool▁calls▁end｜>")),
    Family("deepseek-v3.1", ("<｜tool▁sep｜>",), Frame(
        Named(re.compile(rf"\s*{_WORD}\s*"), ("<｜tool▁sep｜>",)), ("<｜tool▁call▁begin｜>",), ("<｜tool▁call▁end｜>",),
        ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",)),
        Written("<｜tool▁call▁begin｜>@<｜tool▁sep｜>#<｜tool▁call▁end｜>", "<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>")),
    Family("kimi-k2", ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), Frame(
        Named(re.compile(r"\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?)\s*"), ("<|tool_call_argument_begin|>",)),
        ("<|tool_call_begin|>",), ("<|tool_call_end|>",), ("<|tool_calls_section_begin|>",), ("<|tool_calls_section_end|>",)),
        Written("<|tool_call_begin|>functions.@:%<|tool_call_argument_begin|>#<|tool_call_end|>",
            "<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>")),
    Family("solar", ("<|tool_call:begin|>", "<|tool_call:args|>"), Frame(
        Named(re.compile(rf"(?P<id>\S*?)<\|tool_call:name\|>{_WORD}"), ("<|tool_call:args|>",), within=("<|tool_call:name|>",)),
        ("<|tool_call:begin|>",), ("<|tool_call:end|>",), ("<|tool_calls|>",), ("<|calls|>",)),
        Written("<|tool_call:begin|>%<|tool_call:name|>@<|tool_call:args|>#<|tool_call:end|>", "<|tool_calls|>")),
    Family("minimax-m2", ("<minimax:tool_call>",), Frame(
        _INVOKE, ('<invoke name="',), ("</invoke>",), ("<minimax:tool_call>",), ("</minimax:tool_call>",), wrapped=True),
        Written('<invoke name="@">\n#</invoke>\n', "<minimax:tool_call>\n", "", "</minimax:tool_call>",
            Parameter('<parameter name="', '">', "</parameter>\n"))),
    Family("seed-oss", ("<seed:tool_call>",), Frame(
        _LINES, ("<function=",), ("</function>",), ("<seed:tool_call>",), ("</seed:tool_call>",), wrapped=True),
        Written("<seed:tool_call>\n<function=@>\n#</function>\n</seed:tool_call>", between="\n",
            arguments=Parameter("<parameter=", ">", "</parameter>\n"))),
    Family("glm-4.5", ("<arg_key>", "<arg_value>"), Frame(
        Xml(("\n", "<arg_key>", "</tool_call>"), "<arg_key>", "</arg_key>", "</arg_value>", value="<arg_value>",
            kept=frozenset(["<arg_key>", "</tool_call>"])), ("<tool_call>",), ("</tool_call>",)),
        Written("<tool_call>@\n#</tool_call>", between="\n",
            arguments=Parameter("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"))),
    Family("qwen3-coder", ("<tool_call>", "<function=", "<parameter="), Frame(
        _LINES, ("<function=",), ("</function>",), ("<tool_call>",), ("</tool_call>",)),
        Written("<tool_call>\n<function=@>\n#</function>\n</tool_call>", between="\n", arguments=_PARAMETER)),
    Family("functionary-v3.1", ("<function=", "</function>"), Frame(
        Named(re.compile(rf"\s*{_WORD}\s*"), (">", "{")), ("<function=",), ("</function>",)),
        Written("<function=@>#</function>")),
    Family("mistral-args", ("[TOOL_CALLS]", "[ARGS]"), Frame(
        Named(re.compile(rf"\s*{_WORD}(?:\[CALL_ID\](?P<id>\w*))?\s*"), ("[ARGS]", "{"), Json(), ("[CALL_ID]",)), ("[TOOL_CALLS]",)),
        Written("[TOOL_CALLS]@[ARGS]#"), short_id),
    Family("mistral", ("[TOOL_CALLS]",), Frame(
        Named(re.compile(rf"\s*{_WORD}\s*"), ("[ARGS]", "{"), other=Json()), ("[TOOL_CALLS]",)),
        Written(_LIST, "[TOOL_CALLS][", ", ", "]"), short_id),
    Family("command-r7b", ("<|START_ACTION|>",), Frame(Json(), ("<|START_ACTION|>",), ("<|END_ACTION|>",)),
        Written('    {"tool_call_id": "%", "tool_name": "@", "parameters": #}', "<|START_ACTION|>[\n", ",\n", "\n]<|END_ACTION|>")),
    Family("command-r", ("Action:", "```json", "tool_name"), Frame(Json(), ("```json",), ("```",), ("Action:",), wrapped=True),
        Written('    {\n        "tool_name": "@",\n        "parameters": #\n    }', "Action: ```json\n[\n", ",\n", "\n]```")),
    Family("gemma-4", ("<|tool_call>", "<tool_call|>"), Frame(
        Quoted("<tool_call|>"), ("<|tool_call>",), ("<tool_call|>",)),
        Written("<|tool_call>call:@{#}<tool_call|>", arguments=QUOTED)),
    Family("lfm2", ("<|tool_list_start|>",), _LFM2, _LFM2_WRITTEN),
    Family("lfm2", ("<|tool_call_start|>",), _LFM2, _LFM2_WRITTEN),
    Family("granite-3", ("<|tool_call|>", "<|start_of_role|>"), Frame(
        Json(), ("<|tool_call|>", "<tool_call>"), ("</tool_call>",)), Written(_LIST, "<|tool_call|>[", ", ", "]")),
    Family("phi-4-mini", ("<|/tool|>",), Frame(
        Json(), ("<|tool_call|>", "functools"), ("<|/tool_call|>",), first=("[",), first_form=Json(bare=True)),
        Written(_LIST, "<|tool_call|>[", ", ", "]<|/tool_call|>"), tools_in_system=True),
    Family("apertus", ("<|tools_prefix|>",), Frame(Json(keyed=True), ("<|tools_prefix|>",), ("<|tools_suffix|>",)),
        Written('{"@": #}', "<|tools_prefix|>[", ", ", "]<|tools_suffix|>")),
    Family("nemotron", ("<TOOLCALL>",), Frame(Json(), ("<TOOLCALL>",), ("</TOOLCALL>",)),
        Written(_LIST, "<TOOLCALL>[", ", ", "]</TOOLCALL>")),
    Family("firefunction", ("functools",), Frame(Json(), ("functools",)), Written(_LIST, " functools[", ", ", "]")),
    Family("tool-calls", ("<tool_calls>",), Frame(Json(), ("<tool_calls>",), ("</tool_calls>",)),
        Written(_LIST, "<tool_calls>[", ", ", "]</tool_calls>")),
    Family("hermes", ("<tool_call>",), _HERMES, _HERMES_WRITTEN),
    Family("olmo-3", ("<function_calls>", "</function_calls>"), Frame(Python(), ("<function_calls>",), ("</function_calls>",)),
        Written("@(#)", "<function_calls>\n", "\n", "\n</function_calls>", PYTHON)),
    Family("llama-4", ("<|header_start|>",), Frame(
        Python(), ("<|python_start|>", "<|python_tag|>"), ("<|python_end|>",), first=("[",), first_form=Python(bare=True)),
        Written("@(#)", "[", ", ", "]", PYTHON)),
    Family("llama-3", ("<|start_header_id|>", "ipython", "parameters"), Frame(
        Json(), ("<|python_tag|>",), first=("{",), first_form=Json(bare=True)),
        Written('{"name": "@", "parameters": #}', several=False)),
    Family("gemma", ("<start_of_turn>",), Frame(
        Python(bare=True), ("```tool_code", "```python"), ("```",), first=("[",), first_form=Python(bare=True)),
        Written("@(#)", "```tool_code\n", "\n", "\n```", PYTHON)),
)  # fmt: skip
GENERIC = Family(
    "generic", (), _HERMES, _HERMES_WRITTEN
)  # for templates that know no tools: `prompts` says how to call

_THINK = Thoughts(("<think>",), ("</think>",))
THOUGHTS = (
    ThoughtFamily("gpt-oss", ("<|channel|>", "<|message|>", "<|start|>"), Thoughts(  # the parser of calls reads them, too
        ("<|channel|>analysis<|message|>",), ("<|end|>",), then="<|start|>assistant")),
    ThoughtFamily("command-r7b", ("<|START_THINKING|>",), Thoughts(
        ("<|START_THINKING|>",), ("<|END_THINKING|>",), ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"))),
    ThoughtFamily("seed-oss", ("<seed:think>",), Thoughts(("<seed:think>",), ("</seed:think>",))),
    ThoughtFamily("minimax-m3", ("<mm:think>",), Thoughts(("<mm:think>",), ("</mm:think>",))),
    ThoughtFamily("mistral", ("[THINK]",), Thoughts(("[THINK]",), ("[/THINK]",))),
    ThoughtFamily("apertus", ("<|inner_prefix|>",), Thoughts(("<|inner_prefix|>",), ("<|inner_suffix|>",))),
    ThoughtFamily("gemma-4", ("<|channel>", "<channel|>"), Thoughts(("<|channel>thought",), ("<channel|>",))),
    ThoughtFamily("solar", ("<|think|>", "<|content|>"), Thoughts(
        ("<|think|>",), ("<|end|>",), ("<|begin|>assistant", "<|content|>"), then="<|begin|>assistant")),
    ThoughtFamily("apriel", ("[BEGIN FINAL RESPONSE]",), Thoughts(
        (), ("[BEGIN FINAL RESPONSE]",), ("[END FINAL RESPONSE]",), assumed=True)),
    ThoughtFamily("granite-3.2", ("Here is my thought process:", "Here is my response:"), Thoughts(
        ("Here is my thought process:",), ("Here is my response:",))),
    ThoughtFamily("granite-3.3", ("</think>", "<response>", "<|start_of_role|>"), Thoughts(
        ("<think>",), ("</think>",), ("<response>", "</response>"))),
    ThoughtFamily("think", ("</think>",), _THINK),
    ThoughtFamily("think", ("<think>",), _THINK),
)  # fmt: skip
NONE = "none"


@dataclass(frozen=True)
class Syntax:
    """How one model writes calls and thoughts."""

    family: Family
    thoughts: ThoughtFamily
    knows_tools: bool  # its template puts tools in the prompt
    knows_calls: bool = True  # and calls of earlier turns
    no_system: bool = False  # its template has no place for a system's text

    @property
    def shown(self) -> tuple[str, ...]:
        """The marks that a parser looks for: control tokens among them must be part of the text it is fed."""
        frame, thoughts = self.family.frame, self.thoughts.thoughts
        found = frame.texts if frame else ()
        if thoughts:
            found += (*thoughts.open, *thoughts.close, *thoughts.answer)
        return tuple(dict.fromkeys(found))

    def thinking(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought, which the answer goes on with."""
        thoughts = self.thoughts.thoughts
        return thoughts is not None and bool(thoughts.open) and prompt.rstrip().endswith(thoughts.open)

    def parser(
        self,
        prompt: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> Parser:
        """A parser for the answer to a prompt. Without `tools`, OpenAI's definitions, no text is taken for a call."""
        return Parser(
            self.family.frame,
            self.thoughts.thoughts,
            tools=parameters(tools),
            thinking=self.thinking(prompt),
            new_id=new_id or self.family.new_id,
        )

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        choice: str | Mapping[str, Any] | None,
        control: Control,
        *,
        prompt: str = "",
        several: bool = True,
        schema: Any = None,
    ) -> str | None:
        """The Lark grammar of answers to a request with `tool_choice`; None where any text will do.

        "required": one call or more (`several`), of any tool; {"function": {"name"}}: one of this tool; "auto": text, or
        calls, which follow the schemas where tools ask for it (`strict`), or where the text has to be JSON of `schema`. `control`: the ids of control tokens by text.
        ConfigError for another choice, or a family that cannot call; ConstraintError for schemas that are none.
        """
        offered = parameters(tools)
        strict = any(tool.get("function", tool).get("strict") for tool in tools)
        if choice == "none" or not (tools or choice) or (choice in (None, "auto") and not strict and schema is None):
            return None
        written, frame = self.family.written, self.family.frame
        if written is None or frame is None:
            raise ConfigError(f"tool_choice={shown(choice)}, but calls are not looked for (tool_parser=none).")
        if isinstance(choice, Mapping):
            name = (
                choice.get("function", choice).get("name") if isinstance(choice.get("function", {}), Mapping) else None
            )
            if name not in offered:
                raise ConfigError(
                    f"tool_choice names {shown(name)}; expected one of tools: {', '.join(offered) or 'none'}."
                )
            offered, several = {name: offered[name]}, False
        elif choice not in (None, "auto", "required"):
            raise ConfigError(
                f'tool_choice={shown(choice)}; expected none, auto, required or {{"type": "function", ...}}.'
            )
        if not offered:
            raise ConfigError(f"tool_choice={shown(choice)}, but there are no tools. Give some.")
        optional = choice in (None, "auto")
        begins = _HARMONY_CALLS if frame is HARMONY else frame.begin + (() if frame.wrapped else frame.open)
        return grammar_of(
            written, self.thoughts.thoughts, offered, control, thinking=self.thinking(prompt),
            optional=optional, several=several, begins=begins, schema=schema,
        )  # fmt: skip

    def json_grammar(self, schema: Any, control: Control, prompt: str = "") -> str | None:
        """The Lark grammar of answers in JSON that a thought may precede; None where none does: the schema alone will do."""
        thoughts = self.thoughts.thoughts
        if thoughts is None:
            return None
        return json_grammar(schema, thoughts, control, thinking=self.thinking(prompt))


def syntax_of(
    template: str | None, *, architecture: str = "", tool_parser: str | None = None, reasoning_parser: str | None = None
) -> Syntax:
    """The syntax of a chat template's model; the names of rows, or "none", override what is found. ConfigError lists the names."""
    text = template or ("<|start|><|channel|><|message|>" if architecture == "gpt-oss" else "")
    family = _named("tool_parser", tool_parser, (*FAMILIES, GENERIC, _NO_CALLS)) or _found(text, FAMILIES) or GENERIC
    thoughts = _named("reasoning_parser", reasoning_parser, (*THOUGHTS, _NO_THOUGHTS)) or _found(text, THOUGHTS)
    knows_tools = re.search(r"\btools\b", text) is not None
    return Syntax(
        family, thoughts or _NO_THOUGHTS, knows_tools, "tool_calls" in text, "system role not supported" in text.lower()
    )


def parser_for(
    template: str | None,
    *,
    architecture: str = "",
    prompt: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
) -> Parser:
    """The parser of one answer; see `syntax_of` and `Syntax.parser`."""
    syntax = syntax_of(template, architecture=architecture, tool_parser=tool_parser, reasoning_parser=reasoning_parser)
    return syntax.parser(prompt, tools)


def parameters(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """Name -> JSON schema of the parameters, of OpenAI's tool definitions."""
    functions = [tool.get("function", tool) for tool in tools or ()]
    return {str(f["name"]): f.get("parameters") or {} for f in functions}


_HARMONY_CALLS = ("to=functions.",)  # every answer has marks there
_NO_CALLS = Family(NONE, ())
_NO_THOUGHTS = ThoughtFamily(NONE, (), None)
_Row = TypeVar("_Row", Family, ThoughtFamily)


def _found(text: str, rows: Sequence[_Row]) -> _Row | None:
    return next((row for row in rows if all(mark in text for mark in row.marks)), None)


def _named(field: str, name: str | None, rows: Sequence[_Row]) -> _Row | None:
    if name is None:
        return None
    row = next((row for row in rows if row.name == name), None)
    if row is None:
        raise ConfigError(f"{field}={shown(name)}; expected one of {', '.join(dict.fromkeys(r.name for r in rows))}.")
    return row
