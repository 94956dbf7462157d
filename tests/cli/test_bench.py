"""The verb that measures: what it measures, not how fast it is."""

import json

import pytest

from qtransformers.gguf import GGUFFile
from qtransformers.load.hub import DEMO


def test_json_has_a_result_for_each_test(command):
    flags = [
        "-p",
        "16,40",
        "-n",
        "3",
        "-b",
        "1,2",
        "-d",
        "0,5",
        "-t",
        "2",
        "--cache",
        "q8",
        "--accuracy",
        "high",
        "--json",
    ]
    done = command("bench", "demo", *flags, env={"QTRANSFORMERS_ISA": "generic"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    results = {r["test"]: r for r in found["results"]}
    assert list(results) == ["pp16", "pp40", "tg3", "tg3 x2", "tg3@5", "tg3@5 x2"]
    assert all(r["tokens_per_second"] > 0 for r in results.values())
    assert all((r["of_peak"] is None) == name.startswith("tg") for name, r in results.items())
    assert all((r["of_plain_read"] is None) == name.startswith("pp") for name, r in results.items())
    for r in results.values():
        limit, speed = (
            ("peak_gops", "gops") if r["test"].startswith("pp") else ("plain_read_gb_per_second", "gb_per_second")
        )
        assert r[limit] > 0 and r[speed] > 0
    a_step = {n: r["gb_per_second"] / r["tokens_per_second"] for n, r in results.items() if n.startswith("tg")}
    token = (
        4 * 2 * (64 + 64) * 8.5 / 8 * 1e-9
    )  # GB of a token in the cache: layers, KV heads, values of keys and values
    with GGUFFile(DEMO) as file:
        weights = sum(t.nbytes for t in file.tensors.values()) * 1e-9
    assert a_step["tg3"] == pytest.approx(weights, rel=0.02)
    assert a_step["tg3@5"] - a_step["tg3"] == pytest.approx(5 * token)
    assert 2 * (a_step["tg3@5 x2"] - a_step["tg3 x2"]) == pytest.approx(2 * 5 * token)
    about = {name: found[name] for name in ("architecture", "cache", "accuracy", "threads", "isa")}
    assert about == {"architecture": "llama", "cache": "q8", "accuracy": "high", "threads": 2, "isa": "generic"}
    assert found["model"].endswith("demo.gguf") and found["cpu"]


def test_the_table_is_for_people(command):
    done = command("bench", "demo", "-p", "8", "-n", "2", "-b", "1", "--accuracy", "exact", "--cache", "f32")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert "demo.gguf (llama), cache f32, accuracy exact" in lines[3] and "plain reads" in lines[3]
    assert lines[0].split() == ["test", "tok/s", "GB/s", "of", "read", "GOPS", "of", "peak"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["-p", "0"], "expected whole numbers from 1"),
        (["-b", "1,x"], "expected whole numbers from 1"),
        (["-n", "-3"], "-n"),
        (["-d", "2000"], "the context of the model holds 1024"),
        (["-d", "1023", "-n", "2"], "1025 tokens are asked for"),
        (["-p", "5000"], "5000 tokens are asked for"),
        (["--accuracy", "best"], "expected one of exact, high, fast"),
    ],
)
def test_what_cannot_be_measured_is_refused(command, words, message):
    done = command("bench", "demo", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_model_that_is_not_there(command):
    assert command("bench", "no/where.gguf").returncode == 3


def test_a_model_on_a_card(tmp_path, monkeypatch, capsys):
    """In Triton's interpreter: the same rows, reads of the card's memory beside them, and the card's name."""
    pytest.importorskip("triton")
    pytest.importorskip("transformers")
    import interpreter  # noqa: F401
    from archs.cases import CASES
    from archs.models import gguf, reference
    from qtransformers import machine
    from qtransformers.cli import main, measure
    from qtransformers.kernels.triton import device

    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a card", 8 << 30, 8 << 30, (9, 0))])
    monkeypatch.setattr(measure, "ROUNDS", 1)
    reads, read = [], device.read_seconds
    monkeypatch.setattr(device, "read_seconds", lambda n, device: reads.append((n, device)) or read(n, device))
    path = gguf(reference(CASES["llama-llama3"], "llama-llama3"), tmp_path, "llama-llama3", CASES["llama-llama3"])
    words = ["bench", str(path), "--placement", "cuda:0", "-p", "1", "-n", "1", "-b", "1", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == ["cuda:0"]
    prompt, answer = found["results"]
    assert prompt["test"] == "pp1" and prompt["gops"] > 0 and prompt["peak_gops"] is None
    assert answer["test"] == "tg1" and answer["plain_read_gb_per_second"] > 0
    assert [device for _, device in reads] == ["cuda:0"] and reads[0][0] > 10_000
