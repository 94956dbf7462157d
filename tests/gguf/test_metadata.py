"""Metadata edits: in place where they fit, anew where not, and undone when interrupted."""

import os
import stat

import numpy as np
import pytest

from qtransformers.errors import ConfigError, GGUFError
from qtransformers.gguf import GGUFFile, GGUFWriter, Typed, backup, edit_metadata, restore_header

MODEL = {
    "general.architecture": "llama",
    "general.name": "a model with a name long enough to shrink",
    "llama.block_count": 2,
    "a.list": ["x", "caf\udce9", "z"],
    "a.flag": True,
}


@pytest.fixture(params=[False, True], ids=["little", "big"])
def model(tmp_path, request):
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, MODEL, [("a", (3, 5), "F32"), ("b", (64,), "Q8_0")], big_endian=request.param) as writer:
        writer.write("a", np.arange(15, dtype=np.float32))
        writer.write("b", np.arange(68, dtype=np.uint8))
    return path


def content(path):
    with GGUFFile(path) as file:
        values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()}
        types = {k: file.metadata.info(k).type for k in file.metadata}
        tensors = {n: (t.type, t.shape, t.data.tobytes()) for n, t in file.tensors.items()}
        return values, types, tensors, file.data_offset


IN_PLACE = {
    "same size": ({"llama.block_count": 3}, []),
    "shorter": ({"general.name": "short"}, []),
    "removed": ({}, ["general.name"]),
    "much removed": ({}, ["general.name", "a.list", "a.flag"]),
    "one for another": ({"a.new": 1.5}, ["general.name"]),
    "another type": ({"a.flag": "yes"}, ["a.list"]),
    "nothing": ({}, []),
}


@pytest.mark.parametrize("new, remove", IN_PLACE.values(), ids=IN_PLACE)
def test_what_fits_is_edited_in_place(model, new, remove):
    values, types, tensors, offset = content(model)
    inode, tail = model.stat().st_ino, model.read_bytes()[offset:]
    edit = edit_metadata(model, set=new, remove=remove)
    assert edit.in_place and edit.bytes_written == offset
    assert model.stat().st_ino == inode and model.read_bytes()[offset:] == tail
    after = content(model)
    assert after[0] == {k: v for k, v in values.items() if k not in remove} | new
    assert {k: t for k, t in after[1].items() if k not in new} == {
        k: t for k, t in types.items() if k not in new and k not in remove
    }
    assert after[2:] == (tensors, offset)
    assert os.listdir(model.parent) == ["m.gguf"]


def test_room_once_left_is_used_again(model):
    size = model.stat().st_size
    assert edit_metadata(model, remove=["general.name"]).in_place
    assert edit_metadata(model, set={"a.note": "x" * 40}).in_place
    assert edit_metadata(model, set={"a.note": "y" * 30}).in_place
    assert content(model)[0]["a.note"] == "y" * 30 and "gguf.padding" not in content(model)[0]
    assert model.stat().st_size == size


@pytest.mark.parametrize("left", range(1, 80))
def test_every_length_of_a_shrunken_value(model, left):
    """The gap to fill may be anything from nothing to the whole value."""
    edit_metadata(model, set={"a.note": "x" * 80})
    before = content(model)
    assert edit_metadata(model, set={"a.note": "x" * left}).in_place
    after = content(model)
    assert after[0] == before[0] | {"a.note": "x" * left} and after[2:] == before[2:]


def test_what_does_not_fit_is_written_anew(model):
    values, _, tensors, offset = content(model)
    model.chmod(0o640)
    link = model.with_name("link.gguf")
    link.symlink_to(model)
    with GGUFFile(model) as old:
        embedding = old.tensors["a"]
        edit = edit_metadata(link, set={"tokenizer.chat_template": "t" * 5000, "a.forced": Typed("u64", 7)})
        assert embedding.dequantize().sum() == 105  # the old file lives while it is mapped
    assert not edit.in_place and edit.bytes_written == model.stat().st_size
    after = content(model)
    assert after[0] == values | {"tokenizer.chat_template": "t" * 5000, "a.forced": 7}
    assert after[1]["a.forced"] == "u64" and after[2] == tensors and after[3] > offset
    assert stat.S_IMODE(model.stat().st_mode) == 0o640 and link.is_symlink()
    assert sorted(os.listdir(model.parent)) == ["link.gguf", "m.gguf"]


def test_a_file_of_metadata_alone(tmp_path):
    path = tmp_path / "vocab.gguf"
    with GGUFWriter(path, MODEL, []):
        pass
    assert edit_metadata(path, set={"llama.block_count": 4}).in_place
    assert not edit_metadata(path, remove=["general.name"]).in_place
    assert GGUFFile(path).metadata["llama.block_count"] == 4 and "general.name" not in GGUFFile(path).metadata


REFUSED = {
    "layout": ({"general.alignment": 64}, [], ConfigError, "how the file is laid out"),
    "shards": ({"split.count": 2}, [], ConfigError, "how the file is laid out"),
    "absent": ({}, ["a.typo"], ConfigError, "has no a.typo to remove"),
    "both": ({"a.flag": False}, ["a.flag"], ConfigError, "both set and removed"),
    "no GGUF value": ({"a.flag": None}, [], ConfigError, "a.flag is a NoneType"),
    "a type others rely on": ({"tokenizer.ggml.tokens": [1, 2]}, [], GGUFError, "tokenizer.ggml.tokens is arr.i32."),
    "too many layers": ({"llama.block_count": 513}, [], GGUFError, "expected 0 to 512"),
    "a bad key": ({"a\nkey": 1}, [], GGUFError, "printable"),
}


@pytest.mark.parametrize("new, remove, error, message", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(model, new, remove, error, message):
    before = model.read_bytes()
    with pytest.raises(error, match=message):
        edit_metadata(model, set=new, remove=remove)
    assert model.read_bytes() == before and os.listdir(model.parent) == ["m.gguf"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file(model):
    model.chmod(0o444)
    with pytest.raises(ConfigError, match="may not be written to"):
        edit_metadata(model, set={"a.flag": False})
    assert os.listdir(model.parent) == ["m.gguf"]


@pytest.mark.parametrize("written", [0, 1, 37, 150])
def test_an_interrupted_edit_is_undone_by_the_next(model, written, monkeypatch):
    """A crash after some bytes of the new header: nothing of ours runs any more."""
    before = content(model)
    real = backup._pwrite

    def crash(path, header):
        with open(path, "r+b") as f:
            f.write(header[:written])
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "_pwrite", crash)
    with pytest.raises(KeyboardInterrupt):
        edit_metadata(model, remove=["general.architecture"])
    assert len(os.listdir(model.parent)) == 2
    monkeypatch.setattr(backup, "_pwrite", real)
    try:
        GGUFFile(model).close()
    except GGUFError as e:
        assert "restore_header" in str(e)
    else:
        assert written < 20 and content(model) == before  # the two headers begin alike
    assert restore_header(model) and not restore_header(model)
    assert content(model) == before and os.listdir(model.parent) == ["m.gguf"]


def test_a_failed_write_is_undone_at_once(model, monkeypatch):
    before = model.read_bytes()
    real, calls = backup._pwrite, []

    def fail(path, header):
        calls.append(len(header))
        if len(calls) == 1:
            real(path, header[:40])
            raise OSError("disk error")
        real(path, header)

    monkeypatch.setattr(backup, "_pwrite", fail)
    with pytest.raises(OSError, match="disk error"):
        edit_metadata(model, remove=["general.name"])
    assert model.read_bytes() == before and os.listdir(model.parent) == ["m.gguf"]


def test_a_torn_backup_is_dropped(model):
    before = model.read_bytes()
    model.with_name("m.gguf.header-backup").write_bytes(before[:50])
    assert edit_metadata(model, set={"a.flag": False}).in_place
    assert content(model)[0] == MODEL | {"a.flag": False}


def test_a_torn_header_is_never_read(model, monkeypatch):
    """Two values of the same length, of which only the first was written: a header that parses, and is neither."""
    edit_metadata(model, set={"a.one": "old old", "a.two": "old old"})
    before = model.read_bytes()
    real = backup._pwrite

    def crash(path, header):
        with open(path, "r+b") as f:
            f.write(header[: header.index(b"new new") + 7])
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "_pwrite", crash)
    with pytest.raises(KeyboardInterrupt):
        edit_metadata(model, set={"a.one": "new new", "a.two": "new new"})
    monkeypatch.setattr(backup, "_pwrite", real)
    with pytest.raises(GGUFError, match=r"m.gguf: an edit of its metadata was interrupted.*restore_header"):
        GGUFFile(model)
    assert restore_header(model) and model.read_bytes() == before


def test_an_edit_that_came_to_its_end_stays(model, monkeypatch):
    """A crash between the last byte and the removal of the backup."""
    kept = []
    monkeypatch.setattr(type(model), "unlink", lambda path, **_: kept.append(path.name))
    edit_metadata(model, set={"a.flag": False})
    monkeypatch.undo()
    assert kept == ["m.gguf.header-backup"] == sorted(os.listdir(model.parent))[1:]
    assert content(model)[0] == MODEL | {"a.flag": False}
    assert not restore_header(model) and os.listdir(model.parent) == ["m.gguf"]
    assert content(model)[0] == MODEL | {"a.flag": False}


def test_another_file_under_the_name_of_an_interrupted_edit(model, monkeypatch):
    """A user who downloads again: the old header is not this file's."""
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_pwrite", lambda path, header: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            edit_metadata(model, set={"a.flag": False})
    with GGUFWriter(model, {"general.architecture": "other"}, [("a", (64,), "F32")], overwrite=True) as writer:
        writer.write("a", np.ones(64, np.float32))
    fresh = model.read_bytes()
    GGUFFile(model).close()
    assert not restore_header(model)
    assert model.read_bytes() == fresh and os.listdir(model.parent) == ["m.gguf"]
