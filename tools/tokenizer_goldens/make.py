"""Compare our tokenizers with llama.cpp's, and write what it gives for our own vocabularies.

python tools/tokenizer_goldens/make.py PEER            tests/data/goldens/tokenizers.json anew
python tools/tokenizer_goldens/make.py PEER FILE.gguf  compare on random texts; a byte-level vocabulary under every `pre`
PEER is a Python with llama-cpp-python (0.3.36 was used), ours needs PYTHONPATH=src.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import vocabularies
from texts import TEXTS, random_texts

from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.load.tokenizer import Tokenizer
from qtransformers.load.tokenizer.pretokenizers import PRE_TOKENIZERS

HERE = Path(__file__).parent
GOLDENS = HERE.parents[1] / "tests" / "data" / "goldens" / "tokenizers.json"
KINDS = {  # vocabulary -> tokenizer.ggml.model, more keys
    "bytes": ("gpt2", {"eos_token_id": 0, "bos_token_id": 0}),
    "characters": ("gpt2", {"eos_token_id": 0, "bos_token_id": 0}),
    "spm": ("llama", {"add_bos_token": True}),
    "wpm": ("bert", {"bos_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1, "padding_token_id": 0}),
    "ugm": ("t5", {"unknown_token_id": 0, "eos_token_id": 2, "add_space_prefix": True}),
    "ugm, one blank": ("t5", {"unknown_token_id": 0, "eos_token_id": 2, "remove_extra_whitespaces": True}),
    "rwkv": ("rwkv", {"eos_token_id": 0}),
    "plamo2": ("plamo2", {}),
}


def metadata(vocabulary: dict, model: str, more: dict, pre: str | None = None) -> dict:
    """A vocabulary as GGUF metadata."""
    out = {
        "model": model,
        "tokens": vocabulary["tokens"],
        "token_type": np.array(vocabulary["types"], np.int32),
        **more,
    }
    if "scores" in vocabulary:
        out["scores"] = np.array(vocabulary["scores"], np.float32)
    if "merges" in vocabulary:
        out["merges"] = vocabulary["merges"]
    if "charsmap" in vocabulary:
        out["precompiled_charsmap"] = np.frombuffer(bytes.fromhex(vocabulary["charsmap"]), np.uint8)
    if pre:
        out["pre"] = pre
    return {"general.architecture": "llama", **{f"tokenizer.ggml.{key}": value for key, value in out.items()}}


def ask(peer: str, jobs: list[dict]) -> list[dict]:
    """The peer's answers."""
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder, "jobs.json"), Path(folder, "answers.json")
        questions.write_text(json.dumps(jobs))
        subprocess.run([peer, str(HERE / "peer.py"), str(questions), str(answers)], check=True)
        return json.loads(answers.read_text())


def write(path: Path, values: dict) -> str:
    GGUFWriter(path, values, [], overwrite=True).close()
    return str(path)


def make(peer: str, folder: Path) -> None:
    """Write the goldens, and say where ours differ."""
    made = {
        "bytes": vocabularies.byte_level(),
        "characters": vocabularies.characters(),
        "spm": vocabularies.scored(900, seed=2, ties=True),
        "wpm": vocabularies.word_pieces(),
        "ugm": vocabularies.unigram(),
        "rwkv": vocabularies.world(),
        "plamo2": vocabularies.scored(900, seed=6, ties=False),
    }
    made["ugm, one blank"] = made["ugm"]
    runs = {f"pre {name}": ("bytes" if row.byte_level else "characters", name) for name, row in PRE_TOKENIZERS.items()}
    runs |= {name: (name, None) for name in KINDS if name not in ("bytes", "characters")}
    jobs = []
    for n, (vocabulary, pre) in enumerate(runs.values()):
        model, more = KINDS[vocabulary]
        model = "whitespace" if pre == "whitespace" else model  # llama.cpp stops at blanks under that pre alone
        path = write(folder / f"{n}.gguf", metadata(made[vocabulary], model, more, pre))
        jobs.append({"gguf": path, "texts": TEXTS, "add": False, "special": False})
    answers = ask(peer, jobs)
    results: list[list[list[int]]] = []
    cases = {}
    for (name, (vocabulary, pre)), job, answer in zip(runs.items(), jobs, answers, strict=True):
        if answer["ids"] not in results:
            results.append(answer["ids"])
        cases[name] = {"vocabulary": vocabulary, "pre": pre, "result": results.index(answer["ids"])}
        report(name, job, answer)
    del made["ugm, one blank"]
    golden = {
        "source": "llama.cpp as in llama-cpp-python 0.3.36; python tools/tokenizer_goldens/make.py PEER",
        "texts": TEXTS,
        "kinds": KINDS,
        "vocabularies": made,
        "cases": cases,
        "results": results,
    }
    GOLDENS.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":"), default=list) + "\n")
    print(f"{GOLDENS}: {len(cases)} cases, {len(results)} different results, {GOLDENS.stat().st_size} bytes")


def compare(peer: str, folder: Path, source: Path) -> None:
    """A vocabulary on random texts, with and without special tokens; byte-level ones under every `pre`."""
    gguf = GGUFFile(source)
    tokenizer = Tokenizer.from_gguf(gguf)
    names = sorted(tokenizer.token_text(i) for i in tokenizer.special_ids)[:50]
    texts = [*TEXTS, *random_texts(3000, seed=9, extra=tuple(names))]
    jobs = [{"gguf": str(source), "texts": texts, "add": a, "special": s} for a in (False, True) for s in (False, True)]
    if gguf.metadata["tokenizer.ggml.model"] == "gpt2":
        kept = {key: gguf.metadata.encoded(key) for key in gguf.metadata if key != "tokenizer.ggml.pre"}
        for pre in PRE_TOKENIZERS:
            if PRE_TOKENIZERS[pre].byte_level:
                path = write(folder / f"{pre}.gguf", {**kept, "tokenizer.ggml.pre": pre})
                jobs.append({"gguf": path, "texts": texts, "add": False, "special": False})
    for job, answer in zip(jobs, ask(peer, jobs), strict=True):
        report(f"{Path(job['gguf']).stem} add={job['add']} special={job['special']}", job, answer)


def report(name: str, job: dict, answer: dict) -> None:
    """Where ours differ from the peer's answer."""
    tokenizer = Tokenizer.from_gguf(job["gguf"])
    wrong = []
    for text, ids in zip(job["texts"], answer["ids"], strict=True):
        ours = tokenizer.encode(text, add_bos=None if job["add"] else False, encode_special=job["special"])
        if ours != ids and not _doubled(ids, ours, tokenizer):
            wrong.append((text, ids, ours))
    pieces = [i for i, piece in enumerate(answer["pieces"]) if bytes.fromhex(piece) != tokenizer.token_bytes(i)]
    ends = (
        "" if set(answer["ends"]) == tokenizer.eos_ids else f", ends {answer['ends']}, ours {sorted(tokenizer.eos_ids)}"
    )
    print(f"{name}: {len(wrong)} of {len(job['texts'])} texts differ{ends}{f', pieces {pieces[:5]}' if pieces else ''}")
    for text, ids, ours in wrong[:3]:
        print(f"  {text!r}\n    peer {ids}\n    ours {ours}")


def _doubled(ids: list[int], ours: list[int], tokenizer: Tokenizer) -> bool:
    """Whether the peer put BOS or EOS around a text that had brought its own, which we do not."""
    before, after = tokenizer.before, tokenizer.after
    shorter = ids[1:] if before and ids[:2] == before * 2 else ids
    return (shorter[:-1] if after and shorter[-2:] == after * 2 else shorter) == ours


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        if len(sys.argv) == 2:
            make(sys.argv[1], Path(scratch))
        else:
            for argument in sys.argv[2:]:
                compare(sys.argv[1], Path(scratch), Path(argument))
