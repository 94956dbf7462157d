"""Checkpoints that are wrong: one report each, and nothing half-written."""

import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import HubServer
from qtransformers.cli import main
from qtransformers.convert import convert, plan_conversion, write
from qtransformers.diffusers import load_transformer
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load.hub import Hub
from qtransformers.load.originals import fetch_checkpoint
from qtransformers.load.references import parse_reference
from tiny_diffusion.cases import CASES
from tiny_diffusion.checkpoints import checkpoint, tensors
from tiny_diffusion.files import error, run

AURA = next(case for case in CASES if case.id == "aura")
FLUX = next(case for case in CASES if case.id == "flux")
Q = "joint_transformer_blocks.0.attn.to_q.weight"


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder of a tiny AuraFlow, in a folder of its own."""
    (tmp_path / "tiny").mkdir()
    return checkpoint(AURA, "diffusers", tmp_path / "tiny")[1]


def changed(folder, change):
    """The checkpoint with other tensors."""
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    return folder


def refused(folder, tmp_path, kind, match, **how):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(kind, match=match):
        convert(folder, out / "m.gguf", "Q4_K_M", **how)
    assert list(out.iterdir()) == []


def test_truncated_safetensors(folder, tmp_path):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(folder, tmp_path, LoadError, "The file is truncated or damaged")


def test_weights_that_are_not_finite_are_named_and_zeros_on_request(folder, tmp_path):
    def change(state):
        state[Q][3, 5] = float("nan")

    refused(changed(folder, change), tmp_path, LoadError, r"to_q\.weight holds nan in row 3, column 5")
    with pytest.warns(UserWarning, match="1 values that are not finite are written as 0"):
        made = convert(folder, tmp_path / "m.gguf", "F32", layout="diffusers", force=True)
    with GGUFFile(made) as file:
        values = file.tensors[Q].dequantize()
    assert values[3, 5] == 0 and np.isfinite(values).all()


def test_a_bias_that_the_spec_forbids(folder, tmp_path):
    def change(state):
        for i in (0, 1):
            state[f"joint_transformer_blocks.{i}.attn.to_q.bias"] = torch.ones(256)

    refused(changed(folder, change), tmp_path, LoadError, r"joint_transformer_blocks\.0-1\.attn\.to_q\.bias is in the file, but AuraFlow has no bias")  # fmt: skip


def test_a_tensor_that_is_missing_or_strange(folder, tmp_path):
    def change(state):
        state["proj_aut.weight"] = state.pop("proj_out.weight")

    refused(changed(folder, change), tmp_path, LoadError, r"(?s)2 problems.*proj_out\.weight is missing.*Nearest.*proj_aut")  # fmt: skip


def test_the_config_of_another_model(folder, tmp_path):
    path = folder / "transformer" / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "num_mmdit_layers": 3}))
    refused(folder, tmp_path, LoadError, "num_mmdit_layers is 3, but the tensors of .* say 2")
    path.write_text(json.dumps({**said, "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(LoadError, match="_class_name is 'FluxTransformer2DModel'"):
        plan_conversion(folder)
    path.write_text("{")
    with pytest.raises(LoadError):
        plan_conversion(folder)


def test_a_layout_that_there_is_not(folder, tmp_path):
    refused(folder, tmp_path, ConfigError, "layout is 'sideways'; expected original or diffusers", layout="sideways")
    with pytest.raises(ConfigError, match="is no diffusion model; leave out layout"):
        plan_conversion(_language_model(), layout="original")


def _language_model():
    from importlib.resources import files

    return str(files("qtransformers") / "data" / "demo.gguf")


def test_a_pipeline_without_weights(folder, tmp_path):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, tmp_path, ModelNotFoundError, r"no diffusion_pytorch_model\.safetensors and no")
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="without transformer or unet"):
        plan_conversion(folder)


def test_safetensors_of_something_else(tmp_path):
    save_file({"model.embed_tokens.weight": torch.ones(32, 32)}, tmp_path / "m.safetensors")
    with pytest.raises(UnsupportedError, match="is no diffusion transformer that this version knows"):
        plan_conversion(tmp_path / "m.safetensors")


def test_settings_that_no_tensor_shows_are_asked_for(tmp_path):
    _, path = checkpoint(AURA, "original", tmp_path)
    with pytest.raises(ConfigError, match="num_attention_heads and attention_head_dim"):
        plan_conversion(path)


def test_whole_checkpoints_give_the_diffusion_model(tmp_path):
    model, path = checkpoint(FLUX, "original", tmp_path, around="model.diffusion_model.")
    state = load_file(path)
    state["first_stage_model.decoder.conv_in.weight"] = torch.ones(8, 4, 3, 3)
    state["text_encoders.t5xxl.logit_scale"] = torch.ones(())
    save_file(state, path)
    ours = load_transformer(convert(path, tmp_path / "m.gguf", "F32", config=dict(FLUX.config)), accuracy="exact")
    assert error(run(ours, FLUX), run(model, FLUX)) < 1e-5


def test_a_mismatch_of_annotated_biases_is_found(folder, tmp_path):
    from qtransformers.gguf import edit_metadata

    made = convert(folder, tmp_path / "m.gguf", "Q8_0")
    with GGUFFile(made) as file:
        assert set(file.metadata["qtransformers.biases"]) == {"pos_embed.proj", "time_step_proj.linear_1", "time_step_proj.linear_2"}  # fmt: skip
    edit_metadata(made, {"qtransformers.biases": ["pos_embed.proj", "proj_out"]})
    for reads in (load_transformer, lambda path: convert(path, tmp_path / "n.gguf", "Q4_0")):
        with pytest.raises(LoadError, match=r"(?s)proj_out is said to have a bias.*time_step_proj\.linear_1 has a bias that the file does not list"):  # fmt: skip
            reads(made)
    assert not (tmp_path / "n.gguf").exists()


def test_types_by_pattern_what_is_kept_and_shards(folder, tmp_path):
    plan = plan_conversion(folder, "Q4_K_M", overrides=[(r"modX", "Q8_0")], keep=["w2q"])
    paths = write(plan, tmp_path / "m.gguf", max_bytes=4_000_000)
    assert len(paths) > 1
    found = {name: type for name, (type, _, _) in tensors(paths[0]).items()}
    assert found["double_layers.0.modX.1.weight"] == "Q8_0" and found["double_layers.0.attn.w2q.weight"] == "F32"
    assert found["double_layers.0.attn.w2v.weight"] == "Q5_K" and found["double_layers.0.modC.1.weight"] == "Q5_K"
    assert found["double_layers.0.attn.w1k.weight"] == "Q4_K" and found["init_x_linear.bias"] == "F32"


def test_an_interrupted_conversion_goes_on(folder, tmp_path):
    whole = write(plan_conversion(folder, "Q4_K_M"), tmp_path / "whole.gguf")[0]

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(plan_conversion(folder, "Q4_K_M"), tmp_path / "x.gguf", progress=stop)
    assert not (tmp_path / "x.gguf").exists()
    told = []
    write(plan_conversion(folder, "Q4_K_M"), tmp_path / "x.gguf", progress=lambda done, _: told.append(done))
    assert told[0] > 0 and len(told) <= 61 and (tmp_path / "x.gguf").read_bytes() == whole.read_bytes()


FULL = """
import resource, signal, sys
from qtransformers.convert import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
convert(sys.argv[1], sys.argv[2], "Q8_0")
"""


def test_a_full_disk_leaves_nothing_under_the_final_name(folder, tmp_path):
    """A limit on the size of files stands in for the disk."""
    out = tmp_path / "x.gguf"
    done = subprocess.run([sys.executable, "-c", FULL, str(folder), str(out)], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode and "x.gguf: File too large; what is written so far is kept" in done.stderr
    assert not out.exists()
    assert tensors(convert(folder, out, "Q8_0")) == tensors(convert(folder, tmp_path / "whole.gguf", "Q8_0"))


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(folder), "-t", "Q4_K_M", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "double_layers.0.modX.1.weight" in out and re.search(r"would write tiny-Q4_K_M\.gguf, 59 tensors, .* bits per weight", err)  # fmt: skip
    assert main(["convert", str(folder / "transformer"), "-t", "Q4_K_M", "--layout", "diffusers"]) == 0
    assert load_transformer(tmp_path / "tiny-Q4_K_M.gguf").gguf.plan.layout == "diffusers"
    assert main(["convert", "tiny-Q4_K_M.gguf", "-t", "Q8_0", "-o", "again.gguf"]) == 0
    assert "quantised already" in capsys.readouterr().err
    with GGUFFile(tmp_path / "again.gguf") as file:
        assert file.metadata["qtransformers.layout"] == "original" and file.metadata["general.name"] == "tiny"


def test_a_pipeline_of_the_hub(folder, tmp_path):
    server = HubServer()
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    others = {"vae/diffusion_pytorch_model.safetensors": b"x", "transformer/diffusion_pytorch_model.fp16.safetensors": b"y"}  # fmt: skip
    server.repos["house/aura"] = {**files, **others}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub = Hub(server.url, tmp_path / "hf" / "hub")
    there = fetch_checkpoint(parse_reference("house/aura"), hub)
    assert sorted(str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()) == sorted(files)
    assert tensors(convert(there, tmp_path / "a.gguf", "Q4_0")) == tensors(convert(folder, tmp_path / "b.gguf", "Q4_0"))
    server.done.set()
    server.shutdown()
    server.server_close()
