"""Scales that fold without changing a picture, and what they are worth where some channels are loud."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import ALL
from qtransformers.cli import main
from qtransformers.convert import write
from qtransformers.convert.diffusion import at_hand, known, of_model
from qtransformers.diffusers import load_transformer, save_gguf
from qtransformers.diffusers.improving import of_fold, plan_improved, possible_folds
from qtransformers.errors import UnsupportedError
from tiny_diffusion.cases import CASES
from tiny_diffusion.checkpoints import tensors
from tiny_diffusion.files import error, model_of, run

FOLDED = [case for case in CASES if next(s for s in ALL if s.id == case.id).folds]
AURA, FLUX = (next(case for case in CASES if case.id == id) for id in ("aura", "flux"))


def original(case, folder, change=lambda model: None):
    model = model_of(case)
    change(model)
    save_gguf(model, folder / "original.gguf", "F32")
    return model, folder / "original.gguf"


@pytest.mark.parametrize("case", FOLDED, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_folds_change_no_picture(case, layout, tmp_path):
    model, path = original(case, tmp_path)
    made = known(at_hand(path))
    parts = {part.name: part for part in made.parts}
    folds = possible_folds(made)
    factors, generator = {}, np.random.default_rng(0)
    for fold in folds:
        s = np.exp(generator.uniform(-2, 2, fold.n)).astype(np.float32)
        for name, factor in of_fold(fold, s, parts):
            factors[name] = factors[name] * factor if name in factors else factor
    assert len(folds) >= 2 and len(factors) > len(folds)
    plan = of_model(made, "F32", file="m", layout=layout, factors=factors)
    ours = load_transformer(write(plan, tmp_path / "m.gguf")[0], accuracy="exact")
    assert error(run(ours, case), run(model, case)) < 1e-5
    touched = next(iter(factors))
    assert not torch.allclose(ours.get_submodule(touched.rpartition(".")[0]).dequantize(), model.state_dict()[touched])


def test_a_modulation_without_bias_takes_no_scale(tmp_path):
    for case in (AURA, FLUX):
        _, path = original(case, tmp_path)
        made = known(at_hand(path))
        modulated = any(p.plus_one for fold in possible_folds(made) for p in fold.sources)
        assert modulated == (case is FLUX)
        (tmp_path / "original.gguf").unlink()


LOUD = [3, 70, 129, 200]


def loud_values(model):
    """Some channels of what attention and gated layers bring back are loud, and read by small columns."""
    for block in (*model.joint_transformer_blocks, *model.single_transformer_blocks):
        pairs = [(block.attn.to_v, block.attn.to_out[0])]
        pairs += [(f.linear_2, f.out_projection) for f in (block.ff, getattr(block, "ff_context", None)) if f is not None]  # fmt: skip
        if getattr(block.attn, "add_v_proj", None) is not None:
            block.attn.add_v_proj.weight[LOUD] *= 20
            block.attn.to_add_out.weight[:, LOUD] /= 4
        for source, reader in pairs:
            source.weight[LOUD] *= 20
            reader.weight[:, LOUD] /= 4


def loud_modulation(model):
    """Some channels of the normed inputs are loud."""
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            for chunk in (1, 4):
                norm.linear.bias[chunk * 256 + torch.tensor(LOUD)] += 15
    for block in model.single_transformer_blocks:
        block.norm.linear.bias[256 + torch.tensor(LOUD)] += 15


@pytest.mark.parametrize("case, change", [(AURA, loud_values), (FLUX, loud_modulation)], ids=["aura", "flux"])
@pytest.mark.parametrize("type", ["Q4_0", "Q4_K_S"])
def test_loud_channels_cost_less(case, change, type, tmp_path):
    model, path = original(case, tmp_path, change)
    wanted = run(model, case)
    plain = load_transformer(save_gguf(model, tmp_path / "plain.gguf", type), accuracy="exact")
    plan = plan_improved(path, type)
    folded = load_transformer(write(plan, tmp_path / "folded.gguf")[0], accuracy="exact")
    before, after = error(run(plain, case), wanted), error(run(folded, case), wanted)
    assert after < 0.93 * before
    assert (tmp_path / "folded.gguf").stat().st_size == (tmp_path / "plain.gguf").stat().st_size


def test_models_are_called_with_what_a_caller_gives(tmp_path):
    _, path = original(AURA, tmp_path)
    calls = [AURA.inputs(AURA.config)]
    told = []
    plan = plan_improved(path, "Q4_0", calls=calls, progress=lambda *at: told.append(at))
    assert told == [(1, 1)]
    assert sum(t.importance is not None for t in plan.tensors) > 30


def test_architectures_without_known_inputs_say_so(tmp_path):
    case = next(case for case in CASES if case.id == "sd3")
    _, path = original(case, tmp_path)
    with pytest.raises(UnsupportedError, match="no inputs are known here"):
        plan_improved(path, "Q4_0")


def test_the_command_learns_from_noise_or_from_calls_in_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original(AURA, tmp_path)
    save_file(dict(AURA.inputs(AURA.config)), tmp_path / "call.safetensors")
    assert main(["convert", "original.gguf", "-t", "Q4_0", "--awq", "-f", "call.safetensors", "-o", "a.gguf"]) == 0
    assert main(["convert", "original.gguf", "-t", "Q4_0", "-o", "b.gguf"]) == 0
    assert tensors(tmp_path / "a.gguf").keys() == tensors(tmp_path / "b.gguf").keys()
    assert tensors(tmp_path / "a.gguf") != tensors(tmp_path / "b.gguf")
    assert main(["convert", "original.gguf", "-t", "Q4_0", "--refine", "-o", "c.gguf"]) == 2
    assert "--refine is for language models" in capsys.readouterr().err and not (tmp_path / "c.gguf").exists()
