"""A GGUF header, walked and checked: everything a file says before its first tensor byte.

Format: gguf.md of the ggml project; limits beyond it are named beside their numbers.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import GGUFError
from qtransformers.gguf.values import (
    ARRAY,
    FLOATS,
    INTEGERS,
    MAX_ELEMENTS,
    MAX_STRING,
    VALUE_TYPES,
    ValueType,
    dtype_of,
)
from qtransformers.types import QuantType, type_of

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16  # the largest page size in use; the format sets no limit
MAX_ENTRIES = 1 << 15  # keys, and tensors: real files have thousands at most, and each costs us some 600 bytes
MAX_NAMES = 4 << 20  # bytes of all keys and names, which take up to four times as much as str
MAX_KEY = (1 << 16) - 1  # bytes, from the format's description
MAX_PRODUCT = 1 << 60  # of a tensor's dimensions: eight bytes each still count in 63 bits
MAX_LAYERS, MAX_EXPERTS = 512, 1024  # as llama.cpp

# llama.cpp keeps names below 64 bytes and 4 dimensions; stable-diffusion.cpp is built for 128, and video models have 5.
# Files of these architectures, and files that name none (as many diffusion files do), get the wider limits.
DIFFUSION = frozenset(
    {
        "aura", "auraflow", "chroma", "clip_text", "clip_text_projected", "cosmos", "dit", "flux", "flux2", "hidream",
        "hunyuan_video", "hyvid", "ltx", "ltx-video", "ltxv", "lumina2", "mochi", "omnigen2", "pig", "cow", "", "pixart",
        "qwen_image", "sana", "sd1", "sd2", "sd3", "sd3.5", "sdxl", "t5", "t5encoder", "umt5", "wan", "z_image", "zimage",
    }
)  # fmt: skip
NAME_BYTES, DIMENSIONS = 63, 4
WIDE_NAME_BYTES, WIDE_DIMENSIONS = 127, 5

_STR, _ARRAY_STR, _INT = ("", {"str"}), ("arr", {"str"}), ("", INTEGERS)
# Keys whose type others rely on; a key that starts with a dot stands for every architecture's.
_EXPECTED: dict[str, tuple[str, frozenset[str] | set[str]]] = {
    "general.architecture": _STR, "general.alignment": ("", {"u32"}), "general.name": _STR, "general.type": _STR,
    "tokenizer.ggml.model": _STR, "tokenizer.ggml.pre": _STR, "tokenizer.chat_template": _STR,
    "tokenizer.ggml.tokens": _ARRAY_STR, "tokenizer.ggml.merges": _ARRAY_STR,
    "tokenizer.ggml.scores": ("arr", FLOATS | {"i32"}), "tokenizer.ggml.token_type": ("arr", INTEGERS),
    "tokenizer.ggml.precompiled_charsmap": ("arr", {"u8", "i8"}),
    "split.no": _INT, "split.count": _INT, "split.tensors.count": _INT,
    ".block_count": _INT, ".expert_count": _INT, "._token_id": _INT,
}  # fmt: skip


class Field(NamedTuple):
    """Where a metadata value lies: `[start, stop)` are its bytes, `[typed, stop)` those of its type as well."""

    kind: ValueType  # of the value, or of an array's elements
    length: int | None  # elements of an array; None for a single value
    typed: int
    start: int
    stop: int

    @property
    def type(self) -> str:
        """The type's name, such as `u32` or `arr[str]`."""
        return self.kind.name if self.length is None else f"arr[{self.kind.name}]"


class TensorInfo(NamedTuple):
    """Where a tensor lies in its file."""

    name: str
    type: QuantType
    shape: tuple[int, ...]  # row-major, the reverse of the file's order
    offset: int  # bytes from the header's data_offset
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a header says; `end` is the byte after it, `data_offset` where tensor data begins."""

    file: str  # for messages
    version: int
    big_endian: bool
    fields: dict[str, Field]
    tensors: dict[str, TensorInfo]
    alignment: int
    infos: int  # where the tensor infos start
    end: int
    data_offset: int

    @property
    def order(self) -> str:
        """The byte order, as struct writes it."""
        return ">" if self.big_endian else "<"


def align_up(n: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-n // alignment) * alignment


def is_alignment(n: int) -> bool:
    """Whether tensors may be aligned to `n` bytes: a power of two, within our cap."""
    return 0 < n <= MAX_ALIGNMENT and n & (n - 1) == 0


def parse_header(data: NDArray[np.uint8], file: str, size: int | None = None) -> Header:
    """Walk and check the header in `data`; GGUFError names the file, what was found, what was expected.

    `size` is the file's size in bytes where `data` holds only its beginning.
    """
    return _Parser(data, file, len(data) if size is None else size).parse()


class _Parser:
    """A bounds-checked position in a header, and the checks on what is read there."""

    def __init__(self, data: NDArray[np.uint8], file: str, size: int) -> None:
        self.data, self.view, self.file, self.size = data, data.data, file, size
        self.at = 0
        self.names = 0  # bytes of keys and names so far
        self.big_endian = False

    def parse(self) -> Header:
        version = self.version()
        n_tensors = self.count("tensors", 25)  # a name's length and a byte, n_dims, type, offset
        n_fields = self.count("metadata entries", 14)  # a key's length and a byte, type, value
        fields: dict[str, Field] = {}
        for i in range(n_fields):
            self.field(i, fields)
        check_vocabulary(fields, self.file)
        alignment = self.alignment(fields)
        infos = self.at
        wide = self.is_wide(fields)
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for i in range(n_tensors):
            info = self.tensor(i, wide, expected, tensors)
            tensors[info.name] = info
            expected = align_up(info.offset + info.nbytes, alignment)
        end = self.at
        base = align_up(end, alignment) if tensors else end
        self.check_extent(tensors, base)
        return Header(self.file, version, self.big_endian, fields, tensors, alignment, infos, end, base)

    # --- primitives

    def fail(self, text: str) -> GGUFError:
        short = text if len(text) <= 500 else f"{text[:300]} ... {text[-180:]}"  # a key may be as long as 65,535 bytes
        return GGUFError(f"{self.file}: {short}")

    def need(self, n: int, what: str) -> int:
        """Where `n` bytes start, which are then passed."""
        left = len(self.data) - self.at
        if n > left:
            raise self.fail(
                f"{what} needs {n} bytes at byte {self.at}, but {left} are left of {len(self.data)}. "
                "The file is truncated or damaged: download or convert it again."
            )
        self.at += n
        return self.at - n

    def number(self, size: int, what: str) -> int:
        """An unsigned integer of `size` bytes."""
        at = self.need(size, what)
        return int.from_bytes(self.view[at : at + size], "big" if self.big_endian else "little")

    def string(self, what: str, limit: int = MAX_STRING) -> slice:
        """Pass over a length and as many bytes; where those bytes lie."""
        n = self.number(8, f"the length of {what}")
        if n > limit:
            raise self.fail(
                f"{what} claims {n} bytes; expected at most {limit}. The file is damaged, or made by another tool's rules."
            )
        start = self.need(n, what)
        return slice(start, self.at)

    def identifier(self, what: str, limit: int) -> str:
        """A key or a name: 1..`limit` bytes of printable UTF-8."""
        raw = bytes(self.view[self.string(what, limit)])
        if not raw:
            raise self.fail(f"{what} is empty; expected a name. The file is damaged: convert it again.")
        self.names += len(raw)
        if self.names > MAX_NAMES:
            raise self.fail(
                f"keys and names up to {what} take {self.names} bytes; at most {MAX_NAMES} are read. The file is damaged."
            )
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(
                f"{what} is {raw[:60]!r}, which is not UTF-8. The file is damaged: convert it again."
            ) from None
        if not text.isprintable():
            raise self.fail(
                f"{what} is {text[:60]!r}; expected printable characters. The file is damaged: convert it again."
            )
        return text

    # --- the parts of a header

    def version(self) -> int:
        start = self.need(8, "magic and version")
        if bytes(self.view[start : start + 4]) != MAGIC:
            raise self.fail(f"starts with {bytes(self.view[:4])!r}; expected {MAGIC!r}. This is not a GGUF file.")
        (version,) = struct.unpack_from("<I", self.view, start + 4)
        if version and version & 0xFFFF == 0:  # small numbers have their bytes at the other end
            self.big_endian = True
            (version,) = struct.unpack_from(">I", self.view, start + 4)
        if version not in VERSIONS:
            remedy = (
                "Update qtransformers" if version > max(VERSIONS) else "Convert the model again with a current tool"
            )
            raise self.fail(f"is GGUF version {version}; expected 2 or 3. {remedy}, or check the file.")
        return version

    def count(self, what: str, least: int) -> int:
        n = self.number(8, f"the number of {what}")
        n -= (n >> 63) << 64  # signed in the file
        room = (len(self.data) - self.at) // least
        if not 0 <= n <= room:
            raise self.fail(f"claims {n} {what}; the bytes left hold at most {room}. The file is truncated or damaged.")
        if n > MAX_ENTRIES:
            raise self.fail(f"claims {n} {what}; at most {MAX_ENTRIES} are read. The file is damaged.")
        return n

    def field(self, i: int, fields: dict[str, Field]) -> None:
        key = self.identifier(f"the key of metadata entry {i}", MAX_KEY)
        if key in fields:
            raise self.fail(
                f"{key} appears twice in the metadata; expected unique keys. Remove one with a GGUF editor."
            )
        typed = self.at
        kind_id = self.number(4, f"the type of {key}")
        count = None
        if kind_id == ARRAY:
            kind_id = self.number(4, f"the element type of {key}")
            count = self.number(8, f"the length of {key}")
        kind = VALUE_TYPES.get(kind_id)
        if kind is None:
            found = "an array of arrays" if kind_id == ARRAY else f"the unknown value type {kind_id}"
            raise self.fail(
                f"{key} is {found}; expected value types 0-12, arrays flat. The file is damaged or newer than we know."
            )
        start = self.at
        self.value(key, kind, count)
        fields[key] = field = Field(kind, count, typed, start, self.at)
        self.check_type(key, field)

    def value(self, key: str, kind: ValueType, count: int | None) -> None:
        """Pass over a value's bytes."""
        if count is not None and count > MAX_ELEMENTS:
            raise self.fail(
                f"{key} claims {count} elements; GGUF arrays hold at most {MAX_ELEMENTS}. The file is damaged."
            )
        n = 1 if count is None else count
        start = self.need(n * kind.size, key)  # for strings, at least their lengths
        if kind.name == "bool":
            highest = self.data[start : self.at].max(initial=0)
            if highest > 1:
                raise self.fail(f"{key} holds the byte {highest} where a bool is 0 or 1. The file is damaged.")
        if kind.name == "str":
            self.at = start
            self.strings(key, count)

    def strings(self, key: str, count: int | None) -> None:
        if count is None:
            self.string(key)
        elif count:
            from qtransformers.native import lib  # most of the header's bytes are here, so only here it pays

            self.at, whole = lib.skip_strings(self.data, self.at, count, self.big_endian)
            if whole < count:
                self.string(f"{key}[{whole}]")  # says what is wrong with it
                raise self.fail(f"{key}[{whole}] changed while it was read. Do not write to a file that is open.")

    def check_type(self, key: str, field: Field) -> None:
        """Types that others rely on, and limits on what sizes their loops."""
        suffix = "." + key.rpartition(".")[2]
        if key.startswith("tokenizer.") and key.endswith("_token_id"):
            suffix = "._token_id"
        rule = _EXPECTED.get(key) or _EXPECTED.get(suffix)
        if rule is None:
            return
        array, kinds = rule
        if (field.length is not None) != bool(array) or field.kind.name not in kinds:
            wanted = " or ".join(f"{array}[{k}]" if array else k for k in sorted(kinds))
            raise self.fail(
                f"{key} is {field.type}; expected {wanted}. Set it again with a GGUF editor, or convert again."
            )
        limit = {".block_count": MAX_LAYERS, ".expert_count": MAX_EXPERTS}.get(suffix)
        if limit is not None and not 0 <= (n := int(self.scalar(field))) <= limit:
            raise self.fail(f"{key} is {n}; expected 0 to {limit}. The file is damaged: convert it again.")

    def scalar(self, field: Field) -> Any:
        return np.frombuffer(self.view, dtype_of(field.kind, self.big_endian), 1, field.start)[0]

    def alignment(self, fields: dict[str, Field]) -> int:
        field = fields.get("general.alignment")
        n = int(self.scalar(field)) if field else DEFAULT_ALIGNMENT
        if not is_alignment(n):
            raise self.fail(
                f"general.alignment is {n}; expected a power of two up to {MAX_ALIGNMENT}. Convert the model again."
            )
        return n

    def is_wide(self, fields: dict[str, Field]) -> bool:
        field = fields.get("general.architecture")
        if field is None:
            return True
        return bytes(self.view[field.start + 8 : field.stop]).decode("utf-8", "replace") in DIFFUSION

    def tensor(self, i: int, wide: bool, expected: int, seen: dict[str, TensorInfo]) -> TensorInfo:
        """One tensor info; its `start` is still relative to the data."""
        name = self.identifier(f"the name of tensor {i}", WIDE_NAME_BYTES if wide else NAME_BYTES)
        if name in seen:
            raise self.fail(f"tensor {name} appears twice; expected unique names. Convert the model again.")
        n_dims = self.number(4, f"the number of dimensions of {name}")
        limit = WIDE_DIMENSIONS if wide else DIMENSIONS
        if n_dims > limit:
            raise self.fail(f"{name} has {n_dims} dimensions; expected at most {limit}. The file is damaged.")
        at = self.need(8 * n_dims + 12, f"the shape, type and offset of {name}")
        *dims, type_id, offset = struct.unpack_from(f"{'>' if self.big_endian else '<'}{n_dims}qIQ", self.view, at)
        shape = tuple(reversed(dims))
        if min(shape, default=0) < 0:
            raise self.fail(f"{name} is {list(shape)}; expected no negative dimension. The file is damaged.")
        n_values = math.prod(shape)
        if (n_values or math.prod(d or 1 for d in shape)) > MAX_PRODUCT:
            raise self.fail(f"{name} is {list(shape)}, more values than can be counted. The file is damaged.")
        type = type_of(type_id, name, self.file)
        width = dims[0] if dims else 1
        if width % type.block_size:
            raise self.fail(
                f"{name} has rows of {width} values; expected a multiple of {type.block_size}, the block of {type.name}. "
                "Convert the model again, with a type that fits."
            )
        nbytes = type.row_bytes(n_values)
        if offset != expected:
            raise self.fail(
                f"{name} has its data at offset {offset}; expected {expected}, right after the tensor before it. "
                "The file is damaged: download or convert it again."
            )
        return TensorInfo(name, type, shape, offset, nbytes)

    def check_extent(self, tensors: dict[str, TensorInfo], base: int) -> None:
        """Tensor data inside the file: sums are Python's, so nothing wraps."""
        for t in tensors.values():
            start = base + t.offset
            if start + t.nbytes > self.size:
                raise self.fail(
                    f"{t.name} needs bytes {start} to {start + t.nbytes}, but the file has {self.size}. "
                    "It is truncated: download it again."
                )


def check_vocabulary(fields: dict[str, Field], file: str) -> None:
    """Scores and token types must cover every token."""
    tokens = fields.get("tokenizer.ggml.tokens")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        field = fields.get(key)
        if tokens and field and (field.length or 0) < (tokens.length or 0):
            raise GGUFError(
                f"{file}: {key} has {field.length} elements for {tokens.length} tokens. The file is damaged: convert it again."
            )
