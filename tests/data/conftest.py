"""Tools for the data tests: rows to files, and a Hub on loopback that is just large enough."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PREFIX = "/api/datasets/"


class LoopbackHub(ThreadingHTTPServer):
    """One dataset, `org/pairs`, at one commit; every other id fails as `failures` says."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {}
        self.failures = {}
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body=b""):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for repo, (status, headers) in self.server.failures.items():
            if f"/{repo}" in path:
                return self.send(status, b"{}", headers)
        files = self.server.files
        repo = PREFIX + "org/pairs"
        if path.startswith(f"{repo}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{repo}/tree/{COMMIT}").strip("/")
            found = [entry(name, data) for name, data in files.items() if name.startswith(folder)]
            if found:
                return self.send(200, found)
        if path.startswith(f"{repo}/paths-info/"):
            wanted = parse_qs(body.decode())["paths"]
            return self.send(200, [entry(n, d) for n, d in files.items() if n in wanted])
        if path in (repo, f"{repo}/revision/main", f"{repo}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in files]
            return self.send(200, {"id": "org/pairs", "sha": COMMIT, "siblings": siblings})
        resolve = f"/datasets/org/pairs/resolve/{COMMIT}/"
        if path.startswith(resolve) and path.removeprefix(resolve) in files:
            data = files[path.removeprefix(resolve)]
            etag = hashlib.sha1(data).hexdigest()
            return self.send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        return self.send(404, {}, {"X-Error-Code": "EntryNotFound"})

    def send(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def entry(name, data):
    oid = hashlib.sha1(data).hexdigest()
    return {"type": "file", "path": name, "oid": oid, "size": len(data)}


@pytest.fixture
def hub():
    server = LoopbackHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def with_hub(tmp_path):
    """Runs Python code in its own process, against a Hub URL: (stdout as JSON)."""

    def run(code, url, **env):
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ
            | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
            | env,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture
def write_jsonl(tmp_path):
    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write
