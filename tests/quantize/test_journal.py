"""Records that outlive the process that made them, whole or not at all."""

import resource

import numpy as np
import pytest

from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.quantize.journal import Journal


def filled(path):
    journal = Journal(path, "0123456789ab")
    journal.put(("weight", "a"), np.arange(300, dtype=np.float32), error=(1.5, 2.0))
    journal.put(("types", ""), a="Q4_K", b="Q6_K")
    journal.put(("weight", "b"), b"xyz")
    return journal


def left(path):
    return list(path.parent.iterdir())


def test_what_was_put_is_there_again(tmp_path):
    filled(tmp_path / "m.gguf").close(keep=True)
    journal = Journal(tmp_path / "m.gguf", "0123456789ab")
    assert np.array_equal(journal.data(("weight", "a")).view(np.float32), np.arange(300))
    assert journal.facts(("weight", "a")) == {"error": [1.5, 2.0]} and bytes(journal.data(("weight", "b"))) == b"xyz"
    assert journal.facts(("types", "")) == {"a": "Q4_K", "b": "Q6_K"} and ("weight", "c") not in journal
    journal.put(("weight", "c"), b"more")
    journal.close(keep=True)
    assert bytes(Journal(tmp_path / "m.gguf", "0123456789ab").data(("weight", "c"))) == b"more"


def test_nothing_stays_of_work_that_is_done(tmp_path):
    filled(tmp_path / "m.gguf").close()
    assert not left(tmp_path / "m.gguf")


@pytest.mark.parametrize("cut", [1, 3, 4, 60])
def test_a_record_that_was_cut_is_not_there(cut, tmp_path):
    filled(tmp_path / "m.gguf").close(keep=True)
    (path,) = left(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(tmp_path / "m.gguf", "0123456789ab")
    assert ("weight", "a") in journal and ("weight", "b") not in journal
    journal.put(("weight", "b"), b"anew")
    journal.close(keep=True)
    assert bytes(Journal(tmp_path / "m.gguf", "0123456789ab").data(("weight", "b"))) == b"anew"


@pytest.mark.parametrize("at", [0, 7, 8, 20, 200])
def test_damage_ends_it(at, tmp_path):
    filled(tmp_path / "m.gguf").close(keep=True)
    (path,) = left(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    journal = Journal(tmp_path / "m.gguf", "0123456789ab")
    assert ("weight", "a") not in journal and ("weight", "b") not in journal


def test_two_at_the_same_work(tmp_path):
    journal = filled(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="being written by another process"):
        Journal(tmp_path / "m.gguf", "0123456789ab")
    journal.close()


def test_without_room_it_says_where_and_what_to_do(tmp_path):
    journal, limits = filled(tmp_path / "m.gguf"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
    try:
        with pytest.raises(QTransformersError, match=r"m\.gguf: .*kept: make room and run the same again") as caught:
            journal.put(("weight", "c"), bytes(6_000_000))
        journal.close(keep=isinstance(caught.value.__cause__, OSError))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Journal(tmp_path / "m.gguf", "0123456789ab")
    assert ("weight", "b") in again and ("weight", "c") not in again
