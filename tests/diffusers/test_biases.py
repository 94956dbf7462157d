"""Biases that a setting of the class turns on and off: every combination is the file's, in all layers or in none."""

import itertools
import re

import pytest
import torch

from qtransformers.archs.diffusion import SPECS
from qtransformers.diffusers import load_transformer
from qtransformers.errors import LoadError
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, original_layout, run, settings, write


def switches(case):
    return [p.name for p in SPECS[case.id].hparams if p.name.endswith("bias")]


FREE = [case for case in CASES if switches(case)]
COMBINATIONS = [(case, dict(zip(names, values, strict=True))) for case in FREE for names in [switches(case)] for values in itertools.product((False, True), repeat=len(names))]  # fmt: skip
NAMES = [
    f"{case.name}-{'-'.join(k for k, v in combination.items() if v) or 'none'}" for case, combination in COMBINATIONS
]


def told(case):
    return {name: case.config[name] for name in case.told} or None


def test_there_are_such_classes():
    assert {case.id for case in FREE} >= {"dit", "ltxv", "sana"}
    optional = {
        spec.id
        for spec in SPECS.values()
        if not callable(spec.tensors) and any(t.bias == "optional" for t in spec.tensors)
    }
    assert {case.id for case in FREE} == optional


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("case, combination", COMBINATIONS, ids=NAMES)
def test_every_combination_is_read_from_the_file_and_makes_the_picture(case, combination, layout, tmp_path):
    if layout == "original" and not case.original:
        pytest.skip("published in the layout of diffusers")
    model = model_of(case, **combination)
    state = model.state_dict()
    if layout == "original":
        state = original_layout(SPECS[case.id], settings(case, model), state)
    ours = load_transformer(write(tmp_path / "m.gguf", case.id, state), told(case), accuracy="exact")
    assert {name: ours.config[name] for name in combination} == combination
    biases = {name for name in ours.state_dict() if name.endswith(".bias")}
    assert biases == {name for name in model.state_dict() if name.endswith(".bias")}
    wanted = run(model, case)
    assert error(run(ours, case), wanted) < 1e-5
    for name, on in combination.items():
        if on:  # and they do something: without them the picture is another
            without, off = model_of(case, **combination), model_of(case, **{**combination, name: False}).state_dict()
            for key, values in without.named_parameters():
                if key not in off:
                    values.zero_()
            assert error(run(without, case), wanted) > 1e-4


@pytest.mark.parametrize("case", FREE, ids=lambda case: case.name)
def test_a_bias_that_only_some_layers_have_is_an_error(case, tmp_path):
    on = model_of(case, **dict.fromkeys(switches(case), True)).state_dict()
    off = model_of(case, **dict.fromkeys(switches(case), False)).state_dict()
    rows = {}
    for name in on.keys() - off.keys():
        rows.setdefault(re.sub(r"\.\d+\.", ".{}.", name, count=1), []).append(name)
    lost = next(sorted(names)[-1] for names in rows.values() if len(names) > 1)
    del on[lost]
    with pytest.raises(
        LoadError, match=rf"{re.escape(lost)} is missing, but .* is there, and .* in all layers or in none"
    ):
        load_transformer(write(tmp_path / "m.gguf", case.id, on), told(case))
    on[lost] = torch.zeros(3)
    with pytest.raises(LoadError, match=rf"{re.escape(lost)} is \[3\]; expected"):
        load_transformer(write(tmp_path / "m.gguf", case.id, on), told(case))
