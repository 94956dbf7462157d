"""The Hub, played by a small server on loopback."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Beginning:
    """A file of `size` bytes of which only the first ones may be asked for."""

    def __init__(self, content, size):
        self.content, self.size, self.etag = content, size, hashlib.sha256(content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Repositories as {name: {file: bytes, or an int: the size of a file never to be asked for}}."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {}
        self.gated, self.needs_token, self.drops = set(), set(), ""
        self.stalls_after = None  # bytes of a file, then silence
        self.hashes = {}  # name -> what the listing claims
        self.ranges = True
        self.elsewhere = None  # the server that files are on, by a redirect
        self.sent = 0  # bytes of files
        self.done = threading.Event()
        self.asked = []
        self.tokens = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files_asked(self):
        return {path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1] for path in self.asked if "/resolve/" in path}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        hub = self.server
        path = unquote(self.path.partition("?")[0])
        hub.asked.append(path)
        hub.tokens.append(self.headers.get("authorization"))
        what = "listing" if path.startswith("/api/") else "file" if body else "head"
        if hub.drops == what:
            self.close_connection = True
            return self.connection.close()
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        repo = "/".join(parts[:2])
        files = hub.repos.get(repo)
        if files is None or (repo in hub.needs_token and self.headers.get("authorization") != "Bearer hf_right"):
            return self.refuse(401 if repo in hub.needs_token else 404, "RepoNotFound")
        if len(parts) > 3 and parts[3] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if api:
            siblings = [{"rfilename": n, "size": size_of(f)} for n, f in files.items()]
            return self.send(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}).encode())  # fmt: skip
        if repo in hub.gated:
            return self.refuse(403, "GatedRepo")
        name = "/".join(parts[4:])
        content = files.get(name)
        if content is None or isinstance(content, int):
            return self.refuse(404, "EntryNotFound")
        if hub.elsewhere and not body:
            self.send_response(302)
            self.send_header("Location", hub.elsewhere.url + self.path)
            self.send_header("X-Linked-Size", str(size_of(content)))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if hub.drops == "middle" and body:
            self.send(content[: len(content) // 2], length=len(content))
            self.close_connection = True
            return None
        return self.send_file(name, content)

    def send_file(self, name, content):
        """All of a file, or the range asked for."""
        hub, size = self.server, size_of(content)
        start, stop, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted and hub.ranges:
            start, stop, status = int(wanted[1]), min(size, int(wanted[2]) + 1), 206
        if isinstance(content, Beginning):
            if self.command == "GET" and stop > len(content.content):
                return self.refuse(500, "NotThatFar")
            etag, raw = content.etag, content.content[start:stop]
        else:
            etag, raw = hashlib.sha256(content).hexdigest(), content[start:stop]
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("ETag", f'"{hub.hashes.get(name, etag)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            cut = len(raw) if hub.stalls_after is None else max(0, hub.stalls_after - start)
            self.wfile.write(raw[:cut])
            self.wfile.flush()
            hub.sent += len(raw[:cut])
            if cut < len(raw):
                hub.done.wait(60)
                self.close_connection = True

    def send(self, content, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
            self.wfile.flush()

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def size_of(file):
    return file if isinstance(file, int) else file.size if isinstance(file, Beginning) else len(file)
