import argparse
import dataclasses

import pytest

from qtransformers.cli.flags import FLAGS, SAMPLING, add_flags
from qtransformers.errors import ConfigError
from qtransformers.sampling import Sampling
from qtransformers.sampling.settings import RANGES


def parse(words, *names, env=None):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, *names, env=env or {})
    return parser.parse_args(words)


def test_flag_over_environment_over_default():
    env = {"QTRANSFORMERS_CTX_SIZE": "512", "QTRANSFORMERS_RAW": "yes"}
    assert parse([], "ctx-size", "raw").ctx_size is None
    assert parse([], "ctx-size", "raw", env=env).ctx_size == 512
    assert parse([], "ctx-size", "raw", env=env).raw is True
    assert parse(["-c", "64"], "ctx-size", env=env).ctx_size == 64


@pytest.mark.parametrize(
    "flag, value",
    [
        ("ctx-size", "0"),
        ("ctx-size", "many"),
        ("max-tokens", "-1"),
        ("temp", "nan"),
        ("temp", "inf"),
        ("temp", "-0.1"),
        ("top-p", "1.5"),
        ("seed", "-1"),
        ("typical-p", "2"),
        ("repetition-penalty", "0"),
        ("penalty-range", "-2"),
        ("logit-bias", "5"),
        ("logit-bias", "5=x"),
        ("threads", "1.5"),
    ],
)
def test_bad_values_are_refused_from_either_side(flag, value):
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse([f"--{flag}={value}"], flag)
    variable = "QTRANSFORMERS_" + flag.upper().replace("-", "_")
    with pytest.raises(ConfigError, match=f"{variable} is {value!r}; expected"):
        parse([], flag, env={variable: value})


def test_a_flag_that_may_be_given_several_times():
    assert parse(["--stop", "a", "--stop", "b"], "stop").stop == ["a", "b"] and parse([], "stop").stop is None


def test_a_choice_and_a_switch_from_the_environment_are_checked():
    with pytest.raises(ConfigError, match="expected one of auto, on, off"):
        parse([], env={"QTRANSFORMERS_COLOR": "blue"})
    with pytest.raises(ConfigError, match="QTRANSFORMERS_RAW is 'maybe'"):
        parse([], "raw", env={"QTRANSFORMERS_RAW": "maybe"})


def test_every_flag_has_a_spelling_of_its_own():
    spellings = [flag.spellings[-1] for flag in FLAGS.values()]
    assert len(spellings) == len(set(spellings)) and all(s.startswith("--") for s in spellings)
    assert all(flag.help and not flag.help.endswith(".") for flag in FLAGS.values())


def test_flags_of_sampling_are_its_fields_and_their_ranges():
    words = [f"--{flag}={ {'logit-bias': '7=1.5,9=-2', 'mirostat-tau': '0'}.get(flag, '1') }" for flag in SAMPLING]
    args = parse(words, *SAMPLING)
    given = {field: getattr(args, FLAGS[flag].dest) for flag, field in SAMPLING.items()}
    settings = Sampling(**given)
    assert settings.logit_bias == ((7, 1.5), (9, -2.0)) and settings.repetition_penalty == settings.seed == 1
    for flag, field in SAMPLING.items():
        for bound in RANGES.get(field, ())[1:]:
            Sampling(**{field: getattr(parse([f"--{flag}={bound:.17g}"], flag), FLAGS[flag].dest)})
    left = {"dry_breakers", "banned_tokens", "allowed_tokens"}
    assert {*SAMPLING.values(), *left} == {field.name for field in dataclasses.fields(Sampling)}


def test_spellings_of_llama_cpp():
    assert (
        parse(["--repeat-penalty", "1.1", "--repeat-last-n", "64"], "repetition-penalty", "penalty-range").penalty_range
        == 64
    )
