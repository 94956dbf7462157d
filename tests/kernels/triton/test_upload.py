"""Weights to a device in chunks: the bytes, the values, the room it takes, and what does not fit."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.errors import GGUFError, InsufficientMemoryError
from qtransformers.kernels.staging import Staging, staging
from qtransformers.quants import reference_dequantize
from qtransformers.types import BY_NAME

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from qtransformers.kernels.triton.device import interpreted  # noqa: E402
from qtransformers.kernels.triton.upload import Upload  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"


def read_only(data):
    data.setflags(write=False)
    return data


@pytest.mark.parametrize("nbytes", [0, 1, 999, 1000, 1001, 5432])
def test_blocks_arrive_as_they_are(nbytes):
    data = read_only(np.random.default_rng(0).integers(0, 256, nbytes, np.uint8))
    seen = []
    with Upload(DEVICE, 3 * nbytes, lambda *report: seen.append(report), chunk=1000) as upload:
        found = [upload.blocks(data) for _ in range(3)]
    for tensor in found:
        np.testing.assert_array_equal(tensor.cpu().numpy(), data)
    assert upload.done == 3 * nbytes
    assert len(seen) == 3 * -(-nbytes // 1000)
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert all(total == 3 * nbytes and speed > 0 for _, total, speed in seen)


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "F16"])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_floats_are_those_of_the_truth(name, chunk):
    type = BY_NAME[name]
    data = read_only(random_blocks(type, 21))
    truth = torch.from_numpy(reference_dequantize(data, type)).reshape(3, -1)
    with Upload(DEVICE, chunk=chunk) as upload:
        found = upload.floats(data, type, truth.shape, torch.bfloat16)
        again = upload.floats(data, type, truth.shape, torch.float32)
    assert torch.equal(found.cpu(), truth.bfloat16())
    assert torch.equal(again.cpu(), truth)


def test_buffers_are_what_is_told_and_free_at_the_end():
    data = random_blocks(BY_NAME["Q8_0"], 100)
    with Upload(DEVICE, chunk=1000) as upload:
        upload.floats(data, BY_NAME["Q8_0"], (3200,), torch.float16)
        pinned = sum(b.numel() for b in upload._buffers)
        assert Staging(pinned, upload._staged.numel()) == staging(decoded=True, chunk=1000) == Staging(2000, 1000)
        assert all(b.is_pinned() == (DEVICE == "cuda") for b in upload._buffers)
    assert not upload._buffers
    assert upload._staged is None
    assert staging() == Staging(128 << 20, 0)


def test_what_does_not_fit():
    small = random_blocks(BY_NAME["Q8_0"], 10)
    endless = np.lib.stride_tricks.as_strided(small, (1 << 55,), (0,))
    with (
        pytest.raises(InsufficientMemoryError) as error,
        Upload(DEVICE, total=1 << 56, chunk=100) as upload,
    ):
        upload.blocks(small)
        upload.blocks(endless)
    message = str(error.value)
    assert f"{1 << 55:,} bytes for weights do not fit" in message
    assert f"340 of {1 << 56:,} bytes of the file had been sent, through 200 bytes of pinned memory" in message
    assert not upload._buffers


def test_blocks_that_do_not_make_the_shape():
    with pytest.raises(GGUFError, match=r"68 bytes of Q8_0 do not make \[3, 32\]"), Upload(DEVICE) as upload:
        upload.floats(random_blocks(BY_NAME["Q8_0"], 2), BY_NAME["Q8_0"], (3, 32), torch.float16)
