"""The reader on files as they should be."""

import numpy as np
import pytest

from qtransformers.errors import GGUFError, ModelNotFoundError
from qtransformers.gguf import GGUFFile


def test_the_demo_file(data):
    with GGUFFile(data / "demo-Q8_0.gguf") as file:
        assert file.version == 3 and not file.big_endian and file.alignment == 32
        assert file.metadata["general.architecture"] == "llama"
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert file.metadata.info("tokenizer.ggml.tokens") == ("arr[str]", len(tokens))
        assert tokens is file.metadata["tokenizer.ggml.tokens"]
        embedding = file.tensors["token_embd.weight"]
        assert embedding.shape[0] == len(tokens)
        assert not embedding.data.flags.writeable
        assert embedding.data.nbytes == embedding.n_rows * embedding.row_bytes
        assert np.isfinite(embedding.rows(0, 4)).all()
        last = list(file.tensors.values())[-1]
    with pytest.raises(GGUFError, match="is closed"):
        file.tensors["token_embd.weight"]
    assert last.data[-1] >= 0  # a tensor taken out keeps the map


def test_what_is_not_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match="No such file"):
        GGUFFile(tmp_path / "absent.gguf")
