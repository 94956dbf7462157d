import json

import pytest

from convert.packing import shapes_unpacked, unpacked
from qtransformers.convert.recipes import RECIPES, is_kept, needs_importance, recipe_of, that_fits, types_for
from qtransformers.errors import ConfigError
from qtransformers.types import BY_NAME


@pytest.fixture(scope="module")
def goldens(data):
    return json.loads((data / "goldens" / "recipes.json").read_text())


def test_every_type_per_tensor_is_llama_quantizes(goldens):
    """On the shapes of 22 models of 17 architectures, all file types, with an importance matrix and without."""
    compared = 0
    for model, said in goldens.items():
        shapes = shapes_unpacked(said["shapes"])
        for key, packed in said["types"].items():
            name, _, importance = key.partition(" ")
            expected = dict.fromkeys(shapes, RECIPES[name].base) | unpacked(packed)
            found = types_for(name, shapes, said["metadata"], importance=bool(importance))
            of_model = {t: type_.name if type_ else "F32" for t, type_ in found.items()}
            assert of_model == expected, (model, key)
            compared += len(found)
    assert compared > 150_000 and len(goldens) == 22


def test_what_stays_as_it_is():
    assert is_kept("blk.0.ffn_gate_inp.weight", (8, 64)) and is_kept("blk.0.attn_norm.weight", (64,))
    assert is_kept("blk.0.ffn_up_exps.bias", (8, 64)) and is_kept("blk.0.x.weight", (1, 64))
    assert is_kept("position_embd.weight", (512, 64)) and not is_kept("token_embd.weight", (512, 64))


@pytest.mark.parametrize(
    "type, width, expected",
    [
        ("Q4_K", 512, "Q4_K"), ("Q4_K", 96, "Q5_0"), ("Q5_K", 96, "Q5_1"), ("Q6_K", 96, "Q8_0"), ("Q2_K", 96, "Q4_0"),
        ("IQ1_S", 96, "IQ4_NL"), ("Q4_K", 80, "F16"), ("Q8_0", 80, "F16"), ("Q1_0", 96, "Q4_0"), ("F32", 80, "F32"),
    ],
)  # fmt: skip
def test_what_is_taken_where_rows_fill_no_blocks(type, width, expected):
    assert that_fits(BY_NAME[type], width).name == expected


LLAMA = {"general.architecture": "llama", "llama.block_count": 2, "llama.attention.head_count": 4}
SHAPES = {f"blk.{i}.{n}.weight": (512, 512) for i in range(2) for n in ("attn_q", "attn_v", "ffn_down")}


def test_types_given_by_pattern_come_first():
    found = types_for("Q4_K_M", SHAPES, LLAMA, overrides=[(r"attn_.*\.weight", "q8_0"), (r"blk\.1\.", "F16")])
    assert {n: str(t) for n, t in found.items()} == {
        "blk.0.attn_q.weight": "Q8_0", "blk.0.attn_v.weight": "Q8_0", "blk.0.ffn_down.weight": "Q4_K",
        "blk.1.attn_q.weight": "Q8_0", "blk.1.attn_v.weight": "Q8_0", "blk.1.ffn_down.weight": "F16",
    }  # fmt: skip


def test_a_pattern_works_in_files_of_floats_too():
    found = types_for("F16", SHAPES, LLAMA, overrides=[("ffn_down", "Q8_0")])
    assert found["blk.0.ffn_down.weight"].name == "Q8_0" and found["blk.0.attn_q.weight"].name == "F16"


def test_numbers_of_a_model_may_be_lists():
    lists = LLAMA | {"llama.attention.head_count": [16, 16], "llama.attention.head_count_kv": [4, 4]}
    assert types_for("Q2_K", SHAPES, lists)["blk.0.attn_v.weight"].name == "Q4_K"
    assert types_for("Q2_K", SHAPES, LLAMA)["blk.0.attn_v.weight"].name == "Q3_K"


def test_what_is_noise_without_an_importance_matrix():
    assert needs_importance("blk.0.attn_q.weight", BY_NAME["IQ2_XS"], "IQ2_XS")
    assert not needs_importance("token_embd.weight", BY_NAME["IQ2_XS"], "IQ2_XS")
    assert needs_importance("blk.0.attn_q.weight", BY_NAME["Q2_K"], "Q2_K_S")
    assert not needs_importance("blk.0.attn_q.weight", BY_NAME["Q2_K"], "Q2_K")


def test_names_in_any_case_and_their_short_forms():
    assert recipe_of("q4_k")[0] == "Q4_K_M" and recipe_of("mxfp4")[0] == "MXFP4_MOE"


@pytest.mark.parametrize(
    "file_type, overrides, message",
    [
        ("Q9", (), r"type is 'Q9'; expected one of F32, F16, "),
        ("Q4_0", [("x", "Q9")], r"tensor type is 'Q9'; expected one of F32"),
        ("Q4_0", [("x", "Q8_K")], r"tensor type is 'Q8_K'"),
        ("Q4_0", [("(", "Q8_0")], r"'\('.* no regular expression"),
    ],
)
def test_wrong_arguments(file_type, overrides, message):
    with pytest.raises(ConfigError, match=message):
        types_for(file_type, SHAPES, LLAMA, overrides=overrides)
