"""From a conversion plan to a GGUF file whose weights learned from texts: what `convert --awq --refine --budget` does.

The plan says which type each tensor gets; the original is run in floats, weight by weight (relay.py), and the file is written when all
is known. A checkpoint is first written as a GGUF file in the type it has, beside the output, and that is removed afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.convert import ConversionPlan, write
from qtransformers.convert.plan import Target, refiled
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFWriter
from qtransformers.gguf.writer import check_room, in_the_way, key_of, sweep
from qtransformers.load import load
from qtransformers.quantize.budget import CHOICES, allot, survey
from qtransformers.quantize.gate import Verdict, judge
from qtransformers.quantize.improve import Improved, improve
from qtransformers.quantize.journal import Journal
from qtransformers.quantize.passes import CHUNK, calibration_text, text_chunks
from qtransformers.types import BY_NAME, QuantType

if TYPE_CHECKING:
    from qtransformers.load import Loaded

Progress = Callable[[str, int, int], None]  # (what is done, how much, of how much)
FLOATS = ("F32", "F16", "BF16")
WRITTEN = "written "  # what tells the file itself from what was found out for it


@dataclass(frozen=True)
class How:
    """What is to be done beside rounding."""

    fold: bool = False  # scales that move to where rounding hurts less (AWQ)
    compensate: bool = False  # rounding that takes up its own errors
    bits_per_weight: float | None = None  # of all tensors together: types by budget
    nbytes: int | None = None  # of tensor data: the same
    text: str | None = None  # to learn from; None: the package's
    chunk: int = CHUNK  # tokens
    n_chunks: int | None = None  # at most
    encode_special: bool = False  # whether texts of control tokens are those
    judged: bool = True  # whether the file is compared with the original

    @property
    def sized(self) -> bool:
        """Whether types are chosen by how large the file may be."""
        return self.bits_per_weight is not None or self.nbytes is not None

    def check(self, plan: ConversionPlan) -> None:
        """ConfigError where there is nothing that could be improved."""
        if (self.fold or self.compensate) and not any(t.type.is_quantized for t in plan.tensors) and not self.sized:
            raise ConfigError(f"{plan.file_type} rounds nothing that could be improved: take a type of fewer bits (-t Q4_K_M), or convert without learning.")  # fmt: skip

    def allowed(self, plan: ConversionPlan) -> int:
        """Bytes that a budget allows for all tensors of a plan."""
        return self.nbytes if self.nbytes is not None else int(plan.n_parameters * (self.bits_per_weight or 0) / 8)

    def left(self, plan: ConversionPlan, chosen: Container[str]) -> int:
        """Bytes that a budget leaves for tensors whose types are to be chosen; ConfigError where all others take more."""
        fixed, total = sum(t.nbytes for t in plan.tensors if t.name not in chosen), self.allowed(plan)
        if fixed > total:
            raise ConfigError(f"{plan.model}: what is plain, kept or stated takes {fixed:,} bytes, and {total:,} are allowed for all. Allow more, or state less.")  # fmt: skip
        return total - fixed

    def most_bytes(self, plan: ConversionPlan) -> int:
        """Bytes of tensor data that the file of a plan may come to: by a budget no more than with its largest type."""
        if not self.sized:
            return plan.nbytes
        largest = BY_NAME[CHOICES[-1]]
        return min(self.allowed(plan), sum(max(t.nbytes, replace(t, type=largest).nbytes if t.type.is_quantized else 0) for t in plan.tensors))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Made:
    """A file that was written."""

    paths: tuple[Path, ...]  # more than one where it is split
    types: Mapping[str, QuantType]
    errors: Mapping[str, tuple[float, float]] = field(repr=False)  # of each weight's product, absolute and relative
    verdict: Verdict | None = None  # of the gate

    @property
    def worst(self) -> list[str]:
        """Names of weights, those with the largest relative error of their product first."""
        return sorted(self.errors, key=lambda name: -self.errors[name][1])


def make(
    plan: ConversionPlan, output: Path, how: How, *, overwrite: bool = False, max_bytes: int | None = None, progress: Progress | None = None
) -> Made:  # fmt: skip
    """Write what `plan` says, its weights improved as `how` says, in files of at most `max_bytes`.

    Killed, interrupted, or without room on the disk, what was found out stays beside the output under a hidden name, and the same
    call goes on from there. Other errors leave nothing behind.

    ConfigError where there is no budget for even the smallest types, the text is too short, or the original's architecture cannot
    be run; what `plan_conversion`, `load` and `GGUFWriter` raise.
    """
    there = in_the_way(output, max_bytes is not None)
    if there and not overwrite:
        _floats(output).unlink(missing_ok=True)  # of a run that was killed at its end
        sweep(output, before=there.stat().st_mtime_ns)
        raise ConfigError(f"{there} exists. Choose another name, or replace it with overwrite.")
    packed = [t.name for t in plan.tensors if t.packed and t.stored and t.stored.is_quantized]
    if packed:
        raise ConfigError(f"{plan.model}: {len(packed)} weights ({packed[0]}, ...) are quantised already, and would be rounded anew. Convert them as they are, or learn from the original model.")  # fmt: skip

    how.check(plan)
    check_room(output.parent, _needed(plan, how, output))

    def told(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    with _original(plan, output, told("preparing")) as path:
        model = load(path, context_length=how.chunk, logits_rows=4 * how.chunk, cache="f32", accuracy="exact")
        learned, judged = _texts(model, how)
        rows = text_chunks(model.tokenizer, learned, how.chunk, how.encode_special, least=1)[: how.n_chunks]
        types, metadata = {t.name: t.type for t in plan.tensors}, plan.metadata
        given = {t.name: t.importance for t in plan.tensors if t.importance is not None}
        resume = f"{plan.fingerprint()} {how} {hashlib.sha256(rows.tobytes()).hexdigest()}"
        with _journal(output, resume) as journal:
            if how.sized:
                types |= _by_budget(model, rows, plan, how, journal, told("measuring"))
                metadata = refiled(plan, types).metadata
            made = improve(
                model, rows, types, fold=how.fold, compensate=how.compensate, importance=given, journal=journal,
                progress=told("quantising"),
            )  # fmt: skip
            paths = _write(plan, metadata, made, output, overwrite, max_bytes, resume, told("writing"))
        if path != plan.model:
            with suppress(OSError):  # where what is mapped cannot go yet
                path.unlink()  # first: a run that is killed while it judges leaves nothing
        verdict = _verdict(model, made, paths[0], judged, judged is not learned, how) if how.judged else None
        assert model.sources.gguf is not None
        model.settle()
        model.sources.gguf.close()
    return Made(paths, types, made.errors, verdict)


def _needed(plan: ConversionPlan, how: How, output: Path) -> int:
    """Bytes that all of it takes on disk at once, but for what an earlier run has left: the original in floats, what is found out, the file."""
    floats = 0 if plan.model.is_file() else sum(replace(t, type=_plain_type(t)).nbytes for t in plan.tensors)
    left, name = 0, escape(output.name[:40])
    for path in (
        *output.parent.glob(f".{name}.*"),
        *output.parent.glob(f"..{name}.*"),
    ):  # that of the original in floats
        with suppress(OSError):  # of a run that ends just now
            left += path.stat().st_size
    return max(0, floats + 2 * how.most_bytes(plan) - left)


@contextmanager
def _journal(output: Path, resume: str) -> Iterator[Journal]:
    """What an earlier run has found out; kept where this one is stopped from outside."""
    check_room(output.parent, 0)
    key = key_of(output, resume)
    sweep(output, key, key_of(output, WRITTEN + resume))
    journal, keep = Journal(output, key), False
    try:
        yield journal
    except BaseException as e:
        keep = isinstance(e, (KeyboardInterrupt, MemoryError)) or isinstance(e.__cause__ or e, OSError)
        raise
    finally:
        journal.close(keep)


def _texts(model: Loaded, how: How) -> tuple[str, str]:
    """What is learned from, and what the result is judged on: the last eighth, or the same where that would be too short."""
    text = calibration_text() if how.text is None else how.text
    at = len(text) * 7 // 8
    at = text.rfind("\n", 0, at) + 1 or at
    if not how.judged or not _tells(model, text[at:], how):
        return text, text
    return text[:at], text[at:]


def _tells(model: Loaded, text: str, how: How) -> bool:
    """Whether a text is long enough to compare models on."""
    return len(model.tokenizer.encode(text, encode_special=how.encode_special)) >= 2 * how.chunk


def _verdict(model: Loaded, made: Improved, output: Path, text: str, unseen: bool, how: How) -> Verdict | None:
    """None where the text is too short to tell."""
    if not _tells(model, text, how):
        return None
    result = load(output, context_length=how.chunk, logits_rows=4 * how.chunk)
    try:
        return replace(judge(model, result, text, made.folded, encode_special=how.encode_special), unseen=unseen)
    finally:
        result.settle()
        assert result.sources.gguf is not None
        result.sources.gguf.close()


def _by_budget(
    model: Loaded, rows: Any, plan: ConversionPlan, how: How, journal: Journal, progress: Callable[[int, int], None]
) -> dict[str, QuantType]:
    key = ("types", "")
    if key in journal:
        return {name: BY_NAME[type] for name, type in journal.facts(key)["types"].items()}
    found = survey(model, rows, progress=progress)
    stated = {t.name for t in plan.tensors if t.stated}
    choices = {name: options for name, options in found.choices.items() if name not in stated}
    allotted = allot(choices, how.left(plan, choices))
    journal.put(key, types={name: type.name for name, type in allotted.items()})
    return allotted


def _write(
    plan: ConversionPlan, metadata: Mapping[str, Any], made: Improved, output: Path, overwrite: bool, max_bytes: int | None,
    resume: str, progress: Callable[[int, int], None],
) -> tuple[Path, ...]:  # fmt: skip
    specs = [(t.name, t.shape, made.types[t.name]) for t in plan.tensors]
    with GGUFWriter(
        output, metadata, specs, overwrite=overwrite, max_bytes=max_bytes, resume=WRITTEN + resume
    ) as writer:
        for i, (name, _, _) in enumerate(specs):
            if i >= writer.finished:
                writer.write(name, made.tensor(name))
            progress(i + 1, len(specs))
    return writer.paths


@contextmanager
def _original(plan: ConversionPlan, output: Path, progress: Callable[[int, int], None]) -> Iterator[Path]:
    """The model as a GGUF file in floats: itself, or written for the time being."""
    if plan.model.is_file():
        yield plan.model
        return
    temporary = _floats(output)
    try:
        temporary.unlink(missing_ok=True)
        plain = tuple(replace(t, type=_plain_type(t), importance=None) for t in plan.tensors)
        write(replace(plan, tensors=plain), temporary, progress=progress)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        sweep(
            temporary
        )  # what a full disk cut off: it is soon written again, and who converts without learning never comes back to it


def _floats(output: Path) -> Path:
    """Of one name for all runs, so that what a killed one left goes with the next."""
    return output.with_name(f".{output.name[:40]}.{key_of(output, 'floats')}.floats.gguf")


def _plain_type(target: Target) -> QuantType:
    """The plain type in which the original is run: what a checkpoint holds, F32 of what no recipe touches or only blocks hold."""
    stored = target.stored
    return stored if stored and stored.name in FLOATS and target.type.name != "F32" else BY_NAME["F32"]
