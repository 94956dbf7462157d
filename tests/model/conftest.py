"""The demo model, loaded once for each file of tests."""

import pytest

from qtransformers.model import Model


@pytest.fixture(scope="module")
def demo(data):
    with Model.load(data / "demo-Q8_0.gguf") as model:
        yield model
