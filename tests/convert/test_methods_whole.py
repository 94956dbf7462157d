"""Whole checkpoints of every method, converted."""

import json
import shutil

import numpy as np
import pytest

from convert import layouts
from convert.published import ADDED, AWQ, CT, GPTQ
from qtransformers.convert import convert, plan_conversion
from qtransformers.convert.checkpoints import quantization_of
from qtransformers.errors import UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load.checkpoint import interleave

HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
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
