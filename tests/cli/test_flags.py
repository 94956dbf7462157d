import argparse

import pytest

from qtransformers.cli.flags import FLAGS, add_flags
from qtransformers.errors import ConfigError


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
        ("threads", "1.5"),
    ],
)
def test_bad_values_are_refused_from_either_side(flag, value):
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse([f"--{flag}={value}"], flag)
    variable = "QTRANSFORMERS_" + flag.upper().replace("-", "_")
    with pytest.raises(ConfigError, match=f"{variable} is {value!r}; expected"):
        parse([], flag, env={variable: value})


def test_a_choice_and_a_switch_from_the_environment_are_checked():
    with pytest.raises(ConfigError, match="expected one of auto, on, off"):
        parse([], env={"QTRANSFORMERS_COLOR": "blue"})
    with pytest.raises(ConfigError, match="QTRANSFORMERS_RAW is 'maybe'"):
        parse([], "raw", env={"QTRANSFORMERS_RAW": "maybe"})


def test_every_flag_has_a_spelling_of_its_own():
    spellings = [flag.spellings[-1] for flag in FLAGS.values()]
    assert len(spellings) == len(set(spellings)) and all(s.startswith("--") for s in spellings)
    assert all(flag.help and not flag.help.endswith(".") for flag in FLAGS.values())
