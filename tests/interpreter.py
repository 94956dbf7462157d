"""Imported before kernels, which run in Triton's interpreter where tests/conftest.py says so: what it needs of NumPy."""

import os
from importlib.util import find_spec

if os.environ["TRITON_INTERPRET"] != "0" and find_spec("triton"):
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        """NumPy no longer makes an int of an array of one number, which is what the interpreter's scalars are."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
