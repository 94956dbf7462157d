"""What a server says of itself: /health, /v1/models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtransformers.machine import mapped, resident
from qtransformers.sampling.settings import RANGES

if TYPE_CHECKING:
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry, State
    from qtransformers.serve.painters import Painter
    from qtransformers.serve.server import Server


async def health(server: Server, call: Call, body: bytes) -> None:
    """Whether requests can be answered now: ready, loading, broken or draining."""
    states = [entry.health for entry in server.models.entries] + [painter.state for painter in server.painters.all]
    state = "draining" if server.draining else _together(states)
    await call.json({"status": state}, 200 if state == "ready" else 503)


def _together(states: list[State]) -> str:
    """The state of a server: one whose models are not loaded yet answers, later, and so does one that has lost some of them."""
    able = {state for state in states if state != "broken"}
    if able == {"loading"} or (states[0] == "loading" and "ready" not in able):
        return "loading"
    return "ready" if able else "broken"


async def list_models(server: Server, call: Call, body: bytes) -> None:
    """The models, and their adapters."""
    data = [_model(*item) for item in server.models.names.items()]
    data += [_painter(*item) for item in server.painters.names.items()]
    await call.json({"object": "list", "data": data, "qtransformers": memory_of()})


def memory_of() -> dict[str, int | None]:
    """Main memory that this process has in use, and how much of it is of files, in bytes."""
    return {"memory_bytes": resident(), "mapped_bytes": mapped()}


async def show_model(server: Server, call: Call, body: bytes) -> None:
    """One of them."""
    name = call.path["name"]
    painter = server.painters.names.get(name)
    await call.json(_painter(name, painter) if painter else _model(name, server.models.find(name)[0]))


def _painter(name: str, painter: Painter) -> dict[str, Any]:
    more = {"kind": "diffusion", "images": painter.limits}
    return {"id": name, "object": "model", "created": painter.created, "owned_by": "qtransformers", "root": painter.spec.names[0], "state": painter.state, "qtransformers": more}  # fmt: skip


def _model(name: str, entry: Entry) -> dict[str, Any]:
    model = entry.model
    context = model.context_length if model else None
    sampling = {field: getattr(model.sampling, field) for field in RANGES} if model else None  # the defaults
    usage = entry.usage
    more = {
        "kind": "language", "context_length": context, "sampling": sampling,
        "running": usage.running if usage else 0, "waiting": usage.waiting if usage else entry.answers,
    }  # fmt: skip
    return {"id": name, "object": "model", "created": entry.created, "owned_by": "qtransformers", "root": entry.spec.name, "max_model_len": context, "state": entry.state, "qtransformers": more}  # fmt: skip
