"""What guessing tokens ahead brings: recorded texts, replayed on the shape of a larger model with and without guesses, in turns.

usage: speculation.py MODEL.gguf [--draft SMALL.gguf] [--threads 2] [--tokens 64] [--rounds 3]

The texts are real: answers of the demo model, source code, a source file rewritten with another name. A hook makes the model
say the recorded token each time, so guesses are right where they would be right for a model that writes this text, and
forwards cost what they cost in that shape. The weights may be random: no figure here comes from what they say.

With --draft, so are a draft model's guesses: what the demo model's own draft says of the demo model's answers is recorded,
how sure it was of it too, and SMALL says the same, at the cost of its own shape.
"""

import argparse
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import results

from qtransformers import Model, Sampling
from qtransformers.generate.speculative import probability
from qtransformers.sampling import Sampler

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "tests/data/demo-Q8_0.gguf"
DRAFT = ROOT / "tests/data/demo-draft-Q8_0.gguf"
QUESTIONS = ("Tell me a story about a brave fox.", "Tell me a story about a shy owl.", "Tell me about bees.")
DRAWN = 0.8  # the temperature of answers that are drawn


@dataclass(frozen=True)
class Text:
    """A prompt, what followed it, and for each token of that a draft model's guess and how likely it found its likeliest."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    guesses: tuple[tuple[int, float], ...] = ()


def texts(demo: Model, n: int) -> dict[str, list[Text]]:
    """Kinds of text, `n` tokens of an answer at most."""
    code = (ROOT / "src/qtransformers/gguf/values.py").read_text()
    ids = tuple(demo.tokenizer.encode(code))
    renamed = tuple(demo.tokenizer.encode(code.replace("value", "item")))
    at = len(ids) // 2
    return {
        "a file rewritten, one name changed": [Text(ids[:400], renamed[100 : 100 + n])],
        "source code, further on": [Text(ids[at - 400 : at], ids[at : at + n])],
        "stories and facts": [Text(a.prompt, a.tokens) for a in asked(demo, n, 0)],
    }


def asked(demo: Model, n: int, temperature: float):
    """The demo model's answers."""
    return [
        demo.chat([{"role": "user", "content": q}], temperature=temperature, max_tokens=n, **({"seed": 1} if temperature else {}))
        for q in QUESTIONS
    ]  # fmt: skip


def drafted(demo: Model, draft: Model, n: int, temperature: float) -> list[Text]:
    """The demo model's answers with its draft's guesses; one drawn from q is right as often as rejection lets it, min(1, q / p)."""
    sampler, rng = Sampler(Sampling(temperature=temperature), demo.tokenizer.n_tokens), np.random.default_rng(1)
    found = []
    for a in asked(demo, n, temperature):
        first, whole = len(a.prompt) - 1, (*a.prompt, *a.tokens)
        guesses = []
        for i, (p, q) in enumerate(zip(demo.logits(whole)[first:-1], draft.logits(whole)[first:-1], strict=True)):
            sure = 1 / float(np.exp(q - q.max()).sum())
            guess = int(q.argmax())
            if temperature:
                token = a.tokens[i]
                own, other = (probability(sampler.distribution(x.copy()), token) for x in (p, q))
                guess = token if rng.random() * own < other else (token + 1) % len(q)
            guesses.append((guess, sure))
        found.append(Text(a.prompt, a.tokens, tuple(guesses)))
    return found


def said(guess: int, sure: float, n: int) -> np.ndarray:
    """Logits `[n]` whose largest is that of `guess`, at this probability."""
    logits = np.full(n, -np.inf, np.float32)
    others = math.ceil(1 / sure - 1)
    if others:
        logits[(guess + 1 + np.arange(others)) % n] = math.log((1 / sure - 1) / others) - 1e-6
    logits[guess] = 0
    return logits


class Recorded:
    """The forward of a draft model that says what was recorded of the text at hand."""

    def __init__(self, forward):
        self.forward = forward
        self.text = Text((), ())

    def __call__(self, batch, cache):
        logits = self.forward(batch, cache)
        for row, position in zip(logits, batch.positions[batch.output_rows], strict=True):
            i = int(position) + 1 - len(self.text.prompt)
            if i < len(self.text.guesses):
                row[:] = said(*self.text.guesses[i], len(row))
        return logits


def replay(model: Model, text: Text, speculate) -> tuple[float, int, int]:
    """Seconds of the recorded answer, tokens guessed, and how many were right."""
    draft = model._engine.speculation.draft
    if draft:
        draft._forward.text = text

    def hook(tokens, logits):
        logits[:] = -np.inf
        logits[text.answer[len(tokens) - len(text.prompt)]] = 0
        return logits

    done = model.generate(
        text.prompt, add_bos=False, max_tokens=len(text.answer), temperature=0, hooks=[hook], speculate=speculate
    )
    assert done.tokens == text.answer
    return done.timings.seconds, done.timings.drafted_tokens, done.timings.accepted_tokens


def row_of(model: Model, kind: str, pairs: list[Text], speculate: str, rounds: int) -> list[str]:
    """A line of the table."""
    ratios, rates, guessed, right = [], [], 0, 0
    for text in pairs:
        replay(model, text, False)  # the prompt is in the model's cache from here on
    for _ in range(rounds):
        plain = sum(replay(model, text, False)[0] for text in pairs)
        found = [replay(model, text, speculate) for text in pairs]
        seconds = sum(f[0] for f in found)
        n = sum(len(text.answer) - 1 for text in pairs)
        rates.append((n / plain, n / seconds))
        ratios.append(plain / seconds)
        guessed, right = guessed + sum(f[1] for f in found), right + sum(f[2] for f in found)
    speed, fast = (statistics.median(r) for r in zip(*rates, strict=True))
    each = ", ".join(f"{r:.2f}" for r in ratios)
    could = [g == t for text in pairs for (g, _), t in zip(text.guesses, text.answer, strict=False)]
    return [
        f"{kind}, {speculate}",
        f"{np.mean(could):.0%}" if could else "-",
        f"{right} of {guessed}",
        f"{speed:.1f}",
        f"{fast:.1f}",
        f"{statistics.median(ratios):.2f} ({each})",
    ]


def main() -> None:
    """Measure and publish."""
    p = argparse.ArgumentParser()
    p.add_argument("model", type=Path)
    p.add_argument("--draft", type=Path)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    with Model.load(DEMO, threads=1) as demo, Model.load(DRAFT, threads=1) as draft:
        kinds = [("ngram", kind, pairs) for kind, pairs in texts(demo, args.tokens).items()]
        if args.draft:
            kinds = [
                ("draft", f"stories and facts{how}", drafted(demo, draft, args.tokens, t))
                for how, t in {"": 0.0, f" drawn at temperature {DRAWN}": DRAWN}.items()
            ]
    with Model.load(args.model, context_length=2048, threads=args.threads, draft=args.draft) as model:
        speculation = model._engine.speculation
        if args.draft:
            speculation.draft._forward = Recorded(speculation.draft._forward)
        rows = [row_of(model, kind, pairs, speculate, args.rounds) for speculate, kind, pairs in kinds]
        costs = speculation._costs
        price = ", ".join(f"{r}: {costs(r) / costs(1):.2f}" for r in sorted(costs._seconds))
        if args.draft:
            price += f". A token of the draft model: {speculation.draft.costs(1) / costs(1):.2f}"
    small = f", guesses of the demo model's draft at the cost of {args.draft.name}" if args.draft else ""
    head = ["text, guesses", "of all tokens guessed as they came", "right", "tokens/s without", "with", "ratio (each round)"]  # fmt: skip
    body = f"{args.model.name}{small}, {args.threads} threads, up to {args.tokens} tokens of an answer, greedy; with and without take turns.\n\n{results.table(head, rows)}\n\nA step's time by its rows, of one row's: {price}."
    results.publish(__file__, f"Guessing ahead, {args.model.stem}" + (", draft model" if args.draft else ""), body)


if __name__ == "__main__":
    main()
