"""What llama.cpp says greedily of files that convert makes, for tests/convert/test_peer.py, in two steps:

    PYTHONPATH=src:tests python tools/goldens_convert.py make FOLDER                          (with the dev extra)
    python tools/goldens_convert.py run FOLDER tests/data/goldens/convert.json   (with llama-cpp-python; made with 0.3.36)

Make them anew when encoders change: until then the test compares what any encoding must say.
The margin is how much more the chosen token's logit is than the next one's. Keys and values in f32, one thread, no flash attention.
"""

import hashlib
import json
import sys
from pathlib import Path

N_NEW = 32
GGML_F32 = 0


def make(folder: Path) -> None:
    from convert.peers import NAMES, PROMPT, made

    folder.mkdir(exist_ok=True)
    (folder / "prompt").write_text(PROMPT)
    for name in NAMES:
        made(name, Path("tests/data/demo_model"), folder)
    (folder / "source.gguf").unlink()  # what one of them was made from


def run(folder: Path, output: Path) -> None:
    import llama_cpp
    import numpy as np

    goldens = {}
    for path in sorted(folder.glob("*.gguf")):
        model = llama_cpp.Llama(
            str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, flash_attn=False,
            type_k=GGML_F32, type_v=GGML_F32, verbose=False,
        )  # fmt: skip
        tokens = model.tokenize((folder / "prompt").read_bytes(), add_bos=False, special=True)
        n_prompt, margins = len(tokens), []
        model.eval(tokens)
        while len(tokens) < n_prompt + N_NEW:
            second, first = np.argsort(model.scores[len(tokens) - 1])[-2:]
            margins.append(
                round(float(model.scores[len(tokens) - 1][first] - model.scores[len(tokens) - 1][second]), 2)
            )
            tokens.append(int(first))
            model.eval(tokens[-1:])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        goldens[path.stem] = {"file": digest, "tokens": tokens, "prompt": n_prompt, "margins": margins}
        print(path.stem, model.detokenize(tokens[n_prompt:]).decode(errors="replace"))
    output.write_text(json.dumps(goldens, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[2])) if sys.argv[1] == "make" else run(Path(sys.argv[2]), Path(sys.argv[3]))
