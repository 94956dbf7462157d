"""From the start of the process to the first token, the file in the page cache: python benchmarks/startup.py MODEL...

Beside the time: memory of the process that is not the mapped file, after the first token of a short prompt.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import publish, table

ROUNDS = 7
CHILD = """
import json, re, sys, time
from pathlib import Path

from qtransformers import Model, machine

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

imported = time.perf_counter()
model = Model.load(gguf_path=sys.argv[1], context_length=2048)
loaded = time.perf_counter()
next(model.stream([1, 5, 6, 7, 8, 9, 10, 11], max_tokens=2, temperature=0))
first = time.perf_counter()
print(json.dumps({
    "load": loaded - imported, "first": first - loaded, "end": time.time(), "anonymous": status("RssAnon"),
    "libraries": status("RssFile") - model.plan.weights_bytes, "huge": machine.huge_mapped(Path(sys.argv[1])) or 0,
}))
"""


def once(path: Path) -> dict[str, float]:
    """Seconds and bytes of one start."""
    start = time.time()
    done = subprocess.run([sys.executable, "-c", CHILD, path], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "all": found["end"] - start}


def measured(path: Path) -> list[str]:
    """The row of a model."""
    path.read_bytes()  # into the page cache
    runs = [once(path) for _ in range(ROUNDS)]
    middle = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
    return [
        path.stem, f"{path.stat().st_size / 1e9:.2f}", f"{middle['all']:.2f}", f"{max(r['all'] for r in runs):.2f}", f"{middle['load']:.2f}",
        f"{middle['first']:.2f}", *(f"{middle[key] / 2**20:.0f}" for key in ("anonymous", "libraries", "huge")),
    ]  # fmt: skip


def main(paths: list[Path]) -> None:
    """Print the table and write it into RESULTS.md."""
    rows = [measured(path) for path in paths]
    head = ["model", "GB", "start to first token, s", "slowest", "of it load", "of it first token", "MiB of its own", "MiB of libraries", "MiB in huge pages"]  # fmt: skip
    text = f"Warm: the file is in the page cache. Medians of {ROUNDS} starts; a prompt of 8 tokens, a context of 2048."
    publish(__file__, "Start", f"{text}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]])
