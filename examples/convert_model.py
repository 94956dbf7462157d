"""Make a GGUF file from a Hugging Face model, after a look at what it will hold.

usage: convert_model.py FOLDER OUTPUT
"""

import sys
from pathlib import Path

from qtransformers.convert import plan_conversion, write

folder, output = sys.argv[1:]
plan = plan_conversion(folder, "Q8_0")
print(f"{plan.metadata['general.architecture']}, {len(plan.tensors)} tensors, {plan.nbytes:,} bytes of weights")
write(plan, Path(output))
print(f"wrote {output}")
