import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from convert import layouts
from qtransformers.convert import convert, plan_conversion
from qtransformers.convert.checkpoints import quantization_of
from qtransformers.convert.methods import sources_of
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load.checkpoint import Stored, interleave
from qtransformers.types import BY_NAME

HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
DTYPES = {"int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32", "int8": "I8", "uint8": "U8"}


def stored(name, array, dtype=None):
    array = np.ascontiguousarray(array)
    return Stored(
        name, dtype or DTYPES[array.dtype.name], array.shape, array.reshape(-1).view(np.uint8), "m.safetensors"
    )


def source(parts, said):
    found = sources_of({f"x.{n}": stored(f"x.{n}", a) for n, a in parts.items()}, said, "config.json")
    return found["x.weight"]


AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4}
CT = {"quant_method": "compressed-tensors"}
# layout, quantization_config, grid, type that holds it
CASES = {
    "awq gemm": (layouts.awq_gemm, AWQ, {}, "Q4_K"),
    "awq gemm, narrow": (layouts.awq_gemm, AWQ, {"shape": (16, 384)}, "Q4_1"),
    "awq gemm, groups of 64": (layouts.awq_gemm, {**AWQ, "group_size": 64}, {"group": 64}, "Q4_K"),
    "awq gemm, groups of 32": (layouts.awq_gemm, {**AWQ, "group_size": 32}, {"group": 32}, "Q4_1"),
    "awq gemm, a group a row": (layouts.awq_gemm, {**AWQ, "group_size": -1}, {"group": 512}, "Q4_K"),
    "awq gemv": (layouts.awq_gemv, {**AWQ, "version": "GEMV"}, {}, "Q4_K"),
    "awq gemv, groups of 64": (layouts.awq_gemv, {**AWQ, "version": "gemv", "group_size": 64}, {"group": 64}, "Q4_K"),
    "gptq": (layouts.gptq, GPTQ, {"symmetric": True}, "Q4_0"),
    "gptq, asymmetric": (layouts.gptq, GPTQ, {}, "Q4_K"),
    "gptq, second format": (lambda *g: layouts.gptq(*g, less=0), {**GPTQ, "checkpoint_format": "gptq_v2"}, {}, "Q4_K"),
    "gptq, 8 bits": (lambda *g: layouts.gptq(*g, bits=8), {**GPTQ, "bits": 8}, {"bits": 8, "symmetric": True}, "Q8_0"),
    "gptq, 8 bits, asymmetric": (lambda *g: layouts.gptq(*g, bits=8), {**GPTQ, "bits": 8}, {"bits": 8}, None),
    "gptq, 2 bits": (lambda *g: layouts.gptq(*g, bits=2), {**GPTQ, "bits": 2}, {"bits": 2}, "Q4_K"),
    "gptq, 3 bits": (lambda *g: layouts.gptq(*g, bits=3), {**GPTQ, "bits": 3}, {"bits": 3, "shape": (32, 512)}, "Q4_K"),
    "gptq, 3 bits, symmetric": (lambda *g: layouts.gptq(*g, bits=3), {**GPTQ, "bits": 3}, {"bits": 3, "symmetric": True, "shape": (32, 512)}, "Q4_0"),
    "compressed words": (layouts.compressed_words, CT, {"symmetric": True}, "Q4_0"),
    "compressed words, asymmetric": (lambda *g: layouts.compressed_words(*g, asymmetric=True), CT, {}, "Q4_K"),
    "compressed words, a group a row": (layouts.compressed_words, CT, {"symmetric": True, "group": 512}, "Q4_0"),
    "compressed words, 8 bits": (lambda *g: layouts.compressed_words(*g, bits=8), CT, {"bits": 8, "symmetric": True}, "Q8_0"),
    "compressed bytes": (layouts.compressed_bytes, CT, {"bits": 8, "symmetric": True, "group": 512}, "Q8_0"),
}  # fmt: skip


def made(case):
    layout, said, how, type_ = CASES[case]
    codes, zeros, scales, values, noise = layouts.grid(**{"shape": (16, 512), "group": 128, **how})
    return source(layout(codes, zeros, scales), said), values, noise, type_


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_read(case):
    found, values, _, type_ = made(case)
    assert found.shape == values.shape and str(found.type) == str(type_)
    for rows in (slice(None), slice(3, 11), np.array([15, 0, 7, 8]), interleave(16, 4)):
        np.testing.assert_allclose(found.rows(rows), values[rows], rtol=1e-6, atol=1e-9)


# Error that a type adds to that of the checkpoint (power, relative to it); 0: none at all
ADDED = {"Q4_0": 0, "Q8_0": 0, "Q4_1": 5e-5, "Q4_K": 4e-4}


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][3]])
def test_its_type_holds_it_without_rounding_anew(case):
    found, values, noise, type_ = made(case)
    type_ = BY_NAME[type_]
    from qtransformers.quants import reference_dequantize

    n = len(values)
    for rows in (slice(0, n), interleave(n, 4)):
        back = reference_dequantize(found.blocks(rows, type_), type_).reshape(n, -1)
        added = float(((back - values[rows]) ** 2).sum()) / noise
        bound = 6e-3 if "groups of 64" in case else ADDED[type_.name]
        assert added <= bound and (bound == 0 or added < 0.1 * noise_of_rounding_anew(values, type_) / noise)


def noise_of_rounding_anew(values, type_):
    from qtransformers.quants import dequantize, quantize

    x = np.ascontiguousarray(values, np.float32)
    return float(((dequantize(quantize(x, type_), type_).reshape(x.shape) - values) ** 2).sum())


@pytest.mark.parametrize("case, type_", [("awq gemm", "Q8_0"), ("gptq", "Q8_0"), ("awq gemm", "Q4_1"), ("gptq", "Q4_1"), ("gptq", "Q4_K")])  # fmt: skip
def test_other_types_that_hold_it(case, type_):
    from qtransformers.quants import reference_dequantize

    found, values, noise, _ = made(case)
    back = reference_dequantize(found.blocks(slice(0, 16), BY_NAME[type_]), BY_NAME[type_]).reshape(16, -1)
    assert ((back - values) ** 2).sum() / noise <= ADDED[type_]
    assert found.blocks(slice(0, 16), BY_NAME["Q6_K"]) is None


def test_negative_scales():
    codes, zeros, scales, values, noise = layouts.grid((128, 512), 128)
    scales[:, 1::2] *= -1
    values.reshape(128, 4, 128)[:, 1::2] *= -1
    found = source(layouts.awq_gemm(codes, zeros, scales), AWQ)
    from qtransformers.quants import reference_dequantize

    back = reference_dequantize(found.blocks(slice(0, 128), BY_NAME["Q4_K"]), BY_NAME["Q4_K"]).reshape(128, -1)
    assert ((back - values) ** 2).sum() / noise < ADDED["Q4_K"]


def a_grid(**how):
    return layouts.grid(**{"shape": (16, 512), "group": 128, **how})[:3]


@pytest.mark.parametrize(
    "parts, said, error, message",
    [
        (lambda: layouts.gptq(*a_grid(), order=np.random.default_rng(0).permutation(512) // 128), GPTQ, UnsupportedError, r"x\.g_idx orders columns by activation \(act-order, desc_act\)"),
        (lambda: layouts.compressed_words(*a_grid(symmetric=True)) | {"weight_g_idx": np.arange(512)[::-1] // 128}, CT, UnsupportedError, "act-order"),
        (lambda: layouts.gptq(*a_grid()), {**GPTQ, "bits": 5}, UnsupportedError, "has bits 5; expected 2 or 3 or 4 or 8"),
        (lambda: layouts.awq_gemm(*a_grid()), {**AWQ, "version": "marlin"}, UnsupportedError, "has version 'marlin'; expected gemm or gemv"),
        (lambda: layouts.awq_gemm(*a_grid()), {**AWQ, "group_size": 100}, UnsupportedError, "group_size 100 does not divide its 512"),
        (lambda: layouts.awq_gemm(*a_grid()), {**AWQ, "group_size": 64}, LoadError, r"x\.qzeros is \[4, 2\]; x needs \[8, 2\]"),
        (lambda: {"qweight": layouts.awq_gemm(*a_grid())["qweight"]}, AWQ, LoadError, r"x\.qzeros is missing beside qweight"),
        (lambda: layouts.awq_gemv(*a_grid()) | {"scales": np.ones((16, 4), np.float16)}, {**AWQ, "version": "gemv"}, LoadError, "does not fit"),
        (lambda: layouts.compressed_words(*a_grid()) | {"weight_scale": np.ones((16, 3), np.float16)}, CT, LoadError, "does not fit"),
        (lambda: layouts.compressed_words(*a_grid()) | {"weight_shape": np.array([16, 100])}, CT, UnsupportedError, "expected 4 or 8 bits"),
        (lambda: layouts.compressed_words(*a_grid()) | {"weight_global_scale": np.ones(1, np.float32)}, CT, LoadError, "I32 codes .* NVFP4 has U8 codes"),
        (lambda: layouts.gptq(*a_grid()), {"quant_method": "hqq"}, UnsupportedError, r"config\.json: its weights are quantised by hqq; convert reads awq, "),
        (lambda: {"weight": np.ones((4, 4), np.float32)}, {"quant_method": ["gptq"]}, UnsupportedError, "quantised by"),
    ],
)  # fmt: skip
def test_what_is_refused(parts, said, error, message):
    with pytest.raises(error, match=message):
        source(parts(), said)


def test_scales_that_are_not_finite():
    codes, zeros, scales = a_grid()
    scales[3, 1] = np.nan
    found = source(layouts.awq_gemm(codes, zeros, scales), AWQ)
    with pytest.raises(LoadError, match=r"m\.safetensors: scales of x\.weight are not finite"):
        found.blocks(slice(0, 16), BY_NAME["Q4_K"])


def e4m3(codes):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()


@pytest.mark.parametrize("scale, name, said", [
    ((2, 3), "weight_scale_inv", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ((), "weight_scale", {"quant_method": "fp8"}),
    ((200, 1), "weight_scale", CT),
    ((200,), "weight_scale", {"quant_method": "fbgemm_fp8"}),
    ((1,), "weight_scale", CT),
])  # fmt: skip
def test_floats_of_8_bits(scale, name, said):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (200, 300)).astype(np.uint8)
    codes[(codes & 127) == 127] = 0
    scales = rng.uniform(0.5, 2, scale).astype(np.float32)
    tensors = {
        "x.weight": stored("x.weight", codes, "F8_E4M3"), f"x.{name}": stored(f"x.{name}", scales),
        "x.input_scale": stored("x.input_scale", np.ones(1, np.float32)),
    }  # fmt: skip
    found = sources_of(tensors, said, "config.json")
    assert set(found) == {"x.weight"} and found["x.weight"].type is None
    each = (
        scales.reshape(200, 1)
        if scale == (200,)
        else scales
        if scale != (2, 3)
        else np.kron(scales, np.ones((128, 128)))[:200, :300]
    )
    expected = e4m3(codes) * each
    np.testing.assert_array_equal(found["x.weight"].rows(slice(0, 200)), expected.astype(np.float32))
    np.testing.assert_array_equal(found["x.weight"].rows(np.array([150, 3])), expected.astype(np.float32)[[150, 3]])


def test_e5m2():
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    tensors = {
        "x.weight": stored("x.weight", codes, "F8_E5M2"),
        "x.weight_scale": stored("x.weight_scale", np.ones((), np.float32)),
    }
    theirs = torch.from_numpy(codes).view(torch.float8_e5m2).float().numpy()
    np.testing.assert_array_equal(
        sources_of(tensors, {"quant_method": "fp8"}, "")["x.weight"].rows(slice(None)), theirs
    )


def test_mxfp4_is_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (3, 8, 2, 16)).astype(np.uint8)
    exponents = rng.integers(118, 130, (3, 8, 2)).astype(np.uint8)
    tensors = {"m.e_blocks": stored("m.e_blocks", codes), "m.e_scales": stored("m.e_scales", exponents), "m.e_bias": stored("m.e_bias", np.ones((3, 8), np.float32))}  # fmt: skip
    found = sources_of(tensors, {"quant_method": "mxfp4"}, "config.json")
    assert set(found) == {"m.e", "m.e_bias"}
    theirs = convert_moe_packed_tensors(
        torch.from_numpy(codes), torch.from_numpy(exponents), dtype=torch.float32
    ).numpy()
    assert found["m.e"].shape == (3, 8, 64) and theirs.shape == (3, 64, 8)
    expected = theirs.swapaxes(1, 2).reshape(24, 64)
    np.testing.assert_array_equal(found["m.e"].rows(slice(None)), expected)
    from qtransformers.quants import reference_dequantize

    rows = np.array([20, 1, 2])
    blocks = found["m.e"].blocks(rows, BY_NAME["MXFP4"])
    np.testing.assert_array_equal(reference_dequantize(blocks, BY_NAME["MXFP4"]).reshape(3, 64), expected[rows])


WHOLE = {
    "awq": (layouts.awq_gemm, AWQ, {}, {256: "Q4_K", 512: "Q4_K"}, 15),
    "gptq": (layouts.gptq, {**GPTQ, "sym": True, "desc_act": False}, {"symmetric": True}, {256: "Q4_0", 512: "Q4_0"}, 2),
    "int8": (layouts.compressed_bytes, CT, {"bits": 8, "symmetric": True}, {256: "Q8_0", 512: "Q8_0"}, 7),
}  # fmt: skip


@pytest.mark.parametrize("method", WHOLE)
def test_a_whole_checkpoint(method, byte_bpe, tmp_path):
    """Every tensor is the checkpoint's, rows of Q and K in the file's order, and the types are those that hold them."""
    layout, said, how, types, file_type = WHOLE[method]

    def linears(name, shape, seed):
        group = {"group": shape[1]} if method == "int8" else {"group": 128}
        codes, zeros, scales, values, noise[name] = layouts.grid(shape, seed=seed, **how, **group)
        return layout(codes, zeros, scales), values

    noise = {}
    values = layouts.write_llama(tmp_path / "model", linears, said, byte_bpe)
    plan = plan_conversion(tmp_path / "model", "Q4_K_M")
    assert plan.metadata["general.file_type"] == file_type
    with GGUFFile(convert(tmp_path / "model", tmp_path / "x.gguf", "Q4_K_M")) as file:
        assert str(file.tensors["output.weight"].type) == "Q6_K"  # what was not quantised follows the recipe
        for ours, theirs in HF_NAMES.items():
            tensor, expected = file.tensors[f"blk.0.{ours}.weight"], values[f"model.layers.0.{theirs}"]
            assert str(tensor.type) == types[expected.shape[1]]
            if ours in ("attn_q", "attn_k"):
                expected = expected[interleave(len(expected), 4 if ours == "attn_q" else 2)]
            added = float(((tensor.dequantize() - expected) ** 2).sum())
            assert added <= ADDED[str(tensor.type)] * noise[f"model.layers.0.{theirs}"]
    with GGUFFile(convert(tmp_path / "model", tmp_path / "f.gguf", "F32")) as file:
        down = file.tensors["blk.0.ffn_down.weight"]
        np.testing.assert_allclose(down.dequantize(), values["model.layers.0.mlp.down_proj"], rtol=1e-6)
    with GGUFFile(convert(tmp_path / "model", tmp_path / "o.gguf", "Q4_K_M", overrides=[("ffn_up", "Q5_K")])) as file:
        assert str(file.tensors["blk.0.ffn_up.weight"].type) == "Q5_K"


def test_gpt_oss_as_it_is_published(tmp_path):
    """Experts in MXFP4 arrive bit for bit where those of the same values in plain floats do."""
    torch = pytest.importorskip("torch")
    import json

    from safetensors.numpy import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from archs.cases import CASES
    from archs.models import checkpoint, reference

    rng = np.random.default_rng(2)
    plain = checkpoint(reference(CASES["gpt-oss"], "gpt-oss"), tmp_path / "plain")
    packed = checkpoint(reference(CASES["gpt-oss"], "gpt-oss"), tmp_path / "packed")
    file = next(plain.glob("*.safetensors")).name
    tensors = load_file(plain / file)
    others = dict(tensors)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        n, n_in, n_out = tensors[name].shape
        codes = rng.integers(0, 256, (n, n_out, n_in // 32, 16)).astype(np.uint8)
        exponents = rng.integers(120, 124, codes.shape[:-1]).astype(np.uint8)
        tensors[name] = convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(exponents), dtype=torch.float32).numpy()  # fmt: skip
        del others[name]
        others |= {f"{name}_blocks": codes, f"{name}_scales": exponents}
    save_file(tensors, plain / file)
    save_file(others, packed / file)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    with (
        GGUFFile(convert(plain, tmp_path / "plain.gguf", "F32")) as one,
        GGUFFile(convert(packed, tmp_path / "packed.gguf", "Q8_0")) as two,
    ):
        experts = [n for n in one.tensors if n.endswith("exps.weight")]
        assert len(experts) == 12
        for name in experts:
            assert str(two.tensors[name].type) == "MXFP4"
            np.testing.assert_array_equal(two.tensors[name].dequantize(), one.tensors[name].dequantize())


@pytest.mark.parametrize("name, experts", [("mixtral", 9), ("deepseek-v3", 6), ("qwen3next", 18)])
@pytest.mark.filterwarnings("ignore:.*are quantised anew")
def test_stacks_of_experts_and_split_matrices(name, experts, tmp_path):
    """GPTQ of everything: integers survive where conversion moves whole rows, and values are right everywhere."""
    pytest.importorskip("torch")
    import json

    from safetensors.numpy import load_file, save_file

    from archs.cases import CASES as ALL
    from archs.models import checkpoint, reference

    plain = checkpoint(reference(ALL[name], name), tmp_path / "plain")
    file = next(plain.glob("*.safetensors"))
    tensors = load_file(file)
    packed, rounded = dict(tensors), dict(tensors)
    for key, x in tensors.items():
        if (
            x.ndim == 2
            and x.shape[1] % 32 == 0
            and x.shape[0] % 8 == 0
            and not any(p in key for p in ("embed", "lm_head", "gate.weight", "router"))
        ):
            codes, zeros, scales, rounded[key], _ = layouts.rounded(x, 32, symmetric=True)
            rounded[key] = rounded[key].astype(np.float32)
            del packed[key]
            packed |= {
                key.removesuffix("weight") + n: np.ascontiguousarray(t)
                for n, t in layouts.gptq(codes, zeros, scales).items()
            }
    other = tmp_path / "packed"
    shutil.copytree(plain, other)
    save_file(rounded, file)
    save_file(packed, other / file.name)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": {**GPTQ, "group_size": 32}}))
    with (
        GGUFFile(convert(plain, tmp_path / "p.gguf", "F32")) as one,
        GGUFFile(convert(other, tmp_path / "q.gguf", "Q8_0")) as two,
    ):
        kinds = {key: str(t.type) for key, t in two.tensors.items()}
        assert sum("_exps" in key for key in kinds) >= experts and set(kinds.values()) <= {"Q4_0", "Q8_0", "F32", "F16"}
        for key, t in one.tensors.items():
            if kinds[key] == "Q4_0":
                np.testing.assert_allclose(two.tensors[key].dequantize(), t.dequantize(), rtol=1e-6)
            else:
                np.testing.assert_allclose(
                    two.tensors[key].dequantize(), t.dequantize(), atol=0.02 * np.abs(t.dequantize()).max()
                )
        assert all(kinds[key] == "Q4_0" for key in kinds if "_exps" in key)
        moved = {
            "qwen3next": "blk.0.attn_qkv.weight",
            "deepseek-v3": "blk.1.attn_v_b.weight",
            "mixtral": "blk.0.attn_q.weight",
        }
        assert kinds[moved[name]] == "Q4_0"


STRANGE = (0, -1, 3, 8, 64, 100, 2**40, "4", "x", None, True, 1.5, [128, 128], [0, 0], [1], {}, "gemv", "gptq_v2")
SETTINGS = ("bits", "group_size", "version", "checkpoint_format", "weight_block_size", "quant_method")


def test_damaged_layers_are_read_or_refused():
    """Parts left out, of other shapes and types, with values that cannot be, under settings that are none."""
    rng = np.random.default_rng(0)
    seen = {"read": 0, "refused": 0}
    for case in [c for c in CASES for _ in range(20)]:
        layout, said, how, _ = CASES[case]
        parts, said = dict(layout(*a_grid(**how))), dict(said)
        name = list(parts)[rng.integers(len(parts))]
        part = parts[name].reshape(-1)
        shapes = [part.shape, (1, part.size), (part.size, 1), (), (0,), (0, 5), parts[name].shape[::-1]]
        shape = shapes[rng.integers(len(shapes))]
        other = part.reshape(shape) if np.prod(shape) == part.size else np.zeros(shape, part.dtype)
        damage = rng.integers(5)
        if damage == 0:
            said[SETTINGS[rng.integers(len(SETTINGS))]] = STRANGE[rng.integers(len(STRANGE))]
        elif damage == 1:
            del parts[name]
        elif damage == 2:
            parts[name] = other
        elif damage == 3:
            with np.errstate(over="ignore", invalid="ignore"):
                parts[name] = parts[name].astype(("i1", "u1", "i4", "i8", "f2", "f4")[rng.integers(6)])
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                parts[name] = np.where(rng.random(parts[name].shape) < 0.1, -1, parts[name]).astype(part.dtype)
        try:
            tensors = {f"x.{n}": stored(f"x.{n}", array) for n, array in parts.items()}
            for found in sources_of(tensors, said, "config.json").values():
                type_ = found.type
                found.rows(slice(0, 4))
                if type_ is not None:
                    found.blocks(slice(0, 4), type_)
            seen["read"] += 1
        except (LoadError, UnsupportedError):
            seen["refused"] += 1
    assert min(seen.values()) > 50, seen


@pytest.mark.parametrize("algorithm, method", [("NVFP4", "modelopt"), ("FP8", "modelopt"), (None, None)])
def test_what_modelopt_says_in_a_file_of_its_own(algorithm, method, tmp_path):
    own = tmp_path / "hf_quant_config.json"
    assert quantization_of(tmp_path, {}) == (None, tmp_path / "config.json")
    own.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8"}}))  # fmt: skip
    said, by = quantization_of(tmp_path, {})
    assert by == own and (said and said["quant_method"]) == method
    assert quantization_of(tmp_path, {"quantization_config": {"quant_method": "awq"}})[0] == {"quant_method": "awq"}
    for wrong in ({"quant_algo": "W4A8_AWQ"}, {"quant_algo": 3}, "NVFP4"):
        own.write_text(json.dumps({"quantization": wrong}))
        with pytest.raises(UnsupportedError, match=r"hf_quant_config\.json: quant_algo is "):
            quantization_of(tmp_path, {})


def test_nvfp4_of_either_maker():
    """Compressed-tensors divides by the factor for all, NVIDIA multiplies; the numbers are by hand."""
    codes = np.zeros((2, 16), np.uint8)
    codes[0, :3] = 0x21, 0x7F, 0x0A  # .5 1, -6 6, -1 0
    codes[1, 8:] = 0x33
    scales = np.array([[0x38, 0x40], [0x30, 0x01]], np.uint8)  # 1, 2; .5, 2^-9
    expected = np.zeros((2, 32), np.float32)
    expected[0, :6] = np.array([0.5, 1, -6, 6, -1, 0]) / 4
    expected[1, 16:] = 1.5 * 2**-9 / 4
    for said, names, factor in (
        (CT, ("weight_packed", "weight_scale", "weight_global_scale"), 4.0),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ("weight", "weight_scale", "weight_scale_2"), 0.25),
    ):
        tensors = (stored("", codes), stored("", scales, "F8_E4M3"), stored("", np.array([factor], np.float32)))
        parts = {f"x.{n}": replace(t, name=f"x.{n}") for n, t in zip(names, tensors, strict=True)}
        found = sources_of(parts, said, "config.json")["x.weight"]
        assert found.shape == (2, 32) and found.type is None and found.blocks(slice(None), BY_NAME["NVFP4"]) is None
        for rows in (slice(None), np.array([1, 0]), slice(1, 2)):
            assert np.array_equal(found.rows(rows), expected[rows])
