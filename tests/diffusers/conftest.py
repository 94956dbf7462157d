"""Fixtures of tests that need diffusers."""

from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The models are small, and torch's threads spin while they wait."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nearest(monkeypatch):
    """Cosmos resizes its padding mask by torchvision, which is heavy: here by torch, where it is not installed."""
    import torch
    from diffusers.models.transformers import transformer_cosmos

    def resize(x, size, interpolation):
        return torch.nn.functional.interpolate(x, size, mode=interpolation)

    transforms = SimpleNamespace(functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest"))  # fmt: skip
    if not hasattr(transformer_cosmos, "transforms"):
        monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
