"""Bytes go where they buy most, within what is allowed; sensitivities are measured on the model."""

import itertools

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.load import load
from qtransformers.quantize import budget
from qtransformers.quantize.budget import Choice, allot
from qtransformers.types import BY_NAME

NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q6_K")


def choices(seed, n=5):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1024, 2048, 4096], n)
    return {
        f"w{i}": tuple(
            Choice(BY_NAME[t], BY_NAME[t].row_bytes(int(size)), float(c * 4.0**-k)) for k, t in enumerate(NAMES)
        )
        for i, (size, c) in enumerate(zip(sizes, np.exp(rng.uniform(-3, 3, n)), strict=True))
    }


def total(options, types):
    picked = [next(c for c in options[name] if c.type is type) for name, type in types.items()]
    return sum(c.nbytes for c in picked), sum(c.cost for c in picked)


@pytest.mark.parametrize("seed", range(6))
def test_within_the_budget_and_nearly_the_best(seed):
    options = choices(seed)
    low, high = (sum(f(c.nbytes for c in cs) for cs in options.values()) for f in (min, max))
    allowed = int(low + 0.5 * (high - low))
    nbytes, cost = total(options, allot(options, allowed))
    assert nbytes <= allowed
    every = [[(c.nbytes, c.cost) for c in cs] for cs in options.values()]
    best = min(sum(c for _, c in pick) for pick in itertools.product(*every) if sum(b for b, _ in pick) <= allowed)
    assert cost <= 1.35 * best
    even = dict.fromkeys(options, BY_NAME["Q3_K"])
    same = total(options, even)
    assert total(options, allot(options, same[0]))[1] <= same[1]


def test_all_there_is_and_too_little():
    options = choices(0)
    assert {t.name for t in allot(options, 1 << 40).values()} == {"Q6_K"}
    least = sum(c[0].nbytes for c in options.values())
    assert {t.name for t in allot(options, least).values()} == {"Q2_K"}
    with pytest.raises(ConfigError, match=f"{least:,} bytes"):
        allot(options, least - 1)


def test_a_choice_that_costs_more_and_is_larger_is_not_taken():
    a, b, c = (BY_NAME[n] for n in ("Q2_K", "Q3_K", "Q4_K"))
    assert allot({"w": (Choice(a, 10, 5.0), Choice(b, 20, 6.0), Choice(c, 30, 1.0))}, 25) == {"w": a}
    assert allot({"w": (Choice(a, 10, 5.0), Choice(b, 20, 6.0), Choice(c, 30, 1.0))}, 30) == {"w": c}


def test_bits_per_weight_of_all_make_bytes_for_some():
    sizes = {"a": (1000, 0), "b": (1000, 0), "norm": (80, 320)}
    assert budget.budget_bytes(sizes, ["a", "b"], 4) == 1040 - 320


def test_layers_between_have_sensitivities_between():
    moved = {"blk.0.ffn_up.weight": 1.0, "blk.4.ffn_up.weight": 3.0, "blk.0.attn_q.weight": 100.0}
    assert budget._between("blk.2.ffn_up.weight", moved) == 2.0
    assert budget._between("blk.4.ffn_up.weight", moved) == 3.0
    assert budget._between("blk.9.ffn_up.weight", moved) == 3.0


def test_the_demo_model_is_surveyed(data):
    model = load(data / "demo-Q8_0.gguf", accuracy="exact", cache="f32", logits_rows=512)
    rows = np.random.default_rng(0).integers(5, 1800, (2, 64)).astype(np.int32)
    found = budget.survey(model, rows)
    assert len(found.choices) == 29 and set(found.choices) == set(found.sensitivity)
    for options in found.choices.values():
        assert [c.type.name for c in options] == list(budget.CHOICES)
        costs = [c.cost for c in options]
        assert costs[0] > costs[2] > costs[4] >= 0
    assert sum(v > 0 for v in found.sensitivity.values()) > 20
