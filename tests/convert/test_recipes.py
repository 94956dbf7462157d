import json
from dataclasses import replace

import pytest

from convert.packing import shapes_unpacked, unpacked
from qtransformers.archs import ALL, SPECS, TensorSpec
from qtransformers.convert.recipes import (
    RECIPES,
    needs_importance,
    policies,
    policy_by_name,
    recipe_of,
    that_fits,
    types_for,
)
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


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_specs_say_what_names_say(spec):
    """llama-quantize goes by names; a spec's column must come to the same, for every tensor that may have a type."""
    rows = [t for t in (*spec.tensors, *spec.layer_tensors) if len(t.shape) > 1]
    assert {t.name: t.policy for t in rows} == {t.name: policy_by_name(t.name.format(i=0) + t.suffix) for t in rows}
    vectors = [t for t in (*spec.tensors, *spec.layer_tensors) if len(t.shape) == 1]
    assert vectors and {t.policy for t in vectors} == {"keep"}


def test_what_stays_as_it_is():
    shapes = {"blk.0.ffn_up_exps.bias": (8, 64), "blk.0.x.weight": (1, 64), "blk.0.x_norm.weight": (8, 64), "blk.0.y.weight": (8, 64)}  # fmt: skip
    assert list(policies(shapes, "unheard-of").values()) == ["keep", "keep", "keep", "other"]


def test_a_spec_comes_before_names(monkeypatch):
    """What a spec keeps stays, what it raises is raised, under names that say nothing; other tensors go by theirs."""
    said = {"blk.{i}.to_q": "keep", "blk.{i}.to_v": "attn_v", "blk.{i}.net.0.in": "other"}
    rows = tuple(TensorSpec(name, name, ("n", "n"), "attn", quant=policy) for name, policy in said.items())
    monkeypatch.setitem(SPECS, "new", replace(SPECS["llama"], id="new", layer_tensors=rows))
    names = ("to_q", "to_v", "net.0.in", "attn_v", "x_norm")
    shapes = {f"blk.7.{n}.weight": (512, 512) for n in names}
    found = types_for("Q3_K_M", shapes, {"general.architecture": "new"})
    assert [found[n] and found[n].name for n in shapes] == [None, "Q5_K", "Q3_K", "Q5_K", None]
    found = types_for("Q3_K_M", shapes, {})
    assert [found[n] and found[n].name for n in shapes] == ["Q3_K", "Q3_K", "Q3_K", "Q5_K", None]


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
    assert needs_importance("attn_q", BY_NAME["IQ2_XS"], "IQ2_XS")
    assert not needs_importance("embed", BY_NAME["IQ2_XS"], "IQ2_XS")
    assert needs_importance("attn_q", BY_NAME["Q2_K"], "Q2_K_S")
    assert not needs_importance("attn_q", BY_NAME["Q2_K"], "Q2_K")


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
