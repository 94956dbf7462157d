"""All that is measured on a graphics card, with the card's own limits beside it: `python benchmarks/gpu.py [part ...]`.

The parts are the scripts gpu_*.py of this folder: `measure(card)` of each gives a title and a text for RESULTS.md. One that fails
is reported and leaves the others alone.
"""

import importlib
import sys
import traceback
from pathlib import Path

import torch
from card import measured
from results import publish

PARTS = sorted(path.stem.removeprefix("gpu_") for path in Path(__file__).parent.glob("gpu_*.py"))


def main(parts: list[str]) -> int:
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        print(f"no part {', '.join(unknown)}; expected some of {', '.join(PARTS)}.")
        return 2
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured. Run this where torch.cuda.is_available() says True.")
        return 1
    card = measured()
    print(card, flush=True)
    failed = 0
    for part in parts or PARTS:
        try:
            title, body = importlib.import_module(f"gpu_{part}").measure(card)
            publish(__file__, f"GPU: {title}", f"{card}.\n\n{body}")
        except Exception:
            failed += 1
            print(f"{part} failed:\n{traceback.format_exc()}", flush=True)
        torch.cuda.empty_cache()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
