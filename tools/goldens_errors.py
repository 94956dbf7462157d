"""Golden errors of libggml's encoders on tests/weights.py's samples; ours must not err more (tests/quants/test_search.py).

Needs llama-cpp-python (made with 0.3.36), whose shared library it calls:
    PYTHONPATH=src:tests python tools/goldens_errors.py > tests/data/goldens/errors.json
"""

import ctypes
import json
from pathlib import Path

import llama_cpp
import numpy as np

from qtransformers.quants.weights import WEIGHTS
from qtransformers.types import BY_NAME, QuantType
from weights import errors, importance, samples


def encoded(lib: ctypes.CDLL, x: np.ndarray, type: QuantType, weights: np.ndarray | None) -> np.ndarray:
    out = np.zeros(type.row_bytes(x.size), np.uint8)
    lib.ggml_quantize_chunk(
        ctypes.c_int(type.id), ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(0),
        ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1]), ctypes.c_void_p(weights.ctypes.data if weights is not None else None),
    )  # fmt: skip
    return out


def main() -> None:
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    goldens: dict[str, object] = {
        "made with": f"llama-cpp-python {llama_cpp.__version__}, tools/goldens_errors.py",
    }
    for name in WEIGHTS:
        type, found = BY_NAME[name], {}
        lib.ggml_quantize_init(type.id)
        for sample, x in samples().items():
            needed = np.ones(x.shape[1], np.float32) if lib.ggml_quantize_requires_imatrix(type.id) else None
            for weighted in (False, True):
                blocks = encoded(lib, x, type, importance(x) if weighted else needed)
                key = f"{sample}, with importance" if weighted else sample
                found[key] = {kind: float(f"{e:.6g}") for kind, e in errors(blocks, x, type, weighted).items()}
        goldens[name] = found
    print(json.dumps(goldens, indent=1))


if __name__ == "__main__":
    main()
