"""What each kind of weight of a diffusion model costs its output in few bits, and what mixtures of types make of it.

usage: mixtures.py [aura flux sd3 ...] [--dry]

Tiny random models of the real classes (tests/tiny_diffusion/cases.py). For each policy: its share of the weights, the share of the squared
error of the output when it alone is in Q4_K, and that error for each bit. Then bits per weight and error of whole mixtures.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # behind all else: it has folders called as packages are

from qtransformers.archs.diffusion import SPECS
from qtransformers.convert.mixtures import ENDS, mixed
from qtransformers.convert.recipes import Place, more, that_fits
from qtransformers.quants import dequantize, quantize
from qtransformers.types import BY_NAME, QuantType
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, run, settings

Types = Mapping[str, QuantType]


def main(words: list[str]) -> None:
    """Tables of the architectures."""
    ids = [word for word in words if not word.startswith("-")] or [case.id for case in CASES]
    torch.set_num_threads(1)
    body = "Errors are relative to the output in float32; a kind's share is of the squared error of all kinds, each alone in Q4_K.\n\n"
    body += "\n\n".join(of_case(next(c for c in CASES if c.id == id)) for id in dict.fromkeys(ids))
    if "--dry" in words:
        print(body)
    else:
        results.publish(__file__, "Mixtures of types for diffusion models", body)


def of_case(case: Any) -> str:
    """The two tables of a tiny model."""
    model = model_of(case)
    state = dict(model.named_parameters())
    rows = {d.name: d.row.policy for d in SPECS[case.id].declared(settings(case, model)) if d.name in state and d.part == "weight" and len(d.shape) == 2}  # fmt: skip
    shapes = {name: tuple(state[name].shape) for name in rows}
    total = sum(state[name].numel() for name in rows)
    wanted = run(model, case)

    def off(types: Types) -> float:
        return with_types(model, types, lambda: error(run(model, case), wanted))

    each = {p: [n for n in rows if rows[n] == p] for p in rows.values() if p != "keep"}
    errors = {p: off({n: that_fits(BY_NAME["Q4_K"], shapes[n][-1]) for n in names}) ** 2 for p, names in each.items()}
    kinds = []
    for p in sorted(errors, key=lambda p: -errors[p]):
        share = sum(state[n].numel() for n in each[p]) / total
        part = errors[p] / sum(errors.values())
        kinds.append([p, f"{share:.3f}", f"{part:.3f}", f"{part / share:.2f}"])
    whole = []
    for title, types in mixtures(shapes, rows).items():
        bits = 8 * sum(t.row_bytes(state[n].numel()) for n, t in types.items()) / total
        whole.append([title, f"{bits:.3f}", f"{off(types):.4f}"])
    tables = results.table(["kind", "weights", "error", "error a bit"], kinds), results.table(["mixture", "bits", "error"], whole)  # fmt: skip
    return "\n\n".join((f"{case.id}, {total:,} weights", *tables))


def mixtures(shapes: Mapping[str, tuple[int, ...]], rows: Mapping[str, str]) -> dict[str, Types]:
    """Types by tensor: ours, one type for all, and the mixture of language models."""
    found: dict[str, Types] = {}
    for name in ("Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M"):
        found[name] = {n: t for n, t in mixed(name, shapes, rows).items() if t is not None}
    languages = {}
    for n, policy in rows.items():
        same = [m for m in rows if rows[m] == policy]
        place = Place(same.index(n), len(same), same.index(n), False, 0, False)
        raised = policy in ("attn_v", "ffn_down") and more(place)
        type = "Q8_0" if policy in ENDS else "Q6_K" if raised else "Q4_K"
        languages[n] = that_fits(BY_NAME[type], shapes[n][-1])
    return found | {"v, down Q6_K": languages}


def with_types(model: Any, types: Types, then: Callable[[], float]) -> float:
    """What `then` gives while these weights are rounded."""
    state = dict(model.named_parameters())
    old = {name: state[name].data for name in types}
    for name, type in types.items():
        values = np.ascontiguousarray(old[name].numpy())
        state[name].data = torch.tensor(dequantize(quantize(values, type), type).reshape(values.shape))
    try:
        return then()
    finally:
        for name, values in old.items():
            state[name].data = values


if __name__ == "__main__":
    main(sys.argv[1:])
