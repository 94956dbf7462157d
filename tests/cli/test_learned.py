"""convert --awq --refine --budget, as one types it."""

import pytest

from qtransformers.cli import main
from qtransformers.gguf import GGUFFile


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("A fox and a bear went to the river and met an owl. " * 150, encoding="utf-8")
    return str(path)


def test_a_checkpoint_in_few_bits_is_judged(data, text, tmp_path, capsys):
    out = tmp_path / "a.gguf"
    words = [
        "convert",
        str(data / "demo_model"),
        "-t",
        "Q2_K",
        "--awq",
        "--budget",
        "3.4bpw",
        "-f",
        text,
        "--chunks",
        "2",
        "-o",
        str(out),
    ]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "KL divergence" in err and f"{out}: 38 tensors" in err
    with GGUFFile(out) as file:
        n = sum(t.n_values for t in file.tensors.values())
        assert 3.0 < 8 * sum(t.nbytes for t in file.tensors.values()) / n <= 3.4
    assert main(words) == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["-f", "x.txt"], "--file is for --awq"),
        (["--budget", "4", "--fit", "3MB"], "both say"),
        (["--budget", "many"], "many"),
        (["--budget", "4", "--dry-run"], "--dry-run cannot say"),
        (["--awq", "-f", "none.txt"], "none.txt"),
    ],
)
def test_flags_that_do_not_go_together(words, said, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(data / "demo_model"), "-t", "Q4_K_M", *words]) in (2, 3)
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
