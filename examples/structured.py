"""Answers of a given form: JSON that follows a schema, a regular expression, a grammar.

usage: structured.py [FILE]      without a file the bundled demo model answers
"""

import json
import sys

from qtransformers import Model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "animal": {"enum": ["fox", "owl", "bear"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "animal", "age"],
    "additionalProperties": False,
}
LIST = r"""
root ::= "- " line ("\n- " line){1,3}
line ::= [A-Z] [a-z ]{3,30} "."
"""
ask = [{"role": "user", "content": "Tell me a story about a brave fox."}]

with Model.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo") as model:
    answer = model.chat(ask, json_schema=PERSON, temperature=0)
    print("as JSON:", json.loads(answer.text))
    print("yes or no:", model.chat(ask, regex="yes|no", temperature=0).text)
    print(model.chat(ask, grammar=LIST, temperature=0, max_tokens=100).text)
