"""Environment variables become settings, or an error that names them."""

from pathlib import Path

import pytest

from qtransformers.errors import ConfigError
from qtransformers.settings import MAX_THREADS, Settings, flag_from_env


def test_nothing_set_is_nothing_said():
    assert Settings.from_env({}) == Settings()
    empty = ("QTRANSFORMERS_THREADS", "QTRANSFORMERS_ISA", "HF_HUB_OFFLINE", "NO_COLOR", "XDG_STATE_HOME")
    assert Settings.from_env(dict.fromkeys(empty, "")) == Settings()


def test_every_variable():
    env = {
        "QTRANSFORMERS_THREADS": "3",
        "QTRANSFORMERS_ISA": "avx2",
        "HF_HUB_OFFLINE": "Yes",
        "NO_COLOR": "1",
        "XDG_STATE_HOME": "/state",
    }
    assert Settings.from_env(env) == Settings(3, "avx2", True, True, Path("/state"))


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", str(MAX_THREADS + 1), "9" * 5000])
def test_threads_that_cannot_be(text):
    with pytest.raises(
        ConfigError, match=rf"QTRANSFORMERS_THREADS is .*; expected a whole number from 1 to {MAX_THREADS}"
    ):
        Settings.from_env({"QTRANSFORMERS_THREADS": text})


def test_the_process_has_an_environment(monkeypatch):
    monkeypatch.setenv("QTRANSFORMERS_THREADS", "7")
    monkeypatch.setenv("QTRANSFORMERS_CTX_SIZE", "512")
    assert Settings.from_env().threads == 7 and flag_from_env("ctx-size") == "512"
    assert flag_from_env("ctx-size", {}) is None and flag_from_env("ctx-size", {"QTRANSFORMERS_CTX_SIZE": ""}) is None
