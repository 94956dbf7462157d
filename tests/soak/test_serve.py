"""A server for as long as one likes: clients of all kinds, many of which hang up; two models, one of which comes and goes.

make soak-serve SECONDS=600
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("starlette")
import httpx2 as httpx

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from results import publish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
ASKED = os.environ.get("QTRANSFORMERS_SOAK_SECONDS")  # by make soak-serve: its figures are published
SECONDS = float(ASKED or "40")
PATIENCE = 300  # seconds that a busy machine may take for an answer
CLIENTS, WINDOW = 6, 6.0  # seconds in which the second model is asked for, and then is not
MIB = 1 << 20


class Clients:
    """What they asked for, and what became of it."""

    def __init__(self, url, end):
        self.url, self.end = url, end
        self.counts, self.failures, self.known = Counter(), [], {}
        self.lock = threading.Lock()

    def run(self, seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            while time.monotonic() < self.end and not self.failures:
                try:
                    self.one(http, rng)
                except Exception as e:
                    self.failures.append(f"{type(e).__name__}: {e}")

    def one(self, http, rng):
        model = "second" if time.monotonic() % (2 * WINDOW) < WINDOW and rng.random() < 0.5 else "first"
        text = f"Tell me a story about {rng.randrange(6)} foxes and {'very ' * rng.choice((0, 0, 90))}old owls."
        n = rng.choice((1, 12, 60))
        ask = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": n}
        kind = rng.choice(("whole", "stream", "stream", "leave", "leave", "several", "drawn", "wrong", "schema"))
        if kind == "whole":
            self.same((model, text, n), self.answer(http, ask))
        elif kind == "several":
            found = http.post("/v1/chat/completions", json={**ask, "n": 2, "logprobs": True})
            self.check(found, {200, 503})
            if found.status_code == 200:
                assert len({c["message"]["content"] for c in found.json()["choices"]}) == 1
        elif kind == "drawn":
            self.check(http.post("/v1/completions", json={"model": model, "prompt": text, "max_tokens": n, "seed": 1}), {200, 503})  # fmt: skip
        elif kind == "wrong":
            self.check(http.post("/v1/chat/completions", json={**ask, "max_tokens": -n}), {400, 503})
        elif kind == "schema":
            schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"], "additionalProperties": False}  # fmt: skip
            shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            found = http.post("/v1/chat/completions", json={**ask, "max_tokens": 60, "response_format": shape})
            self.check(found, {200, 503})
            if found.status_code == 200 and found.json()["choices"][0]["finish_reason"] == "stop":
                assert set(json.loads(found.json()["choices"][0]["message"]["content"])) == {"n"}
        else:
            with http.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as response:
                if response.status_code != 200:
                    response.read()
                    self.check(response, {503})
                    return
                parts, left = [], rng.randrange(8) if kind == "leave" else 1 << 30
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        assert "error" not in event, event
                        parts += [c["delta"].get("content") or "" for c in event["choices"]]
                    left -= 1
                    if left < 0:
                        break
                else:
                    self.same((model, text, n), "".join(parts))
        with self.lock:
            self.counts[kind] += 1
            self.counts[model] += 1

    def answer(self, http, ask):
        found = http.post("/v1/chat/completions", json=ask)
        self.check(found, {200, 503})
        return found.json()["choices"][0]["message"]["content"] if found.status_code == 200 else None

    def check(self, response, codes):
        assert response.status_code in codes, (response.status_code, response.text)
        with self.lock:
            self.counts[response.status_code] += 1

    def same(self, asked, text):
        """One question has one answer, whoever asks it when, and whatever is computed beside it."""
        if text is not None:
            with self.lock:
                assert self.known.setdefault(asked, text) == text, (asked, text, self.known[asked])


def status(pid, name):
    return int(re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])


def private(pid):
    """Bytes that are the process's own: weights are not, which the system takes away and brings back."""
    return status(pid, "RssAnon") * 1024


def test_memory_is_flat_and_nothing_is_lost(data, tmp_path):
    words = [sys.executable, "-m", "qtransformers", "serve", data / "demo-Q8_0.gguf", data / "demo-draft-Q8_0.gguf"]
    words += ["--port", "0", "--parallel", "3", "--queue", "4", "--keep-alive", "2", "-t", "1", "--accuracy", "exact"]
    words += ["--alias", "first", "--alias", f"second={data / 'demo-draft-Q8_0.gguf'}"]
    server = subprocess.Popen([str(w) for w in words], stderr=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.extend(iter(server.stderr.readline, "")), daemon=True)
    reader.start()
    try:
        until(lambda: any("listening at" in line for line in said) or server.poll() is not None, PATIENCE)
        url = re.search(r"http://[\d.:]+", "".join(said))[0]
        until(lambda: httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200, PATIENCE)
        clients = Clients(url, time.monotonic() + SECONDS)
        threads = [threading.Thread(target=clients.run, args=(i,)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        memory, swaps, there = [], 0, False
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            memory.append(private(server.pid))
            loaded = 'model_loaded{model_name="second"} 1.0' in httpx.get(f"{url}/metrics", timeout=PATIENCE).text
            swaps, there = swaps + (loaded != there), loaded
        assert not clients.failures, clients.failures
        until(lambda: running(url) == 0, PATIENCE)
        middle, last = (statistics.median(part) for part in (memory[len(memory) // 3 : 2 * len(memory) // 3], memory[2 * len(memory) // 3 :]))  # fmt: skip
        print(f"{dict(clients.counts)}; {swaps} loads and unloads; {middle / MIB:.1f}, then {last / MIB:.1f} MiB of its own")  # fmt: skip
        assert swaps >= SECONDS // (4 * WINDOW) and clients.counts["leave"] > SECONDS / 4
        assert last < 1.05 * middle + 8 * MIB
        assert 'vllm:kv_cache_usage_perc{model_name="first"} 0.0' in httpx.get(f"{url}/metrics", timeout=PATIENCE).text
        assert len(os.listdir(f"/proc/{server.pid}/fd")) < 40 and status(server.pid, "Threads") < 40
        assert not [line for line in said if "internal_error" in line or "Traceback" in line]
        server.terminate()
        assert server.wait(60) == 0
        if ASKED:
            told = figures(clients.counts, swaps, middle, last)
            publish(__file__, "A server for long", told, how=f"make soak-serve SECONDS={SECONDS:.0f}")
    finally:
        server.kill()
        server.wait()


def figures(counts, swaps, middle, last):
    """What was found, in sentences."""
    asked = counts["first"] + counts["second"]
    return (
        f"{CLIENTS} clients of all kinds asked two models, one of which comes and goes: {asked:,} requests, {counts['leave']:,} of them left by their clients, "
        f"{counts[503]:,} refused for want of room, {swaps} loads and unloads. Memory of the process's own: {middle / MIB:.1f} MiB in the middle third, "
        f"{last / MIB:.1f} MiB in the last. One question had one answer throughout, and the server ended with code 0."
    )


def running(url):
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
    return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith("vllm:num_requests_running{"))


def until(there, seconds):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)
