from qtransformers.cli import main
from qtransformers.quantize import imatrix


def test_collects_and_does_not_overwrite(data, tmp_path, capsys):
    out = tmp_path / "i.gguf"
    words = ["imatrix", str(data / "demo-Q8_0.gguf"), "-o", str(out), "--chunk", "64", "--chunks", "2"]
    assert main(words) == 0
    assert "29 weights, 128 tokens" in capsys.readouterr().err
    found = imatrix.read(out)
    assert found.sums["blk.0.attn_q.weight"].counts.tolist() == [128]
    assert found.datasets == ("qtransformers calibration.txt",)
    assert main(words) == 2 and main([*words, "--overwrite"]) == 0


def test_learns_from_several_texts(data, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A fox went to the river and met a bear. " * 20, encoding="utf-8")
    out = tmp_path / "i.gguf"
    texts = ["-f", str(tmp_path / "a.txt"), "-f", str(tmp_path / "b.txt")]
    assert main(["imatrix", str(data / "demo-Q8_0.gguf"), *texts, "-o", str(out), "--chunk", "64"]) == 0
    assert imatrix.read(out).datasets == ("a.txt", "b.txt")
