"""Quantised layers of every layout that is read, as a checkpoint has them."""

import numpy as np

from convert import layouts
from qtransformers.convert.methods import sources_of
from qtransformers.load.checkpoint import Stored

DTYPES = {"int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "int8": "I8", "uint8": "U8"}


def stored(name, array, dtype=None):
    array = np.ascontiguousarray(array)
    return Stored(
        name, dtype or DTYPES[array.dtype.name], array.shape, array.reshape(-1).view(np.uint8), "m.safetensors"
    )


def source(parts, said):
    found = sources_of({f"x.{n}": stored(f"x.{n}", a) for n, a in parts.items()}, said, "config.json")
    return found["x.weight"]


AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4}
CT = {"quant_method": "compressed-tensors"}
# layout, quantization_config, grid, type that holds it
CASES = {
    "awq gemm": (layouts.awq_gemm, AWQ, {}, "Q4_K"),
    "awq gemm, narrow": (layouts.awq_gemm, AWQ, {"shape": (16, 384)}, "Q4_1"),
    "awq gemm, groups of 64": (layouts.awq_gemm, {**AWQ, "group_size": 64}, {"group": 64}, "Q4_K"),
    "awq gemm, groups of 32": (layouts.awq_gemm, {**AWQ, "group_size": 32}, {"group": 32}, "Q4_1"),
    "awq gemm, a group a row": (layouts.awq_gemm, {**AWQ, "group_size": -1}, {"group": 512}, "Q4_K"),
    "awq gemv": (layouts.awq_gemv, {**AWQ, "version": "GEMV"}, {}, "Q4_K"),
    "awq gemv, groups of 64": (layouts.awq_gemv, {**AWQ, "version": "gemv", "group_size": 64}, {"group": 64}, "Q4_K"),
    "gptq": (layouts.gptq, GPTQ, {"symmetric": True}, "Q4_0"),
    "gptq, asymmetric": (layouts.gptq, GPTQ, {}, "Q4_K"),
    "gptq, second format": (lambda *g: layouts.gptq(*g, less=0), {**GPTQ, "checkpoint_format": "gptq_v2"}, {}, "Q4_K"),
    "gptq, 8 bits": (lambda *g: layouts.gptq(*g, bits=8), {**GPTQ, "bits": 8}, {"bits": 8, "symmetric": True}, "Q8_0"),
    "gptq, 8 bits, asymmetric": (lambda *g: layouts.gptq(*g, bits=8), {**GPTQ, "bits": 8}, {"bits": 8}, None),
    "gptq, 2 bits": (lambda *g: layouts.gptq(*g, bits=2), {**GPTQ, "bits": 2}, {"bits": 2}, "Q4_K"),
    "gptq, 3 bits": (lambda *g: layouts.gptq(*g, bits=3), {**GPTQ, "bits": 3}, {"bits": 3, "shape": (32, 512)}, "Q4_K"),
    "gptq, 3 bits, symmetric": (lambda *g: layouts.gptq(*g, bits=3), {**GPTQ, "bits": 3}, {"bits": 3, "symmetric": True, "shape": (32, 512)}, "Q4_0"),
    "compressed words": (layouts.compressed_words, CT, {"symmetric": True}, "Q4_0"),
    "compressed words, asymmetric": (lambda *g: layouts.compressed_words(*g, asymmetric=True), CT, {}, "Q4_K"),
    "compressed words, a group a row": (layouts.compressed_words, CT, {"symmetric": True, "group": 512}, "Q4_0"),
    "compressed words, 8 bits": (lambda *g: layouts.compressed_words(*g, bits=8), CT, {"bits": 8, "symmetric": True}, "Q8_0"),
    "compressed bytes": (layouts.compressed_bytes, CT, {"bits": 8, "symmetric": True, "group": 512}, "Q8_0"),
}  # fmt: skip
# Error that a type adds to that of the checkpoint (power, relative to it); 0: none at all
ADDED = {"Q4_0": 0, "Q8_0": 0, "Q4_1": 5e-5, "Q4_K": 4e-4}
