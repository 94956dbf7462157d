"""The reader on files as they should be; test_hostile.py has the others."""

import gc
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_files import ARCH, entry, file, info, string
from qtransformers.errors import GGUFError
from qtransformers.gguf import GGUFFile
from qtransformers.native import lib


def test_the_demo_file(data):
    with GGUFFile(data / "demo-Q8_0.gguf") as model:
        assert model.version == 3 and not model.big_endian and model.alignment == 32
        assert model.nbytes == (data / "demo-Q8_0.gguf").stat().st_size and model.data_offset % 32 == 0
        assert model.metadata["general.architecture"] == "llama"
        tokens = model.metadata["tokenizer.ggml.tokens"]
        embedding = model.tensors["token_embd.weight"]
        assert embedding is model.tensors["token_embd.weight"]
        assert embedding.shape[0] == len(tokens)
        assert not embedding.data.flags.writeable
        assert embedding.nbytes == embedding.data.nbytes == embedding.n_rows * embedding.row_bytes
        assert np.isfinite(embedding.rows(0, 4)).all()
        assert sum(i.nbytes for i in model.tensors.infos()) == sum(t.nbytes for t in model.tensors.values())
        assert "nothing" not in model.tensors and model.tensors.get("nothing") is None
        last = list(model.tensors.values())[-1]
    with pytest.raises(GGUFError, match="is closed"):
        model.tensors["token_embd.weight"]
    assert last.data[-1] >= 0  # a tensor taken out keeps the map


@pytest.fixture
def path(tmp_path):
    entries = [
        ARCH,
        entry("a.number", "i16", -7),
        entry("a.text", "str", "ü"),
        entry("a.texts", "arr[str]", ["a", "ü", ""]),
        entry("a.numbers", "arr[f64]", [1.0, 2.5]),
        entry("a.flags", "arr[bool]", [True, False]),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(file(entries, [info("t", [4, 2])], struct.pack("<8f", *range(8))))
    return path


def test_arrays_are_decoded_on_demand_and_once(path, monkeypatch):
    metadata = GGUFFile(path).metadata
    decode, decoded = metadata._decode, []
    monkeypatch.setattr(metadata, "_decode", lambda field: decoded.append(field.type) or decode(field))
    assert len(metadata) == len(list(metadata)) == 6 and "a.texts" in metadata and "a.none" not in metadata
    assert [metadata.info(k) for k in metadata][3:] == [("arr[str]", 3), ("arr[f64]", 2), ("arr[bool]", 2)]
    assert metadata["a.number"] == -7 and metadata["a.text"] == "ü"
    assert not decoded
    assert metadata["a.texts"] is metadata["a.texts"] and metadata["a.texts"] == ["a", "ü", ""]
    numbers = metadata["a.numbers"]
    assert numbers.dtype == np.float64 and numbers.tolist() == [1.0, 2.5] and not numbers.flags.writeable
    assert metadata["a.flags"].tolist() == [True, False]
    assert decoded == ["arr[str]", "arr[f64]", "arr[bool]"]
    assert metadata.get("a.none", 3) == 3
    with pytest.raises(KeyError):
        metadata["a.none"]


def test_after_closing(path):
    with GGUFFile(path) as model:
        texts = model.metadata["a.texts"]
    assert model.metadata["a.texts"] is texts and model.metadata["a.number"] == -7  # what was read stays
    with pytest.raises(GGUFError, match=r"m.gguf is closed"):
        model.metadata["a.numbers"]
    model.close()  # twice does no harm


def smaps(path):
    """The flags of the maps of a file."""
    flags, here = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("VmFlags:"):
            flags.append(set(line.split()[1:]))
    return flags


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_map_is_shared_readonly_and_wants_huge_pages(path):
    model = GGUFFile(path)
    (flags,) = smaps(path)
    assert "wr" not in flags and flags & {"sh", "ms"}
    assert "hg" in flags or not Path("/sys/kernel/mm/transparent_hugepage").exists()
    tensor = model.tensors["t"]
    model.close()
    assert len(smaps(path)) == 1  # the tensor's bytes are still there
    assert tensor.dequantize().sum() == 28
    del tensor
    gc.collect()
    assert not smaps(path)


def test_nothing_is_imported_before_it_is_needed(path, data):
    code = (
        "import sys; from qtransformers.gguf import GGUFFile;"
        "assert not {'qtransformers._native', 'torch', 'gguf'} & sys.modules.keys(), 'too early';"
        f"GGUFFile({str(data / 'demo-Q8_0.gguf')!r}); assert 'qtransformers._native' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the C++ walk and its plain twin


def walk(data, at, count, order="<"):
    """The strings from byte `at`, as far as they are whole, and the byte after them."""
    found = []
    while len(found) < count and at + 8 <= len(data):
        (n,) = struct.unpack_from(order + "Q", data, at)
        if n > 1 << 30 or at + 8 + n > len(data):
            break
        found.append(data[at + 8 : at + 8 + n].decode("utf-8", "surrogateescape"))
        at += 8 + n
    return found, at


@pytest.mark.parametrize("order", "<>")
def test_strings_walk_as_their_twin(order):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, n, np.uint8).tobytes() for n in rng.integers(0, 40, 500)]
    texts += ["ü🦊".encode() * 50, b"", b"\0", b"a" * 100_000]
    raw = b"?" + b"".join(string(t, order) for t in texts)
    for cut in (len(raw), len(raw) - 1, len(raw) - 100_001, 5000, 9, 8, 1):
        data = np.frombuffer(raw[:cut], np.uint8)
        found, end = walk(raw[:cut], 1, len(texts), order)
        assert lib.skip_strings(data, 1, len(texts), order == ">") == (end, len(found))
        assert lib.decode_strings(data, 1, len(found), order == ">") == found
        if len(found) < len(texts):
            with pytest.raises(ValueError):
                lib.decode_strings(data, 1, len(found) + 1, order == ">")
    assert len(walk(raw, 1, len(texts), order)[0]) == len(texts)


def test_the_walk_keeps_its_bounds():
    data = np.frombuffer(string("abc") + struct.pack("<Q", 2**64 - 1) + struct.pack("<Q", 2**63), np.uint8)
    assert lib.skip_strings(data, 0, 2**64 - 1, False) == (11, 1)
    for start in (len(data), len(data) + 1, 2**64 - 1, 2**64 - 8):
        assert lib.skip_strings(data, start, 5, False) == (start, 0)
        assert start > len(data) or lib.decode_strings(data, start, 0, False) == []
        with pytest.raises(ValueError):
            lib.decode_strings(data, start, 1, False)
    with pytest.raises(ValueError):
        lib.decode_strings(data, 0, 2**63, False)
    assert lib.skip_strings(np.zeros(0, np.uint8), 0, 1, False) == (0, 0)


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "bert-bge"])
def test_real_vocabularies(shared, name):
    path = shared / "facts" / "vocab" / f"ggml-vocab-{name}.gguf"
    raw = path.read_bytes()
    with GGUFFile(path) as model:
        lists = [k for k in model.metadata if model.metadata.info(k).type == "arr[str]"]
        assert "tokenizer.ggml.tokens" in lists
        for key in lists:
            n = model.metadata.info(key).length
            at = raw.index(string(key)) + 8 + len(key) + 16
            assert model.metadata[key] == walk(raw, at, n)[0] and n > 20_000


def test_an_array_can_be_forgotten_and_read_again(data):
    with GGUFFile(data / "demo-Q8_0.gguf") as file:
        key = "tokenizer.ggml.tokens"
        first = file.metadata[key]
        assert file.metadata[key] is first
        file.metadata.forget(key)
        file.metadata.forget("general.architecture")  # single values stay
        file.metadata.forget("no.such.key")
        assert file.metadata[key] is not first and file.metadata[key] == first
        assert file.metadata["general.architecture"] == "llama"
