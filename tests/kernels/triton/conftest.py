"""Kernels run in Triton's interpreter, unless TRITON_INTERPRET=0 says that there is a card (make test-gpu)."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ["TRITON_INTERPRET"] != "0":
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        """NumPy no longer makes an int of an array of one number, which is what the interpreter's scalars are."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched
