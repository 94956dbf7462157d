"""A model of the shape of Llama 3 8B in Q4_K_M on the card: loading, prompts, steps of answers, and what a step is made of."""

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from card import Card
from card_peers import peers
from models import at
from results import table

from qtransformers import Model
from qtransformers.cache import PAGE_TOKENS, Batch
from qtransformers.generate.device import forward_of
from qtransformers.load import Loaded, load

SHAPE, RECIPE = "llama-8b", "Q4_K_M"
PROMPT, DEPTHS, TOGETHER, TOKENS = 512, (16, 4096), (1, 4, 8), 128
CONTEXT = 8192
KERNELS = 12  # shown of a step
ROUNDS = 30
TINY = {
    "SHAPE": "tiny",
    "RECIPE": "Q4_0",
    "PROMPT": 3,
    "DEPTHS": (2,),
    "TOGETHER": (1,),
    "TOKENS": 2,
    "CONTEXT": 256,
    "ROUNDS": 0,
}


def measure(card: Card, options) -> tuple[str, str]:
    """The title and text for RESULTS.md."""
    with tempfile.TemporaryDirectory() as folder:
        path = at(folder, SHAPE, RECIPE)
        start = time.perf_counter()
        loaded = load(path, placement="cuda:0", context_length=CONTEXT, cache_tokens=CONTEXT * max(TOGETHER))
        card.wait()
        seconds = time.perf_counter() - start
        nbytes = loaded.plan.weights_bytes
        rows, kernels = steps(card, loaded)
        prompt = prompts(loaded)
        shapes = products(loaded)
        del loaded
        card.clear()
        with Model.load(path, placement="cuda:0", context_length=CONTEXT) as model:
            spoken = answers(model)
        card.clear()
        others = list(peers(card, options, str(path), shapes, PROMPT, TOKENS))
    head = ("answers at once", "tokens before", "ms a step", "tokens/s", "GB/s of weights", "of copy")
    text = (
        f"Random weights, {nbytes / 1e9:.2f} GB, loaded in {seconds:.1f} s with the file in the page cache. Prompts of {PROMPT} tokens: "
        f"{prompt:,.0f} tokens/s. Answers through the whole library, one at a time, greedy: {spoken:.1f} tokens/s."
    )
    made_of = table(("kernel of a step", "launches", "us together"), kernels)
    beside = table(
        ("on the same file and card", "prompt, tokens/s", "answer, tokens/s"),
        [("qtransformers", f"{prompt:,.0f}", f"{spoken:.1f}"), *others],
    )
    return f"{SHAPE} in {RECIPE}", "\n\n".join((text, beside, table(head, rows), made_of))


def products(loaded: Loaded) -> list[tuple[int, int, int]]:
    """How many matrices of each shape `(out, in)` a token is multiplied with."""
    tied = loaded.plan.ties.values()
    matrices = [
        t for t in loaded.plan.tensors if len(t.shape) == 2 and (t.slot.attr != "token_embd" or t.slot.attr in tied)
    ]
    return [(n, *shape) for shape, n in Counter(t.shape for t in matrices).items()]


def steps(card: Card, loaded: Loaded) -> tuple[list[list[str]], list[list[str]]]:
    """Milliseconds of steps by how many answers and how much came before; and the kernels of the first kind."""
    forward, cache = forward_of(loaded), loaded.new_cache()
    rows, kernels = [], []
    for n in TOGETHER:
        for depth in DEPTHS:
            tables = [cache.take(-(-(depth + 1) // PAGE_TOKENS)) for _ in range(n)]
            batch = Batch.join([Batch.single([7], depth, pages) for pages in tables])

            def step(batch: Batch = batch) -> object:
                return forward(batch, cache).best()

            ms = 1e3 * timed(step, ROUNDS)
            speed = loaded.plan.weights_bytes / ms * 1e3
            cells = [
                n,
                depth,
                f"{ms:.3f}",
                f"{n / ms * 1e3:.1f}",
                f"{speed / 1e9:,.0f}",
                f"{100 * speed / card.copy:.0f}%",
            ]
            rows.append([str(cell) for cell in cells])
            print(*rows[-1], flush=True)
            if card.real and not kernels:
                kernels = made_of(step)
            for pages in tables:
                cache.give_back(pages)
    return rows, kernels


def prompts(loaded: Loaded) -> float:
    """Tokens per second of a prompt."""
    forward, cache = forward_of(loaded), loaded.new_cache()
    pages = cache.take(-(-PROMPT // PAGE_TOKENS))
    ids = np.random.default_rng(0).integers(3, loaded.hparams.vocab_size, PROMPT)
    batch = Batch.single(ids.astype(np.int32), 0, pages)
    return PROMPT / timed(lambda: forward(batch, cache).best(), min(8, ROUNDS))


def answers(model: Model) -> float:
    """Tokens per second of an answer, as a caller sees them."""
    found = [
        model.generate([1, 5, 7, 9], max_tokens=TOKENS, temperature=0, add_bos=False) for _ in range(min(3, 1 + ROUNDS))
    ]
    return median(answer.timings.tokens_per_second for answer in found)


def timed(call: Callable[[], object], rounds: int) -> float:
    """Seconds of a call that ends with its result in main memory, the median of `rounds` after two."""
    times = []
    for _ in range(rounds + 2 if rounds else 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times[-rounds:])


def made_of(call: Callable[[], object]) -> list[list[str]]:
    """The kernels that take most of a call: names, launches, microseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name].append(event.device_time)
    order = sorted(found, key=lambda name: -sum(found[name]))
    rows = [[name[:60], str(len(found[name])), f"{sum(found[name]):.1f}"] for name in order[:KERNELS]]
    n, us = sum(map(len, found.values())), sum(map(sum, found.values()))
    return [*rows, ["all", str(n), f"{us:.1f}"]]
