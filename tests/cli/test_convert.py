import pytest

from qtransformers.cli import main


@pytest.fixture
def demo(data):
    return str(data / "demo_model")


def test_converts(demo, data, tmp_path, capsys):
    out = tmp_path / "x.gguf"
    assert main(["convert", demo, "--type", "q8_0", "--name", "qtransformers demo", "-o", str(out)]) == 0
    assert out.read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and "38 tensors, 3.97 MB" in stderr


def test_refuses_to_overwrite_unless_told(demo, tmp_path, capsys):
    out = tmp_path / "x.gguf"
    out.write_bytes(b"precious")
    assert main(["convert", demo, "-o", str(out)]) == 2
    assert out.read_bytes() == b"precious" and "x.gguf" in capsys.readouterr().err
    assert main(["convert", demo, "-o", str(out), "--overwrite"]) == 0
    assert out.stat().st_size > 3_000_000


def test_dry_run_writes_nothing(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", demo, "-t", "F16", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "blk.3.ffn_down.weight     F16   256 x 768   393 kB" in out
    assert "would write demo_model-F16.gguf, 38 tensors" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, code",
    [
        (["nowhere"], 3),
        (["{demo}", "--type", "Q9"], 2),
        (["{demo}", "--tensor-type", "attn_v"], 2),
        (["{demo}", "--keep", "nothing"], 2),
        (["{demo}", "--pre", "qwen2"], 0),
    ],
)
def test_exit_codes(words, code, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *(w.format(demo=demo) for w in words)]) == code
    assert "Traceback" not in capsys.readouterr().err
