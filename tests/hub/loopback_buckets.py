"""Storage buckets of the loopback Hub: files by path, without a history, whose bytes Xet keeps.

The client sends a bucket's files through hf_xet alone. It is told `local://FOLDER` as its storage,
a facility of hf_xet's own tests, and keeps chunks and shards there with the code that it uses for
the real one; the Hub itself only ever hears of hashes, and looks a file's size up in a shard.
"""

from __future__ import annotations

import json
import struct
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from loopback_repos import Refused

FAR = 4_000_000_000  # seconds since 1970


@dataclass
class Bucket:
    """`files` are `{path: (xet hash, bytes)}`."""

    private: bool = True
    files: dict[str, tuple[str, int]] = field(default_factory=dict)


def storage(hub) -> Path:
    """The folder that stands for Xet's storage."""
    if hub.xet is None:
        hub.xet = tempfile.TemporaryDirectory(prefix="xet-")
    return Path(hub.xet.name)


def size_of(folder: Path, xet_hash: str) -> int | None:
    """The bytes of a file, from the shard that tells how it is put together.

    A shard lists per file its hash, flags, the number of segments and 8 unused bytes, then 48 bytes
    per segment: a hash, flags, the segment's bytes, and two chunk numbers.
    """
    name = b"".join(struct.pack("<Q", int(xet_hash[i : i + 16], 16)) for i in range(0, 64, 16))
    for shard in folder.rglob("*.mdb"):
        content = shard.read_bytes()
        place = content.find(name)
        if place >= 0:
            (segments,) = struct.unpack_from("<I", content, place + 36)
            starts = (place + 48 * (1 + number) for number in range(segments))
            return sum(struct.unpack_from("<I", content, start + 36)[0] for start in starts)
    return None


def bucket_of(handler, name: str, write: bool = False) -> Bucket:
    found = handler.hub.buckets.get(name)
    if found is None or (found.private and handler.role() is None):
        raise Refused(404, "RepoNotFound", "Bucket not found")
    if write and handler.role() != "write":
        raise Refused(403, "", "You do not have write access to this bucket")
    return found


def create(handler, body, query, name):
    if handler.role() != "write":
        raise Refused(403 if handler.role() else 401, "", "no right to make a bucket")
    known = name in handler.hub.buckets
    if not known:
        handler.hub.buckets[name] = Bucket(json.loads(body).get("visibility") == "private")
    handler.answer(409 if known else 200, {"url": f"{handler.hub.url}/buckets/{name}"})


def info(handler, body, query, name):
    bucket = bucket_of(handler, name)
    facts = {"id": name, "private": bucket.private, "createdAt": "2026-01-01T00:00:00.000Z"}
    sizes = [size for _, size in bucket.files.values()]
    handler.answer(200, facts | {"size": sum(sizes), "totalFiles": len(sizes)})


def entries(bucket: Bucket, paths) -> list[dict]:
    return [
        {"type": "file", "path": path, "xetHash": bucket.files[path][0]}
        | {"size": bucket.files[path][1], "mtime": "2026-01-01T00:00:00.000Z"}
        for path in paths
        if path in bucket.files
    ]


def listing(handler, body, query, name, prefix=""):
    bucket = bucket_of(handler, name)
    found = entries(bucket, sorted(p for p in bucket.files if p.startswith(prefix)))
    start = int(query.get("cursor", ["0"])[0])
    end = start + handler.hub.page_size
    path = handler.path.split("?")[0]
    more = end < len(found)
    link = f'<{handler.hub.url}{path}?recursive=true&cursor={end}>; rel="next"' if more else ""
    handler.answer(200, found[start:end], Link=link)


def paths_info(handler, body, query, name):
    handler.answer(200, entries(bucket_of(handler, name), json.loads(body)["paths"]))


def xet_token(handler, body, query, name, kind):
    bucket_of(handler, name, write=kind == "write")
    address = f"local://{storage(handler.hub)}"
    facts = {"X_Xet_Cas_Url": address, "X_Xet_Access_Token": "t", "X_Xet_Token_Expiration": FAR}
    handler.answer(200, {"casUrl": address, "exp": FAR, "accessToken": "t"}, **facts)


def batch(handler, body, query, name):
    bucket = bucket_of(handler, name, write=True)
    files, failed = dict(bucket.files), []
    for line in body.decode().splitlines():
        asked = json.loads(line)
        path = asked["path"]
        if asked["type"] == "deleteFile":
            files.pop(path, None)
            continue
        size = size_of(storage(handler.hub), asked["xetHash"])
        if size is None:
            failed.append({"path": path, "error": "the file is not in Xet's storage"})
        else:
            files[path] = (asked["xetHash"], size)
    bucket.files = files
    handler.answer(422 if failed else 200, {"success": not failed, "failed": failed})


def resolve(handler, body, query, name, path):
    bucket = bucket_of(handler, name)
    if path not in bucket.files:
        raise Refused(404, "EntryNotFound", "Entry not found")
    xet_hash, size = bucket.files[path]
    route = f"{handler.hub.url}/api/buckets/{quote(name)}/xet-read-token"
    facts = {"X_Xet_Hash": xet_hash, "X_Xet_Refresh_Route": route, "X_Linked_Size": size}
    handler.answer(200, b"", ETag=f'"{xet_hash}-{int(time.time())}"', **facts)


_ID = r"([\w.-]+/[\w.-]+)"
BUCKET_ROUTES = [
    (rf"POST /api/buckets/{_ID}", create),
    (rf"GET /api/buckets/{_ID}", info),
    (rf"GET /api/buckets/{_ID}/tree", listing),
    (rf"GET /api/buckets/{_ID}/tree/([^/]+)", listing),
    (rf"POST /api/buckets/{_ID}/paths-info", paths_info),
    (rf"GET /api/buckets/{_ID}/xet-(read|write)-token", xet_token),
    (rf"POST /api/buckets/{_ID}/batch", batch),
    (rf"HEAD /buckets/{_ID}/resolve/(.+)", resolve),
]
