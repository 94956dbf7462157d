"""Look into a GGUF file: nothing is read but its header, however large it is.

usage: inspect_file.py FILE
"""

import sys

from qtransformers import GGUFFile

with GGUFFile(sys.argv[1]) as file:
    print(f"{file.metadata['general.architecture']}, {len(file.tensors)} tensors, {file.nbytes:,} bytes")
    for name, tensor in file.tensors.items():
        print(f"  {name:32} {tensor.type.name:6} {tensor.shape}")
    first = next(iter(file.tensors.values()))
    print(f"the first values of {first.name}: {first.rows(0, 1)[0, :4]}")
