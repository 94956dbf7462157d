"""`qtransformers serve` as a process: what it prints, `ps`, its end, which lets answers finish."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import httpx2 as httpx
import pytest

from qtransformers.cli.command import main
from qtransformers.cli.serve import greeting, setting_of
from qtransformers.serve.config import ServerConfig, read_keys
from servers import LONG, running

KEY = "k" * 24


@pytest.fixture
def command(data, tmp_path):
    """The command, listening: its process and URL."""
    words = ["serve", str(data / "demo-Q8_0.gguf"), "--port", "0", "--alias", "demo", "--threads", "1"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "QTRANSFORMERS_API_KEY": KEY}
    process = subprocess.Popen(
        [sys.executable, "-m", "qtransformers", *words], stderr=subprocess.PIPE, text=True, env=env
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"listening at (\S+)", line):
            break
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
    yield process, found[1], said
    process.kill()
    process.wait()


def test_ps_finds_it(command, tmp_path, capsys, monkeypatch):
    process, url, _ = command
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for _ in range(500):
        assert main(["ps", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        if found["models"] and found["models"][0]["state"] == "ready":
            break
        time.sleep(0.02)
    assert (found["url"], found["pid"], found["models"][0]["name"]) == (url, process.pid, "demo")
    assert found["models"][0]["context_length"] == 1024
    (file,) = (tmp_path / "qtransformers" / "servers").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert main(["ps"]) == 0
    assert re.search(rf"{url} +demo +ready +0 +0 +[0-9]", capsys.readouterr().out)
    with httpx.Client(base_url=url) as http:
        assert http.get("/v1/models").status_code == 401, "the key is not the token"
    process.kill()
    process.wait()
    assert main(["ps"]) == 1
    assert "qtransformers serve" in capsys.readouterr().err
    assert not file.exists()


def test_sigterm_lets_answers_finish(command):
    process, url, said = command
    with httpx.Client(base_url=url, timeout=60, headers={"x-api-key": KEY}) as http:
        for _ in range(500):
            if http.get("/health").status_code == 200:
                break
            time.sleep(0.02)
        with http.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 500, "min_tokens": 500}) as found:
            lines = found.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while (state := httpx.get(f"{url}/health", timeout=60)).status_code == 200:
                time.sleep(0.01)
            assert (state.status_code, state.json()) == (503, {"status": "draining"}), "who asks anew is told"
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            http.get("/health")
    assert any("curl http" in line for line in said)
    assert any('"finish": "length"' in line for line in said)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("awk")), reason="no curl or awk")
@pytest.mark.parametrize("source", ["file", "environment", None])
def test_the_printed_lines_run_as_printed(demo, tmp_path, source, monkeypatch):
    file = tmp_path / "keys of ours"
    file.write_text(f"# a remark\n\nalice {KEY} # hers\nbob {'b' * 20}\n")
    args = argparse.Namespace(api_key_file=str(file) if source == "file" else None)
    monkeypatch.delenv("QTRANSFORMERS_API_KEY", raising=False)
    if source == "environment":
        monkeypatch.setenv("QTRANSFORMERS_API_KEY", KEY)
    with running([demo], ServerConfig(keys=read_keys(file) if source else {})) as (url, _):
        said = greeting(url, "demo", setting_of(args, source is not None))
        lines, python = said.split("\n\n")[1:]
        found = subprocess.run(["sh", "-c", lines.replace("curl ", "curl -s ")], capture_output=True, text=True, check=True)  # fmt: skip
        assert json.loads(found.stdout)["choices"][0]["message"]["content"]
        if shell := [line for line in lines.splitlines() if "export" in line]:
            key = subprocess.run(["sh", "-c", f'{shell[0]}\nprintf %s "$QTRANSFORMERS_API_KEY"'], capture_output=True, text=True, check=True).stdout  # fmt: skip
            monkeypatch.setenv("QTRANSFORMERS_API_KEY", key)
        pytest.importorskip("openai")
        exec(textwrap.dedent(python), {"print": (told := []).append})
        assert told[0]


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="there a file that is mapped cannot become shorter")
def test_a_model_that_is_written_over_is_named_in_the_end(data, tmp_path):
    path = shutil.copy(data / "demo-Q8_0.gguf", tmp_path / "written-over.gguf")
    command = [sys.executable, "-m", "qtransformers", "serve", str(path), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = next(line.split()[-1] for line in process.stderr if line.startswith("listening"))
    with httpx.Client(base_url=url, timeout=60) as http:
        while http.get("/health").status_code != 200:
            time.sleep(0.02)
        os.truncate(path, 4096)
        with suppress(httpx.HTTPError):
            http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 20})
    assert process.wait(60) == -signal.SIGBUS
    assert f"qtransformers: {path} has become shorter" in process.stderr.read()
