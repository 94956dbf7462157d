"""Importance matrices: sums by hand, both forms of files, hostile ones, and llama-imatrix's values."""

import struct

import numpy as np
import pytest

from archs.cases import CASES
from archs.models import Ours, gguf, reference
from qtransformers.errors import GGUFError, LoadError, ModelNotFoundError
from qtransformers.gguf import GGUFWriter
from qtransformers.load import load
from qtransformers.quantize import imatrix
from qtransformers.quantize.imatrix import Imatrix, Sums
from qtransformers.quantize.observe import watched
from qtransformers.quantize.passes import calibration_text, text_chunks

# llama-imatrix -c 256 --chunks 2 on calibration.txt of this package, tests/data/demo-Q8_0.gguf: in_sum2 / counts of three columns
GOLDEN = {
    "blk.0.attn_q.weight": {42: 2.4007, 148: 0.498702, 114: 0.188077},
    "blk.2.attn_output.weight": {161: 1.3896, 11: 0.45119, 180: 0.150902},
    "blk.3.ffn_down.weight": {75: 69.0407, 228: 6.89236, 402: 0.994875},
}


@pytest.fixture(scope="module")
def collected(data):
    model = load(data / "demo-Q8_0.gguf", accuracy="exact")
    rows = text_chunks(model.tokenizer, calibration_text(), 256)[:2]
    return imatrix.collect(model, rows, datasets=["a", "b"])


def test_values_are_llama_imatrix_s(collected):
    for name, columns in GOLDEN.items():
        mean = collected.sums[name].mean()[0]
        assert {i: mean[i] for i in columns} == pytest.approx(columns, rel=0.02)
        assert collected.sums[name].counts.tolist() == [512]
    assert len(GOLDEN) == 3


def test_experts_have_sums_of_their_own(tmp_path):
    case = CASES["qwen2moe"]
    ours = Ours.load(gguf(reference(case, "qwen2moe"), tmp_path, "m", case), case)
    rows = np.random.default_rng(0).integers(0, 250, (2, 32)).astype(np.int32)
    found = imatrix.collect(ours.loaded, rows).sums["blk.1.ffn_down_exps.weight"]
    by_hand = np.zeros_like(found.squares), np.zeros_like(found.counts)

    def arrive(site, x, which):
        if site.name == "blk.1.ffn_down_exps.weight":
            np.add.at(by_hand[0], which, x.astype(np.float64) ** 2)
            np.add.at(by_hand[1], which, 1)
        return site.weight

    w = watched(ours.loaded, arrive)
    for row in rows.tolist():
        ours._logits(w, ours.loaded.hparams, row, 32)
    assert by_hand[1].sum() == 64 * case.config["num_experts_per_tok"] and (by_hand[1] > 0).sum() > 2
    assert np.array_equal(found.counts, by_hand[1])
    np.testing.assert_allclose(found.squares, by_hand[0], rtol=1e-4)


def test_an_expert_that_met_nothing_has_the_mean_of_all():
    sums = Sums(np.array([[2.0, 4.0], [0, 0], [4.0, 2.0]]), np.array([1, 0, 2]))
    np.testing.assert_allclose(sums.mean(), [[2, 4], [2, 2], [2, 1]])


def test_a_file_of_our_own_comes_back(collected, tmp_path):
    both = Imatrix({**collected.sums, "x.weight": Sums(np.array([[1.0, 2], [3, 4]]), np.array([5, 0]))}, ("t",), 2, 256)
    imatrix.write(both, tmp_path / "i.gguf")
    found = imatrix.read(tmp_path / "i.gguf")
    assert (found.datasets, found.n_chunks, found.chunk) == (("t",), 2, 256)
    assert set(found.sums) == set(both.sums)
    for name, sums in both.sums.items():
        np.testing.assert_allclose(found.sums[name].squares, sums.squares, rtol=1e-6)
        assert np.array_equal(found.sums[name].counts, sums.counts)
    assert found.importance("x.weight", (2, 8, 2)).shape == (2, 2)
    assert found.importance("y.weight", (8, 2)) is None
    with pytest.raises(LoadError, match=r"x.weight .*\[2, 2\].*\[2, 3\]"):
        found.importance("x.weight", (2, 8, 3))


def dat(entries=1, name=b"a.weight", calls=3, values=(3.0, 6.0), tail=True):
    data = (
        struct.pack("<ii", entries, len(name)) + name + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    )
    return data + (struct.pack("<ii", 7, 5) + b"texts" if tail else b"")


@pytest.mark.parametrize("tail", [True, False])
def test_the_older_form_is_read(tmp_path, tail):
    (tmp_path / "i.dat").write_bytes(dat(tail=tail))
    found = imatrix.read(tmp_path / "i.dat")
    np.testing.assert_allclose(found.importance("a.weight", (4, 2)), [[1, 2]])
    assert (found.datasets, found.n_chunks) == ((("texts",), 7) if tail else ((), 0))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0", dat()[:30], dat(entries=-1), dat(entries=2), dat(calls=-4), dat(values=(1.0, float("nan"))), dat(values=(-1.0, 1.0)), struct.pack("<ii", 1, 2**30)],
)  # fmt: skip
def test_damaged_older_files(tmp_path, data):
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises((GGUFError, LoadError), match=r"i\.dat"):
        imatrix.read(tmp_path / "i.dat")


@pytest.mark.parametrize(
    "kind, tensors, words",
    [
        ("model", {}, "expected 'imatrix'"),
        ("imatrix", {"a.in_sum2": np.ones(2)}, "a.counts"),
        ("imatrix", {"a.other": np.ones(2)}, "a.other"),
        ("imatrix", {"a.in_sum2": np.full(2, np.inf), "a.counts": np.ones(1)}, "a.in_sum2"),
        ("imatrix", {"a.in_sum2": np.ones((2, 2)), "a.counts": np.ones(3)}, "3 counts"),
    ],
)
def test_damaged_files(tmp_path, kind, tensors, words):
    arrays = {name: values.astype(np.float32) for name, values in tensors.items()}
    with GGUFWriter(
        tmp_path / "i.gguf", {"general.type": kind}, [(n, v.shape, "F32") for n, v in arrays.items()]
    ) as writer:
        for name, values in arrays.items():
            writer.write(name, values)
    with pytest.raises(LoadError, match=words):
        imatrix.read(tmp_path / "i.gguf")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match="none"):
        imatrix.read(tmp_path / "none.gguf")
