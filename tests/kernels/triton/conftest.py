"""Kernels run in Triton's interpreter, unless TRITON_INTERPRET=0 says that there is a card (make test-gpu)."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ["TRITON_INTERPRET"] != "0" and find_spec("triton"):
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        """NumPy no longer makes an int of an array of one number, which is what the interpreter's scalars are."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


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
