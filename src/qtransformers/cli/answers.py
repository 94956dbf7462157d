"""Answers on their way to standard output, and what is said about them on standard error."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.cli.flags import ENDING, FLAGS, SAMPLING
from qtransformers.cli.models import fetched
from qtransformers.cli.terminal import note, plain_warnings, printable, progress, watched
from qtransformers.errors import ConfigError
from qtransformers.generate import Completion
from qtransformers.kernels.table import ACCURACY
from qtransformers.load.files import memory_text, size_text
from qtransformers.load.plan import LoadPlan
from qtransformers.machine import huge_mapped
from qtransformers.model import Model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qtransformers.options import LoadOptions

Message = dict[str, str]
ENDS = {
    "loop": "(ended: the same again and again; --max-repeats says how often)",
    "banned": "(ended: every way on leads to a text of --ban)",
}


@dataclass
class Talk:
    """A conversation with a model; without a template each text is continued on its own."""

    model: Model
    options: dict[str, Any]  # of every request
    system: str | None = None
    raw: bool = False
    verbose: bool = False
    color: str = "auto"
    turns: list[Message] = field(default_factory=list)  # the system message is no turn

    @property
    def title(self) -> str:
        """The model in a few words."""
        return f"{Path(self.model.plan.file).name}, context of {self.model.context_length:,} tokens"

    def clear(self) -> None:
        """Forget all turns."""
        self.turns.clear()

    def set_system(self, text: str | None) -> None:
        """Start over with another system message, or none."""
        self.system = text
        self.clear()

    def answer(self, text: str) -> None:
        """Print the answer as it comes; an interrupted one is kept as far as it came, then KeyboardInterrupt goes on."""
        text = utf8("the prompt", text)
        question = {"role": "user", "content": text}
        if self.raw:
            stream = self.model.stream(text, **self.options)
        else:
            stream = self.model.chat([*self._opening(), *self.turns, question], stream=True, **self.options)
        show = printable if sys.stdout.isatty() else str
        try:
            with stream:
                with watched("reading the prompt", lambda: stream.prompt_progress, self.color):
                    first = next(stream, None)
                for chunk in chain([first] if first else [], stream):
                    print(show(chunk.text), end="", flush=True)
        finally:
            done = stream.completion
            if not self.raw and done.text:
                self.turns += [question, {"role": "assistant", "content": done.text}]
        if not done.text.endswith("\n"):
            print(flush=True)
        self._report(done)

    def _opening(self) -> list[Message]:
        return [{"role": "system", "content": utf8("the system message", self.system)}] if self.system else []

    def _report(self, done: Completion) -> None:
        if done.finish_reason == "length" and "max_tokens" not in self.options:
            text = f"(cut off: the context of {self.model.context_length:,} tokens is full; --ctx-size sets it)"
            note(text, "yellow", self.color)
        if done.finish_reason in ENDS:
            note(ENDS[done.finish_reason], "yellow", self.color)
        if self.verbose:
            note(speed(done, self.model.plan), "dim", self.color)
            huge = huge_mapped(Path(self.model.plan.file))
            if huge is not None:
                note(
                    f"{memory_text(huge)} of {memory_text(self.model.plan.weights_bytes)} mapped in huge pages",
                    "dim",
                    self.color,
                )


@contextmanager
def talk(args: argparse.Namespace) -> Iterator[Talk]:
    """Load the model that the arguments name; warnings and the report of what was fetched and spared go to stderr."""
    if args.raw and (args.system or args.prompt_format):
        raise ConfigError("--raw leaves the chat template out, so --system and --prompt-format cannot be honoured.")
    with plain_warnings(args.color) as said:
        path = fetched(args.model, args.color)
        if args.stages:
            note(
                f"waiting for the other stages at {args.stages}: qtransformers stage MODEL HOST:PORT RANK",
                "dim",
                args.color,
            )
        model = on_its_way(
            args.color,
            path,
            args.model_path,
            context_length=args.ctx_size,
            cache=args.cache or "f16",
            placement=args.placement or "auto",
            accuracy=args.accuracy or ACCURACY,
            rope_base=args.rope_base,
            rope_scaling=args.rope_scaling,
            threads=args.threads,
            draft=None if args.draft is None else fetched(args.draft, args.color),
            prompt_format=args.prompt_format,
            pre=args.pre,
            mlock=args.mlock,
            stages=args.stages,
        )
        with model:
            if args.preload:  # once it is known that it can run
                preload(path, args.color)
            if args.model_path or args.verbose:
                for line in model.notes.splitlines():
                    if line not in said:
                        note(line, "dim", args.color)
            if args.verbose:
                given = model.sampling.override(**sampling(args))
                settings = [
                    f"{name} = {value} ({source})"
                    for name, (value, source) in model.provenance.items()
                    if value is not None and name != "sampling"
                ]
                note("\n".join((model.plan.text(), *settings, str(given))), "dim", args.color)
            raw = args.raw or continues(model, args)
            options = request_options(args) | loras(model, args.lora)
            yield Talk(model, options, args.system, raw, args.verbose, args.color)


def on_its_way(color: str, path: str | Path, model_path: str | Path | None, **options: Unpack[LoadOptions]) -> Model:
    """A loaded model, with a bar of what goes to GPUs, where anything does."""
    with progress("sending weights to the GPU", color) as update:
        return Model.load(path, model_path, progress=lambda done, total, speed: update(done, total), **options)


def preload(path: Path, color: str) -> None:
    """Read a model into memory, with a bar."""
    from qtransformers.load.source import open_model
    from qtransformers.load.warm import preload

    gguf = open_model(path)
    with progress("reading weights", color) as update:
        preload(gguf, update)
    gguf.close()


def utf8(what: str, text: str) -> str:
    """`text` as typed, also where the locale was no help in reading it; ConfigError when its bytes are no UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ConfigError(f"{what} is no UTF-8. Check the encoding of the terminal, or of what wrote it.") from None


def continues(model: Model, args: argparse.Namespace) -> bool:
    """Whether a model must do without a template: it has none and no format was named."""
    try:
        _ = model.chat_template
    except ConfigError:
        if args.system:
            raise
        note(
            "The model carries no chat template: it continues the text. To chat, name its format with --prompt-format."
        )
        return True
    return False


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say about choosing tokens; what they leave out is the model's choice."""
    given = {field: getattr(args, FLAGS[flag].dest) for flag, field in SAMPLING.items()}
    return {name: value for name, value in given.items() if value is not None}


def request_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say about a request; ConfigError for a file that cannot be read."""
    given = {field: getattr(args, FLAGS[flag].dest) for flag, field in ENDING.items()} | {
        "json_schema": file_or_text("--json-schema", args.json_schema, r"\s*(\{|true|false)"),
        "grammar": file_or_text("--grammar", args.grammar, r".*(::=|\bstart\b[^/]*:)"),
    }
    return sampling(args) | {name: value for name, value in given.items() if value not in (None, False)}


def loras(model: Model, given: str | None) -> dict[str, Any]:
    """The adapters of `PATH[=SCALE],...`, loaded."""
    found = [(model.load_lora(path), scale) for path, scale in scaled_paths(given)]
    return {"lora": found} if found else {}


def scaled_paths(given: str | None) -> list[tuple[str, float]]:
    """The paths of `PATH[=SCALE],...` with their scales; ConfigError for a scale that is no number."""
    found = []
    for item in given.split(",") if given else ():
        path, _, scale = item.partition("=")
        try:
            found.append((path, float(scale or 1)))
        except ValueError:
            raise ConfigError(f"--lora {item!r}: {scale!r} is no number. Write PATH=0.5, or PATH alone.") from None
    return found


def file_or_text(flag: str, value: str | None, text: str) -> str | None:
    """What a flag gives itself, where it matches `text`, else what is in the file that it names."""
    if value is None or re.match(text, value, re.DOTALL):
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no UTF-8 text"
        raise ConfigError(
            f"{flag} {value[:200]}: cannot be read as a file ({reason}). Give a file, or the text itself."
        ) from None


def bytes_per_token(plan: LoadPlan) -> int:
    """Weights that one decoded token reads: all but an embedding that serves for nothing else."""
    shared = set(plan.ties.values())
    return sum(t.nbytes for t in plan.tensors if t.slot.spec.role != "embed" or t.slot.attr in shared)


def speed(done: Completion, plan: LoadPlan) -> str:
    """Tokens a second of prompt and answer, and the weights read for it in bytes a second."""
    t = done.timings
    rate = t.tokens_per_second
    weights = f", {size_text(round(rate * bytes_per_token(plan)))}/s of weights" if rate else ""
    return (
        f"({t.prompt_tokens} tokens of prompt at {t.prompt_tokens_per_second:,.0f}/s, "
        f"{t.tokens} of answer at {rate:,.1f}/s{weights})"
    )
