"""Every spec against the class of diffusers: the same tensors, and the original layout as diffusers' own functions read it."""

import pytest
import torch

from qtransformers.archs.diffusion import ALL, SPECS
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import conversion, model_of, original_layout, settings

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_spec_has_a_case():
    assert {spec.id for spec in ALL} == {case.id for case in CASES}


@cases
def test_a_spec_declares_just_the_tensors_of_the_class(case):
    model = model_of(case)
    declared = {d.name: d for d in SPECS[case.id].declared(settings(case, model)) if d.presence != "never"}
    state = model.state_dict()
    optional = {name for name, d in declared.items() if d.presence == "optional"}
    assert state.keys() <= declared.keys()
    assert declared.keys() - state.keys() <= optional
    assert {name: tuple(values.shape) for name, values in state.items()} == {
        name: declared[name].shape for name in state
    }


@cases
def test_the_mixtures_know_what_every_layer_is(case):
    config = settings(case, model_of(case)) if callable(SPECS[case.id].tensors) else {}
    layers = [row for row in SPECS[case.id].rows(config) if row.role in ("attn", "dense_ffn")]
    assert {row.policy for row in layers} <= {
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    }


@cases
def test_diffusers_reads_our_original_layout(case):
    if not case.original:
        pytest.skip("published in the layout of diffusers")
    if not case.convert:
        pytest.skip("diffusers has no function for it")
    model = model_of(case)
    state = model.state_dict()
    there = original_layout(SPECS[case.id], settings(case, model), state)
    beside = dict.fromkeys(case.beside, torch.ones(1))
    back = conversion(case)({name: values.clone() for name, values in there.items()} | beside)
    assert {name for name, values in back.items() if values is not None} == state.keys()
    for name, values in state.items():
        assert torch.equal(back[name], values), name
