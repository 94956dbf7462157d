"""The app under Ray Serve with two replicas, and batches under Ray Data, by the examples: make test-ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("ray.serve")
import httpx2 as httpx

from qtransformers import Model

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 300  # seconds


def chat(text="Tell me a story.", **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}


def test_batches_under_ray_data(tmp_path, data):
    """Chats of one message and of several, in batches of one row and of more."""
    chats = [chat(f"Tell me a story about {i} foxes.")["messages"] for i in range(6)]
    for i in range(0, 6, 2):
        chats[i].insert(0, {"role": "system", "content": "You tell short stories."})
    chats_file, out = tmp_path / "chats.jsonl", tmp_path / "out"
    chats_file.write_text("".join(json.dumps({"id": i, "messages": m}) + "\n" for i, m in enumerate(chats)))
    model = str(data / "demo-Q8_0.gguf")
    words = [sys.executable, EXAMPLES / "ray_data.py", chats_file, out, model, "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(x) for path in out.glob("*.json") for x in path.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == list(range(6))
    with Model.load(model, threads=1) as m:
        for row in rows:
            assert row["messages"] == chats[row["id"]]
            assert row["answer"] == m.chat(chats[row["id"]], max_tokens=64, temperature=0).text


@pytest.fixture(scope="module")
def served(data):
    """The example with two replicas: each lets eight answers in, and 16 may wait."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [sys.executable, str(EXAMPLES / "ray_serve.py"), str(data / "demo-Q8_0.gguf"), "2", str(port)]
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            until(lambda: answers(http) or run.poll() is not None)
            assert run.poll() is None, "the example has ended"
            yield http
    finally:
        run.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            run.wait(60)
        run.kill()


def answers(http):
    with suppress(httpx.HTTPError):
        return http.get("/health").status_code == 200


def until(there):
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def pids():
    """Processes of the replicas."""
    import psutil

    found = set()
    for p in psutil.process_iter():
        with suppress(psutil.Error):  # it may be ending
            name = " ".join(p.cmdline())
            if name.startswith("ray::ServeReplica:") and "qtransformers" in name and p.status() != "zombie":
                found.add(p.pid)
    return found


def test_answers_whole_and_streamed(served, data):
    with Model.load(data / "demo-Q8_0.gguf", threads=1) as model:
        expected = model.chat(chat()["messages"], temperature=0, max_tokens=8).text
    assert len(pids()) == 2
    assert served.post("/v1/chat/completions", json=chat()).json()["choices"][0]["message"]["content"] == expected
    with served.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        events = [json.loads(x[6:]) for x in response.iter_lines() if x.startswith("data: {")]
    assert len(events) > 4
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == expected


def test_too_many_at_once(served):
    body = chat(max_tokens=300, min_tokens=300)
    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(lambda _: served.post("/v1/chat/completions", json=body).status_code, range(48)))
    assert set(found) == {200, 503} and found.count(200) >= 16, found
    assert served.post("/v1/chat/completions", json=chat()).status_code == 200


def test_a_killed_replica(served):
    """The other goes on answering, and a new one takes its place."""
    before = pids()
    os.kill(min(before), signal.SIGKILL)
    answered = 0
    for _ in range(20):
        answered += served.post("/v1/chat/completions", json=chat()).status_code == 200
        time.sleep(0.1)
    assert answered >= 10
    until(lambda: len(pids()) == 2 and min(before) not in pids())
    until(lambda: all(served.post("/v1/chat/completions", json=chat()).status_code == 200 for _ in range(8)))
