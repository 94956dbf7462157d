"""Ask a model, and print the answer as it comes.

usage: chat.py [FILE] [QUESTION]      without a file the bundled demo model answers
"""

import sys

from qtransformers import Model

file = sys.argv[1] if len(sys.argv) > 1 else "demo"
question = sys.argv[2] if len(sys.argv) > 2 else "Tell me a story about a brave fox."

with Model.from_pretrained(file) as model:
    stream = model.chat([{"role": "user", "content": question}], stream=True, temperature=0)
    for chunk in stream:
        print(chunk.text, end="", flush=True)
    print(f"\n({stream.completion.timings.tokens_per_second:.0f} tokens a second)")
