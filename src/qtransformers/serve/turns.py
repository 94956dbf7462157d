"""A chat as it is asked for becomes a prompt and options; an answer becomes text, thoughts and calls. For all three APIs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.generate.requests import texts
from qtransformers.generate.sequence import Chunk, Completion
from qtransformers.load.chat import encode
from qtransformers.load.chat.formats import PromptFormat
from qtransformers.serve.answers import merged, request_options, started, usage_of
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import FINISH
from qtransformers.serve.tools import CallStart, Event, Parser, Reasoning, Syntax, syntax_of
from qtransformers.serve.tools.prompts import checked_tools, for_template

if TYPE_CHECKING:
    from qtransformers.generate.asynchronous import AsyncStream
    from qtransformers.serve.call import Call
    from qtransformers.serve.fields import ChatRequest
    from qtransformers.serve.models import Entry

MOST_TOP = 20  # as OpenAI's API has it


@dataclass
class Turn:
    """An answer under way: its stream, and what its text turns out to be."""

    stream: AsyncStream
    parser: Parser
    reasoning_tokens: int = 0
    calls: int = 0
    events: list[Event] = field(default_factory=list)  # all so far

    def take(self, chunk: Chunk) -> list[Event]:
        """The events that a chunk makes certain."""
        found = self.parser.feed(chunk.text)
        if self.parser.thinks or any(isinstance(event, Reasoning) for event in found):
            self.reasoning_tokens += len(chunk.tokens)
        if chunk.finish_reason:
            found = found + self.parser.finish()
        self.calls += sum(isinstance(event, CallStart) for event in found)
        self.events += found
        return found

    @property
    def completion(self) -> Completion:
        """The answer so far."""
        return self.stream.completion

    @property
    def finish_reason(self) -> str:
        """Why it ended, as OpenAI's chats say it."""
        found = FINISH[self.completion.finish_reason or "cancelled"]
        return "tool_calls" if found == "stop" and self.calls else found


def turns(call: Call, entry: Entry, ask: ChatRequest) -> list[Turn]:
    """The answers to a chat, ready to begin; HTTPError and ConfigError name what cannot be honoured."""
    options = request_options(call, entry, ask)
    if ask.max_completion_tokens is not None:
        options["max_tokens"] = ask.max_completion_tokens
    if ask.logprobs:
        options["logprobs"] = ask.top_logprobs or 0
    elif ask.top_logprobs:
        raise HTTPError(400, f"top_logprobs: {ask.top_logprobs} without logprobs. Say logprobs=true.", "invalid_value", field="top_logprobs")  # fmt: skip
    if not 0 <= (ask.top_logprobs or 0) <= MOST_TOP:
        raise HTTPError(400, f"top_logprobs: {ask.top_logprobs:,}; expected 0 to {MOST_TOP}.", "invalid_value", field="top_logprobs")  # fmt: skip
    syntax = syntax_for(entry)
    ids, prompt, tools = prompt_of(call, entry, ask)
    options |= _constraint(entry, syntax, ask, options, prompt, tools)
    options["stop"] = (*entry.loaded.chat_template.format.stop, *texts("stop", ask.stop))
    options["decode_special"] = syntax.shown
    streams = started(entry, [ids], ask.n or 1, options, add_bos=False, continues=False)
    return [Turn(stream, syntax.parser(prompt, tools)) for stream in streams]


async def said(turns: list[Turn], between: Callable[[float], None]) -> AsyncIterator[tuple[int, Chunk, list[Event]]]:
    """Chunks of all answers as they come, each with its answer's index and what it makes certain."""
    async for i, chunk in merged([turn.stream for turn in turns], between):
        yield i, chunk, turns[i].take(chunk)


async def complete_turns(turns: list[Turn], between: Callable[[float], None]) -> None:
    """Run all answers to their end."""
    async for _ in said(turns, between):
        pass


def usage_of_turns(turns: list[Turn]) -> dict[str, Any]:
    """Counts of tokens, as OpenAI's chats say them."""
    usage = usage_of(turn.completion for turn in turns)
    usage["completion_tokens_details"]["reasoning_tokens"] = sum(turn.reasoning_tokens for turn in turns)
    return usage


def syntax_for(entry: Entry) -> Syntax:
    """How the model writes calls and thoughts."""
    if entry.syntax is None:
        model, spec = entry.loaded, entry.spec
        template = model.chat_template
        entry.syntax = syntax_of(
            template.format.template + template.tool_template,
            architecture=model.plan.architecture,
            tool_parser=spec.tool_parser,
            reasoning_parser=spec.reasoning_parser,
        )
    return entry.syntax


def prompt_of(call: Call, entry: Entry, ask: ChatRequest) -> tuple[tuple[int, ...], str, list[dict[str, Any]]]:
    """The prompt of a chat, as token ids and as text, and the tools that may be called."""
    tools = [] if ask.tool_choice == "none" else checked_tools(ask.tools)
    messages, given = for_template(ask.messages, tools, syntax_for(entry))
    variables: dict[str, Any] = {}
    if ask.reasoning_effort is not None:
        variables = {"reasoning_effort": ask.reasoning_effort, "enable_thinking": ask.reasoning_effort != "none"}
    template = entry.loaded.chat_template
    if ask.chat_template is not None:
        if not call.config.templates:
            raise HTTPError(400, "chat_template: this server renders its models' own templates only (--allow-templates).", "invalid_value", field="chat_template")  # fmt: skip
        template = replace(template, format=PromptFormat("chat_template", ask.chat_template), tool_template="")
    prompt = template.render(
        messages, tools=given, documents=ask.documents, variables=variables | (ask.chat_template_kwargs or {})
    )
    entry.check_length("messages", prompt.text)
    return tuple(encode(prompt, entry.loaded.tokenizer)), prompt.text, tools


def _constraint(
    entry: Entry, syntax: Syntax, ask: ChatRequest, options: Mapping[str, Any], prompt: str, tools: list[dict[str, Any]]
) -> dict[str, Any]:
    """The option that makes an answer follow `tool_choice` and `response_format`."""
    tokenizer = entry.loaded.tokenizer

    def control(text: str) -> int | None:
        id = tokenizer.id_of(text)
        return id if id in tokenizer.special_ids else None

    schema = wanted_json(ask.response_format)
    several = ask.parallel_tool_calls is not False
    choice = None if ask.tool_choice == "none" else ask.tool_choice
    grammar = syntax.grammar(tools, choice, control, prompt=prompt, several=several, schema=schema)
    own = [name for name in ("grammar", "regex") if name in options]
    if own and (grammar is not None or schema is not None):
        raise HTTPError(400, f"{own[0]}: the answer has to follow tool_choice or response_format already. Leave one out.", "invalid_value", field=own[0])  # fmt: skip
    if grammar is not None:
        return {"grammar": grammar}
    if schema is None:
        return {}
    grammar = syntax.json_grammar(schema, control, prompt)
    return {"json_schema": schema} if grammar is None else {"grammar": grammar}


def wanted_json(response_format: Mapping[str, Any] | None) -> Any:
    """The schema that `response_format` asks for; None for text. ConfigError for another type."""
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = response_format.get("json_schema")
    if kind != "json_schema" or not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), (Mapping, bool)):
        raise ConfigError(
            f'response_format={shown(response_format)}; expected {{"type": "text"}}, {{"type": "json_object"}}, or '
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.'
        )
    return inner["schema"]
