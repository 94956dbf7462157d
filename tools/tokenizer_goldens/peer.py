"""Ids from llama.cpp, run by a Python that has llama-cpp-python: python peer.py JOBS.json ANSWERS.json.

A job is {"gguf": path, "texts": [...], "add": bool, "special": bool}; its answer {"ids": [[...]], "ends": [...], "pieces": [hex]}.
"""

import ctypes
import json
import sys

import llama_cpp as lib


@lib.llama_log_callback
def quiet(level: int, text: bytes, user: object) -> None:
    pass


def ids(vocab: object, text: str, add: bool, special: bool) -> list[int]:
    raw = text.encode()
    room = 2 * len(raw) + 16
    out = (lib.llama_token * room)()
    n = lib.llama_tokenize(vocab, raw, len(raw), out, room, add, special)
    assert n >= 0
    return list(out[:n])


def piece(vocab: object, i: int) -> str:
    out = ctypes.create_string_buffer(1 << 12)
    return out.raw[: lib.llama_token_to_piece(vocab, i, out, len(out), 0, True)].hex()


def answer(job: dict) -> dict:
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(job["gguf"].encode(), params)
    vocab = lib.llama_model_get_vocab(model)
    n = lib.llama_vocab_n_tokens(vocab)
    out = {
        "ids": [ids(vocab, text, job["add"], job["special"]) for text in job["texts"]],
        "ends": [i for i in range(n) if lib.llama_vocab_is_eog(vocab, i)],
        "pieces": [piece(vocab, i) for i in range(n)] if job["special"] else [],
    }
    lib.llama_model_free(model)
    return out


if __name__ == "__main__":
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    with open(sys.argv[1]) as f:
        jobs = json.load(f)
    with open(sys.argv[2], "w") as f:
        json.dump([answer(job) for job in jobs], f)
