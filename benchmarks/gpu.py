"""All that is measured on a graphics card, beside the card's own limits and the peers that are there.

usage: gpu.py [part ...] [--peer PYTHON] [--exl2 FOLDER] [--tiny]

The parts are the scripts gpu_*.py of this folder: `measure(card, options)` of each gives a title and a text for RESULTS.md. One that
fails is reported and leaves the others alone. PYTHON has llama-cpp-python built for CUDA, FOLDER a Llama 3 8B in EXL2 or GPTQ, for
exllamav2. `diffusion` needs the extra [diffusers]. `--tiny` runs every part to its end on tiny shapes, in Triton's interpreter where there is no card, and publishes nothing.
"""

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

UNMEASURED = "GPU: no figure of a real card has been measured yet"
PARTS = sorted(path.stem.removeprefix("gpu_") for path in Path(__file__).parent.glob("gpu_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--peer", default=sys.executable, help="a Python with llama-cpp-python built for CUDA")
    parser.add_argument("--exl2", help="a folder with a model of the same size for exllamav2")
    parser.add_argument("--tiny", action="store_true", help="whether everything runs, not how fast")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    if options.tiny:
        interpreted()
    import torch
    from card import measured
    from results import publish

    if not torch.cuda.is_available() and not options.tiny:
        print("no CUDA device: nothing was measured. Run this where torch.cuda.is_available() says True.")
        return 1
    card = measured(tiny=options.tiny)
    print(card, flush=True)
    failed = []
    for part in options.parts or PARTS:
        try:
            module = importlib.import_module(f"gpu_{part}")
            for name, value in module.TINY.items() if options.tiny else ():
                setattr(module, name, value)
            title, body = module.measure(card, options)
            if options.tiny:
                print(f"## {title}\n\n{body}\n", flush=True)
            else:
                publish(__file__, f"GPU: {title}", f"{card}.\n\n{body}", instead=UNMEASURED)
        except Exception:
            failed.append(part)
            print(f"{part} failed:\n{traceback.format_exc()}", flush=True)
        card.clear()
    print(f"failed: {', '.join(failed)}" if failed else "all parts ran to their end", flush=True)
    return min(len(failed), 1)


def interpreted() -> None:
    """Where there is no card, run kernels in Triton's interpreter, and let the library see one."""
    import torch

    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    importlib.import_module("interpreter")
    from qtransformers import machine

    machine.gpus = lambda: [machine.Gpu("Triton's interpreter", 8 << 30, 8 << 30, (9, 0))]


if __name__ == "__main__":
    sys.exit(main())
