"""Which tensor gets which type in a file of type Q4_K_M, IQ2_XS, ...: the mixtures of llama-quantize as tables.

The facts are of src/llama-quant.cpp of llama.cpp; `tools/recipe_goldens.py` has made llama.cpp choose for many models, and
`tests/convert/test_recipes.py` compares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtransformers.archs import SPECS
from qtransformers.archs.spec import unnumbered
from qtransformers.errors import ConfigError
from qtransformers.types import BY_NAME, QuantType


@dataclass(frozen=True)
class Place:
    """Where in its model a tensor stands: the i-th of the n of its policy."""

    i: int
    n: int
    count: int  # how many of its policy came before; a mixture of experts has several a layer, and `i` is the layer
    grouped: bool  # at least four query heads share a KV head
    n_experts: int  # 0 in a dense model
    importance: bool  # an importance matrix is at hand


When = Callable[[Place], bool]
Rules = tuple[tuple[str, When], ...]  # (type, when): the first that holds; none: the type of the file


def always(p: Place) -> bool:
    """Everywhere."""
    return True


def more(p: Place) -> bool:
    """In the first and last eighth of the layers, and in every third between."""
    return p.i < p.n // 8 or p.i >= 7 * p.n // 8 or (p.i - p.n // 8) % 3 == 2


def middle(p: Place) -> bool:
    """Neither in the first nor in the last eighth."""
    return p.n // 8 <= p.i < 7 * p.n // 8


def grouped(p: Place) -> bool:
    """Where values are few and much used."""
    return p.grouped


def eight(p: Place) -> bool:
    """In a mixture of eight experts."""
    return p.n_experts == 8


def not_eight(p: Place) -> bool:
    """Elsewhere."""
    return p.n_experts != 8


def shared_values(p: Place) -> bool:
    """Where attention's values are a small part of the model."""
    return p.grouped or p.n_experts >= 4


def first(part: int) -> When:
    """In the first `1/part` of the layers."""
    return lambda p: p.i < p.n // part


def before(count: int) -> When:
    """In the first `count`."""
    return lambda p: p.i < count


def counted(part: int) -> When:
    """In the first `1/part`, counting tensors."""
    return lambda p: p.count < p.n // part


def blind(when: When) -> When:
    """Only without an importance matrix."""
    return lambda p: not p.importance and when(p)


def seeing(when: When) -> When:
    """Only with one."""
    return lambda p: p.importance and when(p)


@dataclass(frozen=True)
class Recipe:
    """A file type: its number (general.file_type), the type of most tensors, and the rules of those that differ, by policy."""

    id: int
    base: str
    rules: Mapping[str, Rules] = field(default_factory=dict)
    embed: str = ""  # of token embeddings that are not the output too
    output: str = "Q6_K"
    low: bool = False  # fewer than three bits: nothing is raised because of eight experts or 70B
    falcon: Mapping[str, Rules] = field(default_factory=dict)  # what Falcon has instead

    @property
    def type(self) -> QuantType:
        """The type of most tensors."""
        return BY_NAME[self.base]


def _v(type: str, when: When = always) -> dict[str, Rules]:
    return {"attn_v": ((type, when),)}


def _down(type: str, when: When = always) -> dict[str, Rules]:
    return {"ffn_down": ((type, when),)}


def _raised(to: str, base: str) -> dict[str, Rules]:
    """The rules of the lowest types: `to` is what matters more than the rest gets."""
    return {
        "attn_v": (("Q4_K", shared_values), (to, always)),
        "attn_k": (("Q4_K", eight),),
        "ffn_down": ((to, counted(8)),),
        "attn_output": (("Q5_K", eight), *(((base, always),) if base else ())),
    }


_EIGHT = {"attn_output": (("Q5_K", eight),)}
_NARROW = {"ffn_gate": (("IQ3_XXS", middle),), "ffn_up": (("IQ3_XXS", middle),)}
_PLAIN_DOWN: dict[str, Rules] = {"ffn_down": ()}

RECIPES: dict[str, Recipe] = {
    "F32": Recipe(0, "F32"),
    "F16": Recipe(1, "F16"),
    "BF16": Recipe(32, "BF16"),
    "Q8_0": Recipe(7, "Q8_0", output="Q8_0"),
    "Q6_K": Recipe(18, "Q6_K"),
    "Q5_K_M": Recipe(17, "Q5_K", _v("Q6_K", more) | _down("Q6_K", more)),
    "Q5_K_S": Recipe(16, "Q5_K"),
    "Q4_K_M": Recipe(15, "Q4_K", _v("Q6_K", more) | _down("Q6_K", more) | _EIGHT, falcon={"ffn_down": (("Q6_K", first(16)), ("Q5_K", more))}),
    "Q4_K_S": Recipe(14, "Q4_K", _v("Q5_K", before(4)) | _down("Q5_K", first(8)) | _EIGHT, falcon=_PLAIN_DOWN),
    "Q3_K_L": Recipe(13, "Q3_K", _v("Q5_K") | _down("Q5_K") | {"attn_output": (("Q5_K", not_eight),)}, falcon=_down("Q4_K") | {"attn_output": (("Q4_K", always),)}),
    "Q3_K_M": Recipe(
        12, "Q3_K",
        {
            "attn_v": (("Q5_K", before(2)), ("Q4_K", always)),
            "ffn_down": (("Q5_K", first(16)), ("Q4_K", always)),
            "attn_output": (("Q5_K", eight), ("Q4_K", always)),
        },
        falcon={"ffn_down": (("Q5_K", first(16)), ("Q4_K", more))},
    ),
    "Q3_K_S": Recipe(11, "Q3_K", _EIGHT),
    "Q2_K": Recipe(10, "Q2_K", {"attn_v": (("Q4_K", grouped), ("Q3_K", always)), "attn_output": (("Q5_K", eight), ("Q3_K", always))} | _down("Q3_K")),
    "Q2_K_S": Recipe(21, "Q2_K", _v("Q4_K", grouped) | _down("Q4_K", first(8))),
    "Q4_0": Recipe(2, "Q4_0", _down("Q4_1", seeing(first(8)))),
    "Q4_1": Recipe(3, "Q4_1"),
    "Q5_0": Recipe(8, "Q5_0", _down("Q5_1", seeing(first(8)))),
    "Q5_1": Recipe(9, "Q5_1"),
    "IQ4_NL": Recipe(25, "IQ4_NL", _v("Q5_K", grouped) | _down("Q5_K", blind(first(8))) | _EIGHT),
    "IQ4_XS": Recipe(30, "IQ4_XS", _v("Q5_K", grouped) | _down("Q5_K", blind(first(8))) | _EIGHT),
    "IQ3_M": Recipe(
        27, "IQ3_S",
        _v("Q4_K") | _down("Q4_K", lambda p: first(8)(p) or (eight(p) and more(p))) | {"attn_output": (("Q5_K", eight), ("Q4_K", always))},
    ),
    "IQ3_S": Recipe(26, "IQ3_S", _v("Q4_K", grouped) | _EIGHT),
    "IQ3_XS": Recipe(22, "IQ3_S", _v("Q4_K", grouped) | {"attn_q": (("IQ3_XXS", always),), "attn_k": (("IQ3_XXS", always),)} | _EIGHT | _NARROW),
    "IQ3_XXS": Recipe(
        23, "IQ3_XXS",
        {
            "attn_v": (("Q4_K", grouped), ("IQ3_S", blind(always))),
            "attn_q": (("IQ2_S", always),),
            "attn_k": (("IQ2_S", always),),
            "ffn_down": (("Q4_K", blind(first(8))), ("Q3_K", blind(always))),
            "attn_output": (("Q5_K", eight), ("IQ3_S", always)),
        },
        embed="IQ3_S", output="Q5_K",
    ),
    "IQ2_M": Recipe(29, "IQ2_S", _raised("IQ3_S", "IQ3_S"), "IQ3_S", "Q5_K", low=True),
    "IQ2_S": Recipe(28, "IQ2_XS", _raised("IQ3_S", "IQ3_S"), "IQ3_S", "Q5_K", low=True),
    "IQ2_XS": Recipe(20, "IQ2_XS", _raised("Q2_K", ""), "Q2_K", "Q5_K", low=True),
    "IQ2_XXS": Recipe(19, "IQ2_XXS", _raised("Q2_K", ""), "Q2_K", "Q5_K", low=True),
    "IQ1_M": Recipe(31, "IQ1_M", _raised("Q2_K", "IQ2_XXS"), "Q2_K", "Q5_K", low=True),
    "IQ1_S": Recipe(24, "IQ1_S", _raised("Q2_K", "IQ2_XXS"), "Q2_K", "Q5_K", low=True),
    "TQ2_0": Recipe(37, "TQ2_0", embed="Q4_K"),
    "TQ1_0": Recipe(36, "TQ1_0", embed="Q4_K"),
    "Q2_0": Recipe(41, "Q2_0", embed="Q4_K"),
    "Q1_0": Recipe(40, "Q1_0"),
    "MXFP4_MOE": Recipe(38, "MXFP4", output="Q8_0"),
}  # fmt: skip
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}

# Policies of architectures that have no spec, by what stands in a tensor's name, the first that does
_BY_NAME = (
    ("attn_qkv.weight", "attn_v"), ("attn_kv_b.weight", "attn_v"), ("attn_v.weight", "attn_v"), ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"), ("attn_output.weight", "attn_output"), ("ffn_up", "ffn_up"), ("ffn_gate", "ffn_gate"), ("ffn_down", "ffn_down"),
)  # fmt: skip
_WHOLE = {
    "token_embd.weight": "embed", "per_layer_token_embd.weight": "embed", "output.weight": "output",
    "position_embd.weight": "keep", "token_types.weight": "keep",
}  # fmt: skip
_BY_LAYER = ("ffn_down", "ffn_gate", "ffn_up")  # what llama.cpp counts by layer, whatever there is of them

# What stays as it is: small, or the maths hangs on it
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
# Where rows fill no blocks; then F16
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q1_0": "Q4_0",
}  # fmt: skip
# Layers of the models whose attention values 8 query heads share, and which llama.cpp knows as 70B
_SEVENTY = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
# Types that are noise without an importance matrix
_NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


def recipe_of(file_type: str) -> tuple[str, Recipe]:
    """The name and recipe of a file type, in any case; ConfigError lists what there is."""
    name = file_type.upper() if isinstance(file_type, str) else ""
    name = ALIASES.get(name, name)
    if name not in RECIPES:
        raise ConfigError(f"type is {file_type!r}; expected one of {', '.join(RECIPES)}.")
    return name, RECIPES[name]


def policies(shapes: Mapping[str, Sequence[int]], architecture: str) -> dict[str, str]:
    """The row of a recipe that each tensor follows, `keep` for what stays as it is whatever the file's type.

    The architecture's spec says it; of architectures without one, and of tensors that theirs does not know, the name.
    """
    spec = SPECS.get(architecture)
    known: Mapping[str, str] = spec.policies if spec else {}

    def policy(name: str, shape: Sequence[int]) -> str:
        dims = next((len(shape) - i for i, size in enumerate(shape) if size > 1), 0)
        if dims < 2 or not name.endswith("weight"):
            return "keep"
        return known.get(unnumbered(name)) or policy_by_name(name)

    return {name: policy(name, shape) for name, shape in shapes.items()}


def policy_by_name(name: str) -> str:
    """The row of a recipe for a matrix of which nothing but the name is known."""
    if name in _WHOLE:
        return _WHOLE[name]
    if any(part in name for part in _KEPT):
        return "keep"
    return next((policy for part, policy in _BY_NAME if part in name), "other")


def needs_importance(policy: str, type: QuantType, file_type: str) -> bool:
    """Whether a tensor in this type is of no use without an importance matrix."""
    if policy in ("embed", "output"):
        return False
    return type.name in _NEED_IMPORTANCE or (type.name == "Q2_K" and file_type == "Q2_K_S")


def that_fits(type: QuantType, width: int) -> QuantType:
    """`type`, or where rows of `width` fill none of its blocks, what is taken instead."""
    if width % type.block_size == 0:
        return type
    other = BY_NAME[_FALLBACK.get(type.name, type.name)]
    return BY_NAME["F16"] if width % other.block_size else other


def types_for(
    file_type: str,
    shapes: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Any],
    *,
    importance: bool = False,
    overrides: Iterable[tuple[str, str]] = (),
) -> dict[str, QuantType | None]:
    """The type of each tensor in a file of type `file_type`, None for those that stay as they are.

    `shapes` by name, row-major; `metadata` is the model's, of which layers, heads and experts count. The first of
    `overrides`, (pattern, type), that is found in a name decides, as `--tensor-type` of llama-quantize does; a type that
    does not fit the rows gives way. ConfigError: an unknown type, or a pattern that is no regular expression.
    """
    _, recipe = recipe_of(file_type)
    patterns = [(compiled(pattern), plain_type(type)) for pattern, type in overrides]
    arch = str(metadata.get("general.architecture", ""))
    n_layers, n_experts = (_number(metadata, f"{arch}.{key}") for key in ("block_count", "expert_count"))
    heads, kv_heads = (_number(metadata, f"{arch}.attention.{key}") for key in ("head_count", "head_count_kv"))
    kv_heads = kv_heads if f"{arch}.attention.head_count_kv" in metadata else heads
    is_grouped = bool(kv_heads) and heads // kv_heads >= 4
    seventy = _SEVENTY.get(arch) == n_layers and (arch != "llama" or heads != kv_heads)
    instead: Mapping[str, Rules] = {"attn_output": (), **recipe.falcon} if arch == "falcon" and not recipe.low else {}
    rules = {**recipe.rules, **instead}
    policy_of = policies(shapes, arch)
    has_output = "output" in policy_of.values()
    n_of = {**Counter(policy_of.values()), **dict.fromkeys(_BY_LAYER, n_layers)}
    counts: Counter[str] = Counter()
    found: dict[str, QuantType | None] = {}

    def by_recipe(name: str, shape: Sequence[int]) -> QuantType:
        policy = policy_of[name]
        if policy == "output" or (policy == "embed" and not has_output):
            return BY_NAME["Q8_0" if arch == "falcon" or shape[-1] % recipe.type.block_size else recipe.output]
        if recipe.base == "MXFP4":
            return recipe.type if len(shape) > 2 and shape[0] > 1 else BY_NAME["Q8_0"]
        if policy == "embed":
            return BY_NAME[recipe.embed or recipe.base]
        count, counts[policy] = counts[policy], counts[policy] + 1
        layer = re.match(r"blk\.(\d+)\.", name)
        i = int(layer[1]) if layer and n_experts > 1 and policy in _BY_LAYER else count
        place = Place(i, n_of[policy], count, is_grouped, n_experts, importance)
        if n_experts == 8 and policy in ("attn_v", "attn_k") and not recipe.low:
            return BY_NAME["Q8_0"]
        chosen = next((type for type, when in rules.get(policy, ()) if when(place)), recipe.base)
        if seventy and policy == "attn_v" and not recipe.low and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return BY_NAME[chosen]

    for name in sorted(shapes, key=_in_order):
        shape = shapes[name]
        if policy_of[name] == "keep":
            found[name] = None
            continue
        stated = next((type for pattern, type in patterns if pattern.search(name)), None)
        chosen = stated or (by_recipe(name, shape) if recipe.type.is_quantized else recipe.type)
        found[name] = that_fits(chosen, shape[-1])
    return found


def plain_type(type: str) -> QuantType:
    """A tensor type by its name, in any case; ConfigError lists what there is."""
    row = BY_NAME.get(type.upper())
    if row is None or row.activation or row.family == "int" or row.name == "F64":
        names = (r.name for r in BY_NAME.values() if not r.activation and r.family != "int" and r.name != "F64")
        raise ConfigError(f"tensor type is {type!r}; expected one of {', '.join(names)}.")
    return row


def _in_order(name: str) -> tuple[int, bytes]:
    """llama.cpp counts tensors in this order: by layer, then by name."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return int(layer[1]) if layer else -1, name.encode()


def compiled(text: str) -> re.Pattern[str]:
    """A regular expression that finds tensors; ConfigError where it is none."""
    try:
        return re.compile(text)
    except re.error as e:
        raise ConfigError(f"the pattern {text!r} of a tensor type is no regular expression ({e}).") from e


def _number(metadata: Mapping[str, Any], key: str) -> int:
    """A whole number of the metadata, of a list with one a layer the first; 0 where there is none."""
    value = metadata.get(key, 0)
    value = value if isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0 else next(iter(value), 0)
    return int(value)
