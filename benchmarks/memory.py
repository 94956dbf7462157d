"""Predicted against measured memory: python benchmarks/memory.py [MODEL ...]

Each model and cache type is a process of its own, which loads the model, reads a prompt that fills the context, and answers
with a few tokens. Measured is its peak resident memory (VmHWM), in which every touched page of the mapped file counts;
predicted is what the plan said before: weights + cache + temporaries + program. Without MODEL the demo is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from results import publish, table

from qtransformers.cache.pages import CODECS

CONTEXT, ANSWER = 1024, 4  # tokens
CHILD = """
import json, re, sys
from qtransformers import Model

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

path, cache, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
imported = status("VmRSS")
with Model.load(gguf_path=path, cache=cache, context_length=context) as model:
    loaded = status("VmRSS")
    plan = model.plan
    ids = [3 + i % 1000 for i in range(context - ANSWER)]
    model.generate(ids, max_tokens=ANSWER, temperature=0)
    print(json.dumps({
        "imported": imported, "loaded": loaded, "measured": status("VmHWM"), "weights": plan.weights_bytes, "cache": plan.cache_bytes,
        "temporaries": plan.activations_bytes, "program": plan.program_bytes, "anonymous": status("RssAnon"), "file": status("RssFile"),
    }))
""".replace("ANSWER", str(ANSWER))


def measure(path: Path, cache: str, context: int) -> dict[str, int]:
    """Bytes, predicted and measured."""
    done = subprocess.run([sys.executable, "-c", CHILD, path, cache, str(context)], check=True, capture_output=True, text=True)  # fmt: skip
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    found["predicted"] = sum(found[k] for k in ("weights", "cache", "temporaries", "program"))
    return found


def main(paths: list[Path]) -> None:
    """Print the table and write it into RESULTS.md."""
    columns = ("weights", "cache", "temporaries", "program", "predicted", "measured")
    rows = []
    for path in paths:
        for cache in CODECS:
            found = measure(path, cache, CONTEXT)
            error = found["predicted"] / found["measured"] - 1
            rows.append([f"{path.stem}, {cache}", *(f"{found[c] / 2**20:.1f}" for c in columns), f"{error:+.1%}"])
            print(*rows[-1], {k: f"{v / 2**20:.1f}" for k, v in found.items() if k not in columns}, flush=True)
    text = (
        f"MiB; a context of {CONTEXT} tokens, filled; peak resident memory with the mapped weights, one process each."
    )
    head = ["model, cache", *columns, "predicted / measured - 1"]
    publish(__file__, "Memory: the plan against the peak", f"{text}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or [Path("tests/data/demo-Q8_0.gguf")])
