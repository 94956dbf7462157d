import pytest

from qtransformers.convert.mixtures import ENDS, RAISED, mixed, mixture
from qtransformers.convert.recipes import RECIPES, that_fits
from qtransformers.types import BY_NAME

POLICIES = {"in": "embed_in", "mod": "modulation", "v": "attn_v", "q": "attn_q", "down": "ffn_down", "norm": "keep", "out": "output"}  # fmt: skip
SHAPES = dict.fromkeys(POLICIES, (512, 512))


def names(file_type, **how):
    return {
        name: type.name if type else "" for name, type in mixed(file_type, how.pop("shapes", SHAPES), POLICIES, **how).items()
    }  # fmt: skip


def test_the_ends_have_eight_bits_and_the_loud_a_step_more():
    assert names("Q4_K_M") == {"in": "Q8_0", "mod": "Q5_K", "v": "Q5_K", "q": "Q4_K", "down": "Q4_K", "norm": "", "out": "Q8_0"}  # fmt: skip
    assert names("Q4_K_S") == names("Q4_K_M") | {"mod": "Q4_K", "v": "Q4_K"}
    assert names("Q3_K_L")["mod"] == "Q5_K" and names("Q2_K")["v"] == "Q3_K"
    assert set(names("Q8_0").values()) == {"Q8_0", ""} and set(names("BF16").values()) == {"BF16", ""}


@pytest.mark.parametrize("file_type", [name for name, recipe in RECIPES.items() if recipe.type.is_quantized])
def test_no_mixture_lowers_a_type(file_type):
    base = RECIPES[file_type].type
    for policy, rules in mixture(file_type).items():
        assert policy in (*ENDS, *RAISED)
        for type, _ in rules:
            assert BY_NAME[type].block_bytes / BY_NAME[type].block_size >= base.block_bytes / base.block_size


def test_rows_that_fill_no_block_fall_back_and_what_is_stated_counts():
    narrow = dict.fromkeys(POLICIES, (512, 96))
    assert names("Q4_K_M", shapes=narrow)["q"] == "Q5_0" == that_fits(BY_NAME["Q4_K"], 96).name
    assert names("Q4_K_M", shapes=dict.fromkeys(POLICIES, (512, 50)))["q"] == "F16"
    assert names("Q4_K_M", overrides=[("^q$", "Q6_K"), ("norm", "Q6_K")])["q"] == "Q6_K"
    assert names("Q4_K_M", overrides=[("norm", "Q6_K")])["norm"] == ""
