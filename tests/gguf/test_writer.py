"""What the writer writes, read back by our reader and by the gguf package."""

import struct

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.errors import ConfigError, GGUFError, QTransformersError
from qtransformers.gguf import GGUFFile, GGUFWriter, TensorSpec, Typed
from qtransformers.types import BY_NAME, TYPES

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.5,
    "a.negative": -3,
    "a.large": 2**40,
    "a.huge": 2**64 - 1,
    "a.low": -(2**63),
    "a.flag": True,
    "a.forced": Typed("u64", 5),
    "a.small": Typed("i8", -128),
    "a.double": np.float64(0.1),
    "a.text": "Füchse 🦊",
    "a.empty": "",
    "a.no_utf8": "caf\udce9",
    "a.ints": [1, -2, 3],
    "a.long_ints": [1, 2**40],
    "a.huge_ints": [0, 2**64 - 1],
    "a.floats": [0.5, 1, -2.25],
    "a.flags": [True, False],
    "a.texts": ["a", "", "ö", "🦊\n", "caf\udce9"],
    "a.bytes": np.arange(256, dtype=np.uint8),
    "a.doubles": np.array([0.1, np.inf]),
    "a.no_texts": Typed("str", []),
    "a.no_floats": Typed("f32", ()),
    "a.no_ints": Typed("i32", []),
    "a.raw": b"\0\xff",
    "a.numpy_texts": np.array(["x", "yz"]),
    "a.numpy_text": np.str_("x"),
    "a.both_texts": ["x", np.str_("yz")],
}
TYPES_IN_FILE = {
    "llama.block_count": "u32", "llama.rope.freq_base": "f32", "a.negative": "i32", "a.large": "u64", "a.huge": "u64", "a.low": "i64",
    "a.flag": "bool", "a.forced": "u64", "a.small": "i8", "a.double": "f64", "a.text": "str", "a.ints": "arr[i32]", "a.long_ints": "arr[i64]",
    "a.floats": "arr[f32]", "a.flags": "arr[bool]", "a.texts": "arr[str]", "a.bytes": "arr[u8]", "a.doubles": "arr[f64]",
    "a.no_texts": "arr[str]", "a.no_floats": "arr[f32]", "a.no_ints": "arr[i32]", "a.raw": "arr[u8]", "a.numpy_texts": "arr[str]",
    "a.huge_ints": "arr[u64]", "a.numpy_text": "str", "a.both_texts": "arr[str]",
}  # fmt: skip


def same(found, value):
    value = value.value if isinstance(value, Typed) else value
    if isinstance(value, (list, tuple, bytes, np.ndarray)):
        return list(found) == list(value)
    return found == value


def specs_and_data():
    """Every storable type, and shapes of one to four dimensions, one value, none."""
    specs, data = [], []
    for i, row in enumerate(t for t in TYPES.values() if not t.activation):
        shape = [(3, row.block_size), (row.block_size,), (2, 1, row.block_size * 2), (2, 1, 3, row.block_size)][i % 4]
        specs.append(TensorSpec(f"t.{row.name}", shape, row))
        data.append(random_blocks(row, specs[-1].nbytes // row.block_bytes, seed=i))
    specs += [TensorSpec("t.single", (), BY_NAME["F32"]), TensorSpec("t.none", (0, 4), BY_NAME["F32"])]
    return specs, [*data, np.frombuffer(struct.pack("<f", 1.5), np.uint8), np.zeros(0, np.uint8)]


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("alignment", [None, 8, 4096])
def test_round_trip(tmp_path, big_endian, alignment):
    path = tmp_path / "m.gguf"
    specs, data = specs_and_data()
    with GGUFWriter(path, METADATA, specs, alignment=alignment, big_endian=big_endian) as writer:
        for spec, raw in zip(specs, data, strict=True):
            writer.write(spec.name, raw)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    with GGUFFile(path) as file:
        assert file.big_endian == big_endian and file.alignment == (alignment or 32)
        assert path.stat().st_size == file.nbytes == writer.nbytes
        extra = {"general.alignment"} if alignment else set()
        assert set(file.metadata) == set(METADATA) | extra
        for key, value in METADATA.items():
            assert same(file.metadata[key], value), key
        assert {k: file.metadata.info(k).type for k in TYPES_IN_FILE} == TYPES_IN_FILE
        assert list(file.tensors) == [s.name for s in specs]
        for spec, raw in zip(specs, data, strict=True):
            tensor = file.tensors[spec.name]
            assert tensor.shape == spec.shape and tensor.type is spec.type and tensor.nbytes == len(raw)
            assert (tensor.data == raw).all() and not tensor.data.flags.writeable, spec.name
            offset = next(i.offset for i in file.tensors.infos() if i.name == spec.name)
            assert offset % file.alignment == 0 and file.data_offset % file.alignment == 0
        assert file.tensors["t.single"].dequantize() == 1.5
        assert file.tensors["t.none"].dequantize().shape == (0, 4)


def test_the_gguf_package_reads_it(tmp_path):
    from gguf import GGUFReader

    path = tmp_path / "m.gguf"
    specs, data = specs_and_data()
    known = [(s, d) for s, d in zip(specs, data, strict=True) if s.nbytes and s.shape and s.type.id < 40]
    with GGUFWriter(path, METADATA, [s for s, _ in known], alignment=64) as writer:
        for spec, raw in known:
            writer.write(spec.name, raw)
    reader = GGUFReader(path)
    for key, value in METADATA.items():
        if key not in (
            "a.no_utf8",
            "a.texts",
            "a.no_texts",
            "a.no_floats",
        ):  # the package knows only UTF-8 and elements
            assert same(reader.get_field(key).contents(), value), key
    assert len(reader.tensors) == len(known)
    for tensor, (spec, raw) in zip(reader.tensors, known, strict=True):
        assert (tensor.name, int(tensor.tensor_type)) == (spec.name, spec.type.id)
        assert tuple(reversed([int(d) for d in tensor.shape])) == spec.shape
        assert (np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1) == raw).all()


def test_tensors_come_in_chunks_and_plain_values(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    blocks = random_blocks(BY_NAME["Q8_0"], 6)
    with GGUFWriter(
        tmp_path / "m.gguf", {}, [("x", x.shape, "F32"), ("q", (2, 96), "Q8_0"), ("h", (4,), "BF16")]
    ) as writer:
        for row in x:
            writer.write("x", row)
        writer.write("q", blocks[:34])
        writer.write("q", blocks[34:].tobytes())
        writer.write("h", np.array([1, 2, 3, 4], np.uint16))
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert (file.tensors["x"].numpy() == x).all()
        assert (file.tensors["q"].data == blocks).all()
        with GGUFWriter(tmp_path / "copy.gguf", {}, [("q", (2, 96), "Q8_0")]) as writer:
            writer.write("q", file.tensors["q"])
    assert (GGUFFile(tmp_path / "copy.gguf").tensors["q"].data == blocks).all()


BAD_METADATA = {
    "an empty list": ([], "empty list"),
    "mixed types": ([1, "a"], "mixes int, str"),
    "bool among ints": ([True, 2], "mixes bool, int"),
    "nested": ([[1], [2]], "list"),
    "None": (None, "NoneType"),
    "a dict": ({}, "dict"),
    "too large": (2**64, "at most 64 bits"),
    "too large in a list": ([1, 2**64], "at most 64 bits"),
    "too large for i64 in a list": (Typed("i64", [1, 2**63]), "i64 cannot hold"),
    "negative beside huge": (Typed("u64", [-1, 2**63]), "expected u64"),
    "too large to force": (Typed("u8", 256), "u8 cannot hold"),
    "negative for unsigned": (Typed("u64", -1), "u64 cannot hold"),
    "float for int": (Typed("u32", 1.5), "expected u32"),
    "text for int": (Typed("u32", "1"), "expected u32"),
    "int for text": (Typed("str", 1), "among strings"),
    "zero for text": (Typed("str", ["a", 0]), "0 among strings"),
    "int for bool": (Typed("bool", 2), "expected bool"),
    "an unknown type": (Typed("u128", 1), "expected one of u8"),
    "too large for f32": (1e39, "f32 cannot hold"),
    "half floats": (np.float16(1), "float16"),
    "two dimensions": (np.zeros((2, 2), np.float32), "flat"),
    "a lone surrogate": ("\ud800", "UTF-8 cannot express"),
    "objects": (np.array([None]), "holds"),
}


@pytest.mark.parametrize("value, message", BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_it_cannot_hold(tmp_path, value, message):
    with pytest.raises(ConfigError, match=message) as e:
        GGUFWriter(tmp_path / "m.gguf", {"some.key": value}, [])
    assert "some.key" in str(e.value)
    assert not list(tmp_path.iterdir())


def test_what_a_reader_would_refuse_is_not_written(tmp_path):
    cases = [
        ({"tokenizer.ggml.tokens": [1]}, [], "arr.i32.; expected arr.str."),
        ({"general.architecture": "llama"}, [("x" * 64, (1,), "F32")], "at most 63"),
        ({}, [("x", (33,), "Q8_0")], "multiple of 32"),
        ({}, [("x", (1,), "F32"), ("x", (1,), "F32")], "twice"),
        ({}, [("x", (1,), "Q8_K")], "activation format"),
        ({"": 1}, [], "empty"),
    ]
    for metadata, tensors, message in cases:
        with pytest.raises(GGUFError, match=message):
            GGUFWriter(tmp_path / "m.gguf", metadata, tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "metadata, alignment", [({"general.alignment": 48}, None), ({}, 0), ({}, 1 << 17), ({"general.alignment": 64}, 32)]
)
def test_alignments_it_cannot_keep(tmp_path, metadata, alignment):
    with pytest.raises(ConfigError, match="alignment is"):
        GGUFWriter(tmp_path / "m.gguf", metadata, [], alignment=alignment)


BAD_CALLS = {
    "out of order": (lambda w: w.write("b", np.zeros(2, np.float32)), "where a was expected"),
    "unknown": (lambda w: w.write("c", np.zeros(2, np.float32)), "where a was expected"),
    "too much": (lambda w: w.write("a", np.zeros(5, np.float32)), "got 20 bytes; its shape and type make 16"),
    "half a value": (lambda w: w.write("a", b"123"), "whole blocks of 4"),
    "another dtype": (lambda w: w.write("a", np.zeros(4)), "got float64 values; expected float32"),
    "too early": (lambda w: w.close(), "2 tensors unwritten, from a"),
}


@pytest.mark.parametrize("call, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_calls_leave_nothing_behind(tmp_path, call, message):
    with (
        pytest.raises(ConfigError, match=message),
        GGUFWriter(tmp_path / "m.gguf", {}, [("a", (4,), "F32"), ("b", (2,), "F32")]) as writer,
    ):
        call(writer)
    assert not list(tmp_path.iterdir())


def test_a_closed_writer_takes_no_more(tmp_path):
    with GGUFWriter(tmp_path / "m.gguf", {}, [("a", (1,), "F32"), ("none", (0,), "F32")]) as writer:
        writer.write("a", b"")
        writer.write("a", np.float32([1]))
        writer.write("none", b"")
        writer.close()
    for name in ("a", "none"):
        with pytest.raises(ConfigError, match="is closed"):
            writer.write(name, b"")
    assert GGUFFile(tmp_path / "m.gguf").tensors["a"].dequantize() == 1


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        GGUFWriter(tmp_path, {}, [], overwrite=True)


def test_it_does_not_overwrite_unasked(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists"):
        GGUFWriter(path, {}, [])
    with pytest.raises(RuntimeError), GGUFWriter(path, {}, [("a", (4,), "F32")], overwrite=True):
        raise RuntimeError
    assert path.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1
    with GGUFWriter(path, {"k": 1}, [], overwrite=True):
        pass
    assert GGUFFile(path).metadata["k"] == 1


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        GGUFWriter(tmp_path / "a" / "m.gguf", {}, [])


def test_a_full_disk_is_said_before_writing(tmp_path):
    with pytest.raises(QTransformersError, match="bytes free"):
        GGUFWriter(tmp_path / "m.gguf", {}, [("a", (1 << 56,), "F32")])
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Chunks go to disk as they come; tracemalloc sees NumPy's and Python's memory."""
    import tracemalloc

    chunk = np.zeros(1 << 20, np.uint8)
    tracemalloc.start()
    try:
        with GGUFWriter(tmp_path / "m.gguf", {}, [("a", (64 << 20,), "I8")]) as writer:
            for _ in range(64):
                writer.write("a", chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
