"""Answer many prompts at once: they share forwards, and the beginning that they have in common is computed once.

usage: many_prompts.py [FILE]
"""

import sys

from qtransformers import Model

stem = "Once upon a time there was a little fox who lived in the wood. " * 20 + "The fox had a friend who was "
friends = ("an owl", "a bear", "a mouse", "a robin")

with Model.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    answers = model.generate_many([stem + friend for friend in friends], max_tokens=16, temperature=0)
    for friend, answer in zip(friends, answers, strict=True):
        cached = f"{answer.timings.cached_tokens} of {answer.prompt_tokens} tokens were in the cache"
        print(f"{friend}{answer.text}... ({cached})")
