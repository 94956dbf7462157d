"""Save what was computed of a long prompt, and go on from it later, in another process if need be.

usage: saved_session.py SESSION [FILE]
"""

import sys

from qtransformers import Model

session, file = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "demo"
long_text = "Once upon a time there was a little fox who lived in the wood. " * 20

with Model.from_pretrained(file) as model:
    answer = model.generate(long_text, max_tokens=16, temperature=0)
    print(model.save_session(session, answer.prompt + answer.tokens, overwrite=True), "tokens saved")

with Model.from_pretrained(file) as model:
    tokens = model.load_session(session)
    answer = model.generate(
        [*tokens, *model.tokenizer.encode(" The end of the story: ", add_bos=False)], max_tokens=16, temperature=0
    )
    print(answer.timings.cached_tokens, "tokens were there already")
