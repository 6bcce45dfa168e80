"""A stand-in for the Hub: the endpoints that huggingface_hub asks when it publishes, over HTTP.

Content is kept as git and LFS would: a commit is a mapping of paths, large files are pointers.
Faults are put in front of requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 200_000
TOKEN = "hf_stand_in"


@dataclass
class Blob:
    """A file of a commit."""

    data: bytes | None
    """None for a large file, whose bytes are in the LFS store."""
    size: int
    sha256: str | None = None

    @property
    def oid(self) -> str:
        data = self.data
        if data is None:
            data = f"oid sha256:{self.sha256}\nsize {self.size}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def as_json(self, path: str) -> dict[str, Any]:
        found = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256 is not None:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return found


@dataclass
class Repo:
    """Branches, and every commit as (id, title, text, files)."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    private: bool = False

    def commit(self, branch: str, title: str, text: str, files: dict[str, Blob]) -> str:
        number = hashlib.sha1(f"{len(self.commits)}{title}".encode()).hexdigest()
        self.commits[number] = files
        self.branches[branch] = number
        self.log.append((branch, title, text))
        return number

    def at(self, revision: str) -> dict[str, Blob]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Fault:
    """What happens instead of an answer, ``times`` times, where method and path fit."""

    method: str
    part: str
    status: int = 0
    """0: the connection is reset."""
    after: bool = False
    """The request is carried out first, and only its answer is lost."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The server and what it holds."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.store: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None

    def text(self, repo: str, path: str, revision: str = "main") -> str:
        """A file's content."""
        blob = self.repos[repo].at(revision)[path]
        data = blob.data if blob.data is not None else self.store[blob.sha256 or ""]
        return data.decode()

    def commits(self, repo: str, branch: str = "main") -> list[tuple[str, str]]:
        """(Title, text) of the commits of a branch."""
        return [(title, text) for on, title, text in self.repos[repo].log if on == branch]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        fault = self.hub.fault(self.command, path)
        if fault is not None and not fault.after:
            if fault.status:
                self._body()
                self._answer({"error": "a fault"}, fault.status, fault.headers)
            else:
                self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
                self._reset()
            return
        with self.hub.lock:
            status, value, headers = self._route(path, self._body())
        if fault is not None:
            self._reset()
        else:
            self._answer(value, status, headers)

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: Any, status: int, headers: dict[str, str]) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path.startswith("/store/"):
            return self._put(path.removeprefix("/store/"), body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}, {}
        if path == "/api/whoami-v2":
            return 200, {"name": "zen-lab", "type": "user"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for verb, method in _VERBS.items():
            head, found, rest = path.partition(f"/{verb}/")
            if found:
                name = head.removeprefix("/api/models/").strip("/")
                if name not in self.hub.repos:
                    return 404, {"error": "no repo"}, {"X-Error-Code": "RepoNotFound"}
                return method(self, self.hub.repos[name], name, rest, body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        return 404, {"error": path}, {}

    def _put(self, oid: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        self.hub.puts.append(oid)
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "other bytes"}, {}
        self.hub.store[oid] = body
        return 200, b"", {}

    def _create(self, value: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = (
            f"{value['organization']}/{value['name']}" if "organization" in value else value["name"]
        )
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", **url}, {}
        repo = self.hub.repos[name] = Repo(private=bool(value.get("private")))
        repo.commit("main", "initial commit", "", {".gitattributes": _small(b"*.gguf lfs\n")})
        return 200, url, {}

    def _batch(self, value: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for one in value["objects"]:
            there = one["oid"] in self.hub.store
            upload = {"upload": {"href": f"{self.hub.url}/store/{one['oid']}"}}
            objects.append(one if there else {**one, "actions": upload})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _info(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        return 200, {"id": name, "sha": repo.branches[rest], "siblings": []}, {}

    def _tree(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        return 200, [blob.as_json(path) for path, blob in repo.at(rest).items()], {}

    def _paths(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        files = repo.at(rest)
        asked = parse_qs(body.decode())["paths"]
        return 200, [files[path].as_json(path) for path in asked if path in files], {}

    def _branch(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        if self.command == "DELETE":
            if repo.branches.pop(rest, None) is None:
                return 404, {"error": "no branch"}, {"X-Error-Code": "RevisionNotFound"}
            return 200, {}, {}
        if rest in repo.branches:
            return 409, {"error": "Reference already exists"}, {}
        repo.branches[rest] = json.loads(body)["startingPoint"]
        return 200, {}, {}

    def _preupload(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        files = repo.at(rest)
        return (
            200,
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["size"] > LARGE else "regular",
                        "shouldIgnore": False,
                        **({"oid": files[one["path"]].oid} if one["path"] in files else {}),
                    }
                    for one in json.loads(body)["files"]
                ]
            },
            {},
        )

    def _commit(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.branches[rest]) != repo.branches[rest]:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(repo.at(rest))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = _small(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                size = len(self.hub.store[value["oid"]])  # a pointer to nothing is an error
                files[value["path"]] = Blob(None, size, value["oid"])
            else:
                del files[value["path"]]
        number = repo.commit(rest, header["summary"], header["description"], files)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{number}", "commitOid": number}, {}

    def _resolve(
        self, repo: Repo, name: str, rest: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        revision, _, path = rest.partition("/")
        data = repo.at(revision)[path].data or b""
        headers = {"ETag": f'"{repo.at(revision)[path].oid}"', "X-Repo-Commit": revision}
        return 200, data, headers


Route = Callable[[_Handler, Repo, str, str, bytes], tuple[int, Any, dict[str, str]]]
_VERBS: dict[str, Route] = {
    "revision": _Handler._info,
    "tree": _Handler._tree,
    "paths-info": _Handler._paths,
    "branch": _Handler._branch,
    "preupload": _Handler._preupload,
    "commit": _Handler._commit,
    "resolve": _Handler._resolve,
}


def _small(data: bytes) -> Blob:
    return Blob(data, len(data))
