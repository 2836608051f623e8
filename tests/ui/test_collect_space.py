"""The Space as Hugging Face runs it: OAuth's signed session tells who asks, and SIGTERM ends it."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from collect_visits import MARKS, Visit
from ui_world import SECRET, item

from hf_align.feedback import DirectoryBackup, Project, open_collection

itsdangerous = pytest.importorskip("itsdangerous")

APP = Path(__file__).resolve().parents[2] / "spaces" / "collect" / "app.py"
CLIENT_SECRET = "client secret"


def session(name, secret=CLIENT_SECRET, expires=3600):
    """The session cookie that Gradio sets after a sign-in with Hugging Face."""
    user = {"sub": "1", "name": name, "preferred_username": name, "profile": "", "picture": ""}
    info = {"access_token": "x", "scope": "openid", "expires_at": time.time() + expires}
    content = base64.b64encode(json.dumps({"oauth_info": {**info, "userinfo": user}}).encode())
    key = hashlib.sha256(f"{secret}-v4".encode()).hexdigest()
    return itsdangerous.TimestampSigner(key).sign(content).decode()


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A Space that finds its project in its backup: address, process, folder of the backup."""
    folder = tmp_path_factory.mktemp("space")
    backup = folder / "backup"
    collection = open_collection(
        folder / "local.db", SECRET, leads={"hf:boss"}, backup=DirectoryBackup(backup)
    )
    collection.lead.create_project("hf:boss", Project("comparisons"), "Read both.")
    collection.lead.add_items("hf:boss", "comparisons", [item(n) for n in range(3)])
    assert collection.close() == 0
    collection.store.close()
    # The package of this name that a Space has; here the folder of the apps would be found.
    (folder / "spaces.py").write_text("def gradio_auto_wrap(fn):\n    return fn\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    oauth = {
        **{"OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": CLIENT_SECRET},
        **{"OAUTH_SCOPES": "openid profile", "OPENID_PROVIDER_URL": "http://127.0.0.1:9"},
        **{"SYSTEM": "spaces", "SPACE_ID": "org/space", "SPACE_HOST": "127.0.0.1"},
    }
    settings = {
        **{"HF_ALIGN_SECRET": SECRET, "LEADS": "boss", "BACKUP": str(backup)},
        **{"DATA": str(folder / "disk"), "GRADIO_SERVER_PORT": str(port)},
        **{"PYTHONPATH": str(folder)},
    }
    (folder / "disk").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(APP)], env=os.environ | oauth | settings, stderr=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if "http" in line:
            break
    yield f"http://127.0.0.1:{port}", process, backup
    process.kill()


def ask(space, page, cookie=None, **body):
    """What a page is told."""
    headers = {"content-type": "application/json"}
    headers |= {"cookie": f"session={cookie}"} if cookie else {}
    data = json.dumps({"data": [json.dumps({"action": "next", **body})]}).encode()
    request = urllib.request.Request(f"{space[0]}/gradio_api/run/{page}", data, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(json.load(reply)["data"][0])


def test_the_session_of_hugging_face_tells_who_asks(space):
    assert ask(space, "collect")["code"] == "signed_out"
    reply = ask(space, "collect", session("ann"))
    assert (reply["code"], reply["status"]["name"]) == ("task", "ann")
    for cookie in (session("ann", "guess"), session("ann", ""), session("ann", expires=-1), "x.y"):
        assert ask(space, "collect", cookie)["code"] == "signed_out"
    assert ask(space, "lead", session("ann"))["code"] == "role"
    assert ask(space, "lead", session("boss"))["code"] == "lead"


def test_the_space_keeps_to_gradios_rules_for_pages(space):
    with urllib.request.urlopen(space[0], timeout=30) as reply:
        policy = reply.headers["content-security-policy"]
    assert "img-src 'self'" in policy and "form-action 'self'" in policy
    config = json.load(urllib.request.urlopen(f"{space[0]}/config", timeout=30))
    assert not config.get("run_history") and not config.get("analytics_enabled")


class Address:
    """A server that runs by itself."""

    def __init__(self, address):
        self.address = address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_the_sign_in_button_is_there_and_can_be_read(space, chromium, scheme, width, height):
    size = {"width": width, "height": height}
    visit = Visit(chromium, Address(space[0]), viewport=size, color_scheme=scheme)
    for path in ("", "lead"):
        visit.page.goto(f"{space[0]}/{path}")
        visit.page.wait_for_selector("text=Use the button above")
        button = visit.page.locator("#hf-login")
        assert "Sign in with Hugging Face" in button.inner_text()
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert not visit.page.locator("form.sign-in").count()  # no name of one's own here
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.look(f"{scheme}-{width}-space-{path or 'annotator'}")
    assert not visit.outside
    visit.context.close()


test_the_sign_in_button_is_there_and_can_be_read.pytestmark += MARKS


def test_what_was_acknowledged_is_in_the_backup_when_the_space_is_stopped(space):
    shown = ask(space, "collect", session("ann"))
    token = shown["html"].split('data-token="')[1].split('"')[0]
    body = {"action": "vote", "token": token, "answer": {"choice": "tie"}}
    assert ask(space, "collect", session("ann"), **body)["notice"] == "Saved."
    space[1].terminate()
    space[1].wait(30)
    lines = [line for file in space[2].rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert sum(json.loads(line)["type"] == "answer" for line in lines) == 1
