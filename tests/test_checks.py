import numpy as np
import pytest

from qtransformers.checks import flag, real, shown, size, text, whole
from qtransformers.errors import ConfigError

HUGE = pytest.param(10**6000, id="huge")  # more digits than Python prints


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 11, HUGE, float("nan"), [1]])
def test_whole_refuses(value):
    with pytest.raises(ConfigError, match=r"^n=.*expected a whole number from 0 to 10"):
        whole("n", value, 0, 10)


@pytest.mark.parametrize("value", [True, "1", None, -0.1, 1.1, HUGE, float("nan"), float("inf"), 1j, [0.5]])
def test_real_refuses(value):
    with pytest.raises(ConfigError, match=r"^x=.*expected a number from 0 to 1"):
        real("x", value, 0, 1)


def test_numbers_of_numpy_are_numbers():
    assert whole("n", np.int32(7), 0, 10) == 7 and type(whole("n", np.int32(7), 0, 10)) is int
    assert real("x", np.float32(0.5), 0, 1) == 0.5


def test_flag_and_text():
    assert flag("f", True) is True
    for value in (1, 0, "yes", None):
        with pytest.raises(ConfigError, match=r"^f="):
            flag("f", value)
    assert text("t", "né") == "né"
    with pytest.raises(ConfigError, match=r"^t=.*expected text"):
        text("t", b"bytes")
    with pytest.raises(ConfigError, match=r"^t has a lone surrogate at character 2"):
        text("t", "ab\ud800")


def test_shown_is_short_and_never_raises():
    assert shown("x" * 500) == "'" + "x" * 56 + "..."
    assert shown(10**6000) == "a int"


@pytest.mark.parametrize(
    "text, n", [("24GiB", 24 << 30), ("24G", 24 << 30), ("1.5GB", 1_500_000_000), ("512 mb", 512_000_000), (5, 5), ("1TiB", 1 << 40)]
)  # fmt: skip
def test_sizes(text, n):
    assert size("ram", text) == n


def test_few_bytes_are_a_forgotten_unit():
    with pytest.raises(
        ConfigError, match=r"ram='64' would be so many bytes; expected an amount of memory such as 64GiB"
    ):
        size("ram", "64")
    assert size("ram", "68719476736") == 64 << 30


@pytest.mark.parametrize("bad", ["-1", "12XB", "NaN", "inf", "", "0", 0, -1, True, 1.5, None, "1e9", "٣GiB", "9" * 30 + "GiB", "9999999TiB", ".5G", "1GiB GiB"])  # fmt: skip
def test_sizes_that_are_none(bad):
    with pytest.raises(ConfigError, match=r"^ram=.*expected an amount of memory such as 24GiB"):
        size("ram", bad)
