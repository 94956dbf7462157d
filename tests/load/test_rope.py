"""Rope as the user wants it: the same as a file that says so."""

from types import SimpleNamespace

import numpy as np
import pytest

from qtransformers import Model
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.load.rope import override_rope

TOKENS = list(range(5, 405))


def saying(data, path, **facts):
    with GGUFFile(data / "demo-Q8_0.gguf") as file:
        metadata = {key: file.metadata.typed(key) for key in file.metadata} | {
            f"llama.{k.replace('__', '.')}": v for k, v in facts.items()
        }
        with GGUFWriter(path, metadata, [(name, t.shape, t.type) for name, t in file.tensors.items()]) as new:
            for name, t in file.tensors.items():
                new.write(name, t.data)
    return path


def logits(path, **options):
    with Model.load(path, threads=1, logits_rows=64, **options) as model:
        return model.logits(TOKENS), model.context_length


@pytest.mark.parametrize(
    "options, facts",
    [
        ({"rope_base": 50000.0}, {"rope__freq_base": 50000.0}),
        ({"rope_scaling": "linear:4"}, {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}),
        ({"rope_scaling": "yarn:2.5"}, {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.5, "rope__scaling__original_context_length": 1024}),
    ],
    ids=["base", "linear", "yarn"],
)  # fmt: skip
def test_it_is_as_if_the_file_said_so(data, tmp_path, options, facts):
    mine, context = logits(data / "demo-Q8_0.gguf", **options)
    files, _ = logits(saying(data, tmp_path / "said.gguf", **facts))
    plain, _ = logits(data / "demo-Q8_0.gguf")
    assert np.array_equal(mine, files) and np.abs(mine - plain).max() > 0.1
    assert context == int(1024 * float(options.get("rope_scaling", ":1").split(":")[1]))


def test_what_the_file_says_can_be_taken_back(data, tmp_path):
    said = saying(data, tmp_path / "said.gguf", rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert np.array_equal(logits(said, rope_scaling="none")[0], logits(data / "demo-Q8_0.gguf")[0])


def test_a_stretched_context_is_no_reason_to_warn(data, recwarn):
    with Model.load(data / "demo-Q8_0.gguf", threads=1, context_length=4096, rope_scaling="yarn:4") as model:
        assert model.context_length == 4096 and not model.plan.warnings


def test_models_without_rope_say_so(data):
    with pytest.raises(ConfigError, match=r"x\.gguf has no rotary positions: rope_base and rope_scaling do not apply"):
        override_rope(SimpleNamespace(values_={"n_layers": 1}), 5.0, None, "x.gguf")
