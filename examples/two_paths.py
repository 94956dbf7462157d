"""Weights from a GGUF file; tokenizer, chat template and generation config from the original model.

usage: two_paths.py GGUF MODEL        MODEL is a directory or a Hub id; its weights are neither read nor downloaded
"""

import sys

from qtransformers import Model

gguf, original = sys.argv[1:]
with Model.load(gguf_path=gguf, model_path=original) as model:
    print(model.notes)
    answer = model.chat([{"role": "user", "content": "What is 7 plus 5?"}], temperature=0)
    print(answer.text)
