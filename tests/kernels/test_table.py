"""Which types of weight run where."""

import pytest

from qtransformers.errors import UnsupportedError
from qtransformers.kernels.table import check, why_not
from qtransformers.native import lib
from qtransformers.types import BY_NAME, TYPES


@pytest.mark.parametrize("operation", ["linear", "embedding"])
def test_the_reasons_are_those_of_the_extension(operation):
    """All that decodes to floats can be a weight, but for the two formats that are never stored."""
    usable = {t.id for t in TYPES.values() if why_not(operation, t) is None}
    assert usable == lib.formats().keys() - {BY_NAME["Q8_1"].id, BY_NAME["Q8_K"].id}


def test_reasons():
    assert why_not("linear", BY_NAME["I8"]) == "I8 holds whole numbers; a weight must decode to floats"
    assert why_not("linear", BY_NAME["Q8_K"]) == "Q8_K is an activation format, never a weight"
    assert why_not("linear", BY_NAME["F16"], "tpu") == "no linear on tpu; expected cpu"
    assert why_not("pool", BY_NAME["F16"]) == "no pool on cpu; no such operation"


def test_check_names_file_and_tensor():
    check("linear", BY_NAME["Q4_K"], "cpu", "blk.0.attn_q.weight", "a.gguf")
    with pytest.raises(
        UnsupportedError, match=r"a\.gguf: blk\.0\.attn_q\.weight: I64 holds whole numbers.* Use a file"
    ):
        check("linear", BY_NAME["I64"], "cpu", "blk.0.attn_q.weight", "a.gguf")
