"""Servers of this user that run: each keeps a file while it does, by which `qtransformers ps` finds it and may ask."""

from __future__ import annotations

import json
import os
import secrets
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtransformers.serve.config import hashed
from qtransformers.settings import Settings

PATIENCE = 2.0  # seconds that a server may take to answer


@dataclass(frozen=True)
class Found:
    """A server, and what it says of its models; None where it says nothing."""

    url: str
    pid: int
    memory: int = 0  # bytes
    models: list[dict[str, Any]] | None = None  # name, state, running, waiting, context_length


def folder(settings: Settings | None = None) -> Path:
    """Where the files are."""
    return (settings or Settings.from_env()).state_home.expanduser() / "qtransformers" / "servers"


def new_token() -> tuple[str, bytes]:
    """What only this user can know of a server, and its hash for the server's keys."""
    token = secrets.token_hex(24)
    return token, hashed(token)


@contextmanager
def announced(url: str, token: str) -> Iterator[None]:
    """Keep the file of this process until the end of the block; where none can be written there is none."""
    path = folder() / f"{os.getpid()}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump({"url": url, "pid": os.getpid(), "token": token}, file)
    except OSError:
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def servers() -> list[Found]:
    """Those that run; files of processes that have died are removed."""
    found = []
    for path in sorted(folder().glob("*.json")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            url, pid, token = said["url"], int(said["pid"]), said["token"]
            os.kill(pid, 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
            continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append(_asked(str(url), pid, str(token)))
    return found


def _asked(url: str, pid: int, token: str) -> Found:
    request = urllib.request.Request(f"{url}/v1/models", headers={"x-api-key": token})
    try:
        # no proxy: it is on this machine
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as reply:
            said = json.load(reply)
        kept = ("running", "waiting", "context_length")
        models = [
            {"name": m["id"], "state": m["state"], **{k: m["qtransformers"][k] for k in kept}}
            for m in said["data"]
            if m["id"] == m["root"]
        ]
        return Found(url, pid, said["qtransformers"]["memory_bytes"] or 0, models)
    except (OSError, ValueError, KeyError, TypeError):
        return Found(url, pid)
