"""Prompt formats for files that carry no chat template: one row each, named by `prompt_format=`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, ModelNotFoundError, TemplateError

MAX_FILE = 2**20


@dataclass(frozen=True)
class PromptFormat:
    """A chat template, and the texts that end an answer even where the vocabulary has no token for them."""

    name: str
    template: str
    stop: tuple[str, ...] = ()


# The system text of formats without a place for it goes in front of the first user message.
_LLAMA_2 = """
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role in ('system', 'developer') -%}
        {%- set ns.system = '<<SYS>>\\n' + message.content.strip() + '\\n<</SYS>>\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- bos_token + '[INST] ' + ns.system + message.content.strip() + ' [/INST]' -}}
        {%- set ns.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- ' ' + message.content.strip() + ' ' + eos_token -}}
    {%- else -%}
        {{- raise_exception('the format llama-2 has no place for the role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
"""

_MISTRAL = """
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role in ('system', 'developer') -%}
        {%- set ns.system = message.content + '\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- '[INST] ' + ns.system + message.content + ' [/INST]' -}}
        {%- set ns.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- ' ' + message.content + eos_token -}}
    {%- else -%}
        {{- raise_exception('the format mistral has no place for the role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
"""

_CHATML = """
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_LLAMA_3 = """
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = 'ipython' if message.role == 'tool' else message.role -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + message.content.strip() + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_GEMMA = """
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role in ('system', 'developer') -%}
        {%- set ns.system = message.content.strip() + '\\n\\n' -%}
    {%- elif message.role in ('user', 'assistant') -%}
        {%- set role = 'model' if message.role == 'assistant' else 'user' -%}
        {{- '<start_of_turn>' + role + '\\n' + ns.system + message.content.strip() + '<end_of_turn>\\n' -}}
        {%- set ns.system = '' -%}
    {%- else -%}
        {{- raise_exception('the format gemma has no place for the role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

_ALPACA = """
{{- bos_token -}}
{%- set ns = namespace(
    system='Below is an instruction that describes a task. Write a response that appropriately completes the request.') -%}
{%- for message in messages if message.role in ('system', 'developer') -%}
    {%- set ns.system = message.content.strip() -%}
{%- endfor -%}
{{- ns.system -}}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '\\n\\n### Instruction:\\n' + message.content.strip() -}}
    {%- elif message.role == 'assistant' -%}
        {{- '\\n\\n### Response:\\n' + message.content.strip() -}}
    {%- elif message.role not in ('system', 'developer') -%}
        {{- raise_exception('the format alpaca has no place for the role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\\n\\n### Response:\\n' -}}
{%- endif -%}
"""

FORMATS: dict[str, PromptFormat] = {
    row.name: row
    for row in (
        PromptFormat("llama-2", _LLAMA_2, ("[INST]",)),
        PromptFormat("mistral", _MISTRAL, ("[INST]",)),
        PromptFormat("chatml", _CHATML, ("<|im_end|>", "<|im_start|>")),
        PromptFormat("llama-3", _LLAMA_3, ("<|eot_id|>", "<|start_header_id|>")),
        PromptFormat("gemma", _GEMMA, ("<end_of_turn>", "<start_of_turn>")),
        PromptFormat("alpaca", _ALPACA, ("\n### Instruction:",)),
    )
}
CHOICES = f"{', '.join(FORMATS)}, or the path of a jinja file"


def prompt_format(name: str | Path) -> PromptFormat:
    """The row of a name, or the template in a file; ConfigError listing the names, TemplateError for a file that is none."""
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    if not isinstance(name, (str, Path)):
        raise ConfigError(f"prompt_format={shown(name)}; expected {CHOICES}.")
    path = Path(name)
    if not path.suffix and len(path.parts) <= 1:
        raise ConfigError(f"prompt_format={shown(name)}; expected {CHOICES}.")
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_FILE + 1)
        source = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise TemplateError(
            f"prompt_format={str(path)!r}: the file is not UTF-8 text, so it is no jinja template."
        ) from None
    except (OSError, ValueError) as e:
        raise ModelNotFoundError(
            f"prompt_format={str(path)!r}: {getattr(e, 'strerror', None) or e}. Expected {CHOICES}."
        ) from None
    if len(raw) > MAX_FILE:
        raise TemplateError(
            f"prompt_format={str(path)!r}: the file has more than {MAX_FILE:,} bytes, which no chat template has."
        )
    return PromptFormat(path.name, source)
