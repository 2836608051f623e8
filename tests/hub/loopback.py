"""A small Hub on loopback: accounts, repos of every kind, commits with LFS, planned failures.

The real clients talk to it over HTTP, so what they send is what is tested. Repos live in memory;
`hub.repos` has models by `owner/name`, datasets by `datasets/owner/name`. Large files are served
from a second origin (`localhost`), as the Hub does from its CDN, and no token may reach that one.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import ThreadingHTTPServer

from loopback_api import Handler
from loopback_buckets import Bucket
from loopback_repos import Repo

__all__ = [
    "BAD_TOKEN",
    "OWN_ORG",
    "READ_ORG",
    "READ_TOKEN",
    "USER",
    "WRITE_TOKEN",
    "LoopbackHub",
    "Repo",
]

WRITE_TOKEN = "hf_writeWriteWriteWriteWriteWrite"
READ_TOKEN = "hf_readReadReadReadReadReadRead"
BAD_TOKEN = "hf_nobodyNobodyNobodyNobodyNobody"
ACCOUNTS = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
USER, OWN_ORG, READ_ORG = "alice", "lab", "museum"

AFTER = {"lost", "kill after"}
"""Faults that come when the request was carried out and only its answer is missing."""


@dataclass
class Failure:
    """Answers requests that match a pattern, or the one of a number, with a fault.

    A fault is a status, "reset" (the connection is closed), "lost" (carried out, then closed),
    "timeout" (no answer for `hub.patience` seconds), "slow" (an answer after as long), "kill" or
    "kill after" (the process `hub.victim` gets SIGKILL before or after the request is carried out).
    """

    pattern: str | None
    fault: int | str
    times: int = 1
    number: int | None = None

    def hits(self, request: str, number: int) -> bool:
        """Whether this request is to fail; counts down."""
        if self.times < 1:
            return False
        hit = number == self.number if self.pattern is None else re.search(self.pattern, request)
        self.times -= bool(hit)
        return bool(hit)


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves on `hub.url`; `hub.log` lists every request."""

    user, own_org, read_org = USER, OWN_ORG, READ_ORG

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.buckets: dict[str, Bucket] = {}
        self.xet = None  # the folder that stands for Xet's storage, once it is asked for
        self.objects: dict[str, bytes] = {}
        self.tokens = dict(ACCOUNTS)
        self.failures: list[Failure] = []
        self.log: list[str] = []
        self.bodies: list[bytes] = []
        self.leaks: list[str] = []
        self.sizes: Counter[str] = Counter()
        self.quota: int | None = None
        self.patience = 0.5
        self.victim = 0
        self.page_size = 1000
        self.lock = threading.RLock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that died are no news
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        if self.xet is not None:
            self.xet.cleanup()

    def env(self, token: str | None, home) -> dict[str, str]:
        """The environment of a process that is to see this Hub alone."""
        signed_in = {"HF_TOKEN": token} if token else {}
        return signed_in | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def fail(self, pattern: str, fault: int | str, times: int = 1):
        """The next `times` requests that match `METHOD /path` meet a fault."""
        self.failures.append(Failure(pattern, fault, times))

    def fail_request(self, number: int, fault: int | str):
        """The request of a number from now on, the first being 1, meets a fault."""
        self.failures.append(Failure(None, fault, number=len(self.log) + number))

    def revoke(self, token: str):
        """The token is no longer known."""
        self.tokens.pop(token, None)

    def planned(self, request: str) -> int | str | None:
        """The fault that this request meets, if any; logs it."""
        with self.lock:
            self.log.append(request)
            number = len(self.log)
            hits = [failure.fault for failure in self.failures if failure.hits(request, number)]
            return hits[0] if hits else None

    def kill(self):
        """Ends the process that is being watched as nothing else can."""
        os.kill(self.victim, signal.SIGKILL)
