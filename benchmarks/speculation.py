"""What guessing tokens ahead brings: recorded texts, replayed on the shape of a larger model with and without guesses, in turns.

usage: speculation.py MODEL.gguf [--threads 2] [--tokens 64] [--rounds 3]

The texts are real: answers of the demo model, source code, a source file rewritten with another name. A hook makes the model
say the recorded token each time, so guesses are right where they would be right for a model that writes this text, and
forwards cost what they cost in that shape. The weights may be random: no figure here comes from what they say.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import results

from qtransformers import Model

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "tests/data/demo-Q8_0.gguf"
QUESTIONS = ("Tell me a story about a brave fox.", "Tell me a story about a shy owl.", "Tell me about bees.")


def texts(demo: Model, n: int) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Kinds of text: prompts and what follows them, `n` tokens at most."""
    code = (ROOT / "src/qtransformers/gguf/values.py").read_text()
    ids = tuple(demo.tokenizer.encode(code))
    renamed = tuple(demo.tokenizer.encode(code.replace("value", "item")))
    at = len(ids) // 2
    asked = [demo.chat([{"role": "user", "content": q}], temperature=0, max_tokens=n) for q in QUESTIONS]
    return {
        "a file rewritten, one name changed": [(ids[:400], renamed[100 : 100 + n])],
        "source code, further on": [(ids[at - 400 : at], ids[at : at + n])],
        "stories and facts": [(a.prompt, a.tokens) for a in asked],
    }


def replay(model: Model, prompt, answer, speculate) -> tuple[float, int, int]:
    """Seconds of the recorded answer, tokens guessed, and how many were right."""

    def hook(tokens, logits):
        logits[:] = -np.inf
        logits[answer[len(tokens) - len(prompt)]] = 0
        return logits

    done = model.generate(
        prompt, add_bos=False, max_tokens=len(answer), temperature=0, hooks=[hook], speculate=speculate
    )
    assert done.tokens == answer
    return done.timings.seconds, done.timings.drafted_tokens, done.timings.accepted_tokens


def rows_of(model: Model, kinds, speculate: str, rounds: int) -> list[list[str]]:
    """A line of the table for each kind of text."""
    rows = []
    for kind, pairs in kinds.items():
        ratios, rates, guessed, right = [], [], 0, 0
        for prompt, answer in pairs:
            replay(model, prompt, answer, False)  # the prompt is in the cache from here on
        for _ in range(rounds):
            plain = sum(replay(model, *pair, False)[0] for pair in pairs)
            found = [replay(model, *pair, speculate) for pair in pairs]
            seconds = sum(f[0] for f in found)
            n = sum(len(answer) - 1 for _, answer in pairs)
            rates.append((n / plain, n / seconds))
            ratios.append(plain / seconds)
            guessed, right = guessed + sum(f[1] for f in found), right + sum(f[2] for f in found)
        speed, fast = (statistics.median(r) for r in zip(*rates, strict=True))
        each = ", ".join(f"{r:.2f}" for r in ratios)
        rows.append(
            [
                f"{kind}, {speculate}",
                f"{right} of {guessed}",
                f"{speed:.1f}",
                f"{fast:.1f}",
                f"{statistics.median(ratios):.2f} ({each})",
            ]
        )
    return rows


def main() -> None:
    """Measure and publish."""
    p = argparse.ArgumentParser()
    p.add_argument("model", type=Path)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    with Model.load(DEMO, threads=1) as demo:
        kinds = texts(demo, args.tokens)
    with Model.load(args.model, context_length=2048, threads=args.threads) as model:
        rows = rows_of(model, kinds, "ngram", args.rounds)
        costs = model._engine.speculation._costs
        price = ", ".join(f"{r}: {costs(r) / costs(1):.2f}" for r in sorted(costs._seconds))
    head = ["text, guesses", "right", "tokens/s without", "with", "ratio (each round)"]
    body = f"{args.model.name}, {args.threads} threads, up to {args.tokens} tokens of an answer, greedy; with and without take turns.\n\n{results.table(head, rows)}\n\nA step's time by its rows, of one row's: {price}."
    results.publish(__file__, "Guessing ahead", body)


if __name__ == "__main__":
    main()
