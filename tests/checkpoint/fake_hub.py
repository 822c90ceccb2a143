"""A small Hugging Face Hub on 127.0.0.1: models, files by range, tokens, gates, broken lines, and commits."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_MODEL = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/?]+))?(?:\?.*)?")


@dataclass
class Repository:
    """Files of one commit; `gated` and `private` want the right token; `stops` breaks the line after so many bytes."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    revisions: tuple[str, ...] = ("main", "v1")
    stops: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True

    @property
    def commit(self) -> str:
        facts = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(self.files.items())]
        return hashlib.sha1(repr(facts).encode()).hexdigest()


@dataclass
class FakeHub:
    """The state that tests set and look at.

    Attributes:
        asked: (method, path, Range header or "") of every request.
        stored: what was uploaded as large files, by sha256.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    status: int | None = None
    address: str = ""

    def downloads(self, name: str) -> list[str]:
        """The Range headers with which a file was fetched."""
        return [r for method, path, r in self.asked if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub while the block runs."""

    class Handler(_Handler):
        state = hub

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that goes away is part of the play."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.get(body=False)

    def do_GET(self) -> None:
        self.get(body=True)

    def get(self, *, body: bool) -> None:
        hub = self.state
        hub.asked.append((self.command, self.path, self.headers.get("Range", "")))
        if hub.status is not None:
            return self.refuse(hub.status)
        found = _RESOLVE.fullmatch(self.path)
        if found is not None:
            return self.file(found[1], found[2], found[3], body)
        found = _MODEL.fullmatch(self.path)
        if found is None:
            return self.refuse(404)
        repository = self.repository(found[1], found[2] or "main", info=True)
        if repository is None:
            return None
        siblings = [{"rfilename": n, "size": len(b)} for n, b in repository.files.items()]
        return self.answer({"id": found[1], "sha": repository.commit, "siblings": siblings})

    def repository(self, name: str, revision: str, *, info: bool) -> Repository | None:
        """The repository, None after an error was answered."""
        sent = self.headers.get("Authorization", "")
        if sent and sent != f"Bearer {TOKEN}":
            self.refuse(401)
            return None
        found = self.state.repositories.get(name)
        if found is None or (found.private and not sent):
            self.refuse(404 if sent else 401, "RepoNotFound")
        elif found.gated and not info and not sent:
            self.refuse(401, "GatedRepo")
        elif revision not in (*found.revisions, found.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def file(self, name: str, revision: str, path: str, body: bool) -> None:
        repository = self.repository(name, revision, info=False)
        if repository is None:
            return None
        data = repository.files.get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = 0, len(data)
        if asked is not None and repository.ranges:
            begin, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else end, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return None
        stops = repository.stops.get(path)
        stop = stops.pop(0) if stops else None
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[begin:end] if stop is None else data[begin : min(end, begin + stop)])
        if stop is not None:
            self.close_connection = True
        return None

    def do_POST(self) -> None:
        hub = self.state
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(("POST", self.path, ""))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401)
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            wish = json.loads(raw)
            name = f"{wish['organization']}/{wish['name']}" if wish.get("organization") else wish["name"]
            if name.startswith("others/"):
                return self.refuse(403)
            if name in hub.repositories:
                return self.answer({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
            hub.repositories[name] = Repository(
                {}, private=bool(wish.get("private")) or wish.get("visibility") == "private"
            )
            return self.answer({"url": f"{hub.address}/{name}"})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main(?:\?.*)?", self.path)
        if found is not None and found[2] == "preupload":
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(raw)["files"]
            ]
            return self.answer({"files": files})
        if found is not None:
            return self.commit(found[1], raw)
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{hub.address}/lfs/{o['oid']}"}},
                }
                for o in json.loads(raw)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        return self.refuse(404)

    def commit(self, name: str, raw: bytes) -> None:
        repository = self.state.repositories[name]
        for line in raw.decode().splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                repository.files[value["path"]] = self.state.stored[value["oid"]]
        where = f"{self.state.address}/{name}/commit/{repository.commit}"
        self.answer({"commitUrl": where, "commitOid": repository.commit, "success": True})

    def do_PUT(self) -> None:
        self.state.asked.append(("PUT", self.path, ""))
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.state.stored[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def answer(self, value: Any, status: int = 200) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
