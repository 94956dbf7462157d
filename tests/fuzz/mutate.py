"""Damage to GGUF files: where the numbers of a header lie, and ways to get them wrong."""

import struct
from typing import NamedTuple

import numpy as np

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
SPECIAL = (0, 1, 2, 3, 4, 8, 9, 12, 13, 31, 33, 63, 64, 65, 255, 2**15, 2**16, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
           2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)  # fmt: skip


class Number(NamedTuple):
    """A number of the header that others hang on."""

    what: str  # count, length, type, dims, offset
    at: int
    size: int


def numbers(raw):
    """The counts, lengths, types, dimensions and offsets of a good file, and where its header ends."""
    found, at = [Number("count", 8, 8), Number("count", 16, 8)], 24
    order = "little" if raw[4] else "big"
    n_tensors, n_entries = struct.unpack_from("<QQ" if raw[4] else ">QQ", raw, 8)

    def number(what, size):
        nonlocal at
        found.append(Number(what, at, size))
        at += size
        return int.from_bytes(raw[at - size : at], order)

    def text():
        nonlocal at
        n = number("length", 8)
        at += n

    def value(kind):
        nonlocal at
        if kind == 8:
            text()
        else:
            at += SIZES[kind]

    for _ in range(n_entries):
        text()
        kind = number("type", 4)
        if kind != 9:
            value(kind)
            continue
        kind, n = number("type", 4), number("length", 8)
        if kind == 8:
            for _ in range(n):
                text()
        else:
            at += n * SIZES[kind]
    for _ in range(n_tensors):
        text()
        for _ in range(number("dims", 4)):
            number("dims", 8)
        number("type", 4)
        number("offset", 8)
    return found, at


class Mutator:
    """Deterministic damage to the header of one good file: `header(i)` is the same for the same i."""

    def __init__(self, raw):
        self.numbers, self.end = numbers(raw)
        self.raw = bytes(raw[: self.end])
        self.order = "little" if raw[4] else "big"
        taken = np.zeros(self.end, bool)
        for n in self.numbers:
            taken[n.at : n.at + n.size] = True
        self.payload = np.flatnonzero(~taken)[24:]  # texts and values, which may be anything
        # A vocabulary's lengths would crowd out all others.
        texts = [n for n in self.numbers if n.what == "length"]
        others = [n for n in self.numbers if n.what != "length"]
        self.rare = others + texts[:: max(1, len(texts) // 200)]

    def header(self, i):
        """A damaged header: one to three kinds of damage."""
        rng = np.random.default_rng(i)
        raw = bytearray(self.raw)
        damage = (self.flip, self.overwrite, self.cut, self.repeat, self.swap, *3 * [self.number], *4 * [self.scribble])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            damage[rng.integers(len(damage))](raw, rng)
        return bytes(raw)

    def flip(self, raw, rng):
        """One bit anywhere, more often near the numbers."""
        at = (
            rng.integers(len(raw))
            if rng.random() < 0.5
            else self.rare[rng.integers(len(self.rare))].at + rng.integers(8)
        )
        raw[min(at, len(raw) - 1)] ^= 1 << rng.integers(8)

    def scribble(self, raw, rng):
        """A byte of a text or a value."""
        raw[min(self.payload[rng.integers(len(self.payload))], len(raw) - 1)] = rng.integers(256)

    def number(self, raw, rng):
        """A count, length, type, dimension or offset that is special, slightly off, or random."""
        pool = self.rare if rng.random() < 0.8 else self.numbers
        _, at, size = pool[rng.integers(len(pool))]
        if at + size > len(raw):
            return
        old = int.from_bytes(raw[at : at + size], self.order)
        new = (
            SPECIAL[rng.integers(len(SPECIAL))],
            old + int(rng.integers(-9, 10)),
            int(rng.integers(0, 2**63)) >> int(rng.integers(64)),
        )[rng.integers(3)]
        raw[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, self.order)

    def overwrite(self, raw, rng):
        """A run of zeros, ones or noise."""
        at, n = rng.integers(len(raw)), int(rng.integers(1, 40))
        fill = (bytes(n), b"\xff" * n, rng.bytes(n))[rng.integers(3)]
        raw[at : at + n] = fill[: len(raw) - at]

    def cut(self, raw, rng):
        """A run of bytes gone."""
        at = rng.integers(len(raw))
        del raw[at : at + int(rng.integers(1, 64))]

    def repeat(self, raw, rng):
        """A run of bytes twice."""
        at, n = rng.integers(len(raw)), int(rng.integers(1, 64))
        raw[at:at] = raw[at : at + n]

    def swap(self, raw, rng):
        """A piece of the header in another place."""
        a, b, n = rng.integers(len(raw)), rng.integers(len(raw)), int(rng.integers(1, 64))
        raw[b : b + n] = raw[a : a + n]


def truncations(raw, n):
    """`n` lengths to cut a file to: each byte at first, then three quarters in the header, the rest in the data."""
    end, size = numbers(raw)[1], len(raw)
    first = range(min(n // 8, end))
    rest = n - len(first)
    in_header = np.linspace(len(first), end, rest * 3 // 4, endpoint=False)
    in_data = np.linspace(end, size - 1, rest - len(in_header))
    return [*first, *in_header.astype(int), *in_data.astype(int)]
