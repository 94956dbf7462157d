"""Models over HTTP: OpenAI's and Anthropic's APIs (extra `[serve]`)."""

from importlib.util import find_spec

from qtransformers.errors import MissingExtraError

if missing := [
    name for name in ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client") if find_spec(name) is None
]:
    raise MissingExtraError(f"serving needs {', '.join(missing)}. Install them: pip install 'qtransformers[serve]'.")

from qtransformers.serve.app import app
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.models import ModelSpec

__all__ = ["ModelSpec", "ServerConfig", "app"]
