"""What user/repo:QUANT stands for."""

import pytest

from qtransformers.errors import ModelNotFoundError
from qtransformers.load.references import choose, parse_reference, quants


def test_names_and_quants():
    names = ["m-Q4_K_M.gguf", "m.IQ2_XXS.gguf", "m-UD-Q4_K_XL.gguf", "m-f16.gguf", "Q6_K/m-00001-of-00002.gguf", "Q6_K/m-00002-of-00002.gguf", "m-mxfp4.gguf", "m-TQ1_0.gguf", "mmproj-f16.gguf", "m-imatrix.gguf", "notes.txt", "odd.gguf", "m_Q8_0.gguf"]  # fmt: skip
    found = {label: files for (label, _), files in quants(dict.fromkeys(names, 1)).items()}
    assert set(found) == {"Q4_K_M", "IQ2_XXS", "UD-Q4_K_XL", "F16", "Q6_K", "MXFP4", "TQ1_0", "odd", "Q8_0"}
    assert found["Q6_K"] == ["Q6_K/m-00001-of-00002.gguf", "Q6_K/m-00002-of-00002.gguf"]


def test_a_single_model_needs_no_quant():
    assert choose({"only.gguf": 1}, parse_reference("a/b")) == ["only.gguf"]
    with pytest.raises(ModelNotFoundError, match=r"several models of quant Q4_K_M: x-Q4_K_M\.gguf, y-Q4_K_M\.gguf"):
        choose({"x-Q4_K_M.gguf": 1, "y-Q4_K_M.gguf": 1}, parse_reference("a/b"))


LISTED = {"m-fp16.gguf": 1, "M.i1-Q4_K_M.gguf": 1, "m-Q8_0-imat.gguf": 1, "MyModel-v2.gguf": 1, "Other.Model.gguf": 1, "UD/x-UD-IQ1_S.gguf": 1, "Llama-1B-Q5_0.gguf": 1, "Llama-3B-Q5_0.gguf": 1, "z-MXFP4_MOE.gguf": 1}  # fmt: skip


def test_every_model_can_be_named_as_it_is_shown():
    labels = [label for label, _ in quants(LISTED)]
    assert set(labels) == {"F16", "Q4_K_M", "Q8_0", "MyModel-v2", "Other.Model", "UD-IQ1_S", "Q5_0", "MXFP4_MOE"}
    for (label, _), names in quants(LISTED).items():
        wanted = label if labels.count(label) == 1 else names[0]
        for text in (wanted, wanted.lower(), names[0], names[0].rpartition("/")[2].upper()):
            assert choose(LISTED, parse_reference(f"a/b:{text}")) == names
    assert choose(LISTED, parse_reference("a/b:fp16")) == ["m-fp16.gguf"]


def test_models_of_one_quant_are_told_apart_by_file():
    with pytest.raises(
        ModelNotFoundError, match=r"several models of quant Q5_0: .* Say which: a/b:Llama-1B-Q5_0\.gguf"
    ):
        choose(LISTED, parse_reference("a/b:Q5_0"))


@pytest.mark.parametrize("text, same", [
    ("https://huggingface.co/user/repo", "user/repo"), ("hf.co/user/repo:Q4_K_M", None), ("huggingface.co/user/repo/", "user/repo"),
    ("https://huggingface.co/user/repo/blob/main/sub/x-Q4_0.gguf", "user/repo:sub/x-Q4_0.gguf"), ("https://hf.co/user/repo/tree/v2", "user/repo@v2"),
    ("https://huggingface.co/user/repo/resolve/main/x.gguf?download=true", "user/repo:x.gguf"),
])  # fmt: skip
def test_addresses_as_they_are_pasted(text, same):
    assert parse_reference(text) == parse_reference(same or "user/repo:Q4_K_M")


def test_missing_shards_of_a_listing():
    with pytest.raises(ModelNotFoundError, match="2 of 3 shards"):
        choose({f"x-Q4_K_M-0000{i}-of-00003.gguf": 1 for i in (1, 3)}, parse_reference("a/b"))


@pytest.mark.parametrize("text", ["a", "a/b/c", "/a/b", "./b", "../b", "a/..", "a//b", "~/b", "a/b.gguf", "a\\b/c", "a/b:Q4:Q5", "", "a/b@", "a /b", "-a/b"])  # fmt: skip
def test_what_is_no_reference(text):
    assert parse_reference(text) is None


def test_references():
    ref = parse_reference("bartowski/Meta-Llama-3.1-8B_x@v1.0/beta:UD-Q4_K_XL")
    assert (ref.repo, ref.revision, ref.quant) == ("bartowski/Meta-Llama-3.1-8B_x", "v1.0/beta", "UD-Q4_K_XL")
    assert str(parse_reference("a/b")) == "a/b"
