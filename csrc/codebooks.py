"""Part of the build: turn the codebooks' data files into one C++ header. Needs the standard library only.

Usage: python codebooks.py folder-of-txt out.h
"""

import sys
from pathlib import Path


def read(path):
    """The points of a codebook file: a line of values, then words of hexadecimal digits that index them."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    values = lines[0].split()[1:]
    return [[values[int(digit, 16)] for digit in word] for line in lines[1:] for word in line.split()]


def main():
    """Read every book of the folder, write the header."""
    folder, out = map(Path, sys.argv[1:])
    parts = ["// Made by csrc/codebooks.py.\n#pragma once\n#include <cstdint>\nnamespace qt::codebook {"]
    for path in sorted(folder.glob("*.txt")):
        rows = read(path)
        body = ",\n".join("{" + ",".join(row) + "}" for row in rows)
        parts.append(f"alignas(64) inline constexpr int8_t {path.stem}[{len(rows)}][{len(rows[0])}] = {{\n{body}}};")
    text = "\n".join([*parts, "}\n"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
