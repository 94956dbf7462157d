"""The verb that measures: what it measures, not how fast it is."""

import json

import pytest


def test_json_has_a_result_for_each_test(command):
    done = command("bench", "demo", "-p", "16,40", "-n", "3", "-b", "1,2", "-d", "0,5", "--json")
    assert done.returncode == 0, done.stderr
    results = {r["test"]: r for r in json.loads(done.stdout)["results"]}
    assert list(results) == ["pp16", "pp40", "tg3", "tg3 x2", "tg3@5", "tg3@5 x2"]
    assert all(r["tokens_per_second"] > 0 for r in results.values())
    assert all((r["of_peak"] is None) == name.startswith("tg") for name, r in results.items())
    assert all((r["of_plain_read"] is None) == name.startswith("pp") for name, r in results.items())
    single, pair = results["tg3"], results["tg3 x2"]
    bytes_a_step = [r["weights_gb_per_second"] / r["tokens_per_second"] * n for r, n in ((single, 1), (pair, 2))]
    assert bytes_a_step[0] == pytest.approx(bytes_a_step[1])
    assert bytes_a_step[0] == pytest.approx(3.9e-3, rel=0.02)  # the demo model's weights, in GB


def test_the_table_is_for_people(command):
    done = command("bench", "demo", "-p", "8", "-n", "2", "-b", "1", "--accuracy", "exact", "--cache", "f32")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["test", "tok/s", "GB/s", "of", "read", "GOPS", "of", "peak"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["-p", "0"], "expected whole numbers from 1"),
        (["-b", "1,x"], "expected whole numbers from 1"),
        (["-n", "-3"], "-n"),
        (["-d", "2000"], "the context of the model holds 1024"),
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
