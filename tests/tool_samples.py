"""Answers as models of each family write them: templates' marks, text, and what it means."""

from dataclasses import dataclass, field

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"enum": ["metric", "imperial"]},
                    "options": {"type": "object", "properties": {"wind": {"type": "boolean"}}},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]

PARIS = {"city": "Paris", "days": 3}


@dataclass(frozen=True)
class Sample:
    """`text` is an answer of `family`; `calls` are names and arguments."""

    family: str
    text: str
    calls: list = field(default_factory=list)
    content: str = ""
    thought: str = ""
    reasoning: str = "none"
    prompt: str = ""


WEATHER = ("get_weather", PARIS)
NOW = ("now", {})
ARGS = '{"city": "Paris", "days": 3}'

SAMPLES = [
    Sample("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGS}}}\n</tool_call>', [WEATHER]),
    Sample(
        "hermes",
        f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {ARGS}}}\n</tool_call>\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>',
        [WEATHER, NOW],
        "I look.",
    ),
    Sample("hermes", f'<tool_call>{{"arguments": {ARGS}, "name": "get_weather"}}</tool_call>', [WEATHER]),
    Sample("hermes", '<tool_call>{"name": "now"}</tool_call>\nDone.', [NOW], "Done."),
    Sample("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>', [WEATHER]),
    Sample("hermes", '<tool_call>{"type": "function", "function": {"name": "get_weather", "arguments": ' + ARGS + "}}</tool_call>!", [WEATHER], "!"),
    Sample("hermes", f'<tool_call>{{"name": "get_weather", "arguments": {ARGS}}}}}</tool_call>', [WEATHER]),
    Sample("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "a\nb </tool_call> \\" }"}}</tool_call>', [("get_weather", {"city": 'a\nb </tool_call> " }'})]),
    Sample("hermes", "The mark <tool_call> begins a call, <tool_call>{ too.", [], "The mark <tool_call> begins a call, <tool_call>{ too."),
    Sample(
        "hermes",
        f'Well, it is Paris.\n</think>\n\nI call.\n<tool_call>\n{{"name": "get_weather", "arguments": {ARGS}}}\n</tool_call>',
        [WEATHER], "I call.", "Well, it is Paris.", "think", "<|im_start|>assistant\n<think>\n",
    ),
    Sample("hermes", "<think>\n<tool_call>?\n</think>\n\nNo.", [], "No.", "<tool_call>?", "think", "<|im_start|>assistant\n"),
    Sample("hermes", "<think>\n\n</think>\n\nNo.\n", [], "No.\n", "", "think"),
    Sample(
        "qwen3-coder",
        "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        [WEATHER], "I look.",
    ),
    Sample("qwen3-coder", "<function=now>\n</function>\n</tool_call>", [NOW]),
    Sample(
        "qwen3-coder",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n"x"\n\n</parameter>\n<parameter=options>\n{"wind": true}\n</parameter>\n<parameter=more>\nTrue\n</parameter>\n</function>\n</tool_call>',
        [("get_weather", {"city": '12\n"x"\n', "options": {"wind": True}, "more": True})],
    ),
    Sample("glm-4.5", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>", [WEATHER]),
    Sample("glm-4.5", "<tool_call>now</tool_call><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call>", [NOW, WEATHER]),
    Sample("glm-4.5", "<tool_call>", [], "<tool_call>"),
    Sample(
        "minimax-m2",
        '<think>Hm.</think>\n\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        [WEATHER, NOW], "", "Hm.", "think",
    ),
    Sample("minimax-m2", 'One writes <invoke name="now"> there.', [], 'One writes <invoke name="now"> there.'),
    Sample(
        "seed-oss",
        "<seed:think>Hm.</seed:think>Yes.\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n<parameter=days>3</parameter>\n</function>\n</seed:tool_call>",
        [WEATHER], "Yes.", "Hm.", "seed-oss",
    ),
    Sample(
        "deepseek-v3.2",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        [WEATHER],
    ),
    Sample("llama-3", '{"name": "get_weather", "parameters": ' + ARGS + "}", [WEATHER]),
    Sample("llama-3", '<|python_tag|>{"name": "get_weather", "parameters": ' + ARGS + '}; {"name": "now", "parameters": {}}', [WEATHER, NOW]),
    Sample("llama-3", '{"type": "function", "name": "now", "parameters": {}}', [NOW]),
    Sample("llama-3", '{"name": "Fido", "parameters": {}}', [], '{"name": "Fido", "parameters": {}}'),
    Sample("llama-3", '{"city": ["a\\nb"], "x": {"name": "now"}} and so on', [], '{"city": ["a\\nb"], "x": {"name": "now"}} and so on'),
    Sample("functionary-v3.1", f"<function=get_weather>{ARGS}</function><function=now>{{}}</function>", [WEATHER, NOW]),
    Sample("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": ' + ARGS + ', "id": "VvvODy9mT"}, {"name": "now", "arguments": {}}]', [WEATHER, NOW]),
    Sample("mistral", " [TOOL_CALLS] [" + '{"name": "now", "arguments": {}}]', [NOW]),
    Sample("mistral-args", f"Yes.[TOOL_CALLS]get_weather[ARGS]{ARGS}[TOOL_CALLS]now[ARGS]{{}}", [WEATHER, NOW], "Yes."),
    Sample("mistral-args", f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{ARGS}", [WEATHER]),
    Sample("mistral-args", f"[THINK]Hm.[/THINK][TOOL_CALLS]get_weather{ARGS}", [WEATHER], "", "Hm.", "mistral"),
    Sample(
        "deepseek-v3",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{ARGS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{{}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [WEATHER, NOW],
    ),
    Sample(
        "deepseek-v3.1",
        f"Hm.</think>Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [WEATHER, NOW], "Yes.", "Hm.", "think", "<｜Assistant｜><think>",
    ),
    Sample(
        "kimi-k2",
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{ARGS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|><|tool_calls_section_end|>",
        [WEATHER, NOW],
    ),
    Sample(
        "solar",
        f"<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>ab12<|tool_call:name|>get_weather<|tool_call:args|>{ARGS}<|tool_call:end|>",
        [WEATHER], "", "Hm.", "solar",
    ),
    Sample("solar", "<|think|>Hm.<|end|><|begin|>assistant<|content|>Yes.", [], "Yes.", "Hm.", "solar"),
    Sample(
        "command-r7b",
        '<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": ' + ARGS + '},\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        [WEATHER, NOW], "", "I look.", "command-r7b",
    ),
    Sample("command-r7b", "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>", [], "Yes.", "Hm.", "command-r7b"),
    Sample("command-r", 'Action: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": ' + ARGS + "\n    }\n]```", [WEATHER]),
    Sample("granite-3", '<|tool_call|>[{"name": "get_weather", "arguments": ' + ARGS + "}]", [WEATHER]),
    Sample("granite-3", "<think>Hm.</think><response>Yes.</response>", [], "Yes.", "Hm.", "granite-3.3"),
    Sample("granite-3", "Here is my thought process:\nHm.\n\nHere is my response:\nYes.", [], "Yes.", "Hm.", "granite-3.2"),
    Sample("phi-4-mini", '<|tool_call|>[{"name": "get_weather", "arguments": ' + ARGS + "}]<|/tool_call|>", [WEATHER]),
    Sample("phi-4-mini", 'functools[{"name": "get_weather", "arguments": ' + ARGS + "}]", [WEATHER]),
    Sample("apertus", "<|inner_prefix|>Hm.<|inner_suffix|>Yes.<|tools_prefix|>[{" + f'"get_weather": {ARGS}' + '}, {"now": {}}]<|tools_suffix|>', [WEATHER, NOW], "Yes.", "Hm.", "apertus"),
    Sample("nemotron", '<TOOLCALL>[{"name": "get_weather", "arguments": ' + ARGS + "}]</TOOLCALL>", [WEATHER]),
    Sample("firefunction", ' functools[{"name": "get_weather", "arguments": ' + ARGS + "}]", [WEATHER]),
    Sample("tool-calls", '<tool_calls>\n{"name": "get_weather", "arguments": ' + ARGS + '}\n{"name": "now", "arguments": {}}\n</tool_calls>', [WEATHER, NOW]),
    Sample("tool-calls", 'Hm.\n[BEGIN FINAL RESPONSE]\nYes.\n<tool_calls>[{"name": "now", "arguments": {}}]</tool_calls>', [NOW], "Yes.", "Hm.", "apriel"),
    Sample("lfm2", '<|tool_call_start|>[get_weather(city="Paris", days=3), now()]<|tool_call_end|>Wait.', [WEATHER, NOW], "Wait."),
    Sample("llama-4", "[get_weather(city='Paris', days=3), now()]", [WEATHER, NOW]),
    Sample("llama-4", "[get_weather(city='Par", [], "[get_weather(city='Par"),
    Sample("llama-4", "[other(1), now()] is a list", [], "[other(1), now()] is a list"),
    Sample("gemma", "I look.\n```tool_code\nprint(get_weather(\"Paris\", days=3))\n```", [WEATHER], "I look."),
    Sample("gemma", '```python\nimport os\nnow = os.getpid()\n```', [], '```python\nimport os\nnow = os.getpid()\n```'),
    Sample("gemma", "```tool_code\nget_weather(city='it\\'s \\u00e9\\n', options={'wind': True, 'x': [1, -2.5, None]})\nnow()\n```", [("get_weather", {"city": "it's é\n", "options": {"wind": True, "x": [1, -2.5, None]}}), NOW]),
    Sample("olmo-3", "<function_calls>\nget_weather(city=\"Paris\", days=3)\nnow()\n</function_calls>", [WEATHER, NOW]),
    Sample(
        "gpt-oss",
        f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGS}<|call|>",
        [WEATHER], "", "Hm.", "gpt-oss",
    ),
    Sample(
        "gpt-oss",
        f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{ARGS}",
        [WEATHER], "I look.", "", "gpt-oss",
    ),
    Sample("gpt-oss", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n", [], "Yes.\n", "Hm.", "gpt-oss"),
    Sample("gpt-oss", "<|channel|> is a mark", [], "<|channel|> is a mark", "", "gpt-oss"),
    Sample(
        "gemma-4",
        '<|channel>thought\nHm.\n<channel|>I look.<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>',
        [WEATHER, NOW], "I look.", "Hm.", "gemma-4",
    ),
    Sample("gemma-4", '<|tool_call>call:get_weather{city:<|"|>a {b:"c"}\n<|"|>,options:{wind:true,x:[1,<|"|>y:<|"|>]}}<tool_call|>', [("get_weather", {"city": 'a {b:"c"}\n', "options": {"wind": True, "x": [1, "y:"]}})]),
    Sample("gemma-4", "<|tool_call>call:get_weather{city:Paris}<tool_call|>", [], "<|tool_call>call:get_weather{city:Paris}<tool_call|>"),
    # As the grammars of calls that have to be have them.
    Sample("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": ' + ARGS + '}, {"name": "now", "arguments": {}}]', [WEATHER, NOW]),
    Sample("mistral-args", f"[TOOL_CALLS]get_weather[ARGS]{ARGS}[TOOL_CALLS]now[ARGS]{{}}", [WEATHER, NOW]),
    Sample("deepseek-v3.1", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", [WEATHER]),
    Sample("solar", f"<|tool_calls|><|tool_call:begin|>12<|tool_call:name|>get_weather<|tool_call:args|>{ARGS}<|tool_call:end|>", [WEATHER]),
    Sample("minimax-m2", '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>', [WEATHER]),
    Sample("seed-oss", "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n<parameter=days>3</parameter>\n</function>\n</seed:tool_call>", [WEATHER]),
    Sample("qwen3-coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", [WEATHER]),
    Sample("command-r7b", '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": ' + ARGS + "}\n]<|END_ACTION|>", [WEATHER]),
    Sample("apertus", '<|tools_prefix|>[{"get_weather": ' + ARGS + '}, {"now": {}}]<|tools_suffix|>', [WEATHER, NOW]),
    Sample("tool-calls", '<tool_calls>[{"name": "get_weather", "arguments": ' + ARGS + "}]</tool_calls>", [WEATHER]),
    Sample("lfm2", '<|tool_call_start|>[get_weather(city="Paris", days=3), now()]<|tool_call_end|>', [WEATHER, NOW]),
    Sample("llama-4", '[get_weather(city="Paris", days=3), now()]', [WEATHER, NOW]),
    Sample("gemma", '```tool_code\nget_weather(city="Paris", days=3)\nnow()\n```', [WEATHER, NOW]),
    Sample("gpt-oss", f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGS}", [WEATHER]),
    Sample("gemma-4", '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', [WEATHER]),
    Sample("none", '<tool_call>{"name": "now"}</tool_call>', [], '<tool_call>{"name": "now"}</tool_call>'),
    Sample("generic", f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGS}}}\n</tool_call>', [WEATHER]),
]  # fmt: skip
