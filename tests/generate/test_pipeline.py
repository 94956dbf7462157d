"""Stages in processes of their own: answers as of one process, memory of their own layers only, and errors instead of waiting."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qtransformers import Model
from qtransformers.errors import ConfigError, LoadError, NetworkError, UnsupportedError
from qtransformers.generate.link import Meeting
from qtransformers.gguf import GGUFFile, GGUFWriter

pytest.importorskip("torch")
PATIENCE = 300  # seconds: importing torch takes its time on a busy machine
PROMPT = "Once upon a time there was a brave fox who"
OPTIONS = {"context_length": 1024, "cache_tokens": 1024, "cache": "f32"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def stages(path, n, first=None, **options):
    """A model in `n` processes, this one the first, and the others."""
    port = free_port()
    words = [
        [sys.executable, "-m", "qtransformers", "stage", str(path), f"127.0.0.1:{port}", str(i)] for i in range(1, n)
    ]
    others = [subprocess.Popen(w, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for w in words]
    try:
        with Model.load(first or path, stages=f"127.0.0.1:{port}/{n}", **{**OPTIONS, **options}) as model:
            yield model, others
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_answers_as_of_one_process(data):
    """Side by side, with shared and copied pages, guesses, a grammar and drawn tokens."""
    path = data / "demo-Q8_0.gguf"
    long = PROMPT + " lived in the wood and liked to sing. " * 20

    def answers(model):
        greedy = model.generate_many([PROMPT, long, long + "One day", PROMPT + " was"], max_tokens=24, temperature=0)
        again = model.generate(long + "One night", max_tokens=16, temperature=0)
        drawn = model.generate(PROMPT, max_tokens=16, temperature=0.8, seed=3, logprobs=2, regex="[a-z ]+")
        ids = model.tokenizer.encode(long)
        return [a.tokens for a in (*greedy, again, drawn)], model.logits(ids)

    with Model.load(path, **OPTIONS) as model:
        expected, logits = answers(model)
    with stages(path, 3) as (model, others):
        found, theirs = answers(model)
        assert found == expected and np.array_equal(theirs, logits)
        with pytest.raises(UnsupportedError, match="sessions need all layers"):
            model.save_session("s.gguf", [1, 2])
        with pytest.raises(UnsupportedError, match="adapters need all layers"):
            model.load_lora("lora.gguf")
        model.close()
        assert [other.wait(PATIENCE) for other in others] == [0, 0]


def test_recurrent_states_go_with_their_layers(tmp_path):
    pytest.importorskip("transformers")
    from archs.cases import CASES
    from archs.models import gguf, prompt, reference

    case = CASES["qwen3next"]
    path = gguf(reference(case, "qwen3next"), tmp_path, "qwen3next", case)
    ids, options = prompt(40), {"context_length": case.context_length, "cache_tokens": None, "accuracy": "exact"}
    asked = {"max_tokens": 12, "temperature": 0, "add_bos": False}

    def answers(model):
        return [a.tokens for a in model.generate_many([ids, ids[:9], ids[3:30], ids], **asked)]

    with Model.load(path, **{**OPTIONS, **options}) as model:
        expected = answers(model)
    with stages(path, 2, **options) as (model, _):
        assert answers(model) == expected and answers(model) == expected


def large(vocabulary, path, layers=8, width=512, ffn=2048):
    """A Llama of 70 MB with random weights."""
    rng = np.random.default_rng(1)
    with GGUFFile(vocabulary) as file:
        kept = {key: file.metadata.typed(key) for key in file.metadata if key.startswith(("tokenizer.", "general."))}
        vocab = len(file.metadata["tokenizer.ggml.tokens"])
    sizes = {"block_count": layers, "context_length": 1024, "embedding_length": width, "feed_forward_length": ffn}
    sizes |= {"attention.head_count": 8, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": width // 8}
    tensors = {"token_embd": (vocab, width), "output_norm": (width,)}
    for i in range(layers):
        tensors |= {f"blk.{i}.{name}_norm": (width,) for name in ("attn", "ffn")}
        tensors |= {f"blk.{i}.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
        tensors |= {
            f"blk.{i}.ffn_gate": (ffn, width),
            f"blk.{i}.ffn_up": (ffn, width),
            f"blk.{i}.ffn_down": (width, ffn),
        }
    rows = [(f"{name}.weight", shape, "F16" if len(shape) > 1 else "F32") for name, shape in tensors.items()]
    with GGUFWriter(path, {**kept, **{f"llama.{k}": v for k, v in sizes.items()}}, rows) as writer:
        for name, shape, kind in rows:
            writer.write(
                name, rng.standard_normal(shape, np.float32).astype(kind.replace("F", "f").replace("f", "float")) * 0.04
            )
    return path


def resident(pid, path):
    """Bytes of a file in a process's memory."""
    maps = Path(f"/proc/{pid}/smaps").read_text()
    parts = re.findall(
        rf"^[0-9a-f]+-[0-9a-f]+ .* {re.escape(str(path))}\n(?:(?![0-9a-f]+-).*\n)*?Rss: +(\d+) kB", maps, re.M
    )
    assert parts
    return sum(map(int, parts)) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_stage_has_its_own_layers_in_memory_and_no_more(data, tmp_path):
    path = large(data / "demo-Q8_0.gguf", tmp_path / "m.gguf")
    n_bytes = path.stat().st_size
    with stages(path, 3) as (model, others):
        model.generate([5, 6, 7], max_tokens=4, temperature=0, add_bos=False)
        found = [resident(pid, path) for pid in (os.getpid(), *(other.pid for other in others))]
        assert model.plan.weights_bytes < n_bytes / 2
    assert all(n_bytes / 6 < n < n_bytes / 2 for n in found), (found, n_bytes)


def test_a_killed_stage_is_an_error_of_all_others(data):
    """The first names the one that was killed, not the one from which it waits to hear."""
    killed, left = 0, 1
    with stages(data / "demo-Q8_0.gguf", 3) as (model, others):
        stream = model.stream(PROMPT, max_tokens=500, temperature=0, min_tokens=500)
        next(stream)
        others[killed].send_signal(signal.SIGKILL)
        with pytest.raises(NetworkError, match=f"stage {killed + 1} of 3 .* is gone: .*Start all stages again"):
            stream.read()
        assert others[left].wait(PATIENCE) == 6
        assert f"stage {killed + 1} of 3" in model.problem
        assert "is gone" in others[left].stderr.read()
        with pytest.raises(NetworkError, match="is gone"):  # and it stays one
            model.generate(PROMPT, max_tokens=2)


@pytest.mark.slow
def test_a_first_stage_that_dies_ends_the_others(data):
    port = free_port()
    words = [sys.executable, "-m", "qtransformers"]
    path = str(data / "demo-Q8_0.gguf")
    asked = ["run", path, "x", "-n", "900", "--min-tokens", "900", "--stages", f"127.0.0.1:{port}/2"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    other = subprocess.Popen([*words, "stage", path, f"127.0.0.1:{port}", "1"], **quiet)
    first = subprocess.Popen([*words, *asked], **quiet)
    try:
        assert first.stdout.read(1)
        first.kill()
        assert other.wait(PATIENCE) == 6 and "stage 0 of 2" in other.stderr.read()
    finally:
        for p in (first, other):
            p.kill()
            p.communicate()


def test_another_model_is_refused(data):
    with (
        pytest.raises(LoadError, match=r"stage 1: .*demo-Q8_0\.gguf is another model"),
        stages(data / "demo-Q8_0.gguf", 2, first=data / "demo-draft-Q8_0.gguf"),
    ):
        pass


def test_too_many_stages_and_a_port_that_is_taken(data):
    with pytest.raises(ConfigError, match="has 4 layers, which cannot be cut in 5 stages"):
        Model.load(data / "demo-Q8_0.gguf", stages="127.0.0.1:29999/5")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(ConfigError, match="cannot be listened on"):
            Model.load(data / "demo-Q8_0.gguf", stages=f"127.0.0.1:{s.getsockname()[1]}/2")


@pytest.mark.parametrize(
    "text", ["", "host", "host:x/2", "host:1/1", "host:99999/2", "host:1/2/3", ":1/2", "host:1", 7, "h:1/-2"]
)
def test_what_is_no_meeting(text):
    with pytest.raises(ConfigError, match="expected HOST:PORT/N"):
        Meeting.parse(text)
    assert Meeting.parse("[::1]:29500/2") == Meeting("::1", 29500, 2)


@pytest.mark.slow
def test_stages_that_meet_with_one_rank(data):
    """The second of a rank is told so; the model goes on with the first."""
    port = free_port()
    path = data / "demo-Q8_0.gguf"
    words = [sys.executable, "-m", "qtransformers", "stage", str(path), f"127.0.0.1:{port}", "1"]
    others = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        with Model.load(path, stages=f"127.0.0.1:{port}/2", **OPTIONS) as model:
            end = time.monotonic() + PATIENCE
            while all(other.poll() is None for other in others) and time.monotonic() < end:
                time.sleep(0.1)
            assert len(model.generate(PROMPT, max_tokens=3, temperature=0, min_tokens=3).tokens) == 3
        codes = sorted(other.wait(PATIENCE) for other in others)
        said = "".join(other.stderr.read() for other in others)
        assert codes == [0, 2] and "has this rank" in said
    finally:
        for other in others:
            other.kill()
            other.communicate()
