"""What benchmarks/diffusion.py counts, and that its part for a card runs to its end without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import diffusion
import diffusion_worker as worker
import gpu_diffusion as on_card

from qtransformers.convert import convert
from qtransformers.kernels import staging
from qtransformers.torch import QuantWeight


def test_work_is_that_of_products_many_tokens_share(tmp_path, monkeypatch):
    monkeypatch.setitem(staging.TILE_TOKENS, "fast", 8)
    folder = diffusion.make(on_card.TINY_SHAPES["flux"], tmp_path / "flux")
    file = convert(folder, tmp_path / "m.gguf", "Q8_0", layout="diffusers")
    asked = {"kind": "ours:exact", "gguf": file, "folder": folder, "class": diffusion.FLUX, "device": "cpu"}
    place = torch.device("cpu")
    model, dtype = worker.load(asked, place)
    given = worker.inputs(model, 64, 4, dtype, place)  # 16 patches, 4 of text
    own = {name: m for name, m in model.named_modules() if isinstance(m, QuantWeight)}
    of_picture = [m for name, m in own.items() if name.startswith((*(f"transformer_blocks.0.attn.to_{x}." for x in ("q", "k", "v", "out")), "transformer_blocks.0.ff.", "x_embedder", "proj_out"))]  # fmt: skip
    of_both = [m for name, m in own.items() if name.startswith("single_") and ".norm." not in name]
    assert len(of_picture) == 8 and len(of_both) == 5
    n, both = (sum(m.shape.numel() for m in ms) for ms in (of_picture, of_both))
    found = worker.work(model, given)
    assert found["operations"] == 2 * (16 * n + 20 * both)
    assert found["decoded"] == (n + both) * (2 + 34 / 32)
    took, picture = worker.steps(model, given, place)
    assert took > 0 and torch.equal(picture, worker.step(model, given))


def test_rows_say_how_much_faster_and_how_far_off():
    def took(step):
        return diffusion.Took(1.0, step, 2048.0, 0.125, {"kernels": 0.5 * step, "decoding": 0.25 * step})

    found = {"ours, fast": took(0.1), diffusion.THEIRS: took(0.4), diffusion.PLAIN: took(0.08)}
    _, rows = diffusion.table(found, None)
    assert rows[0] == ["ours, fast", "1.0", "0.10", "4.00", "1.25", "2,048", "0.1250"]
    head, rows = diffusion.table(found, object())
    assert rows[0] == ["ours, fast", "1.0", "100.00", "4.00", "1.25", "50.00", "25.00", "2,048", "0.1250"]
    assert len(head) == len(rows[0])


@pytest.mark.slow
def test_the_part_for_a_card_runs_without_one():
    command = [sys.executable, diffusion.__file__, "--device", "cuda", "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "all parts ran to their end" in done.stdout, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ours, ")]  # fmt: skip
    assert [row[0] for row in rows] == ["ours, fast", "ours, exact"] * 2
    assert all(float(row[-1]) < 0.02 for row in rows)
