"""Golden hashes of libggml's decoders, four of which the `gguf` package lacks, and of its encoders that we have too.

Needs llama-cpp-python (made with 0.3.36), whose shared library it calls:
    PYTHONPATH=src:tests python tools/goldens_quants.py > tests/data/goldens/quants.json
Blocks and values come from tests/blocks.py (`stable_blocks`), so that the hashes are all there is to keep.
"""

import ctypes
import hashlib
import json
from pathlib import Path

import llama_cpp
import numpy as np

from blocks import stable_blocks, stable_values
from qtransformers.types import BY_NAME, TYPES, QuantType

N_BLOCKS = 200
DECODED = [row.name for row in TYPES.values() if row.is_quantized]
ENCODED = {
    "F16": "ggml_fp32_to_fp16_row",
    "BF16": "ggml_fp32_to_bf16_row_ref",
    "Q8_0": "quantize_row_q8_0_ref",
}


def call(lib: ctypes.CDLL, function: str, source: np.ndarray, out: np.ndarray, n_values: int) -> str:
    getattr(lib, function)(
        source.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(n_values)
    )
    return hashlib.sha256(out.tobytes()).hexdigest()


def decoded(lib: ctypes.CDLL, type: QuantType) -> str:
    blocks = stable_blocks(type, N_BLOCKS)
    name = type.name
    if name == "Q8_1":  # libggml has no decoder of its own: without the sums it is Q8_0
        wide, name = blocks.view(type.block), "Q8_0"
        narrow = np.empty(N_BLOCKS, BY_NAME[name].block)
        narrow["d"], narrow["qs"] = wide["d"], wide["qs"]
        blocks = narrow.view(np.uint8)
    n = N_BLOCKS * type.block_size
    name = name.lower().replace("_k", "_K") if name.startswith("Q") else name.lower()
    return call(lib, f"dequantize_row_{name}", np.ascontiguousarray(blocks), np.empty(n, np.float32), n)


def encoded(lib: ctypes.CDLL, type: QuantType) -> str:
    x = stable_values(N_BLOCKS * 32)
    return call(lib, ENCODED[type.name], x, np.empty(type.row_bytes(x.size), np.uint8), x.size)


def main() -> None:
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    goldens = {
        "made with": f"llama-cpp-python {llama_cpp.__version__}, tools/goldens_quants.py",
        "blocks": N_BLOCKS,
        "decode": {name: decoded(lib, BY_NAME[name]) for name in DECODED},
        "encode": {name: encoded(lib, BY_NAME[name]) for name in ENCODED},
    }
    print(json.dumps(goldens, indent=1))


if __name__ == "__main__":
    main()
