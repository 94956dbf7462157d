"""Settings: every field checked, frozen, hashable."""

import dataclasses
import math

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.sampling import Sampling, SamplingOptions
from qtransformers.sampling.settings import COLLECTIONS, RANGES

NAN, INF = float("nan"), float("inf")
REALS = {name: row[1:] for name, row in RANGES.items() if row[0].__name__ == "real"}
WHOLES = {name: row[1:] for name, row in RANGES.items() if row[0].__name__ == "whole"}
HOSTILE = {
    **{name: [least - 0.01, most + 0.01, NAN, INF, -INF, 10**6000, "1", True, None, [1]] for name, (least, most) in REALS.items()},
    **{name: [least - 1, most + 1, NAN, 10**6000, 1.5, "1", True, None] for name, (least, most) in WHOLES.items()},
    "seed": [-1, NAN, 2**64, 1.5, "1", True],
    "dry_breakers": ["text", 5, None, [5], [""], ["x" * 101], ["\ud800"], ["x"] * 65, {"a": 1}],
    "logit_bias": [5, "1", [5], [(1, 2, 3)], {1: NAN}, {1: INF}, {1: 1e5}, {1: "2"}, {1: True}, {-1: 2}, {True: 2}, {"1": 2}, {2**31: 0}, [(1, 2), (1, 3)], None],
    "banned_tokens": [5, "1", b"1", {1: 2}, [-1], [2**31], [1.0], [True], ["1"], [None], [NAN], None],
    "allowed_tokens": [5, "1", {1: 2}, [-1], [2**31], [1.5], [False], [], ()],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, value",
    [pytest.param(name, value, id=f"{name}-{i}") for name, values in HOSTILE.items() for i, value in enumerate(values)],
)
def test_a_bad_value_is_an_error_with_the_name_of_its_field(name, value):
    with pytest.raises(ConfigError, match=f"^{name}[^a-z_]"):
        Sampling(**{name: value})


def test_every_field_is_tried_and_can_be_asked_for():
    names = {field.name for field in dataclasses.fields(Sampling)}
    assert set(HOSTILE) == names == {*RANGES, *COLLECTIONS, "seed"} == set(SamplingOptions.__annotations__)


@pytest.mark.parametrize("name", RANGES)
def test_the_bounds_themselves_are_fine(name):
    for bound in RANGES[name][1:]:
        assert getattr(Sampling(**{name: bound}), name) == bound


def test_settings_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().top_k = 3
    with pytest.raises(TypeError, match="temprature"):
        Sampling(temprature=1)
    one = Sampling(
        logit_bias={3: 1, 1: -1}, banned_tokens=[2, 1, 2], allowed_tokens=np.array([5, 4]), dry_breakers={"b", "a"}
    )
    same = Sampling(
        logit_bias=[(1, -1.0), (3, 1.0)], banned_tokens=(1, 2), allowed_tokens={4, 5}, dry_breakers=("a", "b")
    )
    assert one == same and hash(one) == hash(same) and len({one, same, Sampling()}) == 2
    assert (one.logit_bias, one.banned_tokens, one.allowed_tokens) == (((1, -1.0), (3, 1.0)), (1, 2), (4, 5))
    assert dataclasses.replace(one, seed=1).logit_bias == one.logit_bias


def test_numbers_become_plain_ones():
    s = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(7))
    assert [type(v) for v in (s.temperature, s.top_k, s.seed)] == [float, int, int]


def test_a_repr_tells_what_is_not_neutral():
    assert repr(Sampling()) == "Sampling()"
    assert repr(Sampling(temperature=0.5, banned_tokens=[3])) == "Sampling(temperature=0.5, banned_tokens=(3,))"
    assert eval(repr(Sampling(top_p=0.5, logit_bias={1: 2}))) == Sampling(top_p=0.5, logit_bias={1: 2})


def test_what_cannot_be_together():
    with pytest.raises(ConfigError, match=r"xtc_probability=0\.5 and mirostat_tau=3"):
        Sampling(xtc_probability=0.5, mirostat_tau=3)


def test_defaults_come_from_the_generation_config():
    assert Sampling.from_generation_config({}) == Sampling()
    assert Sampling.from_generation_config({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": 2}) == Sampling(temperature=0.6, top_p=0.9)  # fmt: skip
    assert Sampling.from_generation_config({"repetition_penalty": 1.05, "typical_p": 0.9}) == Sampling(repetition_penalty=1.05, typical_p=0.9)  # fmt: skip
    assert Sampling.from_generation_config({"temperature": 0.6, "do_sample": False}).temperature == 0
    assert Sampling.from_generation_config({"top_k": None, "seed": 3}) == Sampling()
    with pytest.raises(ConfigError, match="generation_config: top_k="):
        Sampling.from_generation_config({"top_k": -5})


def test_override_replaces_only_what_is_given():
    base = Sampling(temperature=0.6, top_k=20)
    assert base.override(top_k=None, seed=3) == Sampling(temperature=0.6, top_k=20, seed=3)
    with pytest.raises(TypeError):
        base.override(topk=3)
    assert math.isclose(base.override(typical_p=0.5).typical_p, 0.5)
