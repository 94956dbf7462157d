import json

from qtransformers.cli import main


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
