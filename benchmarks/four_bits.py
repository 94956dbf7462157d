"""What four bits save on the way from the file to the answer: python benchmarks/four_bits.py F16.gguf Q4_K_M.gguf

The second is made of the first (benchmarks/models.py llama-1b F16, with a real vocabulary) by `convert -t Q4_K_M --awq`. These
figures do not depend on the values of the weights, which are random here.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import publish, table

ROUNDS = 3
CHILD = """
import json, re, sys, time
from pathlib import Path

from qtransformers import Model

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

model = Model.load(gguf_path=sys.argv[1], context_length=2048)
stream = model.stream([1, 5, 6, 7, 8, 9, 10, 11], max_tokens=33, temperature=0, speculate=False)
next(stream)
first = time.time()
n = sum(len(chunk.tokens) for chunk in stream)
print(json.dumps({"first": first, "speed": n / (time.time() - first), "resident": status("VmHWM"), "own": status("RssAnon")}))
"""


def once(path: Path, cold: bool) -> dict[str, float]:
    """Seconds, tokens a second and bytes of one start; `cold`: with nothing of the file in the page cache."""
    if cold:
        subprocess.run(["dd", f"if={path}", "iflag=nocache", "count=0"], check=True, capture_output=True)
    start = time.time()
    done = subprocess.run([sys.executable, "-c", CHILD, path], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "first": found["first"] - start}


def main(paths: list[Path]) -> None:
    """Print the table and write it into RESULTS.md."""
    runs: dict[tuple[Path, bool], list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for path in paths:
            for cold in (True, False):
                runs.setdefault((path, cold), []).append(once(path, cold))
    rows = []
    for path in paths:
        warm, cold = (
            {k: statistics.median(r[k] for r in runs[path, c]) for k in runs[path, c][0]} for c in (False, True)
        )
        rows.append([
            path.stem, f"{path.stat().st_size / 1e9:.2f}", f"{cold['first']:.2f}", f"{warm['first']:.2f}", f"{warm['speed']:.1f}",
            f"{warm['resident'] / 2**20:.0f}", f"{warm['own'] / 2**20:.0f}",
        ])  # fmt: skip
    head = [
        "model",
        "GB",
        "cold start to first token, s",
        "warm, s",
        "tokens/s",
        "MiB resident at most",
        "MiB of its own",
    ]
    publish(__file__, "Four bits against F16", f"Medians of {ROUNDS} starts in turns; a prompt of 8 tokens, 32 more without guessing ahead, a context of 2048. What is resident is the map of the file, which the system may take back.\n\n{table(head, rows)}")  # fmt: skip


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]])
