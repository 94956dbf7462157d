"""Scales that fold without changing a picture, rounding that makes up for itself, types by budget; and what they are worth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import ALL
from qtransformers.archs.diffusion.folds import KINDS, resolved
from qtransformers.cli import main
from qtransformers.convert import convert, plan_conversion, write
from qtransformers.convert.diffusion import at_hand, known, of_model
from qtransformers.convert.plan import Asked
from qtransformers.diffusers import load_transformer, noise, save_gguf
from qtransformers.diffusers.improving import fold_of, of_fold, plan_improved, possible_folds
from qtransformers.diffusers.observing import Seen, read_call
from qtransformers.errors import ConfigError, ModelNotFoundError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.quantize import awq
from qtransformers.quantize.make import How
from tiny_diffusion.cases import CASES
from tiny_diffusion.checkpoints import layouts, tensors
from tiny_diffusion.files import error, model_of, run, settings

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BY_ID = {case.id: case for case in reversed(CASES)}
AURA, FLUX, WAN = (BY_ID[id] for id in ("aura", "flux", "wan"))


def original(case, folder, change=lambda model: None):
    model = model_of(case)
    change(model)
    save_gguf(model, folder / "original.gguf", "F32")
    return model, folder / "original.gguf"


def improved(path, out, asked, how, **more):
    """A file that was improved, and its plan."""
    with plan_improved(path, asked, how, **more) as plan:
        write(plan, out)
    return load_transformer(out, accuracy="exact"), plan


@pytest.fixture
def little_noise(monkeypatch):
    """Small pictures, short texts, and few scales tried."""
    for name, value in (("SIDE", 8), ("TOKENS", 6), ("WAYS", 1)):
        monkeypatch.setattr(noise, name, value)
    monkeypatch.setattr(awq, "STEPS", 2)


@cases
def test_folds_change_no_picture(case, tmp_path):
    model, path = original(case, tmp_path)
    made = known(at_hand(path))
    parts = {part.name: part for part in made.parts}
    folds = possible_folds(made)
    factors, generator = {}, np.random.default_rng(0)
    for fold in folds:
        s = np.exp(generator.uniform(-2, 2, fold.n)).astype(np.float32)
        for name, factor in of_fold(fold, s, parts):
            factors[name] = factors[name] * factor if name in factors else factor
    assert len(folds) >= 2 and len(factors) >= 2 * len(folds)
    for layout in layouts(case)[: 2 if case in (AURA, FLUX) else 1]:
        plan = of_model(made, Asked("F32", layout=layout), file="m", factors=factors)
        ours = load_transformer(write(plan, tmp_path / f"in_{layout}.gguf")[0], accuracy="exact")
        assert error(run(ours, case), run(model, case)) < 1e-5
    touched = next(iter(factors))
    assert not torch.allclose(ours.get_submodule(touched.rpartition(".")[0]).dequantize(), model.state_dict()[touched])


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.id)
def test_every_fold_that_a_spec_declares_is_in_a_model_and_what_has_none_says_why(spec):
    rows, there = [], []
    for case in (c for c in CASES if c.id == spec.id):
        model = model_of(case)
        config = settings(case, model)
        rows += spec.foldings(config)
        folds = resolved(spec.foldings(config), {**config, **spec.sizes(config)})
        there += [f.row for f in folds if fold_of(f, set(model.state_dict()))]
    assert rows and all(row in there for row in rows)
    kinds = {row.kind for row in rows}
    assert kinds | spec.unfolded.keys() == set(KINDS) and not kinds & spec.unfolded.keys()
    assert all(spec.unfolded.values())


LIKE_OTHERS = ("chroma", "flux2", "sdxl")  # called much as flux and sd1 are: by `make learning`


@pytest.mark.parametrize("id", [pytest.param(id, marks=pytest.mark.slow) if id in LIKE_OTHERS else id for id in BY_ID])
def test_every_architecture_learns_from_noise(id, little_noise, tmp_path):
    case = BY_ID[id]
    model, path = original(case, tmp_path)
    ours, plan = improved(path, tmp_path / "m.gguf", Asked("Q4_0"), How(fold=True))
    weighed = [t for t in plan.tensors if t.importance is not None]
    assert len(weighed) > 0.6 * sum(t.type.is_quantized and len(t.shape) == 2 for t in plan.tensors)
    assert all(np.isfinite(t.importance).all() and (t.importance > 0).all() for t in weighed)
    assert 1e-3 < error(run(ours, case), run(model, case)) < 0.7


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


@pytest.mark.parametrize(
    "case, change, type",
    [
        (AURA, loud_values, "Q4_0"), pytest.param(AURA, loud_values, "Q4_K_S", marks=pytest.mark.slow),
        pytest.param(FLUX, loud_modulation, "Q4_0", marks=pytest.mark.slow), (FLUX, loud_modulation, "Q4_K_S"),
    ],
)  # fmt: skip
def test_loud_channels_cost_less(case, change, type, tmp_path):
    model, path = original(case, tmp_path, change)
    wanted = run(model, case)
    keep = ("mod",)  # whose own error is most of all
    plain = load_transformer(convert(path, tmp_path / "plain.gguf", type, keep=keep), accuracy="exact")
    folded, _ = improved(path, tmp_path / "folded.gguf", Asked(type, keep=keep), How(fold=True))
    before, after = error(run(plain, case), wanted), error(run(folded, case), wanted)
    assert after < 0.9 * before, (before, after)
    assert (tmp_path / "folded.gguf").stat().st_size == (tmp_path / "plain.gguf").stat().st_size


@pytest.mark.parametrize("layout", ["original", pytest.param("diffusers", marks=pytest.mark.slow)])
def test_rounding_that_makes_up_for_itself_costs_less(layout, little_noise, tmp_path):
    model, path = original(WAN, tmp_path)
    wanted = run(model, WAN)
    plain = load_transformer(save_gguf(model, tmp_path / "plain.gguf", "Q4_K_S"), accuracy="exact")
    refined, plan = improved(path, tmp_path / "m.gguf", Asked("Q4_K_S", layout=layout), How(compensate=True))
    assert error(run(refined, WAN), wanted) < 0.75 * error(run(plain, WAN), wanted)
    assert plan.nbytes == sum(t.nbytes for t in GGUFFile(tmp_path / "plain.gguf").tensors.values())


def test_few_rows_say_little_of_how_columns_go_together():
    generator = np.random.default_rng(0)
    mixed = generator.standard_normal((64, 64)) * np.geomspace(1, 30, 64)
    true = mixed.T @ mixed / 64
    rows = (generator.standard_normal((4000, 64)) @ np.linalg.cholesky(true).T).astype(np.float32)
    off = {}
    for n in (4, 40, 2000):
        seen = Seen(np.square(rows, dtype=np.float64).sum(0), len(rows), [rows[:n]])
        h = seen.product()
        np.linalg.cholesky(h)
        size = np.sqrt(seen.mean())
        sampled = rows[:n].T @ rows[:n] / n
        off[n] = (
            np.linalg.norm((h - true) / np.outer(size, size)),
            np.linalg.norm((sampled - true) / np.outer(size, size)),
        )
        assert np.allclose(h.diagonal(), seen.mean())
        columns = np.full(64, 2, np.float32)
        assert np.allclose(seen.product(columns), h / 4)
    assert all(off[n][0] < 0.6 * off[n][1] for n in (4, 40)) and off[2000][0] < off[40][0] < off[4][0]


def test_types_by_budget_cost_less_than_one_for_all(little_noise, tmp_path):
    model, path = original(AURA, tmp_path)
    wanted = run(model, AURA)
    made = save_gguf(model, tmp_path / "plain.gguf", "Q4_K_S")
    plain = load_transformer(made, accuracy="exact")
    told = []
    ours, plan = improved(
        path, tmp_path / "m.gguf", Asked("Q4_K_S"), How(bits_per_weight=4.6), progress=lambda *at: told.append(at)
    )
    assert plan.bits_per_weight <= 4.6 and len({t.type.name for t in plan.tensors}) > 3
    assert (tmp_path / "m.gguf").stat().st_size < made.stat().st_size and told[-1][0] == told[-1][1]
    assert error(run(ours, AURA), wanted) < 0.6 * error(run(plain, AURA), wanted)
    told.clear()
    with pytest.raises(ConfigError, match="for these weights; "), plan_improved(path, Asked("Q4_K_S"), How(bits_per_weight=1), progress=lambda *at: told.append(at)):  # fmt: skip
        pass
    assert told[-1] == (noise.STEPS, noise.STEPS), "nothing is measured for it"


def test_what_is_stated_keeps_its_type_within_a_budget(little_noise, tmp_path):
    _, path = original(WAN, tmp_path)
    asked = Asked("Q8_0", overrides=(("cross_attn", "Q5_K"),))
    with plan_improved(path, asked, How(nbytes=1_100_000)) as plan:
        assert plan.nbytes <= 1_100_000
        types = {t.name: t.type.name for t in plan.tensors if "cross_attn" in t.name and len(t.shape) == 2}
    assert set(types.values()) == {"Q5_K"} and len(types) == 8


def test_models_are_called_with_what_a_caller_gives(little_noise, tmp_path):
    _, path = original(AURA, tmp_path)
    calls = [AURA.inputs(AURA.config)]
    told = []
    with plan_improved(path, Asked("Q4_0"), How(fold=True), calls=calls, progress=lambda *at: told.append(at)) as plan:
        assert sum(t.importance is not None for t in plan.tensors) > 30
    assert told == [(1, 1)]


@pytest.mark.parametrize(
    "change, kind, text",
    [
        (lambda call: {**call, "zzz": torch.ones(1)}, ConfigError, r"call 2 of 2 does not fit WanTransformer3DModel\.forward .*'zzz'"),
        (lambda call: {"timestep": call["timestep"]}, ConfigError, r"call 2 of 2 .* It has timestep \[1\]: pass"),
        (lambda call: {**call, "hidden_states": torch.ones(7)}, ConfigError, r"call 2 of 2 .* It has hidden_states \[7\], "),
        (lambda call: {**call, "hidden_states": call["hidden_states"] * torch.nan}, UnsupportedError, r"what comes to \S+ is not finite"),
    ],
)  # fmt: skip
def test_calls_that_do_not_fit_are_told(change, kind, text, tmp_path):
    _, path = original(WAN, tmp_path)
    call = dict(WAN.inputs(WAN.config))
    with pytest.raises(kind, match=text), plan_improved(path, Asked("Q4_0"), How(), calls=[call, change(call)]):
        pass


def test_calls_in_files_may_hold_masks(tmp_path):
    held = {
        "mask": torch.tensor([True, False]),
        "at": torch.tensor([3]),
        "x": torch.ones(2, 2, dtype=torch.bfloat16),
        "seen": torch.tensor([[1, 0]], dtype=torch.uint8),
    }
    save_file(held, tmp_path / "call.safetensors")
    read = read_call(tmp_path / "call.safetensors")
    assert {n: v.dtype for n, v in read.items()} == {
        "mask": torch.bool,
        "at": torch.int64,
        "x": torch.float32,
        "seen": torch.uint8,
    }
    assert all(torch.equal(read[n], v.to(read[n].dtype)) for n, v in held.items())
    with pytest.raises(ModelNotFoundError, match="what the model's forward is called with"):
        read_call(tmp_path / "nowhere.safetensors")


def test_architectures_without_known_inputs_say_so(tmp_path, monkeypatch):
    _, path = original(AURA, tmp_path)
    monkeypatch.delitem(noise.INPUTS, "aura")
    with pytest.raises(UnsupportedError, match="no inputs are known here"), plan_improved(path, Asked("Q4_0"), How()):
        pass


def test_the_command_learns_from_noise_or_from_calls_in_files(little_noise, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original(WAN, tmp_path)
    save_file(dict(WAN.inputs(WAN.config)), tmp_path / "call.safetensors")
    assert main(["convert", "original.gguf", "-t", "Q4_0", "-o", "plain.gguf"]) == 0
    ways = {
        "awq": ["--awq", "-f", "call.safetensors"],
        "fit": ["--fit", "1300000", "--layout", "diffusers"],
        "budget": ["--budget", "5.5"],
        "refine": ["--refine"],
    }
    for name, words in ways.items():
        assert main(["convert", "original.gguf", "-t", "Q4_0", *words, "-o", f"{name}.gguf"]) == 0
        assert tensors(tmp_path / f"{name}.gguf") != tensors(tmp_path / "plain.gguf")
        if name != "fit":
            assert tensors(tmp_path / f"{name}.gguf").keys() == tensors(tmp_path / "plain.gguf").keys()
    sizes = {name: sum(t.nbytes for t in GGUFFile(tmp_path / f"{name}.gguf").tensors.values()) for name in ways}
    assert sizes["fit"] <= 1_300_000 and sizes["refine"] == sizes["awq"]
    capsys.readouterr()
    for type, way in (("F32", "--awq"), ("F16", "--refine"), ("BF16", "--awq")):
        for more in ([], ["--dry-run"]):
            assert main(["convert", "original.gguf", "-t", type, way, *more, "-o", "c.gguf"]) == 2
            assert f"{type} rounds nothing that could be improved" in capsys.readouterr().err
    with (
        pytest.raises(ConfigError, match="F16 rounds nothing"),
        plan_improved("original.gguf", Asked("F16"), How(True)),
    ):
        pass
    assert main(["convert", "original.gguf", "-t", "Q4_0", "--refine", "--chunks", "3", "-o", "c.gguf"]) == 2
    assert "--chunks is of texts" in capsys.readouterr().err and not (tmp_path / "c.gguf").exists()


def test_what_hinders_the_writing_is_said_before_anything_is_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original(AURA, tmp_path)
    monkeypatch.setattr("qtransformers.diffusers.improving.plan_improved", None)  # which is not reached
    words = ["convert", "original.gguf", "-t", "Q4_0", "--refine"]
    (tmp_path / "a-00001-of-00002.gguf").write_bytes(b"precious")
    assert main([*words, "-o", "a.gguf", "--shard-size", "1MB"]) == 2
    assert "a-00001-of-00002.gguf exists" in capsys.readouterr().err
    assert main([*words, "-o", ".", "--overwrite"]) == 2 and ". is a folder" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    needed = {n: plan_conversion("original.gguf", n).nbytes for n in ("Q4_0", "Q8_0")}
    for more, n in (([], needed["Q4_0"]), (["--fit", "1MiB"], 1 << 20), (["--fit", "1TiB"], needed["Q8_0"])):
        assert main([*words, *more, "-o", "a.gguf"]) == 1
        assert f"has 1000 bytes free; {n} are needed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-00001-of-00002.gguf", "original.gguf"]


def test_an_interrupted_run_does_not_promise_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original(AURA, tmp_path)
    save_file(dict(AURA.inputs(AURA.config)), tmp_path / "call.safetensors")

    def interrupted(*given, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr("qtransformers.convert.write", interrupted)
    words = ["convert", "original.gguf", "-t", "Q4_0", "-o", "a.gguf"]
    assert main(words) == 130 and "goes on where it was" in capsys.readouterr().err
    assert main([*words, "--awq", "-f", "call.safetensors"]) == 130 and "goes on" not in capsys.readouterr().err
