"""Pictures from a diffusion transformer in GGUF, with the rest of its pipeline from a folder or the Hub.

usage: pictures.py FILE BASE PROMPT PIXELS OUT.png
"""

import sys

from qtransformers.diffusers import Picture, load_pipeline, paint

file, base, prompt, pixels, out = sys.argv[1:6]
pipe = load_pipeline(file, base)
painted = paint(
    pipe,
    Picture(prompt, steps=4, width=int(pixels), height=int(pixels), seed=1),
    lambda done, total: print(f"step {done} of {total}"),
)
painted.images[0].save(out)
print(f"{out}: seed {painted.seed}, {pipe.transformer.gguf.plan.weights_bytes:,} bytes of weights in the file's map")
