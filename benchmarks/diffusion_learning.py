"""What learning is worth to a diffusion model in few bits: columns weighed, scales folded, rounding that makes up for itself, types by budget.

usage: diffusion_learning.py [aura wan ...] [--dry]

Tiny random models of the real classes (tests/tiny_diffusion/cases.py) learn from noise; the error is that of the output on other inputs.
"""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import results
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # behind all else: it has folders called as packages are

from qtransformers.convert import write
from qtransformers.convert.plan import Asked
from qtransformers.diffusers import load_transformer, save_gguf
from qtransformers.diffusers.improving import plan_improved
from qtransformers.quantize.make import How
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, run

TYPE = "Q4_K_S"


def of_case(case: Any, folder: Path) -> str:
    """The table of a tiny model."""
    model, path = model_of(case), folder / f"{case.name}.gguf"
    save_gguf(model, path, "F32")
    wanted = run(model, case)
    plain = save_gguf(model, folder / "plain.gguf", TYPE, overwrite=True)
    with plan_improved(path, Asked(TYPE), How(), calls=[case.inputs(case.config)]) as plan:
        bits = plan.bits_per_weight
    ways = {
        "columns weighed": How(),
        "scales folded (--awq)": How(fold=True),
        "rounding compensated (--refine)": How(compensate=True),
        f"types by budget (--budget {bits:.2f})": How(bits_per_weight=bits),
        "all of these": How(True, True, bits),
    }
    rows = [["as it is", f"{bits:.2f}", f"{off(plain, case, wanted):.4f}"]]
    for title, how in ways.items():
        with plan_improved(path, Asked(TYPE), how) as plan:
            [made] = write(plan, folder / "made.gguf", overwrite=True)
        rows.append([title, f"{plan.bits_per_weight:.2f}", f"{off(made, case, wanted):.4f}"])
    return f"{case.id}, {TYPE}\n\n{results.table(['', 'bits a weight', 'error'], rows)}"


def off(path: Path, case: Any, wanted: torch.Tensor) -> float:
    """Relative error of the output of a file."""
    return error(run(load_transformer(path, accuracy="exact"), case), wanted)


def main(words: list[str]) -> None:
    """Tables of the architectures."""
    ids = [word for word in words if not word.startswith("-")] or ["aura", "flux", "wan", "lumina2"]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        tables = [of_case(next(c for c in CASES if c.id == id), Path(folder)) for id in ids]
    body = "Errors are relative to the output in float32, on inputs that nothing learned from.\n\n" + "\n\n".join(
        tables
    )
    if "--dry" in words:
        print(body)
    else:
        results.publish(__file__, "Learning of diffusion models", body)


if __name__ == "__main__":
    main(sys.argv[1:])
