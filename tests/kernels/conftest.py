"""Instruction sets to test on: all that this machine has."""

import pytest

from qtransformers.native import lib


@pytest.fixture(params=reversed(lib.isas()))
def isa(request):
    return request.param
