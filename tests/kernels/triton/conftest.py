"""Kernels run in Triton's interpreter, or on a card."""

import os
from pathlib import Path

import pytest

import interpreter  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """On a card, the tests of this folder are the GPU's."""
    if os.environ["TRITON_INTERPRET"] != "0":
        return
    import torch

    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
