import json

import numpy as np
import pytest

from qtransformers.cli import main
from qtransformers.gguf import GGUFWriter, split


def test_text(data, capsys):
    assert main(["show", str(data / "demo-Q8_0.gguf")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "3,672,320 parameters, 8.51 bits per weight" in out
    assert '"<|endoftext|>", "<|system|>"' in out and "... (2,048)" in out
    assert "blk.3.ffn_down.weight" in out and "256 x 768" in out
    assert "\x1b" not in out


def test_json(data, capsys):
    assert main(["show", "--json", str(data / "demo-Q8_0.gguf")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == 3_672_320
    assert shown["metadata"]["llama.block_count"] == {"type": "u32", "value": 4}
    assert shown["metadata"]["tokenizer.ggml.tokens"]["length"] == 2048
    assert len(shown["metadata"]["tokenizer.ggml.tokens"]["value"]) == 6
    assert shown["types"]["Q8_0"] == {"tensors": 29, "parameters": 3_670_016, "bytes": 3_670_016 // 32 * 34}
    assert {
        "name": "output_norm.weight",
        "type": "F32",
        "shape": [256],
        "bytes": 1024,
        "file": "demo-Q8_0.gguf",
    } in shown["tensors"]
    assert sum(t["bytes"] for t in shown["tensors"]) == shown["tensor_bytes"]


def test_full_json_holds_whole_arrays(data, capsys):
    assert main(["show", "--json", "--full", str(data / "demo-Q8_0.gguf")]) == 0
    metadata = json.loads(capsys.readouterr().out)["metadata"]
    assert len(metadata["tokenizer.ggml.tokens"]["value"]) == 2048
    assert metadata["tokenizer.ggml.token_type"]["value"][:6] == [3, 3, 3, 3, 3, 1]
    assert metadata["tokenizer.ggml.token_type"]["value"][-1] == 5


def write(path, metadata, tensors=(), **options):
    specs = [(name, values.shape, "F32") for name, values in tensors]
    with GGUFWriter(path, metadata, specs, **options) as writer:
        for name, values in tensors:
            writer.write(name, values)
    return str(path)


def shown(capsys, *words):
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def test_hostile_metadata_cannot_steer_the_terminal(tmp_path, capsys):
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202eevil"
    path = write(tmp_path / "x.gguf", {"general.name": evil, "general.tags": [evil, "b"]})
    for words in ([path], [path, "--full"], [path, "--json"], [path, "--color", "off"]):
        out = shown(capsys, *words)
        assert not [c for c in out if c in "\x1b\x07\x9b\r\u202e"]
    assert json.loads(shown(capsys, path, "--json"))["metadata"]["general.name"]["value"] == evil


def test_bytes_that_are_no_utf8_and_numbers_that_are_none(tmp_path, capsys):
    path = write(
        tmp_path / "x.gguf", {"general.name": "a\udcffb", "x.nan": float("nan"), "x.list": [1.0, float("inf")]}
    )
    metadata = json.loads(shown(capsys, path, "--json"))["metadata"]
    assert metadata["general.name"]["value"] == "a\\udcffb"
    assert metadata["x.nan"]["value"] == "nan" and metadata["x.list"]["value"] == [1.0, "inf"]
    assert "\\udcff" in shown(capsys, path)


@pytest.mark.parametrize(
    "metadata, tensors",
    [
        ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}, []),
        (
            {"general.type": "adapter", "adapter.type": "lora"},
            [("blk.0.attn_q.weight.lora_a", np.ones((4, 8), np.float32))],
        ),
        ({"general.architecture": "wan"}, [("patch_embedding.weight", np.ones((2, 3, 1, 2, 2), np.float32))]),
        (
            {"general.architecture": "of the future"},
            [("w", np.ones((0, 4), np.float32)), ("s", np.ones((), np.float32))],
        ),
        ({}, []),
    ],
    ids=["vocabulary", "adapter", "diffusion", "unknown", "empty"],
)
@pytest.mark.parametrize("big_endian", [False, True])
def test_any_file(metadata, tensors, big_endian, tmp_path, capsys):
    path = write(tmp_path / "x.gguf", metadata, tensors, big_endian=big_endian)
    text = shown(capsys, path)
    assert all(str(value) in text for value in metadata.values()) and all(name in text for name, _ in tensors)
    found = json.loads(shown(capsys, path, "--json"))
    assert found["byte_order"] == ("big" if big_endian else "little")
    assert [t["shape"] for t in found["tensors"]] == [list(values.shape) for _, values in tensors]
    assert found["parameters"] == sum(values.size for _, values in tensors)


def test_shards(data, tmp_path, capsys):
    paths = split(data / "demo-Q8_0.gguf", tmp_path / "demo", max_tensors=20)
    whole = json.loads(shown(capsys, str(paths[0]), "--json"))
    assert len(whole["files"]) == 2 and whole["parameters"] == 3_672_320
    assert main(["show", "--json", str(paths[1])]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["tensors"]) == 18 and "is shard 2 of 2" in err
    paths[1].unlink()
    assert main(["show", str(paths[0])]) == 0
    out, err = capsys.readouterr()
    assert "tensors (20)" in out and "missing" in err


def test_demo_is_a_name(capsys):
    assert "qtransformers demo" in shown(capsys, "demo")
