"""GGUF weights in a model of transformers: its class, its tokenizer, its generate().

usage: in_transformers.py MODEL FILE      the directory or Hub id of the original model, whose weights are not read; a GGUF file
"""

import sys

from transformers import AutoTokenizer

from qtransformers.torch import load_transformers

folder, file = sys.argv[1:3]
model = load_transformers(folder, file)
tokenizer = AutoTokenizer.from_pretrained(folder)

question = [{"role": "user", "content": "What is 7 plus 5?"}]
prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
print(f"{type(model).__name__} in {model.get_memory_footprint():,} bytes")
