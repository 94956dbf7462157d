"""Files as other tools make them: reshaped tensors, five dimensions, mixed types, long names."""

import re
from dataclasses import replace

import diffusers
import diffusers.loaders.single_file_utils as theirs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import SPECS
from qtransformers.convert import convert
from qtransformers.diffusers import load_transformer
from qtransformers.diffusers.plain import dequantized
from qtransformers.diffusers.saving import save_gguf
from qtransformers.errors import LoadError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.gguf.encode import TensorSpec
from qtransformers.load.diffusion import ORIG_SHAPE
from qtransformers.quants import dequantize, quantize
from qtransformers.tensor import QTensor
from qtransformers.torch import QuantConv2d, QuantConv3d, QuantLinear
from qtransformers.types import BY_NAME
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, original_layout, run, settings


def case_of(name):
    return next(case for case in CASES if case.name == name)


def told(case):
    return {name: case.config[name] for name in case.told} or None


def original(case):
    model = model_of(case)
    return model, original_layout(SPECS[case.id], settings(case, model), model.state_dict())


def written(path, arch, tensors, metadata=None):
    """Tensors by name: (values, type, shape in the file)."""
    specs = [TensorSpec(name, shape, BY_NAME[type]) for name, (_, type, shape) in tensors.items()]
    with GGUFWriter(path, {"general.architecture": arch, **(metadata or {})}, specs) as writer:
        for name, (values, type, shape) in tensors.items():
            flat = np.ascontiguousarray(values.float().numpy()).reshape(-1)
            writer.write(name, QTensor(name, BY_NAME[type], shape, quantize(flat, BY_NAME[type])))
    return path


def as_comfy(values):
    """How ComfyUI-GGUF keeps a tensor of Stable Diffusion: rows of 256 where the last dimension is no multiple of it."""
    n = values.numel()
    if values.ndim < 2 or n <= 1024 or n % 256:
        return values, "F32", tuple(values.shape)
    fits = values.shape[-1] % 256 == 0
    return values, "Q4_K", tuple(values.shape) if fits else (n // 256, 256)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_reshaped_convolutions_and_matrices(name, tmp_path):
    case = case_of(name)
    model, state = original(case)
    tensors = {name: as_comfy(values) for name, values in state.items()}
    reshaped = {n: v for n, (v, _, shape) in tensors.items() if shape != tuple(v.shape)}
    shapes = {ORIG_SHAPE + n: np.array(v.shape, np.int32) for n, v in reshaped.items()}
    assert any(v.ndim == 4 for v in reshaped.values()) and any(v.ndim == 2 for v in reshaped.values())
    ours = load_transformer(written(tmp_path / "m.gguf", case.id, tensors, shapes), told(case), accuracy="exact")
    layers = [m for m in ours.modules() if isinstance(m, (QuantConv2d, QuantLinear))]
    across = [m for m in layers if not m.weight.whole]
    assert {type(m) for m in across} == {QuantConv2d, QuantLinear}
    with open("/proc/self/maps") as maps:
        areas = [range(*(int(x, 16) for x in line.split()[0].split("-"))) for line in maps if "m.gguf" in line]
    assert all(any(m.weight.blocks.data_ptr() in area for area in areas) for m in across)
    found = run(ours, case)
    with pytest.warns(UserWarning, match="quantised already"):  # rows that cross blocks are written decoded
        again = load_transformer(save_gguf(ours, tmp_path / "again.gguf"), accuracy="exact")
    assert error(run(again, case), found) < 1e-5
    assert error(found, run(dequantized(ours), case)) < 1e-5
    assert 1e-4 < error(found, run(model, case)) < 0.5


def test_joined_matrices_whose_rows_cross_blocks_are_decoded_and_said_to_be(tmp_path):
    case = case_of("sana")
    more = {"num_attention_heads": 6, "num_cross_attention_heads": 3, "cross_attention_dim": 192}
    case = replace(case, config=case.config | more)
    model, state = original(case)
    tensors = {name: as_comfy(values) for name, values in state.items()}
    name = "blocks.0.attn.qkv.weight"
    assert tensors[name][1:] == ("Q4_K", (3 * 192 * 192 // 256, 256))
    shapes = {ORIG_SHAPE + n: np.array(state[n].shape, np.int32) for n in tensors}
    path = written(tmp_path / "m.gguf", "sana", tensors, shapes)
    with pytest.warns(
        UserWarning, match=r"blocks\.0\.attn\.qkv\.weight is decoded to torch\.float32: parts of a tensor"
    ):
        ours = load_transformer(path, told(case), accuracy="exact")
    whole = torch.from_numpy(dequantize(quantize(state[name].numpy().reshape(-1), BY_NAME["Q4_K"]), BY_NAME["Q4_K"]))
    assert torch.equal(ours.transformer_blocks[0].attn1.to_k.weight, whole.view(576, 192)[192:384])
    assert error(run(ours, case), run(dequantized(ours), case)) < 1e-5
    assert 1e-4 < error(run(ours, case), run(model, case)) < 0.5


@pytest.mark.parametrize("shape", [(256 * 16, 1, 2, 2), (256, 64), (256, 16, 1, 2, 2)])
def test_video_patches_in_five_dimensions_or_reshaped(shape, tmp_path):
    case = case_of("wan")
    model, state = original(case)
    name = "patch_embedding.weight"
    tensors = {n: (v, "F32", tuple(v.shape)) for n, v in state.items()} | {name: (state[name], "F16", shape)}
    said = {ORIG_SHAPE + name: np.array(state[name].shape, np.int32)} if len(shape) < 5 else {}
    ours = load_transformer(written(tmp_path / "m.gguf", "wan", tensors, said), told(case), accuracy="exact")
    assert isinstance(ours.patch_embedding, QuantConv3d)
    assert error(run(ours, case), run(model, case)) < 1e-3
    if said:
        with pytest.raises(LoadError, match=r"patch_embedding\.weight is \[.*\]; expected|cannot be told"):
            load_transformer(written(tmp_path / "n.gguf", "wan", tensors), told(case))


@pytest.mark.parametrize("name", ["ltxv", "hyvid", "cosmos-predict2", "sana"])
def test_small_tensors_in_types_of_their_own(name, tmp_path):
    case = case_of(name)
    model, state = original(case)

    def kind(name, values):
        norm = "norm" in name and values.ndim == 1
        block = values.ndim == 2 and values.numel() > 1024 and values.shape[1] % 32 == 0
        return "BF16" if norm else "F16" if values.ndim == 1 else "Q8_0" if block else "F32"

    types = {n: kind(n, v) for n, v in state.items()}
    assert set(types.values()) >= {"BF16", "Q8_0"}
    tensors = {n: (v, types[n], tuple(v.shape)) for n, v in state.items()}
    ours = load_transformer(written(tmp_path / "m.gguf", "pig", tensors), told(case), accuracy="exact")
    assert error(run(ours, case), run(dequantized(ours), case)) < 1e-5
    assert 1e-4 < error(run(ours, case), run(model, case)) < 0.05


# Names of Cosmos 1.0 in place of those of the second version
FIRST = (
    (r"^blocks\.(\d+)\.self_attn\.", r"blocks.block\1.blocks.0.block.attn."),
    (r"^blocks\.(\d+)\.cross_attn\.", r"blocks.block\1.blocks.1.block.attn."),
    (r"^blocks\.(\d+)\.mlp\.", r"blocks.block\1.blocks.2.block."),
    (r"^blocks\.(\d+)\.adaln_modulation_self_attn\.", r"blocks.block\1.blocks.0.adaLN_modulation."),
    (r"^blocks\.(\d+)\.adaln_modulation_cross_attn\.", r"blocks.block\1.blocks.1.adaLN_modulation."),
    (r"^blocks\.(\d+)\.adaln_modulation_mlp\.", r"blocks.block\1.blocks.2.adaLN_modulation."),
    (r"\.([qkv])_proj\.", r".to_\1.0."),
    (r"\.([qk])_norm\.", r".to_\1.1."),
    (r"\.output_proj\.", ".to_out.0."),
    (r"^t_embedding_norm\.", "affline_norm."),
    (r"^final_layer\.adaln_modulation\.", "final_layer.adaLN_modulation."),
)


class Kept(dict):
    """That function asks for the first version's names after it has taken them all away."""

    def pop(self, key):
        return self[key]


def test_the_names_of_the_first_cosmos(tmp_path):
    case = case_of("cosmos")
    model, state = original(case)
    for pattern, replacement in FIRST:
        state = {re.sub(pattern, replacement, n): v for n, v in state.items()}
    state = {f"net.{n}": v for n, v in state.items()} | {"net.pos_embedder.seq": torch.arange(64)}
    back = theirs.convert_cosmos_transformer_checkpoint_to_diffusers(Kept(state))
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(v, back[n]) for n, v in model.state_dict().items())
    tensors = {n: (v, "F32", tuple(v.shape)) for n, v in state.items()}
    ours = load_transformer(written(tmp_path / "m.gguf", "cosmos", tensors), told(case), accuracy="exact")
    assert ours.gguf.plan.layout == "original"
    assert error(run(ours, case), run(model, case)) < 1e-5


def test_long_names(tmp_path):
    case = case_of("dit")
    model = model_of(case)
    state = {f"model.diffusion_model.{n}": (v, "F32", tuple(v.shape)) for n, v in model.state_dict().items()}
    assert 80 < max(map(len, state)) <= 127
    ours = load_transformer(written(tmp_path / "m.gguf", "dit", state), told(case), accuracy="exact")
    assert error(run(ours, case), run(model, case)) < 1e-5


@pytest.mark.parametrize("bias, out_bias", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_biases_are_those_of_the_file(bias, out_bias, layout, tmp_path):
    case = case_of("ltxv")
    model = model_of(case, attention_bias=bias, attention_out_bias=out_bias)
    state = model.state_dict()
    if layout == "original":
        state = original_layout(SPECS["ltxv"], settings(case, model), state)
    tensors = {n: (v, "F32", tuple(v.shape)) for n, v in state.items()}
    ours = load_transformer(written(tmp_path / "m.gguf", "ltxv", tensors), told(case), accuracy="exact")
    assert (ours.config.attention_bias, ours.config.attention_out_bias) == (bias, out_bias)
    attention = ours.transformer_blocks[1].attn2
    assert [layer.bias is not None for layer in (attention.to_q, attention.to_v, attention.to_out[0])] == [bias, bias, out_bias]  # fmt: skip
    assert error(run(ours, case), run(model, case)) < 1e-5


@pytest.mark.parametrize("name", ["dit", "sana"])
def test_biases_of_queries_keys_and_values_alone(name, tmp_path):
    case = case_of(name)
    for bias in (True, False):
        model = model_of(case, attention_bias=bias)
        tensors = {n: (v, "F32", tuple(v.shape)) for n, v in model.state_dict().items()}
        ours = load_transformer(written(tmp_path / f"{bias}.gguf", case.id, tensors), told(case), accuracy="exact")
        assert ours.config.attention_bias is bias
        assert error(run(ours, case), run(model, case)) < 1e-5


def test_one_number_stands_for_all_blocks(tmp_path):
    """Stable Diffusion 1 was published so."""
    case = case_of("sd1")
    model = model_of(case, attention_head_dim=4, transformer_layers_per_block=1)
    tensors = {n: (v, "F32", tuple(v.shape)) for n, v in model.state_dict().items()}
    path = written(tmp_path / "m.gguf", "sd1", tensors)
    ours = load_transformer(path, dict(model.config), accuracy="exact")
    assert (ours.config.attention_head_dim, ours.config.transformer_layers_per_block) == ((4, 4), (1, 1))
    assert error(run(ours, case), run(model, case)) < 1e-5
    assert error(run(load_transformer(path, {"attention_head_dim": 8}), case), run(model, case)) > 1e-3
    with pytest.raises(LoadError, match="which is how many heads there are, does not divide"):
        load_transformer(path, {"attention_head_dim": 7})


UNREAD = {
    "sana": ("original", {"logvar_linear.weight": (1, 256)}),
    "wan": ("original", {"blocks.0.cross_attn.norm_q_img.weight": (256,), "blocks.1.cross_attn.norm_q_img.weight": (256,)}),
    "lumina2": ("original", {"norm_final.weight": (256,)}),
    "sd1": ("original", {"model_ema.decay": (2,)}),
}  # fmt: skip


@pytest.mark.parametrize("id", UNREAD)
def test_what_nothing_reads_is_left_out_with_a_word(id, tmp_path):
    layout, unread = UNREAD[id]
    case = next(case for case in CASES if case.id == id)
    model, state = original(case)
    more = {name: torch.ones(shape) for name, shape in unread.items()}
    tensors = {n: (v, "F32", tuple(v.shape)) for n, v in (state | more).items()}
    path = written(tmp_path / "m.gguf", id, tensors)
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".{i}.", name) for name in unread))
    word = re.escape(f"does not read {', '.join(kinds)}; left out")
    with pytest.warns(UserWarning, match=word):
        ours = load_transformer(path, told(case), accuracy="exact")
    assert ours.gguf.plan.layout == layout
    assert error(run(ours, case), run(model, case)) < 1e-5
    with pytest.warns(UserWarning, match=word):
        convert(path, tmp_path / "again.gguf", "F32", config=dict(model.config))
    assert not set(unread) & GGUFFile(tmp_path / "again.gguf").tensors.keys()


def test_what_diffusers_asks_for_beside_goes_from_original_to_original(tmp_path):
    """Its reader of Sana takes positions and the empty caption out of the file, and fails where they are not there."""
    pytest.importorskip("gguf")
    case = case_of("sana")
    model, state = original(case)
    beside = {"pos_embed": torch.rand(1, 16, 256), "y_embedder.y_embedding": torch.rand(7, 256)}
    save_file({n: v.contiguous() for n, v in (state | beside).items()}, tmp_path / "m.safetensors")
    model.save_config(tmp_path / "transformer")
    made = convert(tmp_path / "m.safetensors", tmp_path / "m.gguf", "F16", config=tmp_path)
    tensors = GGUFFile(made).tensors
    assert all(np.array_equal(tensors[n].dequantize(), v.numpy()) for n, v in beside.items())
    how = {
        "quantization_config": diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        "torch_dtype": torch.float32,
    }
    theirs = diffusers.SanaTransformer2DModel.from_single_file(str(made), config=str(tmp_path / "transformer"), **how)
    ours = load_transformer(made, accuracy="exact")
    assert error(run(ours, case), run(theirs, case)) < 1e-3
    without = convert(made, tmp_path / "d.gguf", "Q8_0", layout="diffusers")
    assert not set(beside) & GGUFFile(without).tensors.keys()
    with pytest.warns(UserWarning, match=r"no pos_embed and y_embedder.y_embedding, .* diffusers' own reader"):
        convert(without, tmp_path / "o.gguf", "F16", layout="original")
    with pytest.raises(KeyError, match="pos_embed"):
        diffusers.SanaTransformer2DModel.from_single_file(str(tmp_path / "o.gguf"), config=str(tmp_path / "transformer"), **how)  # fmt: skip


def test_the_gated_layers_of_sana_are_products_of_blocks(tmp_path):
    case = case_of("sana")
    model, _ = original(case)
    model.save_pretrained(tmp_path / "transformer")
    for type, narrow, most in (("Q8_0", "Q8_0", 0.02), ("Q4_K", "Q5_0", 0.3)):  # rows of 640 are no whole blocks of 256
        ours = load_transformer(convert(tmp_path / "transformer", tmp_path / f"{type}.gguf", type), accuracy="exact")
        gated = ours.transformer_blocks[0].ff
        assert isinstance(gated.conv_inverted, QuantConv2d) and isinstance(gated.conv_point, QuantConv2d)
        assert [c.weight.quant_type.name for c in (gated.conv_inverted, gated.conv_point)] == [type, narrow]
        assert not isinstance(gated.conv_depth, QuantConv2d) and gated.conv_depth.weight.dtype == torch.float32
        assert torch.equal(gated.conv_depth.weight, model.transformer_blocks[0].ff.conv_depth.weight)
        assert 0 < error(run(ours, case), run(model, case)) < most


def test_the_norms_of_flux_by_their_other_names(tmp_path):
    """Some tools write `query_norm.weight` where it was published as `query_norm.scale`."""
    case = case_of("flux")
    model, state = original(case)
    other = {re.sub(r"(query|key)_norm\.scale$", r"\1_norm.weight", n): v for n, v in state.items()}
    assert len(other.keys() - state.keys()) > 4
    tensors = {n: (v, "F32", tuple(v.shape)) for n, v in other.items()}
    ours = load_transformer(written(tmp_path / "m.gguf", "flux", tensors), told(case), accuracy="exact")
    assert ours.gguf.plan.layout == "original"
    assert error(run(ours, case), run(model, case)) < 1e-5
