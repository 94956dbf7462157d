"""Make a GGUF file of a Hugging Face model (config.json, tokenizer and safetensors), of a diffusion model (a folder of diffusers, or
safetensors of either layout), or of another GGUF file; or, where the output ends in .safetensors, a checkpoint of a GGUF file (-t F16, BF16 or F32; --config has the config.json that goes beside it).

Weights pass through slab by slab: memory does not limit the size of a model. Interrupted, the same command goes on where it was."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from qtransformers.cli import learned
from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, plain_warnings, progress, table
from qtransformers.errors import ConfigError, QTransformersError

if TYPE_CHECKING:
    from qtransformers.convert import ConversionPlan
    from qtransformers.convert.plan import Importance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the type and where to write."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder or Hub id of a Hugging Face model, a pipeline of diffusers, safetensors of a diffusion model, or a GGUF file",
    )
    add_flags(
        parser,
        "type",
        "output",
        "tensor-type",
        "keep",
        "imatrix",
        *learned.FLAGS,
        "shard-size",
        "config",
        "layout",
        "name",
        "pre",
        "force",
        "overwrite",
        "dry-run",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, or say what would be written."""
    with plain_warnings(args.color):
        if not args.dry_run:
            return _run(args, None)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                return _run(args, Path(scratch))
            except QTransformersError as e:  # of headers that lie there for now
                e.args = (str(e).replace(scratch, args.model),)
                raise


def _run(args: argparse.Namespace, scratch: Path | None) -> int:
    from qtransformers.convert.estimate import seconds, time_text
    from qtransformers.convert.plan import Asked
    from qtransformers.convert.write import DEFAULT_TYPE, planned
    from qtransformers.load.diffusion import LAYOUT_KEY

    learns = learned.wanted(args)
    model, name = _at_hand(args.model, args.color, scratch)
    if (args.output or "").endswith(".safetensors"):
        return _restore(args, model)
    asked = Asked(
        args.type or DEFAULT_TYPE, args.name or (name if model.is_dir() else None), args.pre, tuple(pairs(args.tensor_type or ())),
        tuple(args.keep or ()), _importance(args.imatrix), learns, args.force, args.layout, args.config, outline=args.dry_run or learns,
    )  # fmt: skip
    plan = planned(model, asked)
    if learns:
        learned.check(args, plan)
    kind = f"{args.budget:g}bpw" if args.budget else "fit" if args.fit else plan.file_type
    output = Path(args.output or f"{name}-{kind}.gguf")
    if args.dry_run:
        print("\n".join(_described(plan)))
        time = "after learning" if learns else f"in about {time_text(seconds(plan))} on this machine"
        note(f"would write {output}, {_size(plan, plan.nbytes)}, {time}")
        return 0
    if learns and LAYOUT_KEY in plan.metadata:
        with learned.of_diffusion(args, model, asked, plan, output) as plan:
            return _written(args, plan, output)
    if learns:
        note(learned.convert(args, plan, output))
        return 0
    return _written(args, plan, output)


def _written(args: argparse.Namespace, plan: ConversionPlan, output: Path) -> int:
    """Write what was planned."""
    from qtransformers.convert import write

    try:
        with progress(f"writing {output.name}", args.color) as update:
            paths = write(plan, output, overwrite=args.overwrite, max_bytes=args.shard_size, progress=update)
    except KeyboardInterrupt:
        if plan.files:  # of what was learned beside it nothing stays
            note(f"{output}: interrupted; the same command goes on where it was")
        raise
    written = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    note(f"{written}: {_size(plan, sum(path.stat().st_size for path in paths))}")
    return 0


def _at_hand(model: str, color: str, scratch: Path | None) -> tuple[Path, str]:
    """Where the model lies, fetched from the Hub when it must be, only its headers into `scratch` when they do; and what to call it."""
    from qtransformers.cli.models import fetched
    from qtransformers.convert.checkpoints import quantization_of
    from qtransformers.convert.diffusion import title_of
    from qtransformers.load.config import read_json
    from qtransformers.load.files import size_text
    from qtransformers.load.hub import local_model, missing, the_hub
    from qtransformers.load.originals import checkpoint_of, fetch_checkpoint, fetch_headers
    from qtransformers.load.references import the_reference

    path = local_model(model)
    if path is not None:
        return path, title_of(path)
    ref, hub = the_reference(model), the_hub()
    name = ref.repo.rpartition("/")[2]
    if ref.quant:
        return fetched(model, color), name
    if scratch is not None and not hub.offline:
        offer = checkpoint_of(ref, hub)
        if left := sum(offer.listing.sizes[file] for file in missing(offer, hub)):
            with progress("reading headers", color):
                folder = fetch_headers(ref, hub, scratch)
            config = folder / "config.json"  # which pipelines do not have
            if not config.is_file() or quantization_of(folder, read_json(config))[0] is None:
                return folder, name
            raise ConfigError(f"{model} is quantised already, and its types hang on its weights: --dry-run would have to fetch {size_text(left)}. Convert it, or fetch it before.")  # fmt: skip
    with progress("fetching", color) as update:
        return fetch_checkpoint(ref, hub, update), name


def _restore(args: argparse.Namespace, model: Path) -> int:
    """A GGUF file's weights as a checkpoint."""
    from qtransformers.convert import restore
    from qtransformers.load.files import size_text

    for flag in (
        "tensor_type",
        "keep",
        "imatrix",
        "awq",
        "refine",
        "budget",
        "fit",
        "layout",
        "name",
        "pre",
        "force",
        "dry_run",
    ):
        if getattr(args, flag):
            raise ConfigError(f"--{flag.replace('_', '-')} is not for .safetensors.")
    output = Path(args.output)
    with progress(f"writing {output.name}", args.color) as update:
        paths = restore(
            model, output, args.type or "F16", model_path=args.config, max_bytes=args.shard_size,
            overwrite=args.overwrite, progress=update,
        )  # fmt: skip
    note(
        f"{paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}: {size_text(sum(p.stat().st_size for p in paths))}"
    )
    return 0


def _importance(path: str | None) -> Importance | None:
    """An importance matrix as means by tensor."""
    if path is None:
        return None
    from qtransformers.quantize import imatrix

    return {name: sums.mean() for name, sums in imatrix.read(path).sums.items()}


def pairs(given: list[str] | tuple[()]) -> list[tuple[str, str]]:
    """PATTERN=TYPE, each in two."""
    split = [text.rpartition("=") for text in given]
    for pattern, _, type_ in split:
        if not pattern or not type_:
            raise ConfigError(f"--tensor-type {pattern or type_!r}; expected PATTERN=TYPE, such as attn_v=Q8_0.")
    return [(pattern, type_) for pattern, _, type_ in split]


def _described(plan: ConversionPlan) -> list[str]:
    """Every tensor, then what each type comes to."""
    from qtransformers.load.files import size_text

    rows = [(t.name, t.type.name, " x ".join(map(str, t.shape)), size_text(t.nbytes)) for t in plan.tensors]
    types = [
        (f"{n} tensors", type_.name, f"{values:,} weights", size_text(nbytes))
        for type_, (n, values, nbytes) in plan.sizes().items()
    ]
    return [*table(rows, right=(2, 3)), "", *table(types, right=(2, 3))]


def _size(plan: ConversionPlan, nbytes: int) -> str:
    from qtransformers.load.files import size_text

    return f"{len(plan.tensors)} tensors, {size_text(nbytes)}, {plan.bits_per_weight:.2f} bits per weight"
