"""How a server behaves: addresses, keys, limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtransformers.checks import real, shown, text, whole
from qtransformers.errors import ConfigError

PORT = 8642
MIB = 1 << 20
MAX_SECONDS = 7 * 86_400.0
SHORTEST_KEY = 16  # characters
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServerConfig:
    """Addresses, keys and limits of a server, checked once; ConfigError names the field."""

    host: str = "127.0.0.1"
    port: int = PORT  # 0: any that is free
    keys: Mapping[str, bytes] = field(
        default_factory=dict
    )  # name -> SHA-256 of the key; none: whoever reaches the port
    hosts: tuple[str, ...] = ()  # names in `Host` beside the address itself and loopback's
    origins: tuple[str, ...] = ()  # other sites whose pages may ask
    anyone: bool = False  # may listen beyond loopback without keys
    queue: int = 64  # answers that may wait for their turn, beside those that are computed
    per_key: int | None = None  # requests of one key at a time
    rate: float | None = None  # requests of one key a minute
    timeout: float = 1800.0  # seconds until an answer must be complete
    body_timeout: float = 30.0  # seconds until a request must have arrived
    drain: float = 30.0  # seconds that running answers have left when the server is told to end
    stall: float = 60.0  # seconds that a client may leave unread what was sent
    ping: float = 15.0  # seconds of silence after which a stream shows that it lives
    max_body: int = 8 * MIB
    max_answer: int | None = None  # tokens that one answer may ask for
    max_choices: int = 16  # answers to one request (n, or prompts times n)
    templates: bool = False  # requests may bring chat templates

    def __post_init__(self) -> None:
        whole("port", self.port, 0, 65_535)
        whole("queue", self.queue, 0, 1 << 20)
        whole("max_body", self.max_body, 1024, 1 << 32)
        whole("max_choices", self.max_choices, 1, 1024)
        for name in ("per_key", "max_answer"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1, 2**31 - 1)
        if self.rate is not None:
            real("rate", self.rate, 1e-3, 1e9)
        for name in ("timeout", "body_timeout", "drain", "stall", "ping"):
            real(name, getattr(self, name), 0.01, MAX_SECONDS)
        for origin in self.origins:
            if origin != "*" and (not origin.startswith(("http://", "https://")) or origin.count("/") != 2):
                raise ConfigError(f"origins: {shown(origin)}; expected one as browsers send it: https://name, or *.")
        if not self.keys and not self.anyone and not is_loopback(self.host):
            raise ConfigError(
                f"host={shown(self.host)}: whoever reaches this address could use the server, for it has no keys. "
                "Give it some (--api-key-file), or say that anybody may (--allow-anyone)."
            )

    def key_of(self, given: str | None) -> str | None:
        """The name of a key, None for one that is unknown; all are compared, in the same time for each."""
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self.keys.items():
            if hmac.compare_digest(digest, known) and given:
                found = name
        return found


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hashed(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: str | Path) -> dict[str, bytes]:
    """Keys of a file: one a line, `KEY` or `NAME KEY`; `#` begins a remark. ConfigError names the line."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: the keys cannot be read ({e.__class__.__name__}). Give a text file, a key a line.") from None  # fmt: skip
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, key = (words[0], words[-1]) if len(words) == 2 else (f"key-{number}", words[0])
        if len(words) > 2 or name in found:
            raise ConfigError(f"{path}, line {number}: expected KEY, or NAME KEY with a name of its own.")
        found[name] = hashed(checked_key(f"{path}, line {number}", key))
    if not found:
        raise ConfigError(f"{path} holds no keys; expected one a line, KEY or NAME KEY.")
    return found


def checked_key(where: str, key: str) -> str:
    """The key, if it is long enough not to be guessed; ConfigError."""
    if len(text(where, key)) < SHORTEST_KEY:
        raise ConfigError(f"{where}: the key has {len(key)} characters; expected at least {SHORTEST_KEY}. Make one: openssl rand -hex 24.")  # fmt: skip
    return key
