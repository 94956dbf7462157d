"""GGUF files put together byte by byte, independently of the writer, so that tests can put them together wrongly."""

import struct

IDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9, "u64": 10, "i64": 11, "f64": 12}  # fmt: skip
CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?", "u64": "Q", "i64": "q", "f64": "d"}  # fmt: skip


def string(text, order="<"):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack(order + "Q", len(raw)) + raw


def payload(kind, value, order="<"):
    return string(value, order) if kind == "str" else struct.pack(order + CODES[kind], value)


def entry(key, kind, value, order="<"):
    """A key with its value; `arr[kind]` for an array."""
    head = string(key, order)
    if not kind.startswith("arr["):
        return head + struct.pack(order + "I", IDS[kind]) + payload(kind, value, order)
    kind = kind[4:-1]
    items = b"".join(payload(kind, v, order) for v in value)
    return head + struct.pack(order + "IIQ", IDS["arr"], IDS[kind], len(value)) + items


def info(name, dims, type_id=0, offset=0, order="<", n_dims=None):
    """A tensor info; `dims` in the file's order, fastest first."""
    n = len(dims) if n_dims is None else n_dims
    return string(name, order) + struct.pack(f"{order}I{len(dims)}qIQ", n, *dims, type_id, offset)


def file(
    entries=(), infos=(), data=b"", *, version=3, order="<", n_entries=None, n_infos=None, alignment=32, magic=b"GGUF"
):
    """A whole file; counts can be made to lie."""
    head = magic + struct.pack(
        order + "Iqq",
        version,
        len(infos) if n_infos is None else n_infos,
        len(entries) if n_entries is None else n_entries,
    )
    head += b"".join(entries) + b"".join(infos)
    if infos:
        head += b"\0" * (-len(head) % alignment)
    return head + data


ARCH = entry("general.architecture", "str", "llama")
