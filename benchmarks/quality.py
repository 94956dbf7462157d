"""What each step of quantisation is worth: divergence of the demo model from its original, in as many bytes as llama-quantize's file.

usage: quality.py ORIGINAL.gguf --llama DIR [--types Q4_K_M,Q3_K_M,Q2_K] [--tokens 100000]

ORIGINAL is the demo model in F32; DIR holds llama-quantize and llama-imatrix. Learned from the demo model's corpus of seed 2000,
judged on that of seed 1000 (tools/demo_model/stories.py), both of `--tokens` tokens with the texts of control tokens as those.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import results

from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.load import load
from qtransformers.quantize import budget, imatrix
from qtransformers.quantize.evaluate import divergences
from qtransformers.quantize.improve import Improved, improve
from qtransformers.quantize.passes import text_chunks

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "demo_model"))
CONTEXT = {"context_length": 512, "logits_rows": 2048, "cache": "f32"}


def text(tokenizer, seed: int, tokens: int) -> str:
    """So many tokens of the corpus, as the model was trained on it."""
    from stories import as_text, documents

    parts, n = [], 0
    for document in documents(seed):
        parts.append(as_text(*document))
        n += len(tokenizer.encode(parts[-1], encode_special=True))
        if n >= tokens:
            return "".join(parts)
    return ""


def written(made: Improved, path: Path) -> Path:
    """The GGUF file of an improved model."""
    source = made.model.sources.gguf
    specs = [(name, t.shape, made.types[name]) for name, t in source.tensors.items()]
    with GGUFWriter(path, dict(source.metadata), specs) as writer:
        for name, data in made.tensors():
            writer.write(name, data)
    return path


def encoded(model, types, importance, path: Path) -> Path:
    """Weights rounded one by one, with the importance of columns where there is one."""
    from qtransformers.quants import quantize

    source = model.sources.gguf
    with GGUFWriter(path, dict(source.metadata), [(n, t.shape, types[n]) for n, t in source.tensors.items()]) as writer:
        for name, t in source.tensors.items():
            found = importance.importance(name, t.shape) if importance else None
            given = None if found is None else np.ascontiguousarray(found[0])
            writer.write(name, quantize(t.dequantize().reshape(t.n_rows, -1), types[name], importance=given))
    return path


def steps(model, rows, theirs: Path, importance, survey, folder: Path):
    """(name, file) of each step, in the types of llama-quantize's file; the last in as many bytes at most."""
    source = model.sources.gguf
    with GGUFFile(theirs) as file:
        types = {name: file.tensors[name].type for name in source.tensors}
        allowed = sum(file.tensors[name].nbytes for name in survey.choices)
    yield "rounded alone", encoded(model, types, None, folder / "rtn.gguf")
    yield "+ importance of columns", encoded(model, types, importance, folder / "imatrix.gguf")
    yield "+ folded scales", written(improve(model, rows, types, compensate=False), folder / "fold.gguf")
    yield "+ compensated rounding", written(improve(model, rows, types), folder / "both.gguf")
    types = types | budget.allot(survey.choices, allowed)
    yield "+ types by budget", written(improve(model, rows, types), folder / "budget.gguf")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("original", type=Path)
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--types", default="Q4_K_M,Q3_K_M,Q2_K")
    parser.add_argument("--tokens", type=int, default=100_000)
    args = parser.parse_args()
    model = load(args.original, **CONTEXT)
    learned, judged = (text(model.tokenizer, seed, args.tokens) for seed in (2000, 1000))
    rows = text_chunks(model.tokenizer, learned, 512, encode_special=True)
    importance = imatrix.collect(model, rows)
    survey = budget.survey(model, rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "learned.txt").write_text(learned, encoding="utf-8")
        llama = [
            "-m",
            args.original,
            "-f",
            folder / "learned.txt",
            "-o",
            folder / "l.gguf",
            "-c",
            "512",
            "-t",
            "1",
            "--parse-special",
        ]
        subprocess.run([args.llama / "llama-imatrix", *llama], check=True, capture_output=True)
        for type_ in args.types.split(","):
            theirs = folder / f"{type_}.gguf"
            words = [args.llama / "llama-quantize", "--imatrix", folder / "l.gguf", args.original, theirs, type_, "1"]
            subprocess.run(words, check=True, capture_output=True)
            here = folder / type_
            here.mkdir()
            files = {
                "llama-quantize, llama-imatrix": theirs,
                **dict(steps(model, rows, theirs, importance, survey, here)),
            }
            models = [load(path, accuracy="high", **CONTEXT) for path in files.values()]
            lines, first = [], None
            for step, made, found in zip(
                files, models, divergences(models, model, judged, encode_special=True), strict=True
            ):
                first = first or found.mean
                nbytes = sum(t.nbytes for t in made.sources.gguf.tensors.values())
                lines.append([step, f"{nbytes:,}", f"{found.mean:.6f}", f"{found.error:.6f}", f"{found.mean / first - 1:+.0%}", f"{found.median:.1e}", f"{found.p99_9:.3f}", f"{found.same_top:.2%}", f"{found.model.value:.4f}"])  # fmt: skip
            head = ["", "bytes of tensors", "KL, nats a token", "standard error", "against llama.cpp", "median", "99.9%", "same favourite", "perplexity"]  # fmt: skip
            body = f"The demo model; original: perplexity {found.base.value:.4f}. Learned from {rows.size:,} tokens, judged on {found.model.n_tokens:,} others.\n\n"
            results.publish(__file__, f"Quality of {type_}", body + results.table(head, lines))


if __name__ == "__main__":
    main()
