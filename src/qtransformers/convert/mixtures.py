"""Which tensor of a diffusion transformer gets which type: the ends in 8 bits, modulation and what attention brings back in more.

`benchmarks/mixtures.py` measures what each costs the output of the architectures here: modulation makes half of all error of four
bits and more, at a third of the weights or less; after it come values and the outputs of attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from qtransformers.convert.recipes import Place, Rules, always, compiled, plain_type, recipe_of, that_fits
from qtransformers.types import BY_NAME, QuantType

ENDS = ("embed", "embed_in", "output")  # what brings inputs in and the picture out: a hundredth of the weights
RAISED = ("modulation", "attn_v", "attn_output")  # whose error weighs most for their size
RAISES = {"_M": 1, "_L": 2}  # by how many steps, by the end of a file type's name
# The next larger type, and the one after it
_STEPS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "Q2_K"), ("Q3_K", "Q4_K")),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "Q3_K"), ("Q4_K", "Q5_K")),
    **dict.fromkeys(("IQ4_XS", "IQ4_NL", "Q4_K", "MXFP4"), ("Q5_K", "Q6_K")),
    "Q4_0": ("Q5_0", "Q8_0"), "Q4_1": ("Q5_1", "Q8_0"), "Q5_0": ("Q8_0", "Q8_0"), "Q5_1": ("Q8_0", "Q8_0"),
    "Q5_K": ("Q6_K", "Q8_0"), "Q6_K": ("Q8_0", "Q8_0"), "Q8_0": ("Q8_0", "Q8_0"),
}  # fmt: skip


def mixture(file_type: str) -> Mapping[str, Rules]:
    """The rules of a file type for diffusion models, by policy."""
    name, recipe = recipe_of(file_type)
    if not recipe.type.is_quantized:
        return {}
    rules: dict[str, Rules] = dict.fromkeys(ENDS, (("Q8_0", always),))
    steps = 1 if name == "Q2_K" else next((n for end, n in RAISES.items() if name.endswith(end)), 0)  # Q2_K has no _M
    if steps:
        rules |= dict.fromkeys(RAISED, ((_STEPS[recipe.base][steps - 1], always),))
    return rules


def mixed(
    file_type: str, shapes: Mapping[str, Sequence[int]], policy_of: Mapping[str, str], overrides: Iterable[tuple[str, str]] = ()
) -> dict[str, QuantType | None]:  # fmt: skip
    """The type of each tensor of a diffusion model, None for those that stay as they are; arguments as for `types_for`."""
    _, recipe = recipe_of(file_type)
    patterns = [(compiled(pattern), plain_type(type)) for pattern, type in overrides]
    rules, n_of = mixture(file_type), Counter(policy_of.values())
    counts: Counter[str] = Counter()
    found: dict[str, QuantType | None] = {}
    for name, shape in shapes.items():
        policy = policy_of[name]
        if policy == "keep":
            found[name] = None
            continue
        place = Place(counts[policy], n_of[policy], counts[policy], False, 0, False)
        counts[policy] += 1
        stated = next((type for pattern, type in patterns if pattern.search(name)), None)
        chosen = next((type for type, when in rules.get(policy, ()) if when(place)), recipe.base)
        found[name] = that_fits(stated or BY_NAME[chosen], shape[-1])
    return found
