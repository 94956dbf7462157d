import mmap

import numpy as np
import pytest

from qtransformers import machine
from qtransformers.convert.sources import Changed, Lying
from qtransformers.load.checkpoint import Stored
from qtransformers.quants import reference_quantize
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

RNG = np.random.default_rng(3)


def stored(values):
    values = np.asarray(values, np.float32)
    return Lying(Stored("w", "F32", values.shape, values.reshape(-1).view(np.uint8), "m.safetensors"))


@pytest.mark.parametrize("rows", [slice(2, 5), np.array([4, 0, 4]), slice(0, 0)])
def test_rows_of_blocks(rows):
    values = RNG.standard_normal((6, 64)).astype(np.float32)
    type_ = BY_NAME["Q8_0"]
    data = reference_quantize(values.reshape(-1), type_)
    source = Lying(QTensor("w", type_, (2, 3, 64), data, "x.gguf"))
    np.testing.assert_allclose(source.rows(rows), values[rows], atol=0.02)
    np.testing.assert_array_equal(source.blocks(rows, type_), data.reshape(6, -1)[rows].reshape(-1))
    assert source.blocks(rows, BY_NAME["Q4_0"]) is None


def test_values_of_a_vector_are_its_rows():
    np.testing.assert_array_equal(stored([1, 2, 3]).rows(np.array([2, 0])), [[3], [1]])


@pytest.mark.parametrize("rows", [slice(0, 2), slice(3, 9), np.array([11, 0, 5])])
def test_matrices_are_changed_one_by_one(rows):
    """A function of `[n, in, out]` sees only the matrices that the rows are of."""
    values = RNG.standard_normal((4, 5, 6)).astype(np.float32)
    seen = []

    def every_second_column(x):
        seen.append(x.shape[0])
        return x[..., ::2].swapaxes(1, 2)

    whole = values[..., ::2].swapaxes(1, 2).reshape(12, 5)
    source = Changed(stored(values), every_second_column, (4, 3, 5))
    np.testing.assert_array_equal(source.rows(rows), whole[rows])
    assert seen == [{(0, 2): 1, (3, 9): 2}.get((rows.start, rows.stop), 4) if isinstance(rows, slice) else 4]
    assert source.type is None and source.blocks(rows, BY_NAME["F32"]) is None


@pytest.mark.parametrize("shape, made", [((6,), (6,)), ((1, 6), (6,)), ((6, 1, 4), (6, 4)), ((4, 6), (6, 4)), ((8, 6), (2, 2, 12))])  # fmt: skip
def test_a_changed_tensor_is_what_the_function_makes(shape, made):
    values = RNG.standard_normal(shape).astype(np.float32)

    def change(x):
        return (
            x.T if made == (6, 4) and shape == (4, 6) else x.reshape(len(x) if len(shape) == 3 else made[0], *made[1:])
        )

    width = made[-1] if len(made) > 1 else 1
    np.testing.assert_array_equal(Changed(stored(values), change, made).rows(slice(None)), change(values).reshape(-1, width))  # fmt: skip


def test_only_mapped_files_are_forgotten(tmp_path):
    values = np.arange(1 << 16, dtype=np.uint8)
    machine.forget(values[100:50_000])
    assert values[5000] == 5000 % 256
    (tmp_path / "x").write_bytes(bytes(range(256)) * 4096)
    with (tmp_path / "x").open("rb") as f:
        mapped = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    assert mapped.sum() == 4096 * 255 * 128
    before = machine.resident()
    machine.forget(mapped[1000:].reshape(-1, 8).reshape(-1))
    assert machine.resident() <= before - (900 << 10)
    assert mapped[12345] == 12345 % 256
