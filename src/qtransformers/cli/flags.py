"""The flags of all verbs, one row each: spelling, type, help. `QTRANSFORMERS_<FLAG>` stands in where a flag is not given."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.checks import size
from qtransformers.errors import ConfigError
from qtransformers.settings import PREFIX, flag_from_env


def integer(minimum: int) -> Callable[[str], int]:
    """A parser of whole numbers of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least {minimum}")
        return value

    return parse


def number(minimum: float, maximum: float = float("inf")) -> Callable[[str], float]:
    """A parser of finite numbers within bounds."""
    expected = (
        f"a number of at least {minimum:g}" if maximum == float("inf") else f"a number from {minimum:g} to {maximum:g}"
    )

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return value

    return parse


def memory(text: str) -> int:
    """A parser of amounts of memory, to bytes."""
    try:
        return size("it", text)
    except ConfigError:
        hint = f" ({text}GiB?)" if text.isdecimal() and len(text) < 6 else ""
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r}; expected an amount of memory such as 24GiB or 500MB{hint}"
        ) from None


def bits(text: str) -> float:
    """A parser of bits per weight: 4.6 or 4.6bpw."""
    return number(1, 32)(text.removesuffix("bpw"))


def memories(text: str) -> tuple[int, ...]:
    """A parser of a list of amounts, separated by commas."""
    return tuple(memory(part) for part in text.split(","))


def biases(text: str) -> dict[int, float]:
    """A parser of what to add to logits: ID=X, separated by commas."""
    try:
        return {int(id): float(value) for id, value in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r}; expected token ids and numbers such as 15=2.5,198=-1"
        ) from None


@dataclass(frozen=True)
class Flag:
    """One flag; `kind` None means a switch."""

    spellings: tuple[str, ...]
    help: str
    kind: Callable[[str], Any] | None = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    default: Any = None
    env: bool = True
    field: str | None = None  # the name in Python, where it is another
    repeats: bool = False  # it may be given several times: the value is a list

    @property
    def name(self) -> str:
        """The long spelling without dashes."""
        return self.spellings[-1].lstrip("-")

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments."""
        return self.name.replace("-", "_")


# How to choose tokens: the fields of Sampling, in the order of its stages. Those of llama.cpp's spellings that differ are understood, too.
_CHOOSING = (
    Flag(("--temp",), "temperature; 0 is greedy", number(0), "X", field="temperature"),
    Flag(("--top-k",), "choose among the K likeliest tokens; 0 is off", integer(0), "K"),
    Flag(("--top-p",), "choose among the likeliest tokens of total probability P", number(0, 1), "P"),
    Flag(("--min-p",), "drop tokens less likely than P times the likeliest", number(0, 1), "P"),
    Flag(("--typical", "--typical-p"), "choose among tokens about as surprising as expected, of total probability P", number(0, 1), "P"),
    Flag(("--top-nsigma", "--top-n-sigma"), "drop tokens whose logit is more than X standard deviations below the largest; 0 is off", number(0, 1000), "X"),
    Flag(("--repeat-penalty", "--repetition-penalty"), "divide logits of tokens in prompt and answer by X; 1 is off", number(1e-3, 100), "X"),
    Flag(("--frequency-penalty",), "lower a token's logit by X each time it is in the answer", number(-100, 100), "X"),
    Flag(("--presence-penalty",), "lower the logits of tokens in the answer by X", number(-100, 100), "X"),
    Flag(("--repeat-last-n", "--penalty-range"), "penalties look at the last N tokens; -1 is all", integer(-1), "N"),
    Flag(("--dry-multiplier",), "lower the logit of what goes on with a repetition, the more the longer it is; 0 is off", number(0, 100), "X"),
    Flag(("--dry-base",), "by how much the DRY penalty grows with each token", number(1, 100), "X"),
    Flag(("--dry-allowed-length",), "repetitions shorter than N tokens are free", integer(1), "N"),
    Flag(("--dry-penalty-last-n", "--dry-range"), "DRY looks at the last N tokens; -1 is all", integer(-1), "N"),
    Flag(("--xtc-probability",), "how often to leave out the likeliest tokens but one", number(0, 1), "P"),
    Flag(("--xtc-threshold",), "how likely those are at least", number(0, 1), "P"),
    Flag(("--dynatemp-range",), "temperature moves by X either way, with how unsure the model is; 0 is off", number(0, 100), "X"),
    Flag(("--dynatemp-exp", "--dynatemp-exponent"), "how it moves: 1 is evenly", number(0, 100), "X"),
    Flag(("--mirostat-ent", "--mirostat-tau"), "keep the surprise of tokens at X bits on average; 0 is off", number(0, 100), "X"),
    Flag(("--mirostat-lr", "--mirostat-eta"), "how fast mirostat follows", number(0, 1), "X"),
    Flag(("--logit-bias",), "add to logits of tokens by their ids", biases, "ID=X[,ID=X...]"),
    Flag(("--seed",), "seed of the sampler; the same seed gives the same answer", integer(0), "N"),
)  # fmt: skip
SAMPLING = {flag.name: flag.field or flag.dest for flag in _CHOOSING}  # flag -> field of Sampling

# What the answer's text is, and where it ends.
_ENDING = (
    Flag(("-n", "--max-tokens"), "most tokens to answer with (default: until the model ends, or the context is full)", integer(1), "N"),
    Flag(("--min-tokens",), "least tokens to answer with", integer(0), "N"),
    Flag(("--stop",), "end the answer before TEXT; may be given several times", str, "TEXT", env=False, repeats=True),
    Flag(("--ban",), "TEXT does not come: the answer goes back and takes another way; may be given several times", str, "TEXT", env=False, field="banned", repeats=True),
    Flag(("--max-repeats",), "end where the last tokens are the same N times in a row (default: never)", integer(2), "N"),
    Flag(("--heal",), "let the answer complete the last token of the prompt; for --raw"),
    Flag(("--special",), "show control tokens in the answer", field="decode_special"),
    Flag(("--draft-max",), "most tokens to guess ahead (default: as many as pay)", integer(1), "N", field="max_draft"),
)  # fmt: skip
ENDING = {flag.name: flag.field or flag.dest for flag in _ENDING}  # flag -> field of a request

_ROWS = (
    # every verb
    Flag(("-v", "--verbose"), "say more on stderr: sources, timing, memory"),
    Flag(("--debug",), "show the traceback of an error"),
    Flag(("--color",), "colour on stderr (default: auto; NO_COLOR is honoured)", str, choices=("auto", "on", "off"), default="auto"),
    # what to load
    Flag(("--model-path",), "tokenizer, chat template and config from this directory or Hub id; weights from MODEL", str, "PATH"),
    Flag(("-c", "--context", "--ctx-size"), "context length in tokens (default: the model's)", integer(1), "N", field="context_length"),
    Flag(("--cache",), "type of the key-value cache: f32, f16, q8, q6, q4, or k8v4, keys in q8 and values in q4 (default: f16)", str, "TYPE"),
    Flag(("--rope-scaling",), "stretch the context: linear, ntk or yarn with a factor (yarn:4), or none (default: as the file says)", str, "KIND:X"),
    Flag(("--rope-base",), "base of the rotary frequencies (default: the file's)", number(1), "X"),
    Flag(("--accuracy",), "of products with quantised weights: exact, high or fast (default: fast)", str, "LEVEL"),
    Flag(("-t", "--threads"), "worker threads (default: one per usable core)", integer(1), "N"),
    Flag(("--pre",), "name of the pre-tokenizer, where the file's own is unknown or wrong", str, "NAME"),
    # the machine to plan for
    Flag(("-m", "--model"), "the model that answers (default: the one that each request names)", str, "MODEL"),
    Flag(("--ram",), "main memory to plan for (default: what is available here)", memory, "SIZE"),
    Flag(("--vram",), "memory of the GPU to plan for, of several separated by commas (default: those of this machine)", memories, "SIZE[,SIZE...]"),
    Flag(("--placement",), "what goes where: auto, cpu, entries such as experts=cpu,layers[0-15]=cuda:0, or a saved .json (default: auto)", str, "PLACES"),
    Flag(("--mlock",), "keep the weights in main memory, whatever else wants it"),
    Flag(("--preload",), "read all weights into memory before the first token, with a bar"),
    Flag(("--replicas",), "answer with N processes, each with an engine of its own; weights are in memory once", integer(1), "N"),
    Flag(("--stages",), "be the first of N processes that share the model's layers, and wait at HOST:PORT for the others (qtransformers stage)", str, "HOST:PORT/N"),
    Flag(("--save",), "write the resolved placement to FILE, for --placement", str, "FILE.json", env=False),
    # what to say
    Flag(("--draft",), "a smaller model of the same vocabulary: the model confirms its guesses, several tokens at a time", str, "MODEL"),
    Flag(("--prompt-format",), "chat format for files without a template: a name, or a jinja file", str, "NAME|FILE"),
    Flag(("--system",), "system message", str, "TEXT"),
    Flag(("--raw",), "continue the prompt as it is, without a chat template"),
    Flag(("--lora",), "LoRA adapters, GGUF files or PEFT folders, each at a scale (1), separated by commas", str, "PATH[=SCALE][,...]"),
    Flag(("--json-schema",), "the answer is JSON that follows this JSON Schema", str, "FILE|TEXT"),
    Flag(("--grammar",), "the answer follows this grammar, GBNF or Lark", str, "FILE|TEXT"),
    *_ENDING,
    *_CHOOSING,
    # how to serve
    Flag(("--host",), "address to listen at (default: 127.0.0.1, this machine only)", str, "ADDRESS"),
    Flag(("--port",), "port to listen at; 0 is any that is free (default: 8642)", integer(0), "N"),
    Flag(("--api-key-file",), "keys that requests must bring, one a line: KEY, or NAME KEY (or one in QTRANSFORMERS_API_KEY)", str, "FILE"),
    Flag(("--allow-anyone",), "listen beyond this machine without keys"),
    Flag(("--allow-host",), "another name of this server in Host, * for any; may be given several times", str, "NAME", env=False, repeats=True),
    Flag(("--allow-origin",), "a site whose pages may ask, * for any; may be given several times", str, "ORIGIN", env=False, repeats=True),
    Flag(("--alias",), "a name for the model, NAME or NAME=MODEL where there are several; may be given several times", str, "NAME[=MODEL]", env=False, repeats=True),
    Flag(("--adapter",), "a LoRA adapter of the first model, asked for by its name; may be given several times", str, "NAME=PATH", env=False, repeats=True),
    Flag(("--parallel",), "answers that are computed at the same time (default: 8)", integer(1), "N"),
    Flag(("--cache-tokens",), "tokens of all requests that the cache holds (default: one context)", integer(1), "N"),
    Flag(("--queue",), "answers that may wait; beyond them requests are refused with 503 (default: 64)", integer(0), "N"),
    Flag(("--per-key",), "requests of one key at a time (default: any number)", integer(1), "N"),
    Flag(("--rate",), "requests of one key a minute (default: any number)", number(1e-3), "N"),
    Flag(("--timeout",), "seconds until an answer must be complete (default: 1800)", number(0.01), "S"),
    Flag(("--drain",), "seconds that answers have left after SIGTERM (default: 30)", number(0.01), "S"),
    Flag(("--keep-alive",), "seconds after which a model that nobody asks for is unloaded (default: never)", number(0), "S"),
    Flag(("--max-body",), "largest body of a request (default: 8MiB)", memory, "SIZE"),
    Flag(("--max-answer",), "most tokens that one answer may ask for (default: the context)", integer(1), "N"),
    Flag(("--max-choices",), "most answers to one request: n, times the number of prompts (default: 16)", integer(1), "N"),
    Flag(("--tool-parser",), "how the model writes calls of tools, by the name of a family, or none (default: as its chat template shows)", str, "NAME"),
    Flag(("--reasoning-parser",), "how it writes what it thinks before it answers, the same way", str, "NAME"),
    Flag(("--allow-templates",), "requests may bring chat templates"),
    # what to paint
    Flag(("--base",), "folder or Hub id of the pipeline that has text encoders, VAE and scheduler", str, "PATH"),
    Flag(("--text-encoder",), "a text encoder from a GGUF file, by its name in the pipeline; may be given several times", str, "NAME=FILE", env=False, repeats=True),
    Flag(("--negative",), "what the picture should not show", str, "TEXT", env=False),
    Flag(("--steps",), "denoising steps (default: the pipeline's)", integer(1), "N"),
    Flag(("--size",), "pixels of the picture (default: the model's)", str, "WIDTHxHEIGHT"),
    Flag(("--guidance",), "how much the prompt counts (default: the pipeline's)", number(0, 1000), "X"),
    Flag(("--count",), "so many pictures (default: 1)", integer(1), "N", default=1, env=False),
    Flag(("--device",), "where to compute: cpu, or cuda (default: cpu)", str, "DEVICE", default="cpu"),
    Flag(("--offload",), "what leaves the GPU while it is not needed: none, model, group or sequential (default: none)", str, choices=("none", "model", "group", "sequential"), default="none"),
    # what to measure
    Flag(("--kl-divergence",), "compare with BASE, the model it was made of: Kullback-Leibler divergence, same favourites, changes of probability", str, "BASE", env=False),
    Flag(("-f", "--file"), "a text to learn from, UTF-8, or for a diffusion model the arguments of its forward in .safetensors; may be given several times (default: a small multilingual text that comes with the package, or noise)", str, "TEXT", env=False, repeats=True),
    Flag(("--chunk",), "tokens of a chunk (default: 512)", integer(4), "N", default=512, env=False),
    Flag(("--chunks",), "at most N chunks (default: all of the text)", integer(1), "N", env=False),
    Flag(("--parse-special",), "texts of control tokens become those tokens", env=False),
    # what to print and write
    Flag(("--json",), "print JSON", env=False),
    Flag(("--full",), "print whole arrays and texts", env=False),
    Flag(("-t", "--type"), "file type: F16, Q8_0, Q4_K_M, IQ4_XS, ... (default: Q8_0)", str, "TYPE", env=False),
    Flag(("--tensor-type",), "the type of tensors whose name a regular expression finds; may be given several times, the first that finds it decides", str, "PATTERN=TYPE", env=False, repeats=True),
    Flag(("--keep",), "tensors that stay in the type they are stored in; may be given several times", str, "PATTERN", env=False, repeats=True),
    Flag(("--awq",), "learn from texts (of diffusion models: from noise, or -f) where scales fold so that rounding hurts less; the model runs once, in floats", env=False),
    Flag(("--refine",), "learn from texts how rounding takes up its own errors: the best quality in as many bytes, and the slowest", env=False),
    Flag(("--budget",), "choose the type of each weight by what it costs the model: so many bits per weight on average, such as 4.6bpw", bits, "BITS", env=False),
    Flag(("--fit",), "the same, such that all tensors take at most SIZE", memory, "SIZE", env=False),
    Flag(("--imatrix",), "importance matrix: how much each column of a weight counts (qtransformers imatrix)", str, "FILE", env=False),
    Flag(("--config",), "folder of the original model: its config and tokenizer are copied beside .safetensors, or say what a diffusion model's tensors do not", str, "FOLDER", env=False),
    Flag(("--layout",), "layout of a diffusion model's file (default: original where there is one, which ComfyUI-GGUF reads)", str, choices=("original", "diffusers"), env=False),
    Flag(("--shard-size",), "write several files of at most this size", memory, "SIZE", env=False),
    Flag(("--overwrite",), "replace the file where it exists", env=False),
    Flag(("-o", "--output"), "the file to write", str, "FILE", env=False),
    Flag(("--name",), "general.name of the file written (default: the folder's)", str, "NAME", env=False),
    Flag(("--force",), "do what is refused otherwise: fetch what this version could not load, convert damaged weights", env=False),
    Flag(("-y", "--yes"), "do not ask", env=False),
    Flag(("--dry-run",), "say what would be written, write nothing", env=False),
)  # fmt: skip
FLAGS: dict[str, Flag] = {row.name: row for row in _ROWS}
DESTS = frozenset(row.dest for row in _ROWS)
GGUF_FILES = ("draft", "kl-divergence")  # that name one beside MODEL
COMMON = ("verbose", "debug", "color")
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def in_flags(message: str, known: Container[str] = DESTS) -> str:
    """A hint for a message that speaks of arguments by their names in Python: which of a verb's (`known`, as parsed) they are."""
    names = {
        f.field or f.dest: f.spellings[-1] for f in FLAGS.values() if f.dest in known and (f.field or "_" in f.dest)
    }
    if "model" in known:
        names["gguf_path"] = _file_flag(message, known if isinstance(known, Mapping) else {})
    said = [
        f"{name} is {flag}"
        for name, flag in names.items()
        if re.search(rf"\b{name}\b", message) and flag not in message
    ]
    return f" ({', '.join(said)})" if said else ""


def _file_flag(message: str, given: Mapping[str, Any]) -> str:
    """The flag whose file a message speaks of, where it does not speak of MODEL's."""

    def spoken(dest: str) -> bool:
        return bool(given.get(dest)) and bool(
            re.search(rf"(?<![\w/.-]){re.escape(str(given[dest]))}(?![\w/-])", message)
        )

    others = (FLAGS[name] for name in GGUF_FILES if spoken(FLAGS[name].dest) and not spoken("model"))
    return next((flag.spellings[-1] for flag in others), "MODEL")


def add_flags(
    parser: argparse.ArgumentParser, *names: str, env: Mapping[str, str] | None = None, helps: Mapping[str, str] = {}
) -> None:
    """Give `parser` these flags and the common ones, defaults taken from the environment; `helps` stands in for their own."""
    for name in (*names, *COMMON):
        flag = FLAGS[name]
        default, text = _from_env(flag, env), helps.get(name, flag.help)
        if flag.kind is None:
            parser.add_argument(*flag.spellings, dest=flag.dest, action="store_true", default=default, help=text)
        else:
            parser.add_argument(
                *flag.spellings,
                action="append" if flag.repeats else "store",
                dest=flag.dest,
                type=flag.kind,
                choices=flag.choices,
                metavar=flag.metavar,
                default=default,
                help=text,
            )


def _from_env(flag: Flag, env: Mapping[str, str] | None) -> Any:
    """What the environment says, checked like the flag itself; the flag's default when it says nothing."""
    text = flag_from_env(flag.name, env) if flag.env else None
    if text is None:
        return flag.default if flag.kind else False
    variable = PREFIX + flag.dest.upper()
    if flag.kind is None:
        if text.lower() not in _SWITCH:
            raise ConfigError(f"{variable} is {text!r}; expected one of {', '.join(_SWITCH)}.")
        return _SWITCH[text.lower()]
    if flag.choices and text not in flag.choices:
        raise ConfigError(f"{variable} is {text!r}; expected one of {', '.join(flag.choices)}.")
    try:
        return flag.kind(text)
    except argparse.ArgumentTypeError as e:
        raise ConfigError(f"{variable} is {e}.") from e
