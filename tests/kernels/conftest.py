"""Instruction sets to test on: all that this machine has."""

import pytest

from qtransformers.native import lib


@pytest.fixture(params=["generic", "avx2", "avx512"])
def isa(request):
    try:
        return lib.isa(request.param)
    except ValueError as e:
        pytest.skip(str(e))
