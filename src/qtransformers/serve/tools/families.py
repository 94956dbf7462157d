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
from qtransformers.serve.tools.forms import Json, Named, Xml
from qtransformers.serve.tools.parser import Frame, Parser, Thoughts, call_id, short_id
from qtransformers.serve.tools.python import Python


@dataclass(frozen=True)
class Family:
    """One way to write calls."""

    name: str
    marks: tuple[str, ...]  # of its templates
    frame: Frame | None = None
    harmony: bool = False
    new_id: Callable[[], str] = call_id


@dataclass(frozen=True)
class ThoughtFamily:
    """One way to write thoughts."""

    name: str
    marks: tuple[str, ...]
    thoughts: Thoughts | None


_WORD = r"(?P<name>[\w.:/-]+)"
_HERMES = Frame(Json(), ("<tool_call>",), ("</tool_call>",))
_INVOKE = Xml(('">',), '<parameter name="', ">", "</parameter>")
_LFM2 = Frame(Python(), ("<|tool_call_start|>",), ("<|tool_call_end|>",))
_LINES = Xml((">",), "<parameter=", ">", "</parameter>", lines=True)

FAMILIES = (
    Family("gpt-oss", ("<|channel|>", "<|message|>", "<|start|>"), harmony=True),
    Family("deepseek-v3.2", ("｜DSML｜",), Frame(
        Xml(('">',), '<｜DSML｜parameter name="', ">", "</｜DSML｜parameter>"), ('<｜DSML｜invoke name="',), ("</｜DSML｜invoke>",),
        ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"), ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"), wrapped=True)),
    Family("deepseek-v3", ("<｜tool▁sep｜>", "```json"), Frame(
        Named(re.compile(rf"\s*function<｜tool▁sep｜>\s*{_WORD}\s*"), ("```json",), within=("<｜tool▁sep｜>",)), ("<｜tool▁call▁begin｜>",), ("```", "<｜tool▁call▁end｜>"),
        ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",))),
    Family("deepseek-v3.1", ("<｜tool▁sep｜>",), Frame(
        Named(re.compile(rf"\s*{_WORD}\s*"), ("<｜tool▁sep｜>",)), ("<｜tool▁call▁begin｜>",), ("<｜tool▁call▁end｜>",),
        ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",))),
    Family("kimi-k2", ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), Frame(
        Named(re.compile(r"\s*(?P<id>(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?)\s*"), ("<|tool_call_argument_begin|>",)),
        ("<|tool_call_begin|>",), ("<|tool_call_end|>",), ("<|tool_calls_section_begin|>",), ("<|tool_calls_section_end|>",))),
    Family("solar", ("<|tool_call:begin|>", "<|tool_call:args|>"), Frame(
        Named(re.compile(rf"(?P<id>\S*?)<\|tool_call:name\|>{_WORD}"), ("<|tool_call:args|>",), within=("<|tool_call:name|>",)),
        ("<|tool_call:begin|>",), ("<|tool_call:end|>",), ("<|tool_calls|>",), ("<|calls|>",))),
    Family("minimax-m2", ("<minimax:tool_call>",), Frame(
        _INVOKE, ('<invoke name="',), ("</invoke>",), ("<minimax:tool_call>",), ("</minimax:tool_call>",), wrapped=True)),
    Family("seed-oss", ("<seed:tool_call>",), Frame(
        _LINES, ("<function=",), ("</function>",), ("<seed:tool_call>",), ("</seed:tool_call>",), wrapped=True)),
    Family("glm-4.5", ("<arg_key>", "<arg_value>"), Frame(
        Xml(("\n", "<arg_key>", "</tool_call>"), "<arg_key>", "</arg_key>", "</arg_value>", value="<arg_value>",
            kept=frozenset(["<arg_key>", "</tool_call>"])), ("<tool_call>",), ("</tool_call>",))),
    Family("qwen3-coder", ("<tool_call>", "<function=", "<parameter="), Frame(
        _LINES, ("<function=",), ("</function>",), ("<tool_call>",), ("</tool_call>",))),
    Family("functionary-v3.1", ("<function=", "</function>"), Frame(
        Named(re.compile(rf"\s*{_WORD}\s*"), (">", "{")), ("<function=",), ("</function>",))),
    Family("mistral-args", ("[TOOL_CALLS]", "[ARGS]"), Frame(
        Named(re.compile(rf"\s*{_WORD}(?:\[CALL_ID\](?P<id>\w*))?\s*"), ("[ARGS]", "{"), other=Json(),
            within=("[CALL_ID]",)), ("[TOOL_CALLS]",)), new_id=short_id),
    Family("mistral", ("[TOOL_CALLS]",), Frame(
        Named(re.compile(rf"\s*{_WORD}\s*"), ("[ARGS]", "{"), other=Json()), ("[TOOL_CALLS]",)), new_id=short_id),
    Family("command-r7b", ("<|START_ACTION|>",), Frame(Json(), ("<|START_ACTION|>",), ("<|END_ACTION|>",))),
    Family("command-r", ("Action:", "```json", "tool_name"), Frame(Json(), ("```json",), ("```",), ("Action:",), wrapped=True)),
    Family("lfm2", ("<|tool_list_start|>",), _LFM2),
    Family("lfm2", ("<|tool_call_start|>",), _LFM2),
    Family("granite-3", ("<|tool_call|>", "<|start_of_role|>"), Frame(
        Json(), ("<|tool_call|>", "<tool_call>"), ("</tool_call>",))),
    Family("phi-4-mini", ("<|/tool|>",), Frame(
        Json(), ("<|tool_call|>", "functools"), ("<|/tool_call|>",), first=("[",), first_form=Json(bare=True))),
    Family("apertus", ("<|tools_prefix|>",), Frame(Json(keyed=True), ("<|tools_prefix|>",), ("<|tools_suffix|>",))),
    Family("nemotron", ("<TOOLCALL>",), Frame(Json(), ("<TOOLCALL>",), ("</TOOLCALL>",))),
    Family("firefunction", ("functools",), Frame(Json(), ("functools",))),
    Family("tool-calls", ("<tool_calls>",), Frame(Json(), ("<tool_calls>",), ("</tool_calls>",))),
    Family("hermes", ("<tool_call>",), _HERMES),
    Family("olmo-3", ("<function_calls>", "</function_calls>"), Frame(
        Python(), ("<function_calls>",), ("</function_calls>",))),
    Family("llama-4", ("<|header_start|>",), Frame(
        Python(), ("<|python_start|>", "<|python_tag|>"), ("<|python_end|>",), first=("[",), first_form=Python(bare=True))),
    Family("llama-3", ("<|start_header_id|>", "ipython", "parameters"), Frame(
        Json(), ("<|python_tag|>",), first=("{",), first_form=Json(bare=True))),
    Family("gemma", ("<start_of_turn>",), Frame(
        Python(bare=True), ("```tool_code", "```python"), ("```",), first=("[",), first_form=Python(bare=True))),
)  # fmt: skip
GENERIC = Family("generic", (), _HERMES)  # for templates that know no tools: `prompts` says how to call

_THINK = Thoughts(("<think>",), ("</think>",))
THOUGHTS = (
    ThoughtFamily("gpt-oss", ("<|channel|>", "<|message|>", "<|start|>"), None),
    ThoughtFamily("command-r7b", ("<|START_THINKING|>",), Thoughts(
        ("<|START_THINKING|>",), ("<|END_THINKING|>",), ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"))),
    ThoughtFamily("seed-oss", ("<seed:think>",), Thoughts(("<seed:think>",), ("</seed:think>",))),
    ThoughtFamily("minimax-m3", ("<mm:think>",), Thoughts(("<mm:think>",), ("</mm:think>",))),
    ThoughtFamily("mistral", ("[THINK]",), Thoughts(("[THINK]",), ("[/THINK]",))),
    ThoughtFamily("apertus", ("<|inner_prefix|>",), Thoughts(("<|inner_prefix|>",), ("<|inner_suffix|>",))),
    ThoughtFamily("solar", ("<|think|>", "<|content|>"), Thoughts(
        ("<|think|>",), ("<|end|>",), ("<|begin|>assistant", "<|content|>"))),
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
            harmony=self.family.harmony,
        )


def syntax_of(
    template: str | None, *, architecture: str = "", tool_parser: str | None = None, reasoning_parser: str | None = None
) -> Syntax:
    """The syntax of a chat template's model; the names of rows, or "none", override what is found. ConfigError lists the names."""
    text = template or ("<|start|><|channel|><|message|>" if architecture == "gpt-oss" else "")
    family = _named("tool_parser", tool_parser, (*FAMILIES, GENERIC, _NO_CALLS)) or _found(text, FAMILIES) or GENERIC
    thoughts = _named("reasoning_parser", reasoning_parser, (*THOUGHTS, _NO_THOUGHTS)) or _found(text, THOUGHTS)
    return Syntax(family, thoughts or _NO_THOUGHTS, re.search(r"\btools\b", text) is not None)


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
