"""Published models by their shapes alone: settings, tensors and parameters of the class, in either layout, without their weights."""

import math
from functools import cache

import accelerate
import diffusers
import numpy as np
import pytest

from qtransformers.archs.diffusion import LAYOUTS, SPECS
from qtransformers.load.diffusion import Detected, match, read_settings, source_name, whole_shape
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME
from tiny_diffusion.published import PUBLISHED

MODELS = [(p, layout) for p in PUBLISHED for layout in LAYOUTS if layout in SPECS[p.id].marks]


def model_of(published):
    return outline(published.name)


@cache
def outline(name):
    published = next(p for p in PUBLISHED if p.name == name)
    with accelerate.init_empty_weights(include_buffers=True):
        return getattr(diffusers, SPECS[published.id].class_name)(**published.config)


def laid_out(spec, config, layout, names):
    """The tensors of a layout, with no memory behind them."""
    sharers = {}
    for declared in spec.declared(config):
        if declared.name in names and (name := source_name(declared, layout)):
            sharers.setdefault(name, []).append(declared)
    nothing, f16 = np.zeros(1, np.uint8), BY_NAME["F16"]
    shapes = {name: whole_shape(there, layout) for name, there in sharers.items()}
    return {
        name: QTensor(name, f16, shape, np.broadcast_to(nothing, 2 * math.prod(shape)))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p.name)
def test_a_published_model_has_as_many_parameters_as_is_said(published):
    model, spec = model_of(published), SPECS[published.id]
    buffers = dict(model.named_buffers())
    state, config = model.state_dict(), {p.name: model.config[p.name] for p in spec.hparams}
    there = [d for d in spec.declared(config) if d.presence == "required" or (d.presence == "optional" and d.name in state)]  # fmt: skip
    assert {d.name: d.shape for d in there} == {name: tuple(p.shape) for name, p in state.items()}
    n = sum(math.prod(d.shape) for d in there if d.name not in buffers)
    assert n == sum(p.numel() for p in model.parameters())
    assert round(n / 1e9, 3) == published.billions


@pytest.mark.parametrize("published, layout", MODELS, ids=[f"{p.name}-{layout}" for p, layout in MODELS])
def test_the_shapes_of_a_published_model_tell_its_settings(published, layout):
    spec, model = SPECS[published.id], model_of(published)
    config = {p.name: model.config[p.name] for p in spec.hparams}
    tensors = laid_out(spec, config, layout, model.state_dict())
    found = Detected(spec, layout, tensors)
    assert any(marks.found(found.shapes) for marks in spec.marks[layout])
    told = {name: published.config[name] for name in published.told} or None
    settings, extra, problems = read_settings(found, "m.gguf", None, told, "config=")
    assert not problems
    assert not extra
    assert {name: settings[name] for name in published.config} == dict(published.config)
    parts, misfits = match(spec, layout, settings, tensors)
    assert not misfits
    assert {part.name for part in parts} == set(model.state_dict())


def test_auraflow_is_six_billion_parameters_in_331_tensors():
    aura = next(p for p in PUBLISHED if p.id == "aura")
    assert len(model_of(aura).state_dict()) == 331
