import numpy as np
import pytest

from qtransformers.convert import convert, plan_conversion
from qtransformers.errors import ConfigError, LoadError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.quants import quantize
from qtransformers.types import BY_NAME

pytestmark = pytest.mark.filterwarnings("ignore:.*quantised already")


def test_the_other_types_are_encoded_and_the_rest_is_copied(data, tmp_path):
    made = convert(data / "demo-Q8_0.gguf", tmp_path / "x.gguf", "Q4_K_M", name="smaller")
    with GGUFFile(made) as ours, GGUFFile(data / "demo-Q8_0.gguf") as before:
        assert list(ours.tensors) == list(before.tensors)
        keys = set(ours.metadata) - {"general.file_type", "general.name"}
        assert keys == set(before.metadata) - {"general.file_type", "general.name"}
        assert all(ours.metadata.encoded(key).data == before.metadata.encoded(key).data for key in keys)
        assert ours.metadata["general.file_type"] == 15 and ours.metadata["general.name"] == "smaller"
        norm, down = ours.tensors["output_norm.weight"], ours.tensors["blk.3.ffn_down.weight"]
        np.testing.assert_array_equal(norm.data, before.tensors[norm.name].data)
        assert str(down.type) == "Q6_K"
        np.testing.assert_array_equal(down.data, quantize(before.tensors[down.name].dequantize(), BY_NAME["Q6_K"]))


def test_the_same_type_is_copied(data, tmp_path):
    made = convert(data / "demo-Q8_0.gguf", tmp_path / "x.gguf", "Q8_0")
    assert made.read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()


def test_shards_to_one_file_and_back(data, tmp_path):
    first = convert(data / "demo-Q8_0.gguf", tmp_path / "s.gguf", "Q8_0", max_bytes=1_000_000)
    assert first.name.startswith("s-00001-of-0000") and len(list(tmp_path.iterdir())) > 3
    one = convert(first, tmp_path / "one.gguf", "Q8_0")
    assert one.read_bytes() == (data / "demo-Q8_0.gguf").read_bytes()
    assert plan_conversion(tmp_path / "one.gguf", "F16").bits_per_weight > 16


def test_importance_reaches_the_encoder(data, tmp_path):
    name = "blk.1.ffn_up.weight"
    weights = np.random.default_rng(0).uniform(0.01, 1, 256).astype(np.float32) ** 4
    with pytest.warns(UserWarning, match="says nothing of 27 weights"):
        made = convert(data / "demo-Q8_0.gguf", tmp_path / "x.gguf", "Q4_K_S", importance={name: weights})
    with GGUFFile(made) as ours, GGUFFile(data / "demo-Q8_0.gguf") as before:
        values = before.tensors[name].dequantize()
        np.testing.assert_array_equal(ours.tensors[name].data, quantize(values, BY_NAME["Q4_K"], importance=weights))
        errors = [
            float((weights * (t - values) ** 2).sum())
            for t in (ours.tensors[name].dequantize(), _plain(values, BY_NAME["Q4_K"]))
        ]
        assert errors[0] < 0.9 * errors[1]


def _plain(values, type_):
    from qtransformers.quants import dequantize

    return dequantize(quantize(values, type_), type_).reshape(values.shape)


def test_what_is_quantised_already_is_said(data):
    with pytest.warns(UserWarning, match=r"demo-Q8_0\.gguf: 29 tensors are quantised already \(.* is Q8_0\)"):
        plan_conversion(data / "demo-Q8_0.gguf", "Q4_0")


@pytest.mark.parametrize(
    "how, message",
    [
        ({"type": "IQ2_XS"}, r"IQ2_XS is of no use without an importance matrix, which \d+ tensors lack"),
        ({"importance": {"blk.0.ffn_up.weight": np.ones(7, np.float32)}}, "has 7 values for blk.0.ffn_up.weight; expected 256"),
        ({"importance": {"other": np.ones(7, np.float32)}}, "has no tensor of this model"),
        ({"keep": ["nothing"]}, "no tensor's name matches 'nothing'"),
        ({"overrides": [("(", "F16")]}, "no regular expression"),
        ({"pre": "gpt-2"}, "leave out pre"),
    ],
)  # fmt: skip
def test_wrong_arguments(how, message, data):
    how = {"type": "Q4_0", **how}
    with pytest.raises(ConfigError, match=message):
        plan_conversion(data / "demo-Q8_0.gguf", how.pop("type"), **how)


def test_experts_have_importance_of_their_own(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 4, 64)).astype(np.float32)
    weights = rng.uniform(0.001, 1, (3, 64)).astype(np.float32) ** 6
    name = "blk.0.ffn_up_exps.weight"
    with GGUFWriter(tmp_path / "in.gguf", {"general.architecture": "llama"}, [(name, values.shape, "F32")]) as writer:
        writer.write(name, values)
    made = convert(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_0", importance={name: weights.reshape(-1)})
    with GGUFFile(made) as file:
        expected = [quantize(v, BY_NAME["Q4_0"], importance=w) for v, w in zip(values, weights, strict=True)]
        np.testing.assert_array_equal(file.tensors[name].data, np.concatenate(expected))


def test_values_that_are_not_finite(tmp_path):
    name, values = "blk.0.ffn_up.weight", np.ones((4, 64), np.float32)
    values[2, 5], values[3, 1] = np.nan, np.inf
    with GGUFWriter(tmp_path / "in.gguf", {"general.architecture": "llama"}, [(name, values.shape, "F32")]) as writer:
        writer.write(name, values)
    with pytest.raises(LoadError, match=r"in\.gguf: blk\.0\.ffn_up\.weight holds nan in row 2, column 5 \(2 such"):
        convert(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()
    with pytest.warns(UserWarning, match="2 values that are not finite are written as 0"):
        made = convert(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0", force=True)
    with GGUFFile(made) as file:
        assert file.tensors[name].dequantize()[2, 5] == 0 and file.tensors[name].dequantize().sum() == pytest.approx(254, rel=1e-3)  # fmt: skip
