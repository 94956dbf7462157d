"""A whole tiny AuraFlow: the picture of diffusers with dequantised weights, and another one when prompt or any bias changes."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from qtransformers.archs.diffusion import SPECS
from qtransformers.cli import main
from qtransformers.convert import convert
from qtransformers.diffusers import (
    Picture,
    dequantized,
    fuse_lora,
    load_lora,
    load_pipeline,
    load_text_encoder,
    load_transformer,
    paint,
    remove_lora,
    save_gguf,
    set_lora,
)
from qtransformers.diffusers.pipelines import _placed
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.torch import QuantConv2d, QuantWeight
from tiny_diffusion.cases import CASES
from tiny_diffusion.checkpoints import checkpoint
from tiny_diffusion.files import model_of, original_layout, run, settings, write
from tiny_diffusion.pipelines import AURA, saved

WISH = Picture("a red fox in the rain", steps=2, width=32, height=32, guidance=3.5, seed=1)

READY = {
    f"{sign}prompt_{what}": values
    for sign, seed in (("", 1), ("negative_", 2))
    for what, values in (("embeds", torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(seed))), ("attention_mask", torch.ones(1, 5)))
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The pipeline of diffusers, its folder without the transformer's weights, and GGUF files of these in both layouts."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipe, base = saved(folder / "base")
    pipe.set_progress_bar_config(disable=True)
    state = pipe.transformer.state_dict()
    files = {
        "diffusers": write(folder / "d.gguf", "aura", state, "Q4_K"),
        "original": write(folder / "o.gguf", "aura", original_layout(SPECS["aura"], settings(AURA, pipe.transformer), state), "Q4_K"),
        "F32": write(folder / "f.gguf", "aura", state),
    }  # fmt: skip
    return pipe, base, files


def pixels(pipe, wish=WISH, **more):
    return paint(pipe, wish, output_type="np", **more).images[0]


def test_f32_gives_the_picture_of_diffusers(tiny):
    theirs, base, files = tiny
    ours = load_pipeline(files["F32"], base, accuracy="exact")
    assert np.abs(pixels(ours) - pixels(theirs)).max() < 1e-4
    assert pixels(theirs).std() > 0.01


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_quantised_gives_the_picture_of_diffusers_with_the_decoded_weights(tiny, layout):
    _, base, files = tiny
    ours = load_pipeline(files[layout], base, accuracy="exact")
    twin = load_pipeline(files[layout], base, accuracy="exact")
    twin.transformer = dequantized(twin.transformer)
    assert not any(type(m).__name__.startswith("Quant") for m in twin.transformer.modules())
    assert np.abs(pixels(ours) - pixels(twin)).max() < 1e-4


def test_the_same_seed_gives_the_same_picture_and_another_another(tiny):
    _, base, files = tiny
    pipe = load_pipeline(files["diffusers"], base)
    assert np.array_equal(pixels(pipe), pixels(pipe))
    assert not np.array_equal(
        pixels(pipe), pixels(pipe, Picture("a red fox in the rain", steps=2, width=32, height=32, seed=2))
    )


def test_another_prompt_gives_another_picture(tiny):
    _, base, files = tiny
    pipe = load_pipeline(files["diffusers"], base)
    other = Picture("the brave house", steps=2, width=32, height=32, guidance=3.5, seed=1)
    assert np.abs(pixels(pipe) - pixels(pipe, other)).max() > 1e-3


def test_ready_embeddings_go_through_and_count(tiny):
    _, base, files = tiny
    pipe = load_pipeline(files["diffusers"], base)
    a = pixels(pipe, **READY)
    assert np.abs(a - pixels(pipe, **{**READY, "prompt_embeds": READY["prompt_embeds"] * 1.5})).max() > 1e-3


def test_any_one_bias_changes_the_picture(tiny):
    _, base, files = tiny
    pipe = load_pipeline(files["diffusers"], base)
    before = pixels(pipe)
    biased = [m for m in pipe.transformer.modules() if getattr(m, "bias", None) is not None]
    assert len(biased) == 3, "AuraFlow has three biases"
    for module in biased:
        module.bias.data += 0.5
        assert np.abs(before - pixels(pipe)).max() > 1e-4
        module.bias.data -= 0.5


def test_progress_counts_steps_and_what_it_raises_ends_the_work(tiny):
    _, base, files = tiny
    pipe = load_pipeline(files["diffusers"], base)
    seen = []
    paint(pipe, WISH, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint(pipe, WISH, stop)


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"width": 33}, "width is 33; expected a multiple of 4 pixels, such as 32"),
        ({"width": 0}, "width is 0"), ({"height": 10**9}, "height is"), ({"steps": 0}, "steps is 0"), ({"steps": 2.5}, "steps is 2.5"),
        ({"seed": -1}, "seed is -1"), ({"count": 1000}, "count is"), ({"guidance": float("nan")}, "guidance is"), ({"prompt": 3}, "prompt is 3"),
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_are_refused(tiny, fields, text):
    _, base, files = tiny
    with pytest.raises(ConfigError, match=text):
        paint(
            load_pipeline(files["diffusers"], base),
            Picture(**{"prompt": "a fox", "steps": 1, "height": 32, "width": 32, **fields}),
        )


def test_without_a_base_it_says_what_is_needed(tiny):
    with pytest.raises(ConfigError, match=r"holds the transformer of AuraFlow only. Pass base=.*fal/AuraFlow"):
        load_pipeline(tiny[2]["diffusers"])


def test_a_base_of_another_model_is_an_error(tiny, tmp_path):
    _, base, files = tiny
    index = json.loads((base / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "FluxTransformer2DModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"FluxTransformer2DModel.*is a AuraFlowTransformer2DModel"):
        load_pipeline(files["diffusers"], tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"model_index\.json"):
        load_pipeline(files["diffusers"], tmp_path / "..")
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        load_pipeline(files["diffusers"], "nowhere/at/all")


def test_a_base_that_lacks_a_part_is_an_error(tiny, tmp_path):
    _, base, files = tiny
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(LoadError, match="cannot build the pipeline"):
        load_pipeline(files["diffusers"], tmp_path / "base")


def test_offloading_needs_a_gpu(tiny):
    _, base, files = tiny
    with pytest.raises(ConfigError, match="device is the CPU"):
        load_pipeline(files["diffusers"], base, offload="model")
    with pytest.raises(ConfigError, match="expected one of none, model, group, sequential"):
        load_pipeline(files["diffusers"], base, offload="disk")


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloading_keeps_what_the_transformer_makes(tiny, offload):
    """Main memory stands for the card: the transformer goes to it through the same hooks, in `sequential` from the meta device."""
    _, base, files = tiny
    more = {**READY, "output_type": "latent"}
    stays = paint(load_pipeline(files["diffusers"], base), WISH, **more).images[0]
    pipe = _placed(load_pipeline(files["diffusers"], base), torch.device("cpu"), offload)
    blocks = [m.blocks for m in pipe.transformer.modules() if isinstance(m, QuantWeight)]
    assert blocks and all(b.is_meta == (offload == "sequential") for b in blocks)
    for _ in range(2):
        assert torch.equal(paint(pipe, WISH, **more).images[0], stays)


class Alone(diffusers.DiffusionPipeline):
    """A pipeline of a transformer only."""

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_offloading_brings_filters_that_are_decoded(offload, tmp_path, monkeypatch):
    """As convolutions do on a card."""
    case = next(case for case in CASES if case.id == "sana")
    path = convert(checkpoint(case, "diffusers", tmp_path)[1], tmp_path / "m.gguf", "Q4_K", layout="diffusers")
    monkeypatch.setattr(QuantConv2d, "_blockwise", lambda self, x: False)
    stays = run(load_transformer(path), case)
    pipe = _placed(Alone(load_transformer(path)), torch.device("cpu"), offload)
    filters = [m.weight.blocks for m in pipe.transformer.modules() if isinstance(m, QuantConv2d)]
    assert filters and all(b.is_meta == (offload == "sequential") for b in filters)
    assert torch.equal(run(pipe.transformer, case), stays)


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_adapters_come_to_layers_that_are_offloaded_already(tiny, offload):
    _, base, files = tiny
    here = load_pipeline(files["diffusers"], base).transformer
    there = _placed(load_pipeline(files["diffusers"], base), torch.device("cpu"), offload).transformer
    path, g = "single_transformer_blocks.0.attn.to_q", torch.Generator().manual_seed(3)
    state = {
        f"{path}.lora_{x}.weight": torch.randn(*shape, generator=g) for x, shape in (("A", (4, 256)), ("B", (256, 4)))
    }
    plain = run(here, AURA)
    for model in (here, there):
        load_lora(model, state, "x")
    assert (run(here, AURA) - plain).norm() > 0.01 * plain.norm()
    assert torch.equal(run(there, AURA), run(here, AURA))
    set_lora(there, {"x": 0.0})
    assert torch.equal(run(there, AURA), plain)
    if offload == "sequential":
        with pytest.raises(ConfigError, match=f"{path} has no values: the model is offloaded"):
            fuse_lora(there)
        remove_lora(there)
        with pytest.raises(ConfigError, match="has no values: the model is offloaded"):
            save_gguf(there, base / "m.gguf")


def test_the_command_paints_a_png_that_says_how_it_was_made(tiny, tmp_path, capsys, monkeypatch):
    _, base, files = tiny
    monkeypatch.chdir(tmp_path)
    words = [
        "image",
        str(files["original"]),
        "a red fox",
        "--base",
        str(base),
        "--steps",
        "1",
        "--size",
        "32x16",
        "--seed",
        "5",
    ]
    assert main([*words, "-o", "fox.png"]) == 0
    told = capsys.readouterr()
    assert told.out == "fox.png\n"
    assert "oading" not in told.err  # bars of diffusers and transformers
    picture = Image.open("fox.png")
    assert picture.size == (32, 16)
    assert json.loads(picture.text["parameters"])["seed"] == 5
    assert main([*words, "-o", "fox.png"]) == 2
    assert "fox.png exists" in capsys.readouterr().err
    assert main([*words, "--count", "2"]) == 0
    assert capsys.readouterr().out == "image.png\nimage-2.png\n"
    assert np.array_equal(np.asarray(Image.open("image.png")), np.asarray(picture))


@pytest.mark.parametrize(
    "words, text",
    [
        (["--size", "big"], "--size is 'big'"), (["--size", "33x32"], "width is 33"), (["-o", "x.exe"], "ends in .exe"),
        (["-o", "nowhere/x.png"], "is no folder"), (["-o", "x.png", "--overwrite"], "x.png is a folder; expected the name of a picture"), (["-o", "x.png"], "is a folder"), (["--lora", "x=y"], "is no number"),
    ],
)  # fmt: skip
def test_the_command_refuses_what_cannot_be(tiny, words, text, capsys, tmp_path, monkeypatch):
    _, base, files = tiny
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").mkdir()
    assert main(["image", str(files["diffusers"]), "a fox", "--base", str(base), "--steps", "1", *words]) == 2
    assert text in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["x.png"]


def test_settings_of_the_base_are_held_against_the_file(tiny, tmp_path):
    _, base, _ = tiny
    other = write(tmp_path / "m.gguf", "aura", model_of(AURA, num_single_dit_layers=1).state_dict())
    with pytest.raises(LoadError, match=r"num_single_dit_layers is 2, but the tensors of .* say 1"):
        load_pipeline(other, base)


def test_settings_of_the_base_are_held_against_what_the_file_says(tiny, tmp_path):
    _, base, files = tiny
    said = convert(files["diffusers"], tmp_path / "said.gguf", "F32", config={n: AURA.config[n] for n in AURA.told})
    other = tmp_path / "base"
    shutil.copytree(base, other)
    config = json.loads((other / "transformer" / "config.json").read_text())
    heads = config["num_attention_heads"] * 2, config["attention_head_dim"] // 2
    config.update(num_attention_heads=heads[0], attention_head_dim=heads[1])
    (other / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        LoadError, match=r"config\.json: num_attention_heads is \d+, but .*said\.gguf: qtransformers\.config says"
    ):
        load_pipeline(said, other)
    load_pipeline(said, other, config={})
    with pytest.warns(
        UserWarning, match=r"config\.json: sample_size is 16, but .* says 64, as where nobody says; the former is used"
    ):
        assert load_pipeline(said, base).transformer.config.sample_size == 16


def test_values_that_are_not_finite_make_no_picture(tiny):
    _, base, files = tiny
    pipe = load_pipeline(files["diffusers"], base)
    bias = pipe.transformer.pos_embed.proj.bias
    kept = bias.data.clone()
    bias.data[3] = float("nan")
    with pytest.raises(UnsupportedError, match=r"not finite after step 1.*fetch the file again"):
        paint(pipe, WISH)
    bias.data = kept
    pipe.vae.post_quant_conv.weight.data[:] = float("nan")
    with pytest.raises(UnsupportedError, match=r"not finite after the VAE"):
        paint(pipe, WISH)


def test_arguments_of_other_types_are_refused(tiny, tmp_path):
    _, base, files = tiny
    with pytest.raises(ConfigError, match="base=5; expected the folder"):
        load_pipeline(files["diffusers"], 5)
    for name in ("text_encoders", "loras"):
        with pytest.raises(ConfigError, match=f"{name}=5; expected"):
            load_pipeline(files["diffusers"], base, **{name: 5})
    for load in (load_pipeline, load_transformer, load_text_encoder):
        with pytest.raises(ConfigError, match="gguf_path=5; expected a path"):
            load(5)
    with pytest.raises(ConfigError, match="config=5; expected a path"):
        load_text_encoder(files["diffusers"], 5)
    with pytest.raises(ConfigError, match="progress=5; expected a function"):
        paint(load_pipeline(files["diffusers"], base), WISH, 5)
    with pytest.raises(ConfigError, match="paint takes a pipeline"):
        paint(load_pipeline(files["diffusers"], base), "x")
    with pytest.raises(ConfigError, match="save_gguf of a Linear; expected a model"):
        save_gguf(torch.nn.Linear(3, 3), tmp_path / "m.gguf")
