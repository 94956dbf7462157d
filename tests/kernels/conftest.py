"""Instruction sets to test on: all that this machine has."""

import pytest

from blocks import usable_isas


@pytest.fixture(params=usable_isas())
def isa(request):
    return request.param
