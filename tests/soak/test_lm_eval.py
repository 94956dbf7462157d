"""lm-eval's `local-completions` over HTTP, with tasks from local files, beside the same sums over the model's own logits.

`make lm-eval` gives LM_EVAL, a Python with `lm-eval[api]`.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from qtransformers.serve.models import ModelSpec
from servers import running

DOCS = [
    ("Once upon a time there was a", [" fox", " the", " windmill"]),
    ("The fox was very", [" happy", " happy and ran", " of"]),
    ("They went into the", [" forest", " was", " said"]),
    ("She opened the", [" door", " door and", " and"]),
    ("It was a cold", [" day", " him", " day in the"]),
]
CHOICES = """\
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
WORDS = """\
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""


def logprob(model, text, more):
    """The sum of the log-probabilities of `more` after `text`, and whether it is the greedy answer."""
    before, ids = model.tokenizer.encode(text), model.tokenizer.encode(text + more)
    logits = model.logits(ids[:-1]).astype(np.float64)[:, : model.tokenizer.n_tokens]
    logits[:, sorted(model.tokenizer.unused_ids)] = -np.inf
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    rows = np.arange(len(before) - 1, len(ids) - 1)
    return logits[rows, ids[len(before) :]].sum(), (logits[rows].argmax(1) == ids[len(before) :]).all()


@pytest.mark.slow
def test_choices_and_answers(data, tmp_path):
    python = os.environ.get("LM_EVAL", sys.executable)
    if subprocess.run([python, "-c", "import lm_eval"], capture_output=True, check=False).returncode:
        pytest.skip("needs a Python with lm-eval[api], in LM_EVAL: make lm-eval")
    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"text": text, "choices": choices}) + "\n" for text, choices in DOCS))
    for name, task in (("choices", CHOICES), ("words", WORDS)):
        (tmp_path / f"{name}.yaml").write_text(task.replace("DATA", str(docs)))
    spec = ModelSpec(str(data / "demo-Q8_0.gguf"), ("demo",), {"threads": 1})
    with running([spec]) as (url, server):
        given = {
            "model": "demo",
            "base_url": f"{url}/v1/completions",
            "tokenizer": str(data / "demo_model"),
            "num_concurrent": 3,
            "max_retries": 1,
            "max_length": 512,
        }
        command = [
            *(python, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "choices,words"),
            *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"),
            *("--model_args", ",".join(f"{k}={v}" for k, v in given.items())),
        ]
        environ = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "OPENAI_API_KEY": "none",
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        model = server.models.entries[0].loaded
        expected = [[logprob(model, text, choice) for choice in choices] for text, choices in DOCS]
        greedy = [model.generate(text, max_tokens=12, temperature=0, stop=["."]).text for text, _ in DOCS]
    samples = {
        name: sorted(
            map(json.loads, next((tmp_path / "out").rglob(f"samples_{name}*.jsonl")).read_text().splitlines()),
            key=lambda s: s["doc_id"],
        )
        for name in ("choices", "words")
    }
    for sample, row in zip(samples["choices"], expected, strict=True):
        found = [(float(r[0][0]), str(r[0][1]) == "True") for r in sample["resps"]]
        np.testing.assert_allclose([f[0] for f in found], [e[0] for e in row], atol=2e-3)
        assert [f[1] for f in found] == [e[1] for e in row]
        assert sample["acc"] == (np.argmax([e[0] for e in row]) == 0)
    assert [s["resps"][0][0] for s in samples["words"]] == greedy
    print(
        f"acc {np.mean([s['acc'] for s in samples['choices']]):.2f} over {len(DOCS)} documents, and {len(greedy)} answers"
    )
