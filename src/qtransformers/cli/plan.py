"""Whether a model fits, before a byte of its weights is read: every problem of the file, bytes by device, what would help.

Of a model on the Hub only headers are fetched. Ends with 0 when it fits, 4 when it cannot be loaded, 5 when it does not fit."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtransformers.cli import plan_diffusion
from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import COLOURS, count, note, painter, printable, table

if TYPE_CHECKING:
    from qtransformers.load.fit import Budget, Fit, Need
    from qtransformers.load.plan import LoadPlan
    from qtransformers.load.source import Sources
    from qtransformers.load.survey import Survey

TOKENS = "tokenizer.ggml.tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, how it would be loaded, and the machine."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or folder, `demo`, or user/repo:QUANT from the Hub")
    add_flags(parser, "model-path", "ctx-size", "cache", "placement", "draft", "ram", "vram", "save", "json")


def run(args: argparse.Namespace) -> int:
    """Print the plan on stdout."""
    from qtransformers import machine
    from qtransformers.load import placement
    from qtransformers.load.devices import Devices
    from qtransformers.load.diffusion import is_diffusion
    from qtransformers.load.fit import Budget, fit, taken
    from qtransformers.load.survey import find_sources, survey

    budget, devices = Budget.of(machine.memory(), args.ram, args.vram), Devices.of(machine.gpus())
    if args.vram is None and args.ram is None:  # this machine, and not one on paper
        budget = replace(budget, devices=devices.free)
    sources, others = find_sources(args.model)
    if sources.gguf is not None and is_diffusion(sources.gguf):
        _check_diffusion(args)
        return plan_diffusion.run(sources.gguf, sources.files.get("config.json"), budget, args)
    if args.model_path:
        sources, others = find_sources(args.model, args.model_path)
    found = survey(sources, others, context_length=args.ctx_size, cache=args.cache or "f16")
    table = placement.resolve(found.plan, args.placement or "auto", budget)
    found = replace(found, plan=placement.placed(found.plan, table))
    beside = taken(_draft(args.draft, sources, found.plan, budget) if args.draft else None, budget)
    result = fit(found.plan, budget, found.others, beside)
    if args.save:
        placement.save(args.save, found.plan, table)
    places = placement.entries(table)
    if args.json:
        json.dump({**as_json(found, result), "placement": places}, sys.stdout, indent=2)
        print()
    else:
        shown = ["", "placement: " + ", ".join(places)] if budget.devices or args.placement else []
        lines = as_text(found, result, args.color) + ([] if args.vram or args.ram else list(devices.reasons.values()))
        if args.verbose:
            lines += _in_memory(sources)
        print("\n".join(map(printable, [lines[0], *shown, *lines[1:]])))
    return 4 if found.problems else 5 if result.verdict == "does not fit" else 0


def _draft(draft: str, model: Sources, plan: LoadPlan, budget: Budget) -> LoadPlan:
    """The plan of --draft as it would be loaded beside a model that is placed; LoadError or ConfigError where it cannot be."""
    from qtransformers.errors import LoadError
    from qtransformers.generate.drafting import check_kinds, check_vocabulary
    from qtransformers.load import placement
    from qtransformers.load.fit import taken
    from qtransformers.load.survey import find_sources, survey

    sources, _ = find_sources(draft)
    found = survey(sources, context_length=plan.context_length, cache=plan.cache)
    if found.problems:
        raise LoadError(f"draft {found.plan.file}: {found.problems[0].text}")
    check_kinds(found.plan, plan)
    own, other = (s.gguf.metadata.get(TOKENS) if s.gguf is not None else None for s in (model, sources))
    if own and other:
        check_vocabulary(own, other, plan.file, found.plan.file)
    where = placement.resolve(found.plan, "auto" if plan.devices else "cpu", budget.less(taken(plan, budget)))
    return placement.placed(found.plan, where)


def _check_diffusion(args: argparse.Namespace) -> None:
    """ConfigError or a warning for flags that mean nothing to a diffusion model."""
    from qtransformers.errors import ConfigError

    for flag in ("draft", "save"):
        if getattr(args, flag):
            raise ConfigError(f"--{flag} is for language models, and {args.model} is a diffusion model. Leave it out.")
    for flag in ("placement", "cache"):
        if getattr(args, flag):
            note(f"--{flag} is for language models: not heeded", "yellow", args.color)


def as_json(found: Survey, result: Fit) -> dict[str, Any]:
    """The plan for other programs; bytes throughout."""
    plan = found.plan
    return {
        "file": plan.file,
        "architecture": plan.architecture,
        "runnable": plan.runnable,
        "problems": [p.text for p in found.problems],
        "warnings": list(plan.warnings),
        "parameters": plan.parameters,
        "context_length": plan.context_length,
        "cache": plan.cache,
        "weights": plan.weights_bytes,
        "keys_and_values": plan.cache_bytes,
        "states": plan.states_bytes,
        "temporaries": plan.activations_bytes,
        "program": plan.program_bytes,
        **result.as_json(),
    }


def as_text(found: Survey, result: Fit, color: str = "auto") -> list[str]:
    """The plan for people, as lines."""
    plan, paint = found.plan, painter(color, sys.stdout)
    bits = 8 * plan.weights_bytes / max(1, plan.parameters)
    lines = [paint("bold", f"{plan.file}: {plan.architecture}, {count(plan.parameters)} parameters, {bits:.2f} bits a weight")]  # fmt: skip
    if found.problems:
        lines += [
            "",
            paint("red", f"cannot be loaded, {len(found.problems)} problem{'s' * (len(found.problems) > 1)}:"),
        ]
        lines += [f"  {p.text}" for p in found.problems]
    lines += ["", *plan.rows()]
    for need in result.needs:
        lines += ["", paint("bold", "main memory" if need.device == "cpu" else need.device), *_need(plan, need)]
    lines += [*plan.warnings, ""]
    verdict = {"unknown": "unknown: the system does not say how much memory there is"}.get(
        result.verdict, result.verdict
    )
    note = f". {result.note}." if result.note else ""
    lines.append(f"{paint(COLOURS[result.verdict], verdict)}{note}")
    for remedy in result.remedies:
        flags = f": {paint('bold', remedy.flags)}" if remedy.flags else ""
        lines.append(f"  {remedy.text}{flags}")
    return lines


def _in_memory(sources: Sources) -> list[str]:
    """How much of a file of this machine is in memory already, and need not be read."""
    from qtransformers import machine
    from qtransformers.gguf import GGUFFile
    from qtransformers.load.files import memory_text

    if not isinstance(sources.gguf, GGUFFile):
        return []
    found = [machine.in_cache(view) for view in sources.gguf.views()]
    known = sum(n for n in found if n is not None)
    return (
        [] if None in found else [f"{memory_text(known)} of {memory_text(sources.gguf.nbytes)} are in memory already"]
    )


def _need(plan: LoadPlan, need: Need) -> list[str]:
    from qtransformers.load.files import memory_text as text

    each = plan.cache_shape.bytes(256, plan.cache) // 256
    main = need.device == "cpu"
    copied = f"copied through {text(need.staging)} of pinned main memory"
    rows = [
        ("weights as stored", need.weights, "mapped: one copy, in the page cache" if main else copied),
        ("keys and values", need.cache, f"{plan.context_length:,} tokens in {plan.cache}, {text(each)} a token"),
        ("recurrent states", need.states, "of all requests that may run at once"),
        ("peak temporaries", need.activations, "of one forward pass"),
        ("program, vocabulary", need.program, ""),
        ("the draft", need.beside, "its weights, keys and values, temporaries"),
        ("for the system", need.system, "page tables, and what should stay free" if main else "the driver's context"),
    ]
    lines = table([(what, text(n), why) for what, n, why in rows if n], right=(1,))
    have = "" if need.have is None else f"; there are {text(need.have)}"
    return [*lines, f"  {text(need.model)}, {text(need.model + need.system)} with what the system needs{have}"]
