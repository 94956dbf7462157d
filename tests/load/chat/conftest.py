"""What transformers makes of chats."""

import pytest

from load.chat.styles import SPECIAL


@pytest.fixture(scope="session")
def reference(data):
    """transformers' own rendering."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(data / "demo_model/tokenizer.json"), **SPECIAL)
