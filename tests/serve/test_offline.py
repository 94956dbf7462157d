"""`qtransformers batch`: every line has its result, whatever the others are, and however often the run is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("starlette")
from qtransformers import Model
from qtransformers.cli import main
from qtransformers.errors import InsufficientMemoryError
from qtransformers.serve import offline

PATIENCE = 300  # seconds


def chatting(i, **body):
    messages = [{"role": "user", "content": f"Tell me a story about {i} foxes."}]
    return {"messages": messages, "max_tokens": 12, "temperature": 0, **body}


def line(i, url="/v1/chat/completions", **body):
    return {"custom_id": f"c{i}", "method": "POST", "url": url, "body": {"model": "any", **(body or chatting(i))}}


@pytest.fixture
def batch(tmp_path, data, monkeypatch):
    """`batch(lines)`: exit code and results of a run over these lines, dicts or bytes."""
    monkeypatch.setenv("QTRANSFORMERS_THREADS", "1")

    def run(lines, *flags, name="o.jsonl"):
        write(tmp_path / "r.jsonl", lines)
        out = tmp_path / name
        model = () if "-m" in flags else ("-m", data / "demo-Q8_0.gguf")
        code = main(["batch", *map(str, (tmp_path / "r.jsonl", "-o", out, *model, *flags))])
        return code, [json.loads(found) for found in out.read_bytes().splitlines()] if out.exists() else []

    return run


def write(path, lines):
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))


def by_id(results):
    found = {}
    for result in results:
        assert result["custom_id"] not in found, "answered twice"
        found[result["custom_id"]] = result
    return found


def test_answers_are_those_of_the_model(batch, data, capsys):
    lines = [line(i) for i in range(12)]
    lines += [line(12, "/v1/completions", prompt=["One day", "In the wood"], max_tokens=5, temperature=0)]
    code, results = batch(lines)
    assert code == 0 and len(results) == 13
    found = by_id(results)
    with Model.load(data / "demo-Q8_0.gguf", threads=1) as model:
        for i in range(12):
            body = chatting(i)
            expected = model.chat(body.pop("messages"), **body).text
            result = found[f"c{i}"]
            assert set(result) == {"id", "custom_id", "response", "error"} and result["error"] is None
            assert result["response"]["status_code"] == 200 and result["response"]["request_id"].startswith("req_")
            assert result["response"]["body"]["choices"][0]["message"]["content"] == expected
        texts = [choice["text"] for choice in found["c12"]["response"]["body"]["choices"]]
        assert texts == [model.generate(p, max_tokens=5, temperature=0).text for p in ("One day", "In the wood")]
    assert len({result["id"] for result in results}) == 13
    assert "13 answered; " in capsys.readouterr().err


HOSTILE = {
    b"{": "invalid_request",
    b"[1, 2]": "invalid_request",
    b"\xff\xfe": "invalid_request",
    b'{"custom_id": "\xff", "url": "/v1/completions", "body": {}}': "invalid_request",
    b'{"custom_id": 7, "method": "POST", "url": "/v1/completions", "body": {}}': "invalid_request",
    b'{"custom_id": "x1", "method": "POST", "url": "/v1/completions"}': "invalid_request",
    b'{"custom_id": "x2", "method": "POST", "url": "/v1/completions", "body": [1]}': "invalid_request",
    b'{"custom_id": "x3", "method": "POST", "url": "/v1/completions", "body": ' + b"[" * 100_000: "invalid_request",
    b'{"custom_id": "x4", "method": "GET", "url": "/v1/completions", "body": {}}': "invalid_method",
    b'{"custom_id": "x5", "method": "POST", "url": "/v1/fine-tunes", "body": {}}': "invalid_url",
    b'{"custom_id": "x6", "method": "POST", "url": "http://elsewhere/v1/completions", "body": {}}': "invalid_url",
    b'{"custom_id": "x7", "method": "POST", "url": "/v1/completions", "body": {"stream": true}}': "invalid_request",
    b'{"custom_id": "", "method": "POST", "url": "/v1/completions", "body": {}}': "invalid_custom_id",
    b'{"custom_id": "' + b"y" * 600 + b'", "method": "POST", "url": "/v1/completions", "body": {}}': "invalid_custom_id",
    b'{"custom_id": "c0", "method": "POST", "url": "/v1/completions", "body": {}}': "duplicate_custom_id",
    b'{"custom_id": "x8", "method": "POST", "url": "/v1/completions", "body": {"p": "' + b"z" * 5000 + b'"}}': "line_too_large",
}  # fmt: skip


def test_lines_that_cannot_be_asked_harm_no_other(batch, monkeypatch):
    monkeypatch.setattr(offline, "MAX_LINE", 4096)
    hostile = [x if len(x) < 9000 or x.startswith(b'{"custom_id": "x8') else x[:4000] for x in HOSTILE]
    lines = [line(0), *hostile, b"", b"   ", line(1, temperature="hot"), line(2, prompt="x", model="any"), line(3)]
    for again in range(2):  # and a second run adds nothing
        code, results = batch(lines)
        assert code == 0 and len(results) == len(HOSTILE) + 4, again
    errors = {r["error"]["line"]: r["error"]["code"] for r in results if r["error"]}
    assert errors == {i + 2: code for i, code in enumerate(HOSTILE.values())}
    for result in results:
        assert (result["error"] is None) != (result["response"] is None)
        if result["error"]:
            assert result["error"]["message"].startswith(f"line {result['error']['line']}: ")
    found = {r["custom_id"]: r["response"] for r in results if r["response"]}
    assert [found[f"c{i}"]["status_code"] for i in range(4)] == [200, 400, 400, 200]
    assert found["c1"]["body"]["error"]["message"].startswith("temperature: found str; expected")


def started(lines, tmp_path, data):
    write(tmp_path / "r.jsonl", lines)
    words = [sys.executable, "-m", "qtransformers", "batch", tmp_path / "r.jsonl", "-o", tmp_path / "o.jsonl"]
    return subprocess.Popen(
        [*map(str, words), "-m", str(data / "demo-Q8_0.gguf"), "--parallel", "2", "-t", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )


def when_answered(n, path, run):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (not path.exists() or path.read_bytes().count(b"\n") < n):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.01)


def test_a_killed_run_goes_on(batch, tmp_path, data):
    """Killed twice, the second time amid a line: no answer is lost, none comes twice."""
    lines = [line(i, **chatting(i, max_tokens=60, min_tokens=60)) for i in range(40)]
    out, before = tmp_path / "o.jsonl", b""
    for n in (3, 9):
        run = started(lines, tmp_path, data)
        when_answered(n, out, run)
        run.kill()
        run.communicate()
        kept = out.read_bytes()
        assert kept.startswith(before) and kept.count(b"\n") >= n
        before = kept[: kept.rindex(b"\n") + 1]
    out.write_bytes(before + b'{"id":"batch_req_1","custom_id":"c39","resp')
    code, results = batch(lines)
    assert code == 0 and out.read_bytes().startswith(before)
    assert set(by_id(results)) == {f"c{i}" for i in range(40)}
    assert all(r["response"]["body"]["usage"]["completion_tokens"] == 60 for r in results)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_is_done(tmp_path, data):
    lines = [line(i, **chatting(i, max_tokens=60, min_tokens=60)) for i in range(200)]
    run = started(lines, tmp_path, data)
    when_answered(2, tmp_path / "o.jsonl", run)
    other = started(lines, tmp_path, data)  # another cannot write there meanwhile
    _, said = other.communicate(timeout=PATIENCE)
    assert other.returncode == 2 and "another batch writes its results there" in said
    os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=PATIENCE)
    results = [json.loads(found) for found in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert run.returncode == 130 and f"{200 - len(by_id(results))} requests are left" in said
    assert all(r["response"]["status_code"] == 200 for r in results)


def failing(monkeypatch, fails):
    """Answers of which those fail, by their number, that `fails` says."""
    astream, calls = Model.astream, []

    def stream(model, *args, **options):
        calls.append(args)
        if fails(len(calls)):
            raise InsufficientMemoryError("no memory at the moment.")
        return astream(model, *args, **options)

    monkeypatch.setattr(Model, "astream", stream)
    return calls


def test_what_fails_once_is_asked_again(batch, monkeypatch):
    calls = failing(monkeypatch, lambda n: n == 4)
    code, results = batch([line(i) for i in range(8)])
    assert code == 0 and len(calls) == 9
    assert [r["response"]["status_code"] for r in by_id(results).values()] == [200] * 8


def test_what_fails_twice_says_so(batch, monkeypatch):
    calls = failing(monkeypatch, lambda n: n in (8, 9))
    code, results = batch([line(i) for i in range(8)])
    assert code == 0 and len(calls) == 9
    assert sorted(r["response"]["status_code"] for r in by_id(results).values()) == [200] * 7 + [503]


def test_a_server_that_fails_at_everything_leaves_the_rest_for_later(batch, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing(patch, lambda n: True)
        code, results = batch([line(i) for i in range(60)])
    assert code == 1 and results == [] and "no memory at the moment" in capsys.readouterr().err
    code, results = batch([line(i) for i in range(60)])
    assert code == 0 and len(by_id(results)) == 60


def test_models_are_those_that_lines_name(batch, data, tmp_path, capsys):
    path = str(data / "demo-Q8_0.gguf")
    write(tmp_path / "r.jsonl", [line(0, **chatting(0, model=path)), line(1, **chatting(1, model="demo"))])
    assert main(["batch", str(tmp_path / "r.jsonl"), "-o", str(tmp_path / "n.jsonl"), "-t", "1"]) == 0
    found = by_id(json.loads(x) for x in (tmp_path / "n.jsonl").read_bytes().splitlines())
    assert {r["response"]["body"]["model"] for r in found.values()} == {path, "demo"}
    write(tmp_path / "r.jsonl", [{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x"}}])
    assert main(["batch", str(tmp_path / "r.jsonl"), "-o", str(tmp_path / "n2.jsonl")]) == 2
    assert "name 0 models" in capsys.readouterr().err


def test_files_that_are_none_of_ours(batch, tmp_path, capsys):
    (tmp_path / "o.jsonl").write_bytes(b'{"custom_id": "x"}\nimportant\n')
    assert main(["batch", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "p.jsonl"), "-m", "demo"]) == 3
    write(tmp_path / "r.jsonl", [line(0)])
    assert main(["batch", str(tmp_path / "r.jsonl"), "-o", str(tmp_path / "o.jsonl"), "-m", "demo"]) == 2
    assert "o.jsonl, line 1" in capsys.readouterr().err
    assert (tmp_path / "o.jsonl").read_bytes() == b'{"custom_id": "x"}\nimportant\n'
    assert main(["batch", str(tmp_path / "r.jsonl"), "-m", "demo"]) == 2
    assert "--output is missing" in capsys.readouterr().err
