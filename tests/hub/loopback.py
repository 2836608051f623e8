"""A small Hub on loopback: accounts, model repos, commits with LFS, downloads, planned failures.

The real clients talk to it over HTTP, so what they send is what is tested. Repos live in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_TOKEN = "hf_writeWriteWriteWriteWriteWrite"
READ_TOKEN = "hf_readReadReadReadReadReadRead"
BAD_TOKEN = "hf_nobodyNobodyNobodyNobodyNobody"
ACCOUNTS = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
USER, OWN_ORG, READ_ORG = "alice", "lab", "museum"


@dataclass
class Repo:
    """A model repo: its files at the last commit, and how many commits led there."""

    private: bool = True
    gated: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    branches: set[str] = field(default_factory=lambda: {"main"})

    @property
    def sha(self):
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class Failure:
    pattern: str
    status: int
    times: int


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves on `hub.url`; `hub.log` lists every request."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.log: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, status: int, times: int = 1):
        """Answers the next `times` requests that match `METHOD /path` with a status."""
        self.failures.append(Failure(pattern, status, times))

    def planned(self, request: str) -> int | None:
        for failure in self.failures:
            if failure.times > 0 and re.search(failure.pattern, request):
                failure.times -= 1
                return failure.status
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every keep-alive request waits 44 ms for an ACK

    def log_message(self, *_):
        pass

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        self.hub.log.append(request)
        planned = self.hub.planned(request)
        if planned is not None:
            return self.answer(planned, {"error": "planned"})
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, request)
            if match:
                return method(self, body, parse_qs(url.query), *map(unquote, match.groups()))
        return self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def answer(self, status, content=None, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code):
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def role(self):
        return ACCOUNTS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def whoami(self, body, query):
        if self.role() is None:
            message = "Invalid credentials in Authorization header"
            return self.answer(401, {"error": message}, X_Error_Message=message)
        orgs = [{"name": OWN_ORG, "roleInOrg": "write"}, {"name": READ_ORG, "roleInOrg": "read"}]
        token = {"accessToken": {"role": self.role()}}
        return self.answer(200, {"type": "user", "name": USER, "orgs": orgs, "auth": token})

    def create(self, body, query):
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        private = asked.get("private", False) or asked.get("visibility") == "private"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo(private=private))
        return self.answer(status, {"url": f"{self.hub.url}/{name}", "id": name})

    def repo(self, name):
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.role() is None):
            self.refuse(404, "RepoNotFound")
        elif repo.gated and self.role() is None:
            self.refuse(403, "GatedRepo")
        else:
            return repo
        return None

    def info(self, body, query, name, revision=None):
        repo = self.repo(name)
        if repo is None:
            return
        if revision not in (None, repo.sha, *repo.branches):
            self.refuse(404, "RevisionNotFound")
            return
        files = [{"rfilename": path} for path in repo.files]
        facts = {"id": name, "sha": repo.sha, "private": repo.private, "siblings": files}
        self.answer(200, facts | {"tags": [], "gated": repo.gated, "downloads": 0, "likes": 0})

    def branch(self, body, query, name, branch):
        known = branch in self.hub.repos[name].branches
        self.hub.repos[name].branches.add(branch)
        self.answer(409 if known else 200, {})

    def validate(self, body, query):
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body, query, name, revision):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, body, query, name):
        answers = []
        for item in json.loads(body)["objects"]:
            if item["oid"] not in self.hub.objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}}
            answers.append(item)
        self.answer(200, {"transfer": "basic", "objects": answers})

    def put(self, body, query, oid):
        good = hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer(200 if good else 422, {})

    def commit(self, body, query, name, revision):
        if self.role() != "write":
            return self.refuse(403, "Forbidden")
        repo = self.hub.repos[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.objects[value["oid"]]
        repo.commits.append(revision)
        url = f"{self.hub.url}/{name}/commit/{repo.sha}"
        return self.answer(200, {"commitUrl": url, "commitOid": repo.sha, "success": True})

    def resolve(self, body, query, name, revision, path):
        repo = self.repo(name)
        if repo is None:
            return
        if path not in repo.files:
            self.refuse(404, "EntryNotFound")
            return
        etag = hashlib.sha256(repo.files[path]).hexdigest()
        self.answer(200, repo.files[path], X_Repo_Commit=repo.sha, ETag=f'"{etag}"')


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_ID}", _Handler.info),
    (rf"GET /api/models/{_ID}/revision/([^/]+)", _Handler.info),
    (rf"POST /api/models/{_ID}/branch/([^/]+)", _Handler.branch),
    (rf"POST /api/models/{_ID}/preupload/([^/]+)", _Handler.preupload),
    (rf"POST /api/models/{_ID}/commit/([^/]+)", _Handler.commit),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /objects/(\w+)", _Handler.put),
    (rf"(?:GET|HEAD) /{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
