import json
import re

import numpy as np
import pytest

from qtransformers import Model
from qtransformers.archs import SPECS
from qtransformers.convert import convert, restore
from qtransformers.convert.sources import Lying
from qtransformers.errors import ConfigError, LoadError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.load.checkpoint import open_checkpoint, open_file


def values(stored):
    return {name: Lying(t).rows(slice(None)).reshape(t.shape) for name, t in stored.items()}


CASES = ("llama-llama3", "mixtral", "qwen2moe", "qwen3next", "gemma3", "phi3", "deepseek-v3", "gpt-oss", "gpt2", "stablelm-12b", "command-r-plus")  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_comes_back(name, tmp_path):
    """Names, shapes and values of what was converted, stacks of experts apart and split matrices in one."""
    pytest.importorskip("torch")
    from archs.cases import CASES as ALL
    from archs.models import checkpoint, reference

    case = ALL[name]
    folder = checkpoint(reference(case, name), tmp_path / "model")
    before = values({n: t for n, t in open_checkpoint(folder).items() if t.dtype == "F32"})
    renamed = {}
    for key, x in before.items():
        for pattern, replacement in SPECS[case.arch].hf_names:
            key = re.sub(pattern, replacement, key)
        renamed[key] = x
    file = convert(folder, tmp_path / "x.gguf", "F32")
    (path,) = restore(file, tmp_path / "back.safetensors", "F32")
    found = values(open_file(path))
    tied = {"lm_head.weight"} - found.keys()
    assert found.keys() == {n for n in renamed if n} - tied
    for key, x in found.items():
        np.testing.assert_allclose(x, renamed[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_shards_index_and_config(data, tmp_path):
    """The folder loads in transformers and converts to the same weights."""
    told = []
    out = tmp_path / "back"
    out.mkdir()
    paths = restore(data / "demo-Q8_0.gguf", out / "model.safetensors", model_path=data / "demo_model", max_bytes=3_000_000, progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert [p.name for p in paths] == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == told[-1][0] == told[-1][1] == 2 * 3_672_320
    assert set(index["weight_map"].values()) == {p.name for p in paths}
    again = convert(out, tmp_path / "again.gguf", "F32")
    with GGUFFile(again) as ours, GGUFFile(data / "demo-Q8_0.gguf") as theirs:
        assert list(ours.tensors) == list(theirs.tensors)
        for key, t in theirs.tensors.items():
            x = t.dequantize()
            np.testing.assert_allclose(ours.tensors[key].dequantize(), x, rtol=2**-10, atol=1e-7)
    with Model.load(again) as model:
        assert model.generate("What is 7 plus 5?", max_tokens=8, temperature=0)


def test_it_is_what_transformers_reads(data, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    restore(data / "demo-Q8_0.gguf", tmp_path / "model.safetensors", "F32", model_path=data / "demo_model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = [1, 500, 77, 1200, 9]
    with (
        Model.load(data / "demo-Q8_0.gguf", cache="f32", accuracy="exact", logits_rows=64) as ours,
        torch.inference_mode(),
    ):
        np.testing.assert_allclose(ours.logits(ids), theirs(torch.tensor([ids])).logits[0].numpy(), atol=2e-4)


def test_what_is_refused(data, tmp_path):
    demo = data / "demo-Q8_0.gguf"
    with pytest.raises(ConfigError, match=r"type is 'Q4_0'; safetensors are written in F16, BF16, F32"):
        restore(demo, tmp_path / "x.safetensors", "Q4_0")
    with pytest.raises(ConfigError, match="has no config"):
        restore(demo, tmp_path / "x.safetensors", model_path=tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists"):
        restore(demo, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == b"precious"
    with GGUFFile(demo) as file:
        specs = [
            (t.name, t.shape, "F32" if t.name == "output_norm.weight" else str(t.type)) for t in file.tensors.values()
        ]
        metadata = {k: file.metadata.encoded(k) for k in file.metadata}
        with GGUFWriter(tmp_path / "large.gguf", metadata, specs) as writer:
            for t in file.tensors.values():
                writer.write(t.name, np.full(256, 1e5, np.float32) if t.name == "output_norm.weight" else t.data)
    with pytest.raises(LoadError, match=r"model\.norm\.weight holds values that are not finite in F16"):
        restore(tmp_path / "large.gguf", tmp_path / "y.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.gguf", "x.safetensors"]
