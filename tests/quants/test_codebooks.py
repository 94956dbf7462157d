"""The codebooks are those of the gguf package, and the C++ build reads the same ones."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import gguf
from qtransformers.quants.codebooks import codebook

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "qtransformers" / "quants" / "codebooks"
SHAPES = {
    "iq2_xxs": (256, 8), "iq2_xs": (512, 8), "iq2_s": (1024, 8), "iq3_xxs": (256, 4), "iq3_s": (512, 4),
    "iq1": (2048, 8), "signs": (128, 8), "iq4": (1, 16), "fp4": (1, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    assert codebook(name).shape == SHAPES[name]
    assert len(np.unique(codebook(name), axis=0)) == SHAPES[name][0]


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_grids_are_those_of_the_gguf_package(name):
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    np.testing.assert_array_equal(codebook("iq1" if name == "IQ1_S" else name.lower()), theirs.grid[0, 0])


def test_value_tables_are_those_of_the_gguf_package():
    assert codebook("iq4")[0].tolist() == list(gguf.quants.IQ4_NL.kvalues)
    assert codebook("fp4")[0].tolist() == list(gguf.quants.MXFP4.kvalues)


def test_a_sign_pattern_is_its_index_with_an_even_number_of_minuses():
    signs = codebook("signs")
    np.testing.assert_array_equal(signs[:, :7], 1 - 2 * (np.arange(128)[:, None] >> np.arange(7) & 1))
    assert (signs.prod(1) == 1).all()


def test_the_header_of_the_build_holds_the_same_numbers(tmp_path, monkeypatch):
    script = ROOT / "csrc" / "codebooks.py"
    monkeypatch.setattr("sys.argv", [str(script), str(FOLDER), str(tmp_path / "sub" / "codebooks.h")])
    runpy.run_path(str(script), run_name="__main__")
    header = (tmp_path / "sub" / "codebooks.h").read_text()
    arrays = re.findall(r"int8_t (\w+)\[(\d+)\]\[(\d+)\] = \{(.*?)\};", header, re.DOTALL)
    assert {name for name, *_ in arrays} == set(SHAPES)
    for name, rows, columns, body in arrays:
        numbers = np.array(re.findall(r"-?\d+", body), np.int8).reshape(int(rows), int(columns))
        np.testing.assert_array_equal(numbers, codebook(name))


def test_a_codebook_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        codebook("iq4")[0, 0] = 1
