"""llama.cpp's part of tokenizer.py, run by a Python with llama-cpp-python: JSON of {file: [build s, {text: encode s}]}."""

import ctypes
import json
import sys
import time

import llama_cpp as lib


@lib.llama_log_callback
def quiet(level: int, text: bytes, user: object) -> None:
    pass


def measure(path: str, texts: dict[str, str]) -> tuple[float, dict[str, float]]:
    params = lib.llama_model_default_params()
    params.vocab_only = True
    build = float("inf")
    for _ in range(3):
        start = time.thread_time()
        model = lib.llama_model_load_from_file(path.encode(), params)
        build = min(build, time.thread_time() - start)
        vocab = lib.llama_model_get_vocab(model)
    encode = {}
    for name, text in texts.items():
        raw = text.encode()
        out = (lib.llama_token * (2 * len(raw) + 16))()
        best = float("inf")
        for _ in range(3):
            start = time.thread_time()
            n = lib.llama_tokenize(vocab, raw, len(raw), out, len(out), False, False)
            best = min(best, time.thread_time() - start)
        encode[name] = best if n >= 0 else float("inf")
    return build, encode


if __name__ == "__main__":
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    jobs = json.load(sys.stdin)
    json.dump({path: measure(path, jobs["texts"]) for path in jobs["files"]}, sys.stdout)
