"""Blocks to floats against the NumPy truth, bit for bit."""

import numpy as np
import pytest

from blocks import edge_blocks, random_blocks
from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.quants import reference_dequantize
from qtransformers.types import BY_NAME, TYPES

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from qtransformers.kernels.triton.blocks import LAYOUTS  # noqa: E402
from qtransformers.kernels.triton.dequantise import OUTPUTS, dequantise  # noqa: E402
from qtransformers.kernels.triton.device import interpreted  # noqa: E402
from qtransformers.kernels.triton.weights import FLOATS  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
DECODED = [t for t in TYPES.values() if t.family != "int"]
BITS = {4: torch.int32, 2: torch.int16}


def some_edges(type, n=64):
    """Edges and specials over zeros, ones and noise; where values are many, blocks from all over."""
    blocks = edge_blocks(type, specials=True).reshape(-1, type.block_bytes)
    step = len(blocks) // n | 1 if type.block_size > 128 else 1
    return np.ascontiguousarray(blocks[::step]).reshape(-1)


def assert_same_bits(found, truth):
    """Equal bit for bit, any NaN being as good as another."""
    assert found.dtype == truth.dtype
    bits = BITS[truth.element_size()]
    same = (found.view(bits) == truth.view(bits)) | (found.isnan() & truth.isnan())
    assert same.all(), (found[~same][:5], truth[~same][:5], same.logical_not().nonzero()[:5])


def test_every_type_that_holds_floats_has_a_kernel():
    assert {t.name for t in DECODED} == {*LAYOUTS, *FLOATS}


@pytest.mark.parametrize("name", LAYOUTS)
def test_planes_fill_the_block(name):
    layout, g = LAYOUTS[name], np.arange(LAYOUTS[name].groups)
    first = layout.outer * (g // layout.inner) + layout.step * (g % layout.inner)
    places = [layout.plane * p + first[:, None] + np.arange(layout.step) for p in range(layout.planes)]
    np.testing.assert_array_equal(np.sort(np.ravel(places)), np.arange(BY_NAME[name].block_size))


@pytest.mark.parametrize("type", DECODED, ids=repr)
@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bits_of_the_truth(type, dtype):
    raw = np.concatenate([random_blocks(type, 7), some_edges(type)])
    truth = torch.from_numpy(reference_dequantize(raw, type))
    found = dequantise(torch.from_numpy(raw).to(DEVICE), type, truth.shape, dtype).cpu()
    assert_same_bits(found, truth.to(dtype))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "MXFP4", "F64"])
@pytest.mark.parametrize("n_blocks", [0, 1, 129])
def test_shapes_slices_and_room_given(name, n_blocks):
    type = BY_NAME[name]
    raw = random_blocks(type, n_blocks, seed=n_blocks)
    truth = torch.from_numpy(reference_dequantize(raw, type)).reshape(1, n_blocks, type.block_size)
    room = torch.full((3, n_blocks, type.block_size), 7.0, device=DEVICE)
    within = torch.from_numpy(np.pad(raw, (2, 0))).to(DEVICE)[2:]  # at a place of which only that it is even is sure
    found = dequantise(within, type, truth.shape, torch.float32, room[1:2])
    assert found.data_ptr() == room[1:2].data_ptr()
    assert_same_bits(found.cpu(), truth)
    assert (room[[0, 2]] == 7).all()


def test_what_cannot_be_decoded():
    type = BY_NAME["Q4_0"]
    data = torch.zeros(36, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(GGUFError, match=r"36 bytes of Q4_0 do not make \[3, 32\]"):
        dequantise(data, type, (3, 32), torch.float32)
    with pytest.raises(GGUFError, match=r"do not make \[-2, -32\]"):
        dequantise(data, type, (-2, -32), torch.float32)
    with pytest.raises(UnsupportedError, match="no GPU kernel decodes I8"):
        dequantise(data, BY_NAME["I8"], (36,), torch.float32)
    with pytest.raises(ConfigError, match=r"torch\.float64; expected one of torch\.float32"):
        dequantise(data, type, (64,), torch.float64)
    with pytest.raises(ConfigError, match=r"found torch\.int8 \[36\]; expected contiguous torch\.uint8"):
        dequantise(data.to(torch.int8), type, (64,), torch.float32)
    with pytest.raises(ConfigError, match=r"out is torch\.float16 \[64\]"):
        dequantise(data, type, (64,), torch.float32, torch.empty(64, dtype=torch.float16, device=DEVICE))
