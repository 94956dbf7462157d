"""What each step of quantisation is worth: divergence of the demo model from its original, in as many bytes as llama-quantize's file.

usage: quality.py ORIGINAL.gguf --llama DIR [--types Q4_K_M,Q3_K_M,Q2_K] [--tokens 100000] [--seeds 2000,2001,2002]
       quality.py ORIGINAL.gguf --shipped demo.gguf [--tokens 20000]: how far the file is from the original on text that it never saw

ORIGINAL is the demo model in F32; DIR holds llama-quantize and llama-imatrix. Learned from `--tokens` tokens of the demo model's
corpus of each of the seeds, judged on as many scored ones of seed 1000 (tools/demo_model/stories.py), which are the second halves of
chunks; texts of control tokens count as those. The tables are written anew after each seed.
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
from qtransformers.quantize.evaluate import Divergence, divergences
from qtransformers.quantize.improve import Improved, improve
from qtransformers.quantize.passes import text_chunks

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "demo_model"))
LLAMA = "llama-quantize, llama-imatrix"
CONTEXT = {"context_length": 512, "logits_rows": 2048, "cache": "f32"}


def corpus(tokenizer, seed: int, tokens: int) -> str:
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


def learned_from(seed: int, model, args, folder: Path):
    """What a seed's text tells: its chunks, llama-imatrix's file, and our own importance and survey."""
    text_of = folder / f"{seed}.txt"
    text_of.write_text(corpus(model.tokenizer, seed, args.tokens), encoding="utf-8")
    theirs = folder / f"{seed}.imatrix"
    words = ["-m", args.original, "-f", text_of, "-o", theirs, "-c", "512", "-t", "1", "--parse-special"]
    subprocess.run([args.llama / "llama-imatrix", *words], check=True, capture_output=True)
    rows = text_chunks(model.tokenizer, text_of.read_text(encoding="utf-8"), 512, encode_special=True)
    return rows, theirs, imatrix.collect(model, rows), budget.survey(model, rows)


def measured(
    type_: str, seed: int, learned, model, judged: str, args, folder: Path
) -> dict[str, tuple[int, Divergence]]:
    """Bytes and divergence of llama-quantize's file and of each step of ours."""
    rows, its_matrix, importance, survey = learned
    here = folder / f"{type_}-{seed}"
    here.mkdir()
    theirs = here / "theirs.gguf"
    words = [args.llama / "llama-quantize", "--imatrix", its_matrix, args.original, theirs, type_, "1"]
    subprocess.run(words, check=True, capture_output=True)
    files = {LLAMA: theirs, **dict(steps(model, rows, theirs, importance, survey, here))}
    models = [load(path, accuracy="high", **CONTEXT) for path in files.values()]
    found = divergences(models, model, judged, encode_special=True)
    sizes = [sum(t.nbytes for t in made.sources.gguf.tensors.values()) for made in models]
    return dict(zip(files, zip(sizes, found, strict=True), strict=True))


def lines(runs: list[dict[str, tuple[int, Divergence]]]):
    """A row for each step: means over the runs, the difference from llama.cpp's file with its paired standard error, and each run's."""
    for step in runs[0]:
        found, theirs = ([run[name][1] for run in runs] for name in (step, LLAMA))
        mean, of_theirs = (np.mean([d.mean for d in ds]) for ds in (found, theirs))
        more = np.mean([d.each - t.each for d, t in zip(found, theirs, strict=True)], 0)
        error = more.std() / np.sqrt(len(more) - 1)
        each = ", ".join(f"{d.mean / t.mean - 1:+.0%}" for d, t in zip(found, theirs, strict=True))
        rest = (np.mean([getattr(d, name) for d in found]) for name in ("median", "p99_9", "same_top"))
        median, high, same = rest
        perplexity = np.mean([d.model.value for d in found])
        yield [step, f"{max(run[step][0] for run in runs):,}", f"{mean:.6f}", f"{more.mean():+.6f}", f"{error:.6f}", f"{mean / of_theirs - 1:+.0%}", each, f"{median:.1e}", f"{high:.3f}", f"{same:.2%}", f"{perplexity:.4f}"]  # fmt: skip


def shipped(model, path: Path, judged: str) -> None:
    """Publish how far one file is from the original."""
    (found,) = divergences([load(path, accuracy="high", **CONTEXT)], model, judged, encode_special=True)
    rows = [["mean KL, nats a token", f"{found.mean:.6f}"], ["its standard error", f"{found.error:.6f}"], ["median", f"{found.median:.1e}"],
            ["99.9%", f"{found.p99_9:.3f}"], ["same favourite", f"{found.same_top:.2%}"], ["perplexity", f"{found.model.value:.4f}"], ["perplexity of the original", f"{found.base.value:.4f}"]]  # fmt: skip
    body = f"{path.stat().st_size:,} bytes, against the original in F32, on {found.model.n_tokens:,} scored tokens of seed 1000; it learned from seed 2000.\n\n"
    results.publish(__file__, "The demo model of the package", body + results.table(["", ""], rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("original", type=Path)
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--shipped", type=Path)
    parser.add_argument("--types", default="Q4_K_M,Q3_K_M,Q2_K")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seeds", default="2000,2001,2002")
    args = parser.parse_args()
    model = load(args.original, **CONTEXT)
    judged = corpus(model.tokenizer, 1000, 2 * args.tokens + 1024)
    if args.shipped:
        shipped(model, args.shipped, judged)
        return
    runs: dict[str, list] = {type_: [] for type_ in args.types.split(",")}
    with tempfile.TemporaryDirectory() as name:
        for n, seed in enumerate(map(int, args.seeds.split(",")), 1):
            learned = learned_from(seed, model, args, Path(name))
            for type_, mine in runs.items():
                mine.append(measured(type_, seed, learned, model, judged, args, Path(name)))
                base, scored = mine[0][LLAMA][1].base, mine[0][LLAMA][1].model.n_tokens
                head = ["", "bytes of tensors", "KL, nats a token", "more than llama.cpp's", "paired standard error", "against llama.cpp", "each seed", "median", "99.9%", "same favourite", "perplexity"]  # fmt: skip
                body = f"The demo model; original: perplexity {base.value:.4f}. Learned from {learned[0].size:,} tokens, judged on {scored:,} scored ones of another seed; means of {n} seeds of what is learned from.\n\n"
                results.publish(__file__, f"Quality of {type_}", body + results.table(head, list(lines(mine))))


if __name__ == "__main__":
    main()
