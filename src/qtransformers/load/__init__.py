"""From `model_path` and `gguf_path` to a plan, weights and a tokenizer."""
