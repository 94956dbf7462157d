import threading

import numpy as np
import pytest
from safetensors.numpy import load_file

from qtransformers.convert import convert, plan_conversion, write
from qtransformers.convert.write import ahead
from qtransformers.errors import ConfigError, LoadError
from qtransformers.gguf import GGUFFile
from qtransformers.quants import reference_dequantize, reference_quantize
from qtransformers.types import BY_NAME

SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def test_the_demo_model_converts_to_the_frozen_file(data, tmp_path):
    made = convert(data / "demo_model", tmp_path / "demo.gguf", "Q8_0", name="qtransformers demo")
    assert made.read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()


def test_the_package_ships_the_demo_model(data):
    from importlib.resources import files

    shipped = files("qtransformers") / "data" / "demo.gguf"
    assert shipped.stat().st_size <= 5_000_000
    with GGUFFile(str(shipped)) as ours, GGUFFile(data / "demo-Q8_0.gguf") as frozen:
        assert list(ours.tensors) == list(frozen.tensors)
        assert ours.metadata["tokenizer.ggml.tokens"] == frozen.metadata["tokenizer.ggml.tokens"]
        assert ours.metadata["general.sampling.temp"] == 0.5  # a model this small loses its thread at 1


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0"])
def test_every_value_arrives(type, tiny_model, tmp_path):
    folder = tiny_model()
    source = load_file(folder / "model.safetensors")
    with GGUFFile(convert(folder, tmp_path / "out.gguf", type)) as file:
        assert len(file.tensors) == len(source)
        for ours, theirs in (
            ("token_embd", "model.embed_tokens"),
            ("output", "lm_head"),
            ("output_norm", "model.norm"),
            ("blk.1.attn_v", "model.layers.1.self_attn.v_proj"),
            ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
            ("blk.1.ffn_norm", "model.layers.1.post_attention_layernorm"),
        ):
            tensor, values = file.tensors[f"{ours}.weight"], source[f"{theirs}.weight"]
            row = BY_NAME["F32"] if values.ndim == 1 else BY_NAME[type]
            expected = reference_dequantize(reference_quantize(values.reshape(-1), row), row).reshape(values.shape)
            assert tensor.type is row
            np.testing.assert_array_equal(tensor.dequantize(), expected)
        for ours, theirs, n_heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
            values = source[f"model.layers.1.self_attn.{theirs}.weight"]
            halves = values.reshape(n_heads, 2, 8, 64)
            got = reference_quantize(np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1), BY_NAME[type])
            np.testing.assert_array_equal(file.tensors[f"blk.1.{ours}.weight"].data, got)


def test_computed_tensors_are_written(tiny_model, tmp_path):
    folder = tiny_model({"rope_scaling": SCALING})
    plan = plan_conversion(folder)
    with GGUFFile(convert(folder, tmp_path / "out.gguf")) as file:
        found = file.tensors["rope_freqs.weight"]
        np.testing.assert_array_equal(found.dequantize(), next(t.source for t in plan.tensors if t.name == found.name))


def test_another_file_beside_a_model_is_not_the_model(tiny_model):
    folder = tiny_model()
    (folder / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors is no part of the model in .*tiny"):
        plan_conversion(folder / "adapter_model.safetensors")


def test_the_default_name_and_overwriting(tiny_model, tmp_path, monkeypatch):
    folder = tiny_model()
    monkeypatch.chdir(tmp_path)
    assert convert(folder, type="f16").name == "tiny-F16.gguf"
    with pytest.raises(ConfigError, match=r"tiny-F16\.gguf"):
        convert(folder, type="f16")
    assert convert(folder, type="f16", overwrite=True).exists()


def test_progress_is_told_all_bytes(tiny_model, tmp_path):
    told = []
    plan = plan_conversion(tiny_model({"rope_scaling": SCALING}))
    write(plan, tmp_path / "x.gguf", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (plan.nbytes, plan.nbytes) and told == sorted(told) and len(told) >= len(plan.tensors)


def test_an_error_leaves_nothing_behind(tiny_model, tmp_path):
    weights = np.full((64,), np.nan, np.float32)
    folder = tiny_model(tensors={"model.norm.weight": weights})
    (tmp_path / "out").mkdir()
    with pytest.raises(LoadError, match=r"model\.norm\.weight holds nan"):
        convert(folder, tmp_path / "out" / "x.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_types_by_pattern_and_what_is_kept(tiny_model, tmp_path):
    folder = tiny_model()
    made = convert(folder, tmp_path / "x.gguf", "Q4_0", overrides=[("ffn_down", "BF16")], keep=["attn_q", "token_embd"])
    with GGUFFile(made) as file:
        found = {name: str(t.type) for name, t in file.tensors.items()}
    expected = {"blk.0.ffn_down.weight": "BF16", "blk.1.attn_q.weight": "F32", "token_embd.weight": "F32", "blk.1.attn_v.weight": "Q4_0", "output.weight": "Q8_0"}  # fmt: skip
    assert expected.items() <= found.items()


def test_an_interrupted_conversion_goes_on_and_gives_the_same_file(data, tmp_path):
    plan = plan_conversion(data / "demo_model", "Q4_K_M")
    write(plan, tmp_path / "whole.gguf")

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(plan, tmp_path / "x.gguf", progress=stop)
    assert not (tmp_path / "x.gguf").exists()
    told = []
    write(
        plan_conversion(data / "demo_model", "Q4_K_M"),
        tmp_path / "x.gguf",
        progress=lambda done, total: told.append(done),
    )
    assert told[0] > 0 and told[-1] == plan.nbytes and len(told) < len(plan.tensors) + 5
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.gguf", "x.gguf"]


def test_other_settings_do_not_go_on_with_it(data):
    plans = [
        plan_conversion(data / "demo_model", "Q4_K_M", **how)
        for how in ({}, {"importance": {"blk.0.ffn_up.weight": np.ones(256, np.float32)}}, {"force": True}, {"overrides": [("ffn_up", "Q8_0")]})
    ]  # fmt: skip
    assert len({plan.fingerprint() for plan in plans}) == 4
    assert plans[0].fingerprint() == plan_conversion(data / "demo_model", "Q4_K_M").fingerprint()


def test_what_a_plan_comes_to(data):
    plan = plan_conversion(data / "demo_model", "Q4_K_M")
    sizes = {str(t): row for t, row in plan.sizes().items()}
    assert list(sizes) == ["Q4_K", "Q6_K", "F32"] and sum(row[1] for row in sizes.values()) == plan.n_parameters
    assert sizes["Q6_K"][2] == sizes["Q6_K"][1] * 210 // 256
    assert plan.bits_per_weight == pytest.approx(8 * plan.nbytes / 3_672_320)


def test_one_is_made_while_another_is_used():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    begun = threading.Event()
    it = ahead(items())
    assert next(it) == 0 and list(it) == [1, 2, 3, 4] and made == list(range(5))

    def waits():
        yield 0
        begun.set()
        yield 1

    it = ahead(waits())
    assert next(it) == 0 and begun.wait(10)  # while nobody asks for it
    assert list(it) == [1]


def test_what_making_one_raises_is_raised_where_it_is_used():
    def fails():
        yield 1
        raise LoadError("x.weight is damaged")

    it = ahead(fails())
    assert next(it) == 1
    with pytest.raises(LoadError, match=r"x\.weight is damaged"):
        next(it)
