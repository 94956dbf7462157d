"""The type table against the format's facts, the gguf package and what the C++ side was built with."""

import dataclasses
import re

import numpy as np
import pytest

import gguf
import gguf_files
from qtransformers.errors import GGUFError
from qtransformers.gguf import GGUFFile
from qtransformers.types import BY_NAME, RETIRED, TYPES, QuantType, type_of

# ggml: id, name, values a block, bytes a block.
LAYOUTS = """
0 F32 1 4|1 F16 1 2|2 Q4_0 32 18|3 Q4_1 32 20|6 Q5_0 32 22|7 Q5_1 32 24|8 Q8_0 32 34|9 Q8_1 32 36|10 Q2_K 256 84|11 Q3_K 256 110
12 Q4_K 256 144|13 Q5_K 256 176|14 Q6_K 256 210|15 Q8_K 256 292|16 IQ2_XXS 256 66|17 IQ2_XS 256 74|18 IQ3_XXS 256 98|19 IQ1_S 256 50
20 IQ4_NL 32 18|21 IQ3_S 256 110|22 IQ2_S 256 82|23 IQ4_XS 256 136|24 I8 1 1|25 I16 1 2|26 I32 1 4|27 I64 1 8|28 F64 1 8|29 IQ1_M 256 56
30 BF16 1 2|34 TQ1_0 256 54|35 TQ2_0 256 66|39 MXFP4 32 17|40 NVFP4 64 36|41 Q1_0 128 18|42 Q2_0 64 18
"""
BITS = {
    "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625,
    "IQ2_XXS": 2.0625, "IQ2_XS": 2.3125, "IQ3_XXS": 3.0625, "IQ1_S": 1.5625, "IQ4_NL": 4.5, "IQ2_S": 2.5625, "IQ4_XS": 4.25, "IQ1_M": 1.75,
    "TQ1_0": 1.6875, "TQ2_0": 2.0625, "MXFP4": 4.25, "NVFP4": 4.5, "Q1_0": 1.125, "Q2_0": 2.25, "F32": 32, "F16": 16, "BF16": 16,
}  # fmt: skip


def test_rows_are_those_of_ggml():
    rows = [entry.split() for entry in re.split(r"[|\n]", LAYOUTS.strip())]
    assert [[str(t.id), t.name, str(t.block_size), str(t.block_bytes)] for t in TYPES.values()] == rows
    assert {name: BY_NAME[name].bits_per_weight for name in BITS} == BITS


def test_rows_are_those_of_the_gguf_package():
    for kind, (block_size, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        row = TYPES[kind.value]
        if row.name == "Q8_1":
            continue  # there it has the two floats it once had: 40 bytes
        assert (row.name, row.block_size, row.block_bytes) == (kind.name, block_size, block_bytes)


def test_ids_and_names_are_unique_and_none_is_retired():
    assert (
        len({row.id for row in TYPES.values()})
        == len({row.name for row in TYPES.values()})
        == len(TYPES)
        == len(BY_NAME)
        == 35
    )
    assert set(RETIRED) == {4, 5, 31, 32, 33, 36, 37, 38}
    assert not set(RETIRED) & set(TYPES)
    assert set(TYPES) | set(RETIRED) == set(range(43))


def test_fields_are_packed_and_little_endian():
    for row in TYPES.values():
        at = 0
        for name in row.block.names:
            kind, offset = row.block.fields[name]
            assert offset == at, f"{row}.{name} is padded"
            assert kind.base.newbyteorder("<") == kind.base
            at += kind.itemsize
        assert at == row.block_bytes


def test_families():
    plain = {row.name for row in TYPES.values() if not row.is_quantized}
    assert plain == {row.name for row in TYPES.values() if row.family in ("float", "int")}
    assert {row.name for row in TYPES.values() if row.activation} == {"Q8_1", "Q8_K"}
    assert {row.family for row in TYPES.values()} == {"float", "int", "legacy", "k", "iq", "ternary", "microscaling"}


def test_bytes_of_a_row():
    assert BY_NAME["Q4_K"].row_bytes(4096) == 4096 // 256 * 144
    assert BY_NAME["F32"].row_bytes(7) == 28
    assert repr(BY_NAME["Q4_K"]) == "Q4_K"


def test_a_row_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BY_NAME["Q4_K"].name = "Q5_K"


def test_a_new_row_needs_no_code():
    row = QuantType(63, "Q9", 4, "d:f4 qs:u1*4 m:f2", "legacy")
    assert row.block_bytes == 10
    assert row.block["d"] == np.dtype("<f4")
    assert row.bits_per_weight == 20


@pytest.mark.parametrize("type_id, name", RETIRED.items())
def test_a_retired_type_is_refused_by_name(type_id, name):
    expected = rf"^m\.gguf: blk\.0\.ffn_up\.weight has the retired type {name} \({type_id}\); expected .* Convert the model again"
    with pytest.raises(GGUFError, match=expected):
        type_of(type_id, "blk.0.ffn_up.weight", "m.gguf")


@pytest.mark.parametrize("type_id", [43, 64, 1 << 31, -1])
def test_an_unknown_type_is_refused_by_number(type_id):
    expected = rf"^m\.gguf: token_embd\.weight has the unknown type {type_id}; expected .* Update qtransformers, or check the file\.$"
    with pytest.raises(GGUFError, match=expected):
        type_of(type_id, "token_embd.weight", "m.gguf")


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_an_activation_format_is_no_weight(name):
    with pytest.raises(GGUFError, match=rf"^m\.gguf: output\.weight has type {name}, an activation format"):
        type_of(BY_NAME[name].id, "output.weight", "m.gguf")


def test_every_other_type_is_a_weight():
    for row in TYPES.values():
        if not row.activation:
            assert type_of(row.id, "x", "m.gguf") is row


@pytest.mark.parametrize("type_id", [*RETIRED, 9, 15, 43, 2**32 - 1])
def test_a_file_with_a_type_that_cannot_be_is_refused(type_id, tmp_path):
    path = tmp_path / "old.gguf"
    path.write_bytes(
        gguf_files.file([gguf_files.ARCH], [gguf_files.info("blk.3.attn_q.weight", (256, 2), type_id)], bytes(4096))
    )
    with pytest.raises(GGUFError, match=r"old\.gguf.*blk\.3\.attn_q\.weight") as caught:
        GGUFFile(path).tensors["blk.3.attn_q.weight"].dequantize()
    assert RETIRED.get(type_id, TYPES[type_id].name if type_id in TYPES else str(type_id)) in str(caught.value)
