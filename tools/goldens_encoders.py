"""Golden vectors of llama.cpp for tests/archs/test_bert.py, of the random encoders there, in two steps:

    PYTHONPATH=src:tests python tools/goldens_encoders.py make FOLDER                            (with the dev extra)
    python tools/goldens_encoders.py run FOLDER tests/data/goldens/encoders.npz   (with llama-cpp-python; made with 0.3.36)

Texts go through llama.cpp's own tokenizer and pooling; vectors are of length 1.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np


def make(folder: Path) -> None:
    from archs.encoders import ENCODERS, POOLINGS, TEXTS, encoder, gguf

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ENCODERS:
        _, model, _ = encoder(name)
        gguf(model, folder, name, POOLINGS[name]).rename(folder / f"{name}.gguf")
    (folder / "texts.json").write_text(json.dumps(TEXTS))


def run(folder: Path, output: Path) -> None:
    import llama_cpp

    texts = json.loads((folder / "texts.json").read_text())
    found = {}
    for path in sorted(folder.glob("*.gguf")):
        model = llama_cpp.Llama(
            str(path), n_ctx=256, n_batch=256, n_ubatch=256, n_threads=1, embedding=True, verbose=False
        )
        vectors = np.array([model.embed(text, normalize=True) for text in texts], np.float32)
        found[f"{path.stem}_file"] = np.array(hashlib.sha256(path.read_bytes()).hexdigest())
        found[f"{path.stem}_vectors"] = vectors
        print(path.stem, vectors.shape)
    np.savez_compressed(output, **found)


if __name__ == "__main__":
    step, folder, *rest = sys.argv[1:]
    make(Path(folder)) if step == "make" else run(Path(folder), Path(rest[0]))
