import json

import numpy as np
import pytest

from qtransformers.cli import main
from qtransformers.gguf import GGUFWriter


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("A fox and a bear went to the river. " * 40, encoding="utf-8")
    return str(path)


def test_prints_perplexity(text, data, capsys):
    assert main(["perplexity", str(data / "demo-Q8_0.gguf"), text, "--chunk", "64", "--chunks", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_tokens"] == 3 * 31 and 0 < found["nats"] < 8
    assert main(["perplexity", str(data / "demo-Q8_0.gguf"), text, "--chunk", "64", "--chunks", "3"]) == 0
    assert capsys.readouterr().out.startswith("perplexity ")


def test_prints_the_divergence_from_a_base(text, data, capsys):
    demo = str(data / "demo-Q8_0.gguf")
    assert main(["perplexity", demo, text, "--kl-divergence", demo, "--chunk", "64"]) == 0
    out = capsys.readouterr().out
    assert "KL divergence, mean     0.000000" in out and "100.000%" in out


def test_a_text_that_is_not_there(data, tmp_path, capsys):
    assert main(["perplexity", str(data / "demo-Q8_0.gguf"), str(tmp_path / "none.txt")]) == 3
    assert "none.txt" in capsys.readouterr().err


def test_bytes_that_are_no_text(data, tmp_path, capsys):
    (tmp_path / "x.txt").write_bytes(b"A fox \xff")
    assert main(["perplexity", str(data / "demo-Q8_0.gguf"), str(tmp_path / "x.txt")]) == 2
    assert "no UTF-8 text (invalid start byte at byte 6)" in capsys.readouterr().err


def test_files_without_a_tensor_in_common(data, tmp_path, capsys):
    with GGUFWriter(tmp_path / "x.gguf", {"general.architecture": "llama"}, [("x", (2,), "F32")]) as writer:
        writer.write("x", np.zeros(2, np.float32))
    assert main(["compare", str(data / "demo-Q8_0.gguf"), str(tmp_path / "x.gguf")]) == 2
    assert "no tensor in common" in capsys.readouterr().err


def test_compare_prints_the_worst_first(data, capsys):
    demo = str(data / "demo-Q8_0.gguf")
    assert main(["compare", demo, demo, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tensors"]) == 38 and not found["alone"]
    assert {d["relative"] for d in found["tensors"]} == {0.0}
    assert main(["compare", demo, str(data / "demo-draft-Q8_0.gguf")]) == 2
    assert "no two forms of one model" in capsys.readouterr().err
