"""The arena as it is published: pushed whole, and started from its own files alone.

ZeroGPU is played by a package that, like Hugging Face's, runs a turn in a forked process and
carries everything in and out as pickles.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.request

import pytest
from loopback import USER, WRITE_TOKEN
from small_models import files_of, save_adapter, save_policy, serve

from hf_align.hub import check_destination, push_space

pytest.importorskip("gradio", reason="the app needs the extra: pip install hf_align[ui]")

ZERO_GPU = """
import multiprocessing, sys
import gradio
assert "torch" not in sys.modules, "spaces must be imported before torch"

def gradio_auto_wrap(fn):
    return fn

def GPU(duration):
    def wrap(task):
        def work(args, out):
            try:
                for step in task(*args):
                    out.send(step)
            except gradio.Error as error:
                out.send(error)
            finally:
                out.close()

        def handler(*args):
            print(f"asked for {duration(*args)} s", flush=True)
            mine, theirs = multiprocessing.Pipe(False)
            child = multiprocessing.get_context("fork").Process(target=work, args=(args, theirs))
            child.start()
            theirs.close()
            try:
                while True:
                    step = mine.recv()
                    if isinstance(step, Exception):
                        raise step
                    yield step
            except EOFError:
                pass
            finally:
                child.kill()
                child.join()
        return handler
    return wrap
"""


OAUTH = {
    **{"OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "client secret"},
    **{"OAUTH_SCOPES": "openid profile", "OPENID_PROVIDER_URL": "http://127.0.0.1:9"},
    **{"SPACE_ID": "org/space", "SPACE_HOST": "127.0.0.1"},
}
"""What a Space whose header has `hf_oauth: true` finds in its environment."""


@pytest.fixture
def published(hub, client, make_model, tokenizer, tmp_path, empty_cache, no_waiting):
    """The folder of an arena of a model, another, and an adapter, as it lies on the Hub."""
    client(WRITE_TOKEN)
    first = save_policy(tmp_path / "sft", make_model, tokenizer)
    sha = serve(hub, "lab/sft", files_of(first)).sha
    second = save_policy(tmp_path / "dpo", make_model, tokenizer, seed=1)
    serve(hub, "lab/dpo", files_of(second))
    save_adapter(tmp_path / "lora", first, "lab/sft", sha)
    serve(hub, "lab/lora", files_of(tmp_path / "lora"))
    asked = check_destination("arena", "x", kind="space")
    push_space("arena", asked, ["lab/sft", "lab/dpo", "lab/lora"])
    folder = tmp_path / "space"
    for path, data in hub.repos[f"spaces/{USER}/arena"].files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


class Running:
    """The Space's process, and a visitor of it."""

    def __init__(self, folder, env):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self.process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=folder,
            env={**os.environ, **env, "GRADIO_SERVER_PORT": port, "PYTHONPATH": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if line.startswith("http"):
                break
        self.visitor = ""
        self.visitor = self.act(action="hello")["visitor"]

    def post(self, path, data, **further):
        """A request, and its reply."""
        headers = {"content-type": "application/json", "x-hf-align-visitor": self.visitor}
        body = json.dumps({"data": [json.dumps(data)], **further}).encode()
        request = urllib.request.Request(f"{self.address}/gradio_api{path}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def act(self, **body):
        """One request of the page."""
        return json.loads(self.post("/run/arena", body)["data"][0])

    def turn(self, prompt, fails=False, **asked):
        """What the page is told in the end."""
        with urllib.request.urlopen(f"{self.address}/config", timeout=30) as reply:
            places = {one["api_name"]: one["id"] for one in json.load(reply)["dependencies"]}
        sampling = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 8, "seed": 3}
        body = {"prompt": prompt, "models": [], "blind": False, "sampling": sampling, **asked}
        self.post("/queue/join", body, fn_index=places["turn"], session_hash="one")
        address = f"{self.address}/gradio_api/queue/data?session_hash=one"
        with urllib.request.urlopen(address, timeout=60) as stream:
            told = [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]
        [done] = [one for one in told if one["msg"] == "process_completed"]
        if fails:
            return done["output"].get("error") or json.loads(done["output"]["data"][0])["error"]
        assert done["success"], done
        return json.loads(done["output"]["data"][0])


@pytest.mark.parametrize("hardware", [pytest.param("cpu", marks=pytest.mark.slow), "zero"])
def test_a_published_arena_starts_from_what_was_pushed(hub, published, tmp_path, hardware):
    assert len((published / "app.py").read_text().splitlines()) < 80
    listed = json.loads((published / "space.json").read_text())["models"]
    assert [model["name"] for model in listed] == ["lab/sft", "lab/dpo", "lab/lora"]
    env = hub.env(WRITE_TOKEN, tmp_path / "home") | {"SYSTEM": "spaces", "DATA": str(tmp_path)}
    (published / "spaces.py").write_text(ZERO_GPU)  # a Space has it installed, on any hardware
    if hardware == "zero":
        env |= {"SPACES_ZERO_GPU": "true", "DEVICE": "cpu", **OAUTH}
        env |= {"BACKUP": str(tmp_path / "backup"), "HF_ALIGN_SECRET": "always the same one"}
    before = len(hub.log)
    space = Running(published, env)
    try:
        read = [line for line in hub.log[before:] if "model.safetensors" in line]
        revisions = {model["revision"] for model in listed}
        assert read and all(any(sha in line for sha in revisions) for line in read)
        done = space.turn("w1 w2 w3")
        assert done["code"] == "done", done
        for name in ("lab/sft", "lab/dpo", "lab/lora"):
            assert name in done["html"]
        assert "nats" in done["html"] and "this Space's disk alone" not in done["html"]
        assert "32,768 is the limit" in space.turn("w1 " * 40_000, fails=True)
        blind = space.turn("w4 w5", blind=True)
        assert "lab/" not in blind["html"]
        told = space.act(action="vote", turn=blind["turn"], choice="tie")
        assert told["html"].count("lab/") == 2
    finally:
        space.process.kill()
        space.said += space.process.stdout.read()
    assert ("asked for" in space.said) == (hardware == "zero"), space.said
    if hardware == "zero":
        lines = "".join(file.read_text() for file in (tmp_path / "backup").rglob("*.jsonl"))
        events = [json.loads(line)["type"] for line in lines.splitlines()]
        assert events.count("answer") == events.count("item") == 1
