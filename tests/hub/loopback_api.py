"""The HTTP side of the loopback Hub: the endpoints that the real clients ask, and their errors."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from loopback_buckets import BUCKET_ROUTES
from loopback_repos import Refused, Repo, entry, is_lfs, tree


class Handler(BaseHTTPRequestHandler):
    """One connection; `hub` is set by the server that makes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every keep-alive request waits 44 ms for an ACK

    def log_message(self, *_):
        pass

    def handle_any(self):
        body = self.read_body()
        if len(body) < int(self.headers.get("Content-Length") or 0):
            self.close_connection = True  # the client died
            return None
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        fault = self.hub.planned(request)
        if isinstance(fault, int):
            return self.answer(fault, {"error": "planned"})
        if fault in ("reset", "kill"):
            return self.drop(fault)
        if fault in ("timeout", "slow"):
            time.sleep(self.hub.patience)
            if fault == "timeout":
                return self.drop(fault)
        self.silent = fault in ("lost", "kill after")
        try:
            self.dispatch(request, body, parse_qs(url.query))
        except Refused as refusal:
            status, code, message = refusal.args
            self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)
        if self.silent:
            self.drop(fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def drop(self, fault):
        """Closes the connection without an answer."""
        if str(fault).startswith("kill"):
            self.hub.kill()
        self.silent = True
        self.close_connection = True

    def dispatch(self, request, body, query):
        host = self.headers.get("Host", "")
        if host.startswith("localhost") and self.headers.get("Authorization"):
            self.hub.leaks.append(request)
        # Storage needs no token; everywhere else one that is not known is refused.
        if self.token() and self.role() is None and "/objects/" not in request:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, request)
            if match:
                with self.hub.lock:
                    return method(self, body, query, *map(unquote, match.groups()))
        raise Refused(404, "EntryNotFound", "no such endpoint")

    def answer(self, status, content=None, **headers):
        if getattr(self, "silent", False):
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ------------------------------------------------------------------------------ who may what

    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def role(self):
        return self.hub.tokens.get(self.token())

    def repo(self, kind, name, write=False) -> Repo:
        """The repo, as far as this token may see it (or write to it)."""
        repo = self.hub.repos.get(key(kind, name))
        if repo is None or (repo.private and self.role() is None):
            raise Refused(404, "RepoNotFound", "Repository not found")
        if repo.gated and self.role() is None:
            raise Refused(403, "GatedRepo", "Access to this repo is restricted")
        if write:
            self.may_write(name)
        return repo

    def may_write(self, name):
        if self.role() is None:
            raise Refused(401, "", "Invalid username or password.")
        if self.role() != "write" or name.split("/")[0] not in (self.hub.user, self.hub.own_org):
            raise Refused(403, "", "You don't have the rights to write to this repo")

    def at(self, repo, revision) -> tuple[str, dict[str, bytes]]:
        sha = repo.resolve(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return sha, repo.snapshots[sha]

    def whoami(self, body, query):
        if self.role() is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        orgs = [
            {"name": self.hub.own_org, "roleInOrg": "write"},
            {"name": self.hub.read_org, "roleInOrg": "read"},
        ]
        token = {"accessToken": {"role": self.role()}}
        self.answer(200, {"type": "user", "name": self.hub.user, "orgs": orgs, "auth": token})

    # -------------------------------------------------------------------------------------- repos

    def create(self, body, query):
        asked = json.loads(body)
        kind = asked.get("type", "model") + "s"
        name = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        self.may_write(name)
        private = asked.get("private", False) or asked.get("visibility") == "private"
        known = key(kind, name) in self.hub.repos
        if not known:
            first = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
            self.hub.repos[key(kind, name)] = Repo(private=private, files=first)
        path = key(kind, name)
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{path}", "id": name})

    def info(self, body, query, kind, name, revision=None):
        repo = self.repo(kind, name)
        sha, files = self.at(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        if "blobs" in query:
            siblings = [entry(path, data) | {"rfilename": path} for path, data in files.items()]
            for sibling in siblings:
                if sibling["path"] in repo.fake_sizes:
                    sibling["size"] = repo.fake_sizes[sibling["path"]]
                if "lfs" in sibling:  # called so here, and oid in a tree
                    sibling["lfs"]["sha256"] = sibling["lfs"].pop("oid")
        facts = {"id": name, "sha": sha, "private": repo.private, "siblings": siblings}
        card = front_matter(files.get("README.md", b"").decode(errors="replace"))
        facts |= {"cardData": card, "lastModified": "2026-01-01T00:00:00.000Z"}
        facts |= {"tags": [], "gated": repo.gated, "downloads": 0, "likes": 0}
        if kind == "spaces":
            own = {"host": repo.host, "subdomain": name.replace("/", "-"), "sdk": "gradio"}
            facts |= own | {"runtime": {"stage": repo.stage, "hardware": {}}}
        self.answer(200, facts)

    def runtime(self, body, query, name):
        self.answer(200, {"stage": self.repo("spaces", name).stage, "hardware": {}})

    def tree(self, body, query, kind, name, revision, folder=""):
        _, files = self.at(self.repo(kind, name), revision)
        if folder and not any(path.startswith(f"{folder}/") for path in files):
            raise Refused(404, "EntryNotFound", "no such folder")
        listed = tree(files, folder, "recursive" in query and query["recursive"] != ["False"])
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        link = ""
        if end < len(listed):
            others = "&".join(f"{k}={quote(v[0])}" for k, v in query.items() if k != "cursor")
            path = urlsplit(self.path).path
            link = f'<{self.hub.url}{path}?{others}&cursor={end}>; rel="next"'
        self.answer(200, listed[start:end], Link=link)

    def paths_info(self, body, query, kind, name, revision):
        _, files = self.at(self.repo(kind, name), revision)
        wanted = parse_qs(body.decode()).get("paths", [])
        found = [entry(path, files[path]) for path in wanted if path in files]
        everything = {e["path"]: e for e in tree(files, "", True) if e["type"] == "directory"}
        self.answer(200, found + [everything[path] for path in wanted if path in everything])

    def refs(self, body, query, kind, name):
        repo = self.repo(kind, name)
        tags = [("tags", tag, sha) for tag, sha in repo.tags.items()]
        branches = [("heads", branch, repo.head(branch)) for branch in repo.heads]
        listed = [
            {"name": ref, "ref": f"refs/{where}/{ref}", "targetCommit": sha}
            for where, ref, sha in branches + tags
        ]
        split = len(branches)
        answer = {"branches": listed[:split], "tags": listed[split:], "converts": []}
        self.answer(200, answer | {"pullRequests": []})

    def branch(self, body, query, kind, name, branch):
        repo = self.repo(kind, name, write=True)
        if branch in repo.heads:
            raise Refused(409, "", "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint")
        repo.add_branch(branch, self.at(repo, start)[0])
        self.answer(200, {})

    def tag(self, body, query, kind, name, revision):
        repo = self.repo(kind, name, write=True)
        tag = json.loads(body)["tag"]
        if tag in repo.tags:
            raise Refused(409, "", "Tag reference exists already")
        repo.tags[tag] = self.at(repo, revision)[0]
        self.answer(200, {})

    # ------------------------------------------------------------------------------------ commits

    def validate(self, body, query):
        text = json.loads(body)["content"]
        try:
            front_matter(text)
        except (yaml.YAMLError, ValueError) as error:
            self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
            return
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body, query, kind, name, revision):
        repo = self.repo(kind, name, write=True)
        _, files = self.at(repo, revision)
        answers = []
        for file in json.loads(body)["files"]:
            known = entry(file["path"], files[file["path"]]) if file["path"] in files else {}
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            oid = known.get("lfs", known).get("oid")
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            answers.append(answer | {"oid": oid})
        self.answer(200, {"files": answers})

    def batch(self, body, query, kind, name):
        kind = kind.rstrip("/") or "models"
        self.repo(kind, name, write=True)
        asked = json.loads(body)["objects"]
        new = sum(item["size"] for item in asked if item["oid"] not in self.hub.objects)
        stored = sum(map(len, self.hub.objects.values()))
        if self.hub.quota is not None and stored + new > self.hub.quota:
            raise Refused(403, "", "Private repository storage limit reached, please upgrade")
        for item in asked:
            if item["oid"] not in self.hub.objects:
                verify = {"href": f"{self.hub.url}/objects/{item['oid']}/verify"}
                upload = {"href": f"{self.hub.cdn}/objects/{item['oid']}"}
                item["actions"] = {"upload": upload, "verify": verify}
        self.answer(200, {"transfer": "basic", "objects": asked})

    def put(self, body, query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(422, "", "the bytes are not those of the id")
        self.hub.objects[oid] = body
        self.answer(200, {})

    def verify(self, body, query, oid):
        known = len(self.hub.objects.get(oid, b"")) == json.loads(body)["size"]
        self.answer(200 if known else 404, {})

    def commit(self, body, query, kind, name, revision):
        repo = self.repo(kind, name, write=True)
        self.hub.bodies.append(body)
        if revision not in repo.heads:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.head(revision)) != repo.head(revision):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.heads[revision])
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, "", f"LFS pointer of {path} points to nothing")
                files[path] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile" and path in files:
                del files[path]
            else:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        sha = repo.add_commit(revision, files, header["summary"])
        url = f"{self.hub.url}/{key(kind, name)}/commit/{sha}"
        self.answer(200, {"commitUrl": url, "commitOid": sha, "success": True})

    # ---------------------------------------------------------------------------------- downloads

    def resolve(self, body, query, kind, name, revision, path):
        repo = self.repo(kind.rstrip("/") or "models", name)
        sha, files = self.at(repo, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = files[path]
        etag = hashlib.sha256(data).hexdigest()
        facts = {"X_Repo_Commit": sha, "ETag": f'"{etag}"'}
        if not is_lfs(path, len(data)):
            self.answer(200, data, **facts)
            return
        self.hub.objects[etag] = data
        facts |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": len(data)}
        self.answer(302, b"", Location=f"{self.hub.cdn}/objects/{etag}", **facts)

    def get(self, body, query, oid):
        data = self.hub.objects[oid]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            self.answer(200, data, ETag=f'"{oid}"')
            return
        first = int(start[1])
        facts = {"Content_Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        self.answer(206, data[first:], ETag=f'"{oid}"', **facts)


def key(kind: str, name: str) -> str:
    """How a repo is called in `hub.repos`."""
    return name if kind == "models" else f"{kind}/{name}"


def front_matter(text: str) -> dict:
    """The metadata of a card; a ValueError where it is no mapping."""
    found = re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL)
    read = yaml.safe_load(found[1]) if found else {}
    if not isinstance(read or {}, dict):
        raise ValueError("the metadata of a card must be a mapping")
    return json.loads(json.dumps(read or {}, default=str))


_KIND, _ID, _PREFIX = "(models|datasets|spaces)", r"([\w.-]+/[\w.-]+)", "(datasets/|spaces/|)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/{_KIND}/{_ID}", Handler.info),
    (rf"GET /api/{_KIND}/{_ID}/revision/([^/]+)", Handler.info),
    (rf"GET /api/{_KIND}/{_ID}/refs", Handler.refs),
    (rf"GET /api/{_KIND}/{_ID}/tree/([^/]+)", Handler.tree),
    (rf"GET /api/{_KIND}/{_ID}/tree/([^/]+)/(.+)", Handler.tree),
    (rf"POST /api/{_KIND}/{_ID}/paths-info/([^/]+)", Handler.paths_info),
    (rf"POST /api/{_KIND}/{_ID}/branch/([^/]+)", Handler.branch),
    (rf"POST /api/{_KIND}/{_ID}/tag/([^/]+)", Handler.tag),
    (rf"POST /api/{_KIND}/{_ID}/preupload/([^/]+)", Handler.preupload),
    (rf"POST /api/{_KIND}/{_ID}/commit/([^/]+)", Handler.commit),
    (rf"POST /{_PREFIX}{_ID}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /objects/(\w+)", Handler.put),
    (r"GET /objects/(\w+)", Handler.get),
    (r"POST /objects/(\w+)/verify", Handler.verify),
    (rf"GET /api/spaces/{_ID}/runtime", Handler.runtime),
    *BUCKET_ROUTES,
    (rf"(?:GET|HEAD) /{_PREFIX}{_ID}/resolve/([^/]+)/(.+)", Handler.resolve),
]
