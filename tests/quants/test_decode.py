"""Decoding: C++ on every instruction set, NumPy, the gguf package and libggml give the same bits."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gguf
from blocks import edge_blocks, random_blocks, same_bits, stable_blocks, usable_isas
from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.native import lib
from qtransformers.quants import dequantize, reference_dequantize
from qtransformers.quants.reference import DECODE
from qtransformers.types import BY_NAME, TYPES

FLOATS = [row for row in TYPES.values() if row.family != "int"]
NOT_IN_GGUF = {"Q1_0", "Q2_0", "Q8_1", "Q8_K", "F64"}  # as of 0.19.0; below, libggml stands in for it
ISAS = usable_isas()
each_type = pytest.mark.parametrize("type", FLOATS, ids=str)


@each_type
@pytest.mark.parametrize("isa", ISAS)
def test_c_plus_plus_decodes_as_numpy(type, isa):
    for data in (random_blocks(type, 2000), edge_blocks(type, specials=True)):
        truth = reference_dequantize(data, type)
        assert truth.size == data.size // type.block_bytes * type.block_size
        assert same_bits(dequantize(data, type, isa=isa), truth)


@pytest.mark.parametrize("type", [row for row in FLOATS if row.name not in NOT_IN_GGUF], ids=str)
def test_numpy_decodes_as_the_gguf_package(type):
    for data in (random_blocks(type, 2000), edge_blocks(type)):
        with np.errstate(all="ignore"):
            theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(type.id))
        assert same_bits(reference_dequantize(data, type), theirs.astype(np.float32).reshape(-1))


def test_f64_decodes_to_the_nearest_float():
    x = np.array([0.1, -1e-40, 1 + 2**-24, 1 + 3 * 2**-24, 1e300])
    with np.errstate(over="ignore"):
        assert same_bits(dequantize(x.view(np.uint8), BY_NAME["F64"]), x.astype(np.float32))


@pytest.fixture(scope="module")
def goldens(data):
    return json.loads((data / "goldens" / "quants.json").read_text())


@pytest.mark.parametrize("type", [row for row in FLOATS if row.is_quantized], ids=str)
def test_decoding_has_the_bits_of_libggml(type, goldens):
    blocks = stable_blocks(type, goldens["blocks"])
    for decode in (dequantize, reference_dequantize):
        assert hashlib.sha256(decode(blocks, type).tobytes()).hexdigest() == goldens["decode"][type.name]


def test_every_type_has_a_decoder():
    assert set(DECODE) == {row.name for row in FLOATS}
    assert lib.formats() == {row.id: (row.name, row.block_size, row.block_bytes) for row in FLOATS}
    assert ISAS[0] == "generic"
    assert lib.isa() == ISAS[-1]


@each_type
def test_numpy_computes_in_single_precision(type):
    """A silent float64 would round differently from ggml."""
    assert DECODE[type.name](random_blocks(type, 4).view(type.block)).dtype == np.float32


@each_type
def test_blocks_may_start_at_any_byte_and_be_read_only(type):
    data = random_blocks(type, 5)
    shifted = np.concatenate([np.zeros(1, np.uint8), data])[1:]
    shifted.flags.writeable = False
    assert same_bits(dequantize(shifted, type), dequantize(data, type))


def test_threads_share_the_work_evenly_or_not():
    q4 = BY_NAME["Q4_K"]
    data = random_blocks(q4, 37)
    truth = reference_dequantize(data, q4)
    for threads in (1, 2, 3, 5, 36, 37, 100):
        out = np.full(37 * 256, np.nan, np.float32)
        assert dequantize(data, q4, out, threads=threads) is out
        assert same_bits(out, truth)


def test_a_large_tensor_takes_the_parallel_way():
    q8 = BY_NAME["Q8_0"]
    data = random_blocks(q8, (1 << 20) // 32 + 3)
    assert same_bits(dequantize(data, q8), reference_dequantize(data, q8))


def test_no_blocks_are_no_values():
    for type in FLOATS:
        empty = np.empty(0, np.uint8)
        assert dequantize(empty, type).shape == reference_dequantize(empty, type).shape == (0,)


@pytest.mark.parametrize("decode", [dequantize, reference_dequantize])
def test_bytes_that_are_no_whole_blocks(decode):
    with pytest.raises(GGUFError, match=r"35 bytes .* Q8_0 .* multiple of 34"):
        decode(np.zeros(35, np.uint8), BY_NAME["Q8_0"])
    with pytest.raises(ConfigError, match=r"found float32 \[34\]; expected contiguous uint8"):
        decode(np.zeros(34, np.float32), BY_NAME["Q8_0"])
    with pytest.raises(ConfigError, match="non-contiguous"):
        decode(np.zeros(68, np.uint8)[::2], BY_NAME["Q8_0"])


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64"])
def test_whole_numbers_are_not_decoded(name):
    for decode in (dequantize, reference_dequantize):
        with pytest.raises(UnsupportedError, match=f"{name} holds whole numbers"):
            decode(np.zeros(8, np.uint8), BY_NAME[name])


def test_a_wrong_out_is_refused():
    data, q8 = np.zeros(34, np.uint8), BY_NAME["Q8_0"]
    read_only = np.empty(32, np.float32)
    read_only.flags.writeable = False
    for out, found in (
        (np.empty(31, np.float32), r"\[31\]"),
        (np.empty(32, np.float64), "float64"),
        (np.empty((1, 32), np.float32), r"\[1, 32\]"),
        (np.empty(64, np.float32)[::2], "non-contiguous"),
        (read_only, "read-only"),
    ):
        with pytest.raises(ConfigError, match=found):
            dequantize(data, q8, out)


def test_a_machine_without_the_instruction_set_says_what_it_has():
    with pytest.raises(ConfigError, match=r"'neon9' is not available here; expected one of .*generic"):
        dequantize(np.zeros(34, np.uint8), BY_NAME["Q8_0"], isa="neon9")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 5000, 2**40])
def test_threads_that_cannot_be(threads):
    with pytest.raises(ConfigError, match=r"threads=.*; expected a whole number from 1 to 4096"):
        dequantize(np.zeros(34, np.uint8), BY_NAME["Q8_0"], threads=threads)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space of a process")
def test_a_system_short_of_threads_decodes_all_the_same():
    """Room for the stacks of a few of the 300 threads."""
    code = """
import resource
import numpy as np
from blocks import random_blocks
from qtransformers.quants import dequantize
from qtransformers.types import BY_NAME
data, out = random_blocks(BY_NAME["Q4_K"], 300), np.empty(300 * 256, np.float32)
truth = dequantize(data, BY_NAME["Q4_K"], threads=1)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (100 << 20),) * 2)
assert np.array_equal(dequantize(data, BY_NAME["Q4_K"], out, threads=300), truth)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_environment_chooses_the_instruction_set(monkeypatch):
    data, q8 = random_blocks(BY_NAME["Q8_0"], 2), BY_NAME["Q8_0"]
    monkeypatch.setenv("QTRANSFORMERS_ISA", "generic")
    assert same_bits(dequantize(data, q8), reference_dequantize(data, q8))
    monkeypatch.setenv("QTRANSFORMERS_ISA", "none such")
    with pytest.raises(ConfigError, match="'none such' is not available here"):
        dequantize(data, q8)
