"""lm-eval's `local-completions` over HTTP: its scores are those of the model itself."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval")  # pip install 'lm_eval[api]'

CHOICES = [
    ("The fox likes to eat", ["red apples", "the tall windmill", "seven lanterns"], 0),
    ("Once there lived a proud", ["duck", "yesterday", "because"], 0),
    ("It was raining, so she took her", ["eat", "umbrella", "singing near"], 1),
    ("Arthur went to the", ["windmill", "seven", "likes"], 0),
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
num_fewshot: 0
doc_to_text: "{{{{question}}}}"
{more}
"""
CHOOSE = """output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""
WRITE = """output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 16, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""


def logprob(model, context, answer):
    ids, n = (
        model.tokenizer.encode(context + answer, add_bos=False),
        len(model.tokenizer.encode(context, add_bos=False)),
    )
    scores = [lp for part in model.score(ids) for lp in part]
    return sum(lp.logprob for lp in scores[n - 1 :])


@pytest.mark.slow
def test_scores(served, data, tmp_path):
    url, server = served
    model = server.models.entries[0].loaded
    written = [
        model.generate(
            model.tokenizer.encode(q, add_bos=False), add_bos=False, max_tokens=16, temperature=0, stop=["."]
        ).text
        for q, _, _ in CHOICES
    ]
    rows = [
        {"question": q, "choices": choices, "gold": gold, "answer": a if i else "something else"}
        for i, ((q, choices, gold), a) in enumerate(zip(CHOICES, written, strict=True))
    ]  # fmt: skip
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, more in (("choose", CHOOSE), ("write", WRITE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=file, more=more))
    args = f"model=demo,base_url={url}/v1/completions,tokenizer={data / 'demo_model'},tokenizer_backend=huggingface,num_concurrent=2,max_retries=1"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", args, "--include_path", str(tmp_path), "--tasks", "choose,write", "--output_path", str(tmp_path / "out"), "--log_samples"]  # fmt: skip
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]
    expected = [[logprob(model, row["question"], f" {c}") for c in row["choices"]] for row in rows]
    assert results["choose"]["acc,none"] == np.mean(
        [int(np.argmax(e)) == row["gold"] for e, row in zip(expected, rows, strict=True)]
    )
    assert results["write"]["exact_match,none"] == 0.75
    samples = [
        json.loads(line) for line in next((tmp_path / "out").rglob("samples_choose*.jsonl")).read_text().splitlines()
    ]
    for sample in samples:
        found = [float(r[0][0]) for r in sample["resps"]]
        assert np.allclose(found, expected[sample["doc_id"]], atol=2e-2)
