"""Pages in rows, as a GPU has them, against the tiles of `kernels.kv`."""

import numpy as np
import pytest

from qtransformers.kernels import kv, kv_rows


def tiles(codec, dk, dv, seed=0):
    """Pages `[2, 3, head_bytes]` in tiles, of random keys and values."""
    rng = np.random.default_rng(seed)
    heads = []
    for _ in range(6):
        parts = (
            kv.encode_page(rng.standard_normal((256, d), np.float32), kind, is_key)
            for kind, d, is_key in zip(kv.CODECS[codec], (dk, dv), (True, False), strict=True)
        )
        heads.append(np.concatenate(list(parts)))
    return np.stack(heads).reshape(2, 3, -1)


@pytest.mark.parametrize("codec", kv.CODECS)
@pytest.mark.parametrize("dk, dv", [(64, 64), (80, 80), (24, 16), (72, 40)])
def test_there_and_back(codec, dk, dv):
    pages = tiles(codec, dk, dv)
    rows = kv_rows.from_cpu_layout(pages, codec, dk, dv)
    assert rows.shape == pages.shape
    assert (rows != pages).mean() > 0.3
    np.testing.assert_array_equal(kv_rows.to_cpu_layout(rows, codec, dk, dv), pages)


@pytest.mark.parametrize("codec", ["f32", "f16"])
def test_floats_lie_token_by_token(codec):
    pages = tiles(codec, 13, 16)
    rows = kv_rows.from_cpu_layout(pages, codec, 13, 16)
    kinds = kv.CODECS[codec]
    cut = kv.key_bytes(kinds[0], 13)
    float_type = np.float32 if codec == "f32" else np.float16
    keys = rows[1, 2, : 256 * 13 * kinds[0].bits // 8].view(float_type).reshape(256, 13)
    np.testing.assert_array_equal(keys, kv.decode_page(pages[1, 2, :cut], kinds[0], True, 13))
    values = rows[1, 2, cut:].view(float_type).reshape(256, 16)
    np.testing.assert_array_equal(values, kv.decode_page(pages[1, 2, cut:], kinds[1], False, 16))


@pytest.mark.parametrize("name, byte", [("q8", [0xA5]), ("q4", [0x21]), ("q6", [0x31, 0x42, 0b11_10_01_00])])
def test_bytes_of_codes(name, byte):
    """The first bytes of each plane, as the module says them."""
    codes = np.zeros((256, 8), np.uint8)
    codes[0, :4] = {"q8": [0xA5, 0, 0, 0], "q4": [1, 2, 0, 0], "q6": [0x01, 0x12, 0x23, 0x34]}[name]
    scales = np.full((256, 1), 0.5, np.float16)
    kind = kv.KINDS[name]
    part = kv_rows.lay_codes(codes, scales, kind)
    assert len(part) == 256 * kind.bits + 512
    planes = part[:-512].reshape(len(byte), -1)
    assert planes[:, 0].tolist() == byte
    back, halves = kv_rows.read_codes(part, kind, 8)
    np.testing.assert_array_equal(back, codes)
    np.testing.assert_array_equal(halves, scales)
