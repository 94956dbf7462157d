"""Golden logits of llama.cpp for tests/archs/test_parity.py, of the random models there, in two steps:

    PYTHONPATH=src:tests python tools/goldens_archs.py make FOLDER                        (with the dev extra)
    python tools/goldens_archs.py run FOLDER tests/data/goldens/archs.npz   (with llama-cpp-python; made with 0.3.36)

Keys and values in f32, one thread, no flash attention.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

GGML_F32 = 0
N_ROWS = 4


def make(folder: Path, names: list[str]) -> None:
    from archs.cases import CASES
    from archs.models import gguf, prompt, reference

    folder.mkdir(exist_ok=True)
    for name, case in CASES.items():
        if not case.golden or (names and name not in names):
            continue
        path = folder / f"{name}.gguf"
        path.unlink(missing_ok=True)
        gguf(reference(case, name), folder, name, case)
        said = {
            "tokens": prompt(case.lengths[-1]),
            "n_ctx": case.context_length or 512,
        }
        path.with_suffix(".json").write_text(json.dumps(said))


def run(folder: Path, output: Path, names: list[str]) -> None:
    found = dict(np.load(output)) if output.exists() and names else {}
    for path in sorted(folder.glob("*.gguf")):
        if not names or path.stem in names:
            found.update(golden(path))
    np.savez_compressed(output, **found)


def golden(path: Path) -> dict[str, np.ndarray]:
    import llama_cpp

    said = json.loads(path.with_suffix(".json").read_text())
    model = llama_cpp.Llama(
        str(path), n_ctx=said["n_ctx"], n_batch=512, n_threads=1, n_threads_batch=1, logits_all=True, flash_attn=False,
        type_k=GGML_F32, type_v=GGML_F32, verbose=False,
    )  # fmt: skip
    model.eval(said["tokens"])
    rows = np.linspace(0, len(said["tokens"]) - 1, N_ROWS).astype(np.int32)
    print(path.stem, model.scores[rows].max())
    return {
        f"{path.stem}_file": np.array(hashlib.sha256(path.read_bytes()).hexdigest()),
        f"{path.stem}_rows": rows,
        f"{path.stem}_logits": model.scores[rows].astype(np.float32),
    }


if __name__ == "__main__":
    step, folder, *rest = sys.argv[1:]
    if step == "make":
        make(Path(folder), rest)
    else:
        run(Path(folder), Path(rest[0]), rest[1:])
