"""What is in a GGUF file: metadata, tensors, types, sizes. Any file: model, shard, vocabulary, adapter, diffusion."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, painter, printable, table
from qtransformers.errors import ShardError

if TYPE_CHECKING:
    from qtransformers.gguf import GGUFFile

SHORT_TEXT, SHORT_ARRAY = 80, 6  # characters, elements


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and the ways to print it."""
    parser.add_argument(
        "file", metavar="FILE", help="a GGUF file or the first of its shards, `demo`, or user/repo:QUANT"
    )
    add_flags(parser, "json", "full")


def run(args: argparse.Namespace) -> int:
    """Print the file's content on stdout."""
    from qtransformers.load.hub import resolve_model

    with open_file(resolve_model(args.file)) as file:
        if args.json:
            json.dump(as_json(file, args.full), sys.stdout, indent=2)
            print()
        else:
            print("\n".join(as_text(file, args.full, args.color)))
    return 0


def open_file(path: Path) -> GGUFFile:
    """The model with all its shards; a shard whose others are missing, or that is not the first, alone."""
    from qtransformers.gguf import GGUFFile

    try:
        return GGUFFile(path)
    except ShardError as e:
        note(f"{e} Showing this file alone.")
        return GGUFFile(path, alone=True)


def as_json(file: GGUFFile, full: bool) -> dict[str, Any]:
    """The file for other programs; an array is abbreviated to its first elements unless `full`."""
    return {
        "file": str(file.path),
        "files": [str(p) for p in file.paths],
        "version": file.version,
        "byte_order": "big" if file.big_endian else "little",
        "bytes": file.nbytes,
        **totals(file),
        "metadata": {key: _entry(file, key, full) for key in file.metadata},
        "types": types(file),
        "tensors": [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.nbytes, "file": t.file}
            for t in file.tensors.values()
        ],
    }


def totals(file: GGUFFile) -> dict[str, Any]:
    """Parameters, their bytes, and bits per weight (None where there are no weights)."""
    n = sum(t.n_values for t in file.tensors.values())
    n_bytes = sum(t.nbytes for t in file.tensors.values())
    return {"parameters": n, "tensor_bytes": n_bytes, "bits_per_weight": round(8 * n_bytes / n, 4) if n else None}


def types(file: GGUFFile) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes by type, the largest first."""
    rows: dict[str, dict[str, int]] = {}
    for t in file.tensors.values():
        row = rows.setdefault(t.type.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += t.n_values
        row["bytes"] += t.nbytes
    return dict(sorted(rows.items(), key=lambda item: -item[1]["bytes"]))


def as_text(file: GGUFFile, full: bool, color: str = "auto") -> list[str]:
    """The file for people, as lines without control characters."""
    from qtransformers.load.files import size_text

    paint = painter(color, sys.stdout)
    order = "big-endian" if file.big_endian else "little-endian"
    shards = f", {len(file.paths)} shards" if len(file.paths) > 1 else ""
    lines = [
        f"{paint('bold', printable(str(file.path)))}  {size_text(file.nbytes)}{shards}, GGUF v{file.version}, {order}"
    ]
    total = totals(file)
    if total["parameters"]:
        lines.append(f"{total['parameters']:,} parameters, {total['bits_per_weight']:.2f} bits per weight")
    lines += ["", paint("bold", f"metadata ({len(file.metadata)})")]
    lines += table([(key, file.metadata.info(key).type, _brief(file, key, full)) for key in file.metadata])
    if not file.tensors:
        return [*lines, "", "no tensors"]
    rows = [
        (
            name,
            f"{r['tensors']}",
            f"{r['parameters']:,}",
            size_text(r["bytes"]),
            f"{r['bytes'] / total['tensor_bytes']:.1%}",
        )
        for name, r in types(file).items()
    ]
    lines += ["", paint("bold", f"types ({len(rows)})")]
    lines += table([("type", "tensors", "parameters", "size", "share"), *rows], right=(1, 2, 3, 4))
    lines += ["", paint("bold", f"tensors ({len(file.tensors)}), shape as (out, in)")]
    found = [(t.name, t.type.name, " x ".join(map(str, t.shape)), size_text(t.nbytes)) for t in file.tensors.values()]
    return lines + table(found, right=(2, 3))


def _brief(file: GGUFFile, key: str, full: bool) -> str:
    """A value on one line."""
    n, value = file.metadata.info(key).length, file.metadata[key]
    if n is None:
        return _text(value, full)
    shown = [_text(v, full) for v in _elements(value, full)]
    rest = f", ... ({n:,})" if n > len(shown) else ""
    return f"[{', '.join(shown)}{rest}]"


def _text(value: Any, full: bool) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    if len(text) > SHORT_TEXT and not full:
        text = f"{text[:SHORT_TEXT]}... ({len(value):,} characters)"
    return printable(text)


def _entry(file: GGUFFile, key: str, full: bool) -> dict[str, Any]:
    """A value with its type; JSON has no NaN and no lone surrogates, so these are spelled."""
    info, value = file.metadata.info(key), file.metadata[key]
    if info.length is None:
        return {"type": info.type, "value": _json(value)}
    return {"type": info.type, "length": info.length, "value": [_json(v) for v in _elements(value, full)]}


def _elements(value: Any, full: bool) -> list[Any]:
    """An array's elements, or the first of them, as plain Python values."""
    shown = value if full else value[:SHORT_ARRAY]
    return shown if isinstance(shown, list) else list(shown.tolist())


def _json(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
