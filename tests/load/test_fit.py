"""Verdicts and remedies: every remedy is held to what it promises."""

import re
from dataclasses import replace

import pytest

from qtransformers.cache.pages import CODECS
from qtransformers.errors import ConfigError
from qtransformers.load import prepare, resolve
from qtransformers.load.fit import CONTEXT_BYTES, Budget, Remedy, fit
from qtransformers.load.footprint import CacheShape
from qtransformers.machine import Memory

GIB = 1 << 30


@pytest.fixture
def plan(data):
    """The demo's plan, blown up: 4 GiB of weights, 128 KiB of cache a token in f16."""
    small = prepare(resolve(data / "demo-Q8_0.gguf"), context_length=32768).plan
    shape = CacheShape(32, 8, 128, 128)
    big = replace(small.tensors[0], nbytes=4 * GIB, shape=(8 * GIB // 4096, 4096))
    return replace(small, tensors=(big,), weights_bytes=4 * GIB, cache_shape=shape, cache_bytes=shape.bytes(32768, "f16"))  # fmt: skip


def with_flags(plan, flags):
    """The plan as it would be with the flags of a remedy."""
    cache = re.search(r"--cache (\S+)", flags)
    context = re.search(r"--ctx-size (\d+)", flags)
    codec, n = cache[1] if cache else plan.cache, int(context[1]) if context else plan.context_length
    return replace(plan, cache=codec, context_length=n, cache_bytes=plan.cache_shape.bytes(n, codec))


def test_verdicts_turn_where_the_bytes_do(plan):
    need = fit(plan, Budget(64 * GIB, 64 * GIB)).needs[0]
    assert need.model == plan.weights_bytes + plan.cache_bytes + plan.activations_bytes + plan.program_bytes
    assert need.weights == 4 * GIB and need.cache == 4 * GIB
    spare = 64 * GIB // 50
    assert need.system == spare + 4 * GIB // 512  # page tables: 8 bytes for 4,096

    def verdict(have):
        return fit(plan, Budget(have, 64 * GIB)).verdict

    assert verdict(need.model + need.system) == "fits"
    assert verdict(need.model + need.system - 1) == "tight"
    assert verdict(need.model) == "tight"
    assert verdict(need.model - 1) == "does not fit"
    assert fit(plan, Budget(None)).verdict == "unknown"


@pytest.mark.parametrize("have", [8.2, 7, 6, 5, 4.7])
def test_remedies_do_what_they_say(plan, have):
    budget = Budget(round(have * GIB), round(have * GIB))
    found = fit(plan, budget)
    assert found.verdict in ("does not fit", "tight")
    settings = [r for r in found.remedies if "--ctx-size" in r.flags or "--cache" in r.flags]
    assert settings
    for remedy in settings:
        changed = with_flags(plan, remedy.flags)
        after = fit(changed, budget)
        assert after.verdict == "fits", remedy
        assert after.needs[0].model + after.needs[0].system == remedy.needs <= budget.ram
        if "--ctx-size" in remedy.flags:  # a page more would be too much
            longer = with_flags(changed, f"--ctx-size {changed.context_length + 256}")
            assert fit(longer, budget).verdict != "fits"


def test_a_cache_that_is_too_large_is_made_smaller_first(plan):
    wide = with_flags(plan, "--cache f32")
    found = fit(wide, Budget(9 * GIB, 9 * GIB))
    first = found.remedies[0]
    assert re.fullmatch(r"--cache \S+", first.flags), "the whole context can be kept"
    larger = [c for c in CODECS if plan.cache_shape.bytes(256, c) < plan.cache_shape.bytes(256, "f32")]
    assert first.flags.split()[1] in larger


def test_weights_that_are_too_large(plan):
    found = fit(plan, Budget(3 * GIB, 3 * GIB))
    assert "Keys, values and temporaries alone" in found.note
    short = fit(with_flags(plan, "--ctx-size 1024"), Budget(3 * GIB, 3 * GIB))
    share = int(re.search(r"with (\d+)% of the weights in memory", short.note)[1])
    host = short.needs[0]
    assert share == round(100 * (3 * GIB - (host.model - host.weights)) / host.weights)
    bits = float(re.search(r"([\d.]+) bits a weight:", short.remedies[0].text)[1])
    room = bits / 8 * plan.parameters
    assert 0.8 * 3 * GIB < room < 3 * GIB
    named = float(re.search(r"\(([\d.]+) bits\) or smaller", short.remedies[0].text)[1])
    assert named <= bits
    offers = {"a:Q8_0": 4 * GIB, "a:Q4_K_M": int(2.4 * GIB), "a:Q2_K": GIB}
    assert fit(plan, Budget(3 * GIB, 3 * GIB), offers).remedies[0].text.startswith("another quantisation, a:Q4_K_M")


@pytest.mark.parametrize("scale", [0.02, 1, 100])
def test_the_machine_it_needs(plan, scale):
    big = replace(plan.tensors[0], nbytes=int(4 * GIB * scale))
    plan = replace(plan, tensors=(big,), weights_bytes=big.nbytes)
    enough = fit(plan, Budget.of(None, 1 << 20)).remedies[-1]
    assert isinstance(enough, Remedy) and enough.text.endswith("of memory")
    assert fit(plan, Budget.of(None, enough.needs)).verdict == "fits"
    assert fit(plan, Budget.of(None, int(enough.needs * 0.99) - (4 << 20))).verdict != "fits"
    measured = fit(plan, Budget(1 << 20, 64 * GIB)).remedies[-1]
    assert measured.text.endswith("of free memory")
    assert fit(plan, Budget(measured.needs, 64 * GIB)).verdict == "fits"


def test_budgets():
    memory = Memory(total=100, available=80, limit=60, room=50)
    assert Budget.of(memory) == Budget(50, 60, {})
    said = Budget.of(memory, "2GiB", ("24GiB", "500MB"))
    assert said == Budget(2 * GIB, 2 * GIB, {"cuda:0": 24 * GIB, "cuda:1": 500_000_000}, said=True)
    assert said.of_device("cuda:0") == 24 * GIB - CONTEXT_BYTES and said.of_device("cpu") == 2 * GIB
    assert Budget.of(Memory(None, None, None)).ram is None
    for bad in ("-1", "12XB", "nan", "0", ""):
        with pytest.raises(ConfigError, match="ram="):
            Budget.of(memory, bad)
        with pytest.raises(ConfigError, match="vram="):
            Budget.of(memory, None, [bad])
    assert Budget.of(memory, "512GiB").spare == 8 * GIB and Budget.of(memory, "1GiB").spare == 256 << 20
