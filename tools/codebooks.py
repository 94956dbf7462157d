"""Write src/qtransformers/quants/codebooks/*.txt from the tables in ggml-common.h of llama.cpp (MIT licence; numbers only).

Usage: python tools/codebooks.py path/to/llama.cpp/ggml/src/ggml-common.h
"""

import re
import sys
from pathlib import Path

OUT = Path(__file__).parent.parent / "src" / "qtransformers" / "quants" / "codebooks"

# file, table in ggml-common.h, values a point, what it is
BOOKS = (
    ("iq2_xxs", "iq2xxs_grid", 8, "magnitudes of 8 neighbours in IQ2_XXS"),
    ("iq2_xs", "iq2xs_grid", 8, "magnitudes of 8 neighbours in IQ2_XS"),
    ("iq2_s", "iq2s_grid", 8, "magnitudes of 8 neighbours in IQ2_S"),
    ("iq3_xxs", "iq3xxs_grid", 4, "magnitudes of 4 neighbours in IQ3_XXS"),
    ("iq3_s", "iq3s_grid", 4, "magnitudes of 4 neighbours in IQ3_S"),
    ("iq1", "iq1s_grid", 8, "8 neighbours in IQ1_S and IQ1_M, before the shift by an eighth"),
    ("signs", "ksigns_iq2xs", 8, "signs of 8 neighbours in IQ2_XXS, IQ2_XS and IQ3_XXS: an even number of minuses"),
    ("iq4", "kvalues_iq4nl", 16, "the 16 values of IQ4_NL and IQ4_XS"),
    ("fp4", "kvalues_fp4", 16, "twice the 16 values of E2M1, of MXFP4 and NVFP4 (OCP Microscaling Formats 1.0)"),
)


def numbers(header: str, table: str) -> list[int]:
    body = re.search(rf"GGML_TABLE_BEGIN\(\w+, {table}, \w+\)(.*?)GGML_TABLE_END", header, re.DOTALL)
    if body is None:
        raise SystemExit(f"no table {table} in the header; expected ggml-common.h of llama.cpp")
    return [int(x, 0) for x in re.findall(r"-?\w+", body.group(1))]


def points(table: str, raw: list[int], width: int) -> list[list[int]]:
    """Each number of a grid packs one signed byte per value, the first lowest; a sign byte packs bits."""
    if table.startswith("kvalues"):
        return [raw]
    if table.startswith("ksigns"):
        return [[-1 if x >> i & 1 else 1 for i in range(width)] for x in raw]
    return [[b - 256 if b > 127 else b for b in x.to_bytes(width, "little")] for x in raw]


def text(name: str, table: str, what: str, rows: list[list[int]]) -> str:
    values = rows[0] if len(rows) == 1 else sorted({v for row in rows for v in row})
    digits = [
        "".join(f"{i:x}" for i in (range(len(row)) if len(rows) == 1 else map(values.index, row))) for row in rows
    ]
    per_line = 128 // (len(digits[0]) + 1)
    lines = [" ".join(digits[i : i + per_line]) for i in range(0, len(digits), per_line)]
    return "\n".join(
        [
            f"# {name}: {what}.",
            f"# {len(rows)} x {len(rows[0])}, each hexadecimal digit an index into `values`. Source: {table} in llama.cpp's ggml-common.h,",
            "# read by tools/codebooks.py.",
            "values " + " ".join(map(str, values)),
            *lines,
            "",
        ]
    )


def main() -> None:
    header = Path(sys.argv[1]).read_text(encoding="utf-8")
    for name, table, width, what in BOOKS:
        rows = points(table, numbers(header, table), width)
        (OUT / f"{name}.txt").write_text(text(name, table, what, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
