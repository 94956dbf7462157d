"""Hostile files, each built byte by byte: always GGUFError, saying what was found, with next to no memory."""

import struct
import time
import tracemalloc

import pytest

from gguf_files import ARCH, entry, file, info, string
from qtransformers.errors import GGUFError
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.header import MAX_ENTRIES

FLUX = entry("general.architecture", "str", "flux")
U32 = struct.pack("<I", 4)


def counts(n_tensors, n_entries, version=3, rest=b"", order="<"):
    return b"GGUF" + struct.pack(order + "Iqq", version, n_tensors, n_entries) + rest


def array(key, kind_id, n, rest=b""):
    """An array entry whose claims need not hold."""
    return string(key) + struct.pack("<IIQ", 9, kind_id, n) + rest


def value(key, kind_id, rest=b""):
    return string(key) + struct.pack("<I", kind_id) + rest


def one(dims, type_id=0, data=b"", name="t", offset=0, arch=ARCH, **options):
    """A file of one tensor."""
    return file([arch], [info(name, dims, type_id, offset, **options)], data)


def entries(*raw, **options):
    return file(raw, **options)


def tensors(*infos, data=bytes(256), arch=ARCH):
    return file([arch], infos, data)


def vocabulary(n=4, **arrays):
    """A vocabulary of n tokens with arrays of (type, values) beside it."""
    tokens = entry("tokenizer.ggml.tokens", "arr[str]", ["x"] * n)
    return entries(tokens, *(entry(f"tokenizer.ggml.{k}", kind, v) for k, (kind, v) in arrays.items()))


I64_MAX = 2**63 - 1
GGUFS = {
    # magic, version, counts
    "magic alone": (b"GGUF", "magic and version needs 8 bytes"),
    "half a version": (b"GGUF\x03\x00", "magic and version needs 8 bytes"),
    "no counts": (b"GGUF\x03\x00\x00\x00", "the number of tensors needs 8 bytes"),
    "half the counts": (counts(0, 0)[:20], "the number of metadata entries needs 8 bytes"),
    "magic in lower case": (b"gguf" + counts(0, 0)[4:], "not a GGUF file"),
    "magic reversed": (b"FUGG" + counts(0, 0)[4:], "not a GGUF file"),
    "version 0": (counts(0, 0, 0), "version 0; expected 2 or 3"),
    "version 1": (counts(0, 0, 1), "version 1; expected 2 or 3. Convert"),
    "version 4": (counts(0, 0, 4), "version 4; expected 2 or 3. Update"),
    "version of all ones": (counts(0, 0, 2**32 - 1), "version 4294967295"),
    "version 1, other byte order": (counts(0, 0, 1, order=">"), "version 1; expected"),
    "version 4, other byte order": (counts(0, 0, 4, order=">"), "version 4; expected"),
    "byte orders mixed": (b"GGUF" + struct.pack(">I", 3) + struct.pack("<qq", 0, 1) + bytes(64), "metadata entries; the bytes left"),
    "negative tensors": (counts(-1, 0, rest=bytes(64)), "claims -1 tensors"),
    "negative entries": (counts(0, -5, rest=bytes(64)), "claims -5 metadata entries"),
    "more tensors than bytes": (counts(I64_MAX, 0, rest=bytes(64)), f"claims {I64_MAX} tensors; the bytes left hold at most"),
    "more entries than bytes": (counts(0, 5, rest=bytes(60)), "claims 5 metadata entries; the bytes left hold at most 4"),
    "too many tensors to keep": (counts(70_000, 0, rest=bytes(25 * 70_000)), "at most 32768 are read"),
    "too many entries to keep": (counts(0, 70_000, rest=bytes(14 * 70_000)), "at most 32768 are read"),
    "one entry more than there is": (entries(ARCH, n_entries=2), "claims 2 metadata entries|the key of metadata entry 1"),
    # keys
    "key longer than the file": (counts(0, 1, rest=struct.pack("<Q", 60_000) + bytes(20)), "the key of metadata entry 0 needs 60000 bytes"),
    "key of 2^63 bytes": (counts(0, 1, rest=struct.pack("<Q", 2**63) + bytes(20)), f"claims {2**63} bytes; expected at most 65535"),
    "key of all ones": (counts(0, 1, rest=b"\xff" * 40), f"claims {2**64 - 1} bytes"),
    "key of 65536 bytes": (entries(entry("k" * 65_536, "u8", 1)), "claims 65536 bytes; expected at most 65535"),
    "empty key": (entries(entry("", "u32", 1)), "the key of metadata entry 0 is empty"),
    "the same long key twice": (entries(*2 * [entry("k" * 60_000, "u8", 1)]), "kkk ... kkk.* appears twice"),
    "the same key twice": (entries(ARCH, ARCH), "general.architecture appears twice"),
    "key of no UTF-8": (entries(entry(b"\xff\xfe", "u32", 1)), "not UTF-8"),
    "key of an overlong encoding": (entries(entry(b"a\xc0\x80b", "u32", 1)), "not UTF-8"),
    "key with a zero byte": (entries(entry("a\0b", "u32", 1)), "expected printable"),
    "key with an escape sequence": (entries(entry("a\x1b[2Jb", "u32", 1)), "expected printable"),
    "key with a line break": (entries(entry("a\nb", "u32", 1)), "expected printable"),
    # values
    "value type 13": (entries(value("k", 13, bytes(16))), "k is the unknown value type 13"),
    "value type of all ones": (entries(value("k", 2**32 - 1, bytes(16))), "unknown value type 4294967295"),
    "no value": (entries(value("k", 10, bytes(4))), "k needs 8 bytes"),
    "no type": (entries(string("key.of.some.length")), "the type of key.of.some.length needs 4 bytes"),
    "a bool of 2": (entries(value("k", 7, b"\x02" + bytes(8))), "k holds the byte 2"),
    "a bool of 255 among many": (entries(array("k", 7, 5, b"\0\1\0\xff\1")), "k holds the byte 255"),
    "string longer than the file": (entries(value("k", 8, struct.pack("<Q", 100) + b"abc")), "k needs 100 bytes"),
    "string past 1 GiB": (entries(value("k", 8, struct.pack("<Q", 2**30 + 1) + b"abc")), f"claims {2**30 + 1} bytes; expected at most {2**30}"),
    "string of 2^64 - 1": (entries(value("k", 8, struct.pack("<Q", 2**64 - 1) + b"abc")), f"claims {2**64 - 1} bytes"),
    "string length cut": (entries(value("k", 8, b"\1\0\0\0")), "k needs 8 bytes"),
    # arrays
    "array of arrays": (entries(array("k", 9, 1, struct.pack("<IQ", 4, 0))), "k is an array of arrays"),
    "array of type 13": (entries(array("k", 13, 0)), "k is the unknown value type 13"),
    "20,000 elements, none there": (entries(array("k", 4, 20_000)), "k needs 80000 bytes"),
    "20,000 strings, none there": (entries(array("k", 8, 20_000)), "k needs 160000 bytes"),
    "2^30 + 1 elements": (entries(array("k", 0, 2**30 + 1)), f"k claims {2**30 + 1} elements"),
    "2^61 elements of 8 bytes": (entries(array("k", 10, 2**61, bytes(64))), f"claims {2**61} elements"),
    "2^64 - 1 strings": (entries(array("k", 8, 2**64 - 1, bytes(64))), "elements; GGUF arrays hold"),
    "array one element short": (entries(array("k", 12, 3, bytes(16))), "k needs 24 bytes"),
    "array without a length": (entries(string("k") + struct.pack("<II", 9, 4) + b"\1"), "the length of k needs 8 bytes"),
    "a string passes its array": (entries(array("k", 8, 2, string("ab") + struct.pack("<Q", 50) + b"x")), r"k\[1\] needs 50 bytes"),
    "a huge string in an array": (entries(array("k", 8, 2, string("ab") + struct.pack("<Q", 2**63) + bytes(9))), r"k\[1\] claims 9223372036854775808"),
    "string lengths that wrap": (entries(array("k", 8, 2, struct.pack("<Q", 2**64 - 8) + bytes(64))), r"k\[0\] claims 18446744073709551608"),
    "the last length cut": (entries(array("k", 8, 3, string("abcdefgh") + string("ijkl") + b"\1\0")), r"k\[2\] needs 8 bytes"),
    # alignment
    "alignment 0": (entries(entry("general.alignment", "u32", 0)), "general.alignment is 0; expected a power of two"),
    "alignment 33": (entries(entry("general.alignment", "u32", 33)), "general.alignment is 33"),
    "alignment 2^31": (entries(entry("general.alignment", "u32", 2**31)), "general.alignment is 2147483648; expected a power of two up to 65536"),
    "alignment as u64": (entries(entry("general.alignment", "u64", 32)), "general.alignment is u64; expected u32"),
    "alignment as text": (entries(entry("general.alignment", "str", "32")), "general.alignment is str"),
    # keys that others rely on
    "architecture as a number": (entries(entry("general.architecture", "u32", 1)), "general.architecture is u32; expected str"),
    "tokens as numbers": (vocabulary(0, tokens_=("u8", 1)) and entries(entry("tokenizer.ggml.tokens", "arr[u32]", [1, 2])), "tokens is arr.u32.; expected arr.str."),
    "tokens as one string": (entries(entry("tokenizer.ggml.tokens", "str", "abc")), "tokens is str; expected arr.str."),
    "merges as numbers": (vocabulary(merges=("arr[f32]", [1, 2])), "merges is arr.f32.; expected arr.str."),
    "scores as strings": (vocabulary(scores=("arr[str]", ["a"] * 4)), "scores is arr.str.; expected arr.f32. or"),
    "scores too short": (vocabulary(scores=("arr[f32]", [1.0] * 3)), "scores has 3 elements for 4 tokens"),
    "token types as floats": (vocabulary(token_type=("arr[f32]", [1.0] * 4)), "token_type is arr.f32."),
    "token types too short": (vocabulary(token_type=("arr[i32]", [1])), "token_type has 1 elements for 4 tokens"),
    "charsmap as words": (vocabulary(precompiled_charsmap=("arr[u32]", [1])), "precompiled_charsmap is arr.u32."),
    "a token id as text": (vocabulary(bos_token_id=("str", "1")), "bos_token_id is str; expected i16 or"),
    "a token id as a float": (vocabulary(eos_token_id=("f32", 1.0)), "eos_token_id is f32"),
    "a template as a number": (entries(entry("tokenizer.chat_template", "u32", 1)), "chat_template is u32"),
    "513 layers": (entries(ARCH, entry("llama.block_count", "u32", 513)), "llama.block_count is 513; expected 0 to 512"),
    "-1 layers": (entries(ARCH, entry("llama.block_count", "i32", -1)), "llama.block_count is -1"),
    "2^64 - 1 layers": (entries(ARCH, entry("llama.block_count", "u64", 2**64 - 1)), "llama.block_count is 18446744073709551615"),
    "a float of layers": (entries(ARCH, entry("llama.block_count", "f32", 2.0)), "llama.block_count is f32"),
    "1025 experts": (entries(ARCH, entry("llama.expert_count", "u32", 1025)), "llama.expert_count is 1025; expected 0 to 1024"),
    # names
    "tensor name empty": (one([8], data=bytes(32), name=""), "the name of tensor 0 is empty"),
    "tensor name of 64 bytes": (one([8], data=bytes(32), name="n" * 64), "claims 64 bytes; expected at most 63"),
    "tensor name of 64 bytes, two a letter": (one([8], data=bytes(32), name="ö" * 32), "claims 64 bytes"),
    "diffusion name of 128 bytes": (one([8], data=bytes(32), name="n" * 128, arch=FLUX), "claims 128 bytes; expected at most 127"),
    "name of 128 bytes, no architecture": (file([], [info("n" * 128, [8])], bytes(32)), "claims 128 bytes"),
    "tensor name of all ones": (counts(1, 0, rest=b"\xff" * 64), "the name of tensor 0 claims 18446744073709551615"),
    "tensor name of no UTF-8": (one([8], data=bytes(32), name=b"\xc3("), "not UTF-8"),
    "tensor name with a zero byte": (one([8], data=bytes(32), name="a\0b"), "expected printable"),
    "the same name twice": (tensors(info("t", [8]), info("t", [8], offset=32)), "tensor t appears twice"),
    "one tensor more than there is": (file([ARCH], [info("t", [8])], bytes(7), n_infos=2), "claims 2 tensors|the name of tensor 1"),
    # shapes
    "5 dimensions": (one([1] * 5, data=bytes(4)), "t has 5 dimensions; expected at most 4"),
    "6 dimensions of a diffusion model": (one([1] * 6, data=bytes(4), arch=FLUX), "t has 6 dimensions; expected at most 5"),
    "2^32 - 1 dimensions": (one([1], n_dims=2**32 - 1), "t has 4294967295 dimensions"),
    "dimensions cut": (counts(1, 0, rest=string("t") + struct.pack("<Iqq", 4, 1, 1)), "the shape, type and offset of t needs 44 bytes"),
    "a negative dimension": (one([-1, 4], data=bytes(64)), r"t is \[4, -1\]; expected no negative"),
    "two negative dimensions": (one([-4, -4], data=bytes(64)), "no negative"),
    "the least dimension": (one([-(2**63)], data=bytes(64)), "no negative"),
    "a product past 2^64": (one([2**32, 2**32, 2], data=bytes(64)), "more values than can be counted"),
    "a product that wraps to 8": (one([2**62, 2, 4, 8], data=bytes(64)), "more values than can be counted"),
    "huge beside a zero": (one([0, 2**62, 4], data=bytes(64)), "more values than can be counted"),
    "bytes past 2^63": (one([I64_MAX], 28, data=bytes(64)), "more values than can be counted"),
    "more bytes than the file": (one([2**40], data=bytes(64)), "but the file has .*It is truncated"),
    # types
    **{
        f"retired type {i}": (one([256], i, bytes(512)), f"the retired type .*{i}.*Convert")
        for i in (4, 5, 31, 32, 33, 36, 37, 38)
    },
    "type 43": (one([256], 43, bytes(512)), "t has the unknown type 43"),
    "type of all ones": (one([256], 2**32 - 1, bytes(512)), "t has the unknown type 4294967295"),
    "an activation type, Q8_1": (one([32], 9, bytes(36)), "Q8_1, an activation format"),
    "an activation type, Q8_K": (one([256], 15, bytes(292)), "Q8_K, an activation format"),
    "half a block": (one([16], 8, bytes(34)), "rows of 16 values; expected a multiple of 32, the block of Q8_0"),
    "half a block in each of two rows": (one([16, 2], 8, bytes(34)), "rows of 16 values"),
    "a K block of 255": (one([255], 12, bytes(144)), "expected a multiple of 256"),
    "a single value of blocks": (one([], 8, bytes(34)), "rows of 1 values"),
    # places
    "offset not 0": (one([8], data=bytes(96), offset=32), "at offset 32; expected 0"),
    "offset past the file": (one([8], data=bytes(32), offset=2**62), "at offset 4611686018427387904; expected 0"),
    "offset of all ones": (one([8], data=bytes(32), offset=2**64 - 1), "expected 0"),
    "unaligned offset": (tensors(info("a", [1]), info("b", [1], offset=4)), "b has its data at offset 4; expected 32"),
    "tensors over each other": (tensors(info("a", [16]), info("b", [8], offset=32)), "b has its data at offset 32; expected 64"),
    "the same place twice": (tensors(info("a", [8]), info("b", [8], offset=0)), "b has its data at offset 0; expected 32"),
    "a gap": (tensors(info("a", [8]), info("b", [8], offset=64)), "b has its data at offset 64; expected 32"),
    "out of order": (tensors(info("b", [8], offset=32), info("a", [8])), "b has its data at offset 32; expected 0"),
    "data a byte short": (one([8], data=bytes(31)), "but the file has"),
    "no data": (one([8]), "t needs bytes"),
    "no padding before no data": (file([ARCH], [info("t", [0])])[:-1], "t needs bytes 128 to 128, but the file has 127"),
    "sums past 2^64": (tensors(info("a", [2**60]), info("b", [2**60], offset=2**62), info("c", [2**60], offset=2**63)), "a needs bytes"),
    "sums that wrap": (tensors(info("a", [2**60], 28), info("b", [2**60], 28, offset=-(2**63) % 2**64), info("c", [8], offset=0)), "expected 18446744073709551616|expected 2\\*\\*64|c has its data at offset 0"),
    # shards
    "a shard of -1": (entries(entry("split.no", "i32", -1), entry("split.count", "i32", 2)), "split.no is -1 and split.count 2"),
    "shard 3 of 2": (entries(entry("split.no", "u16", 2), entry("split.count", "u16", 2)), "split.no is 2 and split.count 2"),
    "2^32 shards": (entries(entry("split.no", "u16", 0), entry("split.count", "u64", 2**32)), "expected a shard of at most 99999"),
    "-3 shards": (entries(entry("split.count", "i16", -3)), "split.count -3"),
    "shards as text": (entries(entry("split.count", "str", "2")), "split.count is str"),
    "shards that are not there": (entries(entry("split.no", "u16", 0), entry("split.count", "u16", 9)), "is shard 1 of 9 but not named so"),
}  # fmt: skip


def test_there_are_enough():
    assert len(GGUFS) >= 60 and len({raw for raw, _ in GGUFS.values()}) == len(GGUFS)


@pytest.mark.parametrize("raw, message", GGUFS.values(), ids=GGUFS)
def test_hostile(tmp_path, raw, message):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(GGUFError, match=message) as e:
            GGUFFile(path)
        assert time.process_time() - began < 5
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    text = str(e.value)
    assert "hostile.gguf" in text and text.endswith((".", "`")), text
    assert text.isprintable() and len(text) < 600


def test_keys_that_are_many_and_long(tmp_path):
    """A wide character makes str four times as large as its UTF-8."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(entries(ARCH, *(entry(f"{i}😀" + "k" * 65_000, "u8", 1) for i in range(200))))
    tracemalloc.start()
    try:
        with pytest.raises(
            GGUFError, match=r"keys and names up to the key of metadata entry 65 take \d+ bytes; at most 4194304"
        ):
            GGUFFile(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


def touch(file):
    """Every value and every byte."""
    for key in file.metadata:
        value = file.metadata[key]
        length = file.metadata.info(key).length
        assert length is None or len(value) == length
    for tensor in file.tensors.values():
        assert len(tensor.data.tobytes()) == tensor.nbytes == tensor.n_rows * tensor.row_bytes
    return file


VALID = {
    "nothing at all": counts(0, 0),
    "version 2": file([ARCH], version=2),
    "big-endian": file([entry("k", "arr[str]", ["a", "b"], ">"), entry("n", "arr[i32]", [1], ">")], order=">"),
    "name of 63 bytes": one([8], data=bytes(32), name="n" * 63),
    "name of 127 bytes, no architecture": file([], [info("n" * 127, [8])], bytes(32)),
    "diffusion name of 127 bytes": one([8], data=bytes(32), name="n" * 127, arch=FLUX),
    "5 dimensions of a diffusion model": one([1, 2, 1, 2, 2], data=bytes(32), arch=FLUX),
    "a single value": one([], data=bytes(4)),
    "no values": one([0], data=b""),
    "no values of blocks": one([0, 4], 12),
    "no rows": one([256, 0], 12),
    "no padding at the end": one([3], data=bytes(12)),
    "bytes after the end": one([8], data=bytes(100)),
    "no tensors, bytes after": entries(ARCH) + b"trailing",
    "empty arrays": entries(*(entry(f"k.{k}", f"arr[{k}]", []) for k in ("u8", "bool", "str", "f64"))),
    "strings of no UTF-8": entries(entry("k", "str", b"\xff\xfe"), entry("l", "arr[str]", [b"\xc0\x80", b"\xed\xa0\x80", b""])),
    "512 layers": entries(ARCH, entry("llama.block_count", "u32", 512), entry("llama.expert_count", "u64", 1024)),
    "more scores than tokens": vocabulary(scores=("arr[i32]", [0] * 5), token_type=("arr[u32]", [1] * 6)),
    "alignment 1": file([entry("general.alignment", "u32", 1)], [info("a", [1]), info("b", [1], offset=4)], bytes(8), alignment=1),
    "alignment 65536": file([entry("general.alignment", "u32", 65536)], [info("a", [1])], bytes(4), alignment=65536),
    "not a number": entries(entry("k", "f32", float("nan"))),
    "key of 65535 bytes": entries(entry("k" * 65_535, "u8", 1)),
    "0 shards": entries(entry("split.no", "u16", 0), entry("split.count", "u16", 0)),
    "1 shard": entries(entry("split.no", "u16", 0), entry("split.count", "u16", 1)),
}  # fmt: skip


@pytest.mark.parametrize("raw", VALID.values(), ids=VALID)
def test_odd_but_valid(tmp_path, raw):
    path = tmp_path / "odd.gguf"
    path.write_bytes(raw)
    touch(GGUFFile(path))


def test_strings_of_no_utf8_keep_their_bytes(tmp_path):
    path = tmp_path / "m.gguf"
    raw = [b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", "🦊".encode(), b"a\x00b"]
    path.write_bytes(entries(entry("one", "str", raw[0]), entry("all", "arr[str]", raw)))
    metadata = GGUFFile(path).metadata
    assert metadata["one"].encode("utf-8", "surrogateescape") == raw[0]
    assert [s.encode("utf-8", "surrogateescape") for s in metadata["all"]] == raw


def opened(tmp_path, raw, read=lambda f: None):
    """Bytes beyond the file that opening (and reading) it takes."""
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        file = GGUFFile(path)
        read(file)
        return tracemalloc.get_traced_memory()[1], file
    finally:
        tracemalloc.stop()


def test_memory_of_the_most_keys_and_tensors(tmp_path):
    """The caps on counts hold what a header of nothing but entries can cost; here an eighth of them."""
    n = MAX_ENTRIES // 8
    keys = [entry(f"{i:x}", "u8", 1) for i in range(n)]
    infos = [info(f"{i:x}", [0], offset=0) for i in range(n)]
    peak, found = opened(tmp_path, file(keys, infos))
    assert len(found.metadata) == len(found.tensors) == n
    assert peak < (64 << 20) // 8


def test_memory_of_long_strings(tmp_path):
    """An ASCII string with one emoji takes four times its bytes once decoded, so long ones wait until asked for."""
    text = "a" * 500_000 + "🦊"
    raw = entries(*(entry(f"k.{i}", "str", text) for i in range(40)))
    peak, found = opened(tmp_path, raw)
    assert peak < 8 << 20
    assert found.metadata["k.39"] == text


def test_memory_of_a_long_array(tmp_path):
    raw = entries(array("k", 8, 1 << 21, bytes(8 << 21)), array("b", 7, 1 << 24, b"\1" * (1 << 24)))
    peak, found = opened(tmp_path, raw, lambda f: f.metadata["b"])
    assert peak < 1 << 20
    assert found.metadata["k"] == [""] * (1 << 21) and found.metadata["b"].all()
