"""Checkpoints of 8-bit and 4-bit floats."""

from dataclasses import replace

import numpy as np
import pytest

from convert.published import CT, stored
from qtransformers.convert.methods import sources_of
from qtransformers.types import BY_NAME


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
