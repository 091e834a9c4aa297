"""A stand-in for the Hugging Face hub on loopback: what its client asks of it to make a repository, commit files to it (git LFS
for Parquet) and read them back, as in huggingface_hub 2.4. Private repositories are there for those who may read them alone.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_REPO = r"/(?:api/)?datasets/(?P<repo>[\w.-]+/[\w.-]+?)"


@dataclass
class Repo:
    """A data set's repository: its files at each commit, the last one being `main`."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        digest = sha1(json.dumps([message, len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits.append((digest, message, files))
        return digest

    def at(self, revision: str) -> dict[str, bytes] | None:
        return next((files for sha, _, files in reversed(self.commits) if revision in ("main", sha)), None)


class MockHub:
    """The hub. tokens: whom each knows, and which namespaces it may write to. uploaded: sizes of LFS objects, as they came."""

    def __init__(self, tokens: dict[str, set[str]]) -> None:
        self.tokens, self.url = tokens, ""
        self.storage = ""  # of large files: another host, as it is with the hub
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.uploaded: list[str] = []
        self.asked: list[str] = []
        #: What is answered instead: (method, part of the path) -> status.
        self.faults: dict[tuple[str, str], int] = {}
        self.meanwhile: Any = None


class _Answer(Exception):
    """How a request is answered early."""

    def __init__(self, status: int, error: str, code: str | None = None) -> None:
        self.status, self.error, self.code = status, error, code


class _Handler(BaseHTTPRequestHandler):
    hub: MockHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None: ...

    def _handle(self) -> None:
        self.path_ = unquote(urlsplit(self.path).path)
        self.body = self._read()
        self.hub.asked.append(f"{self.command} {self.path_}")
        try:
            for (method, part), status in self.hub.faults.items():
                if method == self.command and part in self.path_:
                    raise _Answer(
                        status, f"no: {self.headers.get('Authorization', '')}"
                    )  # one that repeats what it was sent
            for pattern, methods, do in _ROUTES:
                if self.command in methods and (found := re.fullmatch(pattern, self.path_)):
                    do(self, **found.groupdict())
                    return
            raise _Answer(404, "Sorry, we can't find the page you are looking for.")
        except _Answer as answer:
            more = {"X-Error-Code": answer.code} if answer.code else {}
            self._send(answer.status, {"error": answer.error}, {"X-Error-Message": answer.error, **more})

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815  the base class's names

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _may(self) -> set[str] | None:
        """The namespaces that whoever asks may write to; None for nobody."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.tokens:
            raise _Answer(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _writable(self, name: str) -> None:
        may = self._may()
        if may is None:
            raise _Answer(401, "Invalid username or password.")
        if _owner(name) not in may:
            raise _Answer(403, f"You don't have the rights to create or change a dataset under {_owner(name)}")

    def _repo(self, name: str) -> Repo:
        may, found = self._may(), self.hub.repos.get(name)
        if found is None or (found.private and _owner(name) not in (may or ())):
            raise _Answer(401 if may is None else 404, "Repository not found", "RepoNotFound")
        return found

    def _files(self, name: str, revision: str) -> tuple[Repo, dict[str, bytes]]:
        found = self._repo(name)
        files = found.at(revision)
        if files is None:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, files

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        assert asked["type"] == "dataset"
        self._writable(name)
        url = f"{self.hub.url}/datasets/{name}"
        if name in self.hub.repos:
            self._send(409, {"error": "You already created this dataset repo", "url": url})
            return
        self.hub.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.hub.repos[name].commit(
            "initial commit", {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
        )
        self._send(200, {"url": url, "name": name, "id": sha1(name.encode()).hexdigest()[:24]})

    def info(self, repo: str, revision: str | None = None) -> None:
        found, files = self._files(repo, revision or "main")
        sha = next(sha for sha, _, at in reversed(found.commits) if at is files)
        self._send(200, {
            "id": repo, "author": _owner(repo), "sha": sha, "private": found.private, "gated": False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(files)],
        })  # fmt: skip

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        digest = sha256(data).hexdigest()
        large = {"lfs": {"oid": digest, "size": len(data), "pointerSize": 130}} if _large(path) else {}
        return {"type": "file", "path": path, "size": len(data), "oid": _blob(data), **large}

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        _, files = self._files(repo, revision)
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        inside = {path: data for path, data in files.items() if path.startswith(prefix)}
        if prefix and not inside:
            raise _Answer(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        deep = "recursive=true" in self.path.casefold()
        folders = {path[: path.index("/", len(prefix))] for path in inside if "/" in path[len(prefix) :]}
        entries = [
            {"type": "directory", "path": path, "size": 0, "oid": _blob(path.encode())} for path in sorted(folders)
        ]
        entries += [self._entry(p, data) for p, data in sorted(inside.items()) if deep or "/" not in p[len(prefix) :]]
        self._send(200, entries)

    def paths_info(self, repo: str, revision: str) -> None:
        _, files = self._files(repo, revision)
        kind = self.headers.get("Content-Type", "")
        if "json" in kind:
            paths = json.loads(self.body)["paths"]
        else:
            from urllib.parse import parse_qs

            paths = parse_qs(self.body.decode())["paths"]
        found: list[dict[str, Any]] = []
        for path in paths:
            if path in files:
                found.append(self._entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "size": 0, "oid": _blob(path.encode())})
        self._send(200, found)

    def validate(self) -> None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        content = json.loads(self.body)["content"]
        try:
            head = YAML(typ="safe", pure=True).load(content.split("---\n")[1])
            assert isinstance(head["configs"][0]["data_files"], list)
        except (YAMLError, KeyError, IndexError) as error:
            self._send(400, {"errors": [{"message": str(error)}], "warnings": []})
            return
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self._writable(repo)
        _, files = self._files(repo, revision)
        told = []
        for one in json.loads(self.body)["files"]:
            path, mode = one["path"], "lfs" if _large(one["path"]) else "regular"
            assert len(base64.b64decode(one["sample"])) == min(512, one["size"])
            oid = None
            if path in files:
                oid = sha256(files[path]).hexdigest() if mode == "lfs" else _blob(files[path])
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": oid} if oid else {})})
        self._send(200, {"files": told})

    def batch(self, repo: str) -> None:
        self._writable(repo)
        self._repo(repo)
        asked = json.loads(self.body)
        assert (asked["operation"], asked["hash_algo"]) == ("upload", "sha256")
        objects = []
        for one in asked["objects"]:
            to = {
                "upload": {"href": f"{self.hub.storage}/storage/{one['oid']}"},
                "verify": {"href": f"{self.hub.url}/datasets/{repo}.git/info/lfs/objects/verify"},
            }
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": to})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if sha256(self.body).hexdigest() != oid:
            raise _Answer(400, "the content is another")
        self.hub.objects[oid] = self.body
        self.hub.uploaded.append(oid)
        self._send(200, {})

    def verify(self, repo: str) -> None:
        asked = json.loads(self.body)
        self._send(200 if len(self.hub.objects.get(asked["oid"], b"")) == asked["size"] else 404, {})

    def commit(self, repo: str, revision: str) -> None:
        self._writable(repo)
        if self.hub.meanwhile:
            self.hub.meanwhile()
        found, files = self._files(repo, revision)
        head, *changes = map(json.loads, self.body.splitlines())
        if head["value"].get("parentCommit") not in (None, found.sha):
            raise _Answer(412, "A commit has happened since. Please refresh and try again.")
        now = dict(files)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                now[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Answer(400, f"LFS object {value['oid']} is not there")
                now[value["path"]] = self.hub.objects[value["oid"]]
            elif value["path"] not in now:
                raise _Answer(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                del now[value["path"]]
        sha = found.commit(head["value"]["summary"], now)
        url = f"{self.hub.url}/datasets/{repo}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found, files = self._files(repo, revision)
        sha = {"X-Repo-Commit": next(sha for sha, _, at in reversed(found.commits) if at is files)}
        if path not in files:
            self._send(404, {"error": "Entry not found"}, {**sha, "X-Error-Code": "EntryNotFound"})
            return
        data = files[path]
        etag = sha256(data).hexdigest() if _large(path) else _blob(data)
        sha |= {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if _large(path):
            large = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            self._send(302, b"", {**sha, **large, "Location": f"{self.hub.storage}/storage/{etag}"})
            return
        self._send(200, data, sha)

    def fetch(self, oid: str) -> None:
        data, status, more = self.hub.objects[oid], 200, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            status, more["Content-Range"] = 206, f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data = data[first : last + 1]
        self._send(status, data, more)


def _large(path: str) -> bool:
    """What .gitattributes of the hub gives to LFS."""
    return path.endswith(".parquet")


def _owner(name: str) -> str:
    return name.partition("/")[0]


def _blob(data: bytes) -> str:
    """A file's id in git."""
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


_ROUTES: list[tuple[str, set[str], Callable[..., None]]] = [
    (r"/api/repos/create", {"POST"}, _Handler.create),
    (r"/api/validate-yaml", {"POST"}, _Handler.validate),
    (rf"{_REPO}/revision/(?P<revision>[^/]+)", {"GET"}, _Handler.info),
    (rf"{_REPO}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", {"GET"}, _Handler.tree),
    (rf"{_REPO}/paths-info/(?P<revision>[^/]+)", {"POST"}, _Handler.paths_info),
    (rf"{_REPO}/preupload/(?P<revision>[^/]+)", {"POST"}, _Handler.preupload),
    (rf"{_REPO}/commit/(?P<revision>[^/]+)", {"POST"}, _Handler.commit),
    (rf"{_REPO}\.git/info/lfs/objects/batch", {"POST"}, _Handler.batch),
    (rf"{_REPO}\.git/info/lfs/objects/verify", {"POST"}, _Handler.verify),
    (r"/storage/(?P<oid>[0-9a-f]{64})", {"PUT"}, _Handler.store),
    (r"/storage/(?P<oid>[0-9a-f]{64})", {"GET", "HEAD"}, _Handler.fetch),
    (rf"{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", {"GET", "HEAD"}, _Handler.resolve),
    (_REPO, {"GET"}, _Handler.info),
]


@contextmanager
def serving(tokens: dict[str, set[str]]) -> Iterator[MockHub]:
    """A hub while the block runs."""
    hub = MockHub(tokens)
    with _server(hub) as hub.url, _server(hub) as hub.storage:
        yield hub


@contextmanager
def _server(hub: MockHub) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
