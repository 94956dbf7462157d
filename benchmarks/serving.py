"""Streams of many clients at once: tokens a second and the time between tokens, ours and llama-server's, in turns.

usage: serving.py [--model demo|FILE]... [--clients 16] [--tokens 128] [--rounds 5] [--threads N] [--llama-server PROGRAM] [--title TITLE]

Each client opens a connection, asks for a completion of its own prompt of 48 tokens and reads the events as they come, on
one thread for all clients, in this process. Both servers get the same requests, greedy, that end after exactly so many
tokens, and neither guesses ahead. The time between tokens is that between events at the client. Without --threads each
server takes as many as it takes when nothing is said. How even the machine itself is shows a loop of arithmetic on one core; where its speed drifts from round to round, the ratio
within a round (the median of all rounds) says more of a server than that of all times together.
"""

import argparse
import asyncio
import gc
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import results

CONTEXT = 512
PROMPT = 48  # tokens


def prompt(i: int) -> list[int]:
    return [(37 * i + 11 * j) % 900 + 5 for j in range(PROMPT)]


async def client(port: int, i: int, n: int) -> tuple[int, list[float]]:
    """Tokens of one answer, and when its events came."""
    ask = {
        "prompt": prompt(i),
        "max_tokens": n,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    ask |= {"ignore_eos": True} if port in LLAMA else {"min_tokens": n, "speculate": False}
    body = json.dumps(ask).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
    times, said = [], b""
    while part := await reader.read(1 << 16):
        times += [time.perf_counter()] * part.count(b"data: {")
        said = said[-4096:] + part
    writer.close()
    return int(re.findall(rb'"completion_tokens": ?(\d+)', said)[-1]), times


LLAMA: set[int] = set()


async def round_of(port: int, clients: int, n: int) -> tuple[float, list[float]]:
    """Tokens a second of all clients together, and seconds between the events of each."""
    gc.collect()
    gc.disable()  # a collection of this process would be told of as a pause of the server
    start = time.perf_counter()
    found = await asyncio.gather(*(client(port, i, n) for i in range(clients)))
    seconds = time.perf_counter() - start
    gc.enable()
    assert all(tokens == n for tokens, _ in found), [tokens for tokens, _ in found]
    gaps = [b - a for _, times in found for a, b in pairwise(times[:-1])]  # the last event is no token
    return clients * n / seconds, gaps


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running(command: list[str], port: int):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        for _ in range(600):
            try:
                if urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


def commands(path: str, a: argparse.Namespace) -> dict[str, tuple[list[str], int]]:
    """Server -> what starts it, and its port."""
    ours, theirs = free_port(), free_port()
    threads = ["--threads", str(a.threads)] if a.threads else []
    found = {"qtransformers": ([sys.executable, "-m", "qtransformers", "serve", path, "--port", str(ours), *threads, "--parallel", str(a.clients), "--ctx-size", str(CONTEXT), "--cache-tokens", str(CONTEXT * a.clients)], ours)}  # fmt: skip
    if a.llama_server:
        LLAMA.add(theirs)
        found["llama-server"] = ([a.llama_server, "-m", path, "--port", str(theirs), *threads, "-np", str(a.clients), "-c", str(CONTEXT * a.clients)], theirs)  # fmt: skip
    return found


def spins(seconds: float = 0.2) -> list[float]:
    """Seconds that a loop of about two milliseconds takes, over and over."""
    found = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        sum(range(80_000))
        found.append(time.perf_counter() - start)
    return found


def spread(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]


def measured(path: str, a: argparse.Namespace) -> tuple[list[list[str]], float]:
    """A row for each server, and the machine's own 99th percentile as a share of its median."""
    servers = commands(path, a)
    speeds: dict[str, list[float]] = {name: [] for name in servers}
    gaps: dict[str, list[list[float]]] = {name: [] for name in servers}
    alone = []
    with ExitStack() as stack:
        for command, port in servers.values():
            stack.enter_context(running(command, port))
        for i in range(a.rounds + 1):  # the first warms up
            for name, (_, port) in servers.items():
                speed, found = asyncio.run(round_of(port, a.clients, a.tokens))
                if i:
                    speeds[name].append(speed)
                    gaps[name].append(found)
            alone += spins()
    rows = []
    for name in servers:
        median, last = spread([gap for found in gaps[name] for gap in found])
        ratios = [high / middle for middle, high in map(spread, gaps[name])]
        rows.append([f"{Path(path).stem}, {name}", f"{statistics.median(speeds[name]):,.0f}", f"{min(speeds[name]):,.0f} to {max(speeds[name]):,.0f}", f"{1e3 * median:.2f}", f"{1e3 * last:.2f}", f"{last / median:.2f}", f"{statistics.median(ratios):.2f}"])  # fmt: skip
    median, last = spread(alone)
    return rows, last / median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--llama-server")
    parser.add_argument("--title", default="")
    a = parser.parse_args()
    demo = Path(__file__).parents[1] / "tests" / "data" / "demo-Q8_0.gguf"
    rows, own = [], []
    for model in a.model or ["demo"]:
        more, its = measured(str(demo) if model == "demo" else model, a)
        rows += more
        own.append(its)
    head = [
        "server",
        "tokens/s",
        "of all rounds",
        "median ms between tokens",
        "99th percentile",
        "ratio",
        "within a round",
    ]
    title = f"Serving {a.clients} clients{f', {a.title}' if a.title else ''}"
    threads = f"{a.threads} threads" if a.threads else "each server's own number of threads"
    how = f"{a.tokens} tokens each, {a.rounds} rounds in turns, {threads}, {CONTEXT} tokens of context each; clients run on the same cores."
    machine = f"The same ratio of a loop of arithmetic on one core, between the rounds: {', '.join(f'{ratio:.2f}' for ratio in own)}."
    results.publish(__file__, title, f"{how} {machine}\n\n{results.table(head, rows)}")


if __name__ == "__main__":
    main()
