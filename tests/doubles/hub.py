"""The two endpoints of the Hugging Face Hub that a download of a model uses, over files in memory.

`GET /api/models/{repo}/revision/{revision}?blobs=true` and `HEAD | GET /{repo}/resolve/{commit}/{file}`. Stands in
where the real one cannot be reached; what reads it is the real `huggingface_hub`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Models by name; what was asked for.

    Attributes:
        models: `owner/name` → revision → commit.
        files: commit → name → content.
        licence: what every card says.
        spoilt: files whose bytes on the way are not those that the hub has digests of.
        gated: models that ask for a login.
        broken: files whose download ends in a 500.
    """

    url: str = ""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    licence: str | None = "apache-2.0"
    spoilt: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    downloaded: list[tuple[str, str]] = field(default_factory=list)

    def push(self, repo: str, files: dict[str, bytes], *, revision: str = "main") -> str:
        """A new commit, which the revision names from now on."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.files[commit] = files
        self.models.setdefault(repo, {})[revision] = commit
        return commit

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit that a revision names; a commit names itself."""
        known = self.models.get(repo, {})
        return known.get(revision) or (revision if revision in known.values() or revision in self.files else None)


def describe(name: str, content: bytes) -> dict[str, Any]:
    """A file as the API lists it; weights are in LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    listed: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith((".safetensors", ".bin")):
        listed["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
    return listed


class _Server(ThreadingHTTPServer):
    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._info(repo, revision)
        else:
            repo, _, rest = path.removeprefix("/").partition("/resolve/")
            commit, _, name = rest.partition("/")
            self._file(repo, commit, name)

    def _info(self, repo: str, revision: str) -> None:
        commit = self.server.hub.commit(repo, revision)
        if repo in self.server.hub.gated:
            self._refuse(403, "GatedRepo")
        elif repo not in self.server.hub.models:
            self._refuse(404, "RepoNotFound")
        elif commit is None:
            self._refuse(404, "RevisionNotFound")
        else:
            siblings = [describe(name, content) for name, content in self.server.hub.files[commit].items()]
            card = {"license": self.server.hub.licence} if self.server.hub.licence else {}
            self._send(json.dumps({"id": repo, "sha": commit, "siblings": siblings, "cardData": card}).encode(), {})

    def _file(self, repo: str, commit: str, name: str) -> None:
        content = self.server.hub.files.get(commit, {}).get(name)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        etag = describe(name, content).get("lfs", {}).get("sha256") or describe(name, content)["blobId"]
        if self.command == "GET":
            self.server.hub.downloaded.append((commit, name))
            if name in self.server.hub.broken:
                self._refuse(500, "Internal")
                return
            content = content[:-1] + bytes([content[-1] ^ 1]) if name in self.server.hub.spoilt else content
        self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is the test's."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
