"""Settings and tensors that are wrong, over all specs: an error of ours that names them, quickly, before anything is built."""

import math
import re

import numpy as np
import pytest

from qtransformers.archs.diffusion import LAYOUTS, SPECS
from qtransformers.convert import convert
from qtransformers.diffusers import load_transformer
from qtransformers.diffusers.loading import build
from qtransformers.errors import ConfigError, GGUFError, LoadError, QTransformersError
from qtransformers.gguf import GGUFWriter
from qtransformers.gguf.encode import TensorSpec
from qtransformers.load.diffusion import CONFIG_KEY, SCHEMA, SCHEMA_KEY, Detected, DiffusionPlan, match, read_settings
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import model_of, original_layout, settings, write

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
NOTHING = np.zeros(1, np.uint8)
BAD = (
    0, -1, 1.5, 2**70, -(2**70), math.nan, math.inf, "x", "", {"a": 1}, [], [0], [-1], [math.nan], [2**70], ["x"], ["x", None], [1] * 10**5, [[1, [2]]],
    [2, 3, 5], True,
)  # fmt: skip


def tensor(name, shape, type="F16"):
    kind = BY_NAME[type]
    return QTensor(name, kind, shape, np.broadcast_to(NOTHING, math.prod(shape) // kind.block_size * kind.block_bytes))


def detected(case, layout="diffusers"):
    """A file of the case's shapes, without bytes behind them, and its settings."""
    model, spec = model_of(case), SPECS[case.id]
    state, config = model.state_dict(), settings(case, model)
    if layout == "original":
        state = original_layout(spec, config, state)
    return Detected(spec, layout, {name: tensor(name, tuple(v.shape)) for name, v in state.items()}), config


def told(case):
    return {name: case.config[name] for name in case.told}


def planned(found, config):
    """A plan as `plan_diffusion` makes it, or the errors."""
    values, extra, problems = read_settings(found, "m.gguf", None, config, "config=")
    if any(p.grade != "warning" for p in problems):
        return [p.text for p in problems]
    parts, misfits = match(found.spec, found.layout, values, found.tensors)
    return [p.text for p in misfits] or DiffusionPlan("m.gguf", found.spec, found.layout, values, extra, parts)


@cases
def test_settings_that_no_model_has_are_errors_of_ours(case):
    found, _ = detected(case)
    assert isinstance(planned(found, told(case)), DiffusionPlan)
    refused = 0
    for p in found.spec.hparams:
        for value in BAD:
            config = {**told(case), p.name: value}
            try:
                plan = planned(found, config)
                if isinstance(plan, DiffusionPlan):
                    build(plan)  # what a class takes is no error
                else:
                    refused += 1
                    assert any(p.name in text for text in plan) or any("expected" in text for text in plan)
            except QTransformersError:
                refused += 1
    assert refused > len(found.spec.hparams) * len(BAD) * 0.8


@cases
def test_settings_of_another_model_are_named(case):
    found, config = detected(case)
    for p in found.spec.hparams:
        if p.derive is None or config[p.name] is None or p.name in case.told:
            continue
        value = config[p.name]
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value
        if isinstance(value, (list, tuple)):
            other = [*value, 1]
        if other == value:
            continue
        texts = planned(found, {**told(case), p.name: other})
        assert isinstance(texts, list), p.name
        assert any(p.name in text for text in texts), (p.name, texts)


@cases
@pytest.mark.parametrize("layout", LAYOUTS)
def test_biases_that_are_forbidden_or_missing_are_named(case, layout):
    if layout == "original" and not case.original:
        pytest.skip("published in the layout of diffusers")
    found, _ = detected(case, layout)
    values, _, _ = read_settings(found, "m.gguf", None, told(case), "config=")
    biases = {
        d.row.name: d for d in found.spec.declared(values) if d.part == "bias" and (layout == "diffusers" or d.origin)
    }
    some = [*biases.values()][:: 1 + len(biases) // 40]  # of every kind of row, where there are not hundreds
    for d in some:
        name = d.name if layout == "diffusers" else d.origin.name
        tensors = dict(found.tensors)
        if d.presence == "never":
            whole = tensors[name.removesuffix("bias") + "weight"].shape[:1]
            tensors[name] = tensor(name, whole)
            wanted = f"{name} is in the file, but"
        elif d.presence == "required":
            del tensors[name]
            wanted = f"{name} is missing; expected"
        else:
            continue
        _, misfits = match(found.spec, layout, values, tensors)
        assert any(wanted in p.text for p in misfits), (name, misfits)
    assert some


def test_byte_shaped_tensors_are_known_as_such(tmp_path):
    case = next(c for c in CASES if c.id == "aura")
    arrays = {name: np.ascontiguousarray(v.float().numpy()) for name, v in model_of(case).state_dict().items()}
    q4 = BY_NAME["Q4_K"]
    packed = {
        n: quantize(v.reshape(-1), q4).reshape(len(v), -1) for n, v in arrays.items() if n.endswith("to_q.weight")
    }
    specs = [TensorSpec(n, packed[n].shape if n in packed else v.shape, BY_NAME["I8" if n in packed else "F32"]) for n, v in arrays.items()]  # fmt: skip
    with GGUFWriter(tmp_path / "m.gguf", {"general.architecture": "aura"}, specs) as writer:
        for spec in specs:
            data = packed.get(spec.name, arrays[spec.name])
            writer.write(spec.name, QTensor(spec.name, spec.type, spec.shape, data.view(np.uint8).reshape(-1)))
    with pytest.raises(
        LoadError, match=r"to_q\.weight is \[256, 144\]; expected \[256, 256\].*counts bytes, not values: .*Q4_K"
    ):
        load_transformer(tmp_path / "m.gguf", told(case))


@pytest.mark.parametrize(
    "metadata, text",
    [
        ({"qtransformers.schema": 1, "qtransformers.layout": "original"}, r"layout is 'original', but .* diffusers layout of AuraFlow"),
        ({"qtransformers.schema": 1, "qtransformers.layout": 5}, "layout is 5, but"),
        ({"qtransformers.schema": "x"}, "schema is 'x'; this version reads"), ({"qtransformers.schema": 5}, "schema is 5; this version reads"),
        ({"comfy.gguf.orig_shape.zzz": [1, 2]}, r"orig_shape\.zzz is of no tensor"),
        ({"comfy.gguf.orig_shape.register_tokens": [1.9, 8.2, 256.7]}, r"orig_shape\.register_tokens is"),
    ],
)  # fmt: skip
def test_annotations_that_are_not_so(metadata, text, tmp_path):
    case = next(c for c in CASES if c.id == "aura")
    path = write(tmp_path / "m.gguf", "aura", model_of(case).state_dict(), metadata=metadata)
    with pytest.raises(QTransformersError, match=text):
        load_transformer(path, told(case))


@pytest.mark.parametrize("name", ["pos_embed.proj.bias", "register_tokens"])
def test_plain_values_that_are_not_finite_are_named(name, tmp_path):
    case = next(c for c in CASES if c.id == "aura")
    state = model_of(case).state_dict()
    state[name] = state[name].clone()
    state[name].view(-1)[3] = math.nan
    with pytest.raises(LoadError, match=rf"{re.escape(name)} holds values that are not finite"):
        load_transformer(write(tmp_path / "m.gguf", "aura", state), told(case))


@pytest.mark.parametrize("config", [5, [], b"x", 1.5])
def test_configs_that_are_none(config, tmp_path):
    case = next(c for c in CASES if c.id == "aura")
    path = write(tmp_path / "m.gguf", "aura", model_of(case).state_dict())
    with pytest.raises(ConfigError, match="expected settings, a config"):
        load_transformer(path, config)
    with pytest.raises(ConfigError, match="expected settings, a config"):
        convert(path, tmp_path / "n.gguf", "Q8_0", config=config)


def test_files_cut_short_are_told(tmp_path):
    case = next(c for c in CASES if c.id == "flux")
    path = write(tmp_path / "m.gguf", "flux", model_of(case).state_dict())
    data = path.read_bytes()
    for keep in (10, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(GGUFError, match=r"m\.gguf"):
            load_transformer(path)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"num_layers": NaN}', '{"num_layers": 1e999}', '{"axes_dims_rope": [16, 56]}', "[" * 10**5]
)
def test_annotations_that_are_garbled_are_told(text, tmp_path):
    case = next(c for c in CASES if c.id == "flux")
    path = write(
        tmp_path / "m.gguf", "flux", model_of(case).state_dict(), "Q8_0", {SCHEMA_KEY: SCHEMA, CONFIG_KEY: text}
    )
    with pytest.raises(QTransformersError, match=r"m\.gguf"):
        load_transformer(path)


def test_orig_shapes_that_do_not_fit_are_told(tmp_path):
    case = next(c for c in CASES if c.id == "flux")
    state = model_of(case).state_dict()
    for shape in ([1, 2], [-256, -64], [0], [2**40, 2**40], ["x"]):
        path = write(tmp_path / "m.gguf", "flux", state, "Q8_0", {"comfy.gguf.orig_shape.x_embedder.weight": shape})
        with pytest.raises(QTransformersError, match=r"orig_shape\.x_embedder\.weight"):
            load_transformer(path)


def test_what_is_wrong_in_every_layer_is_one_line():
    found, config = detected(next(c for c in CASES if c.id == "flux"), "original")
    tensors = {name.replace("img_attn.qkv", "img_atn.qkv"): t for name, t in found.tensors.items()}
    _, misfits = match(found.spec, "original", config, tensors)
    texts = [p.text for p in misfits]
    assert len(texts) == 4  # weight and bias, missing and superfluous
    assert any(re.match(r"double_blocks\.0-1\.img_attn\.qkv\.weight is missing; expected \[768, 256\]\. Nearest in the file: double_blocks\.\{i\}\.img_atn\.qkv\.weight", t) for t in texts)  # fmt: skip
    assert any(re.match(r"double_blocks\.0-1\.img_atn\.qkv\.bias is in the file, but .* Nearest in what Flux\.1 has: double_blocks\.\{i\}\.img_attn\.qkv\.bias", t) for t in texts)  # fmt: skip


def test_thousands_of_strange_tensors_are_a_report_that_one_can_read():
    found, config = detected(next(c for c in CASES if c.id == "flux"), "original")
    strange = {f"double_blocks.{i}.img_attn.qkw{i}.weight": tensor("x", (1,)) for i in range(20000)}
    _, misfits = match(found.spec, "original", config, {**found.tensors, **strange})
    assert len(misfits) == 201
    assert misfits[-1].text.startswith("19800 more tensors are in the file that Flux.1 does not have")


def test_whether_a_file_is_of_qwen_image_layered_is_asked():
    """Without the embedding that tells it, what is left has the tensors of the others, and would paint something else."""
    found, _ = detected(next(c for c in CASES if c.name == "qwen_image-layered"))
    name = "time_text_embed.addition_t_embedding.weight"
    lacking = Detected(found.spec, found.layout, {n: t for n, t in found.tensors.items() if n != name})
    with pytest.raises(
        ConfigError, match=r"zero_cond_t .* and use_additional_t_cond \(true for Qwen-Image-Layered, false"
    ):
        planned(lacking, {})
    with pytest.raises(ConfigError, match="use_additional_t_cond"):
        planned(lacking, {"zero_cond_t": False})
    layered = {"zero_cond_t": False, "use_additional_t_cond": True}
    assert any(f"{name} is missing; expected [2, 256]" in text for text in planned(lacking, layered))
    assert isinstance(planned(found, {"zero_cond_t": False}), DiffusionPlan)
    texts = planned(lacking, {"zero_cond_t": False, "use_additional_t_cond": False, "use_layer3d_rope": True})
    assert "expected both, as in Qwen-Image-Layered, or none" in texts[0]
