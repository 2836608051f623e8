"""Which model a name stands for, and every way a folder or a repo can fail to hold one."""

import json

import numpy as np
import pytest
from loopback import WRITE_TOKEN, Repo
from safetensors.numpy import save_file

from hf_align.hub import content_hash, resolve_model
from hf_align.types import InputError

WEIGHTS = {"w": np.zeros((4, 4), dtype=np.float32)}


@pytest.fixture
def folder(tmp_path):
    """A whole model, as far as names and headers go."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file(WEIGHTS, path / "model.safetensors")
    return path


def refusal(name, **kwargs):
    with pytest.raises(InputError) as caught:
        resolve_model(str(name), **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_is_known_by_its_content(folder, tmp_path):
    source = resolve_model(str(folder))
    assert source == {"name": str(folder), "revision": None, "sha256": content_hash(folder)}
    copy = tmp_path / "copy"
    folder.rename(copy)
    assert resolve_model(str(copy))["sha256"] == source["sha256"]
    (copy / "config.json").write_text('{"model_type": "gpt2"}')
    assert resolve_model(str(copy))["sha256"] != source["sha256"]


def test_records_of_a_run_are_not_part_of_the_model(folder):
    before = content_hash(folder)
    (folder / "run.json").write_text("{}")
    (folder / "lineage.json").write_text("{}")
    (folder / "README.md").write_text("card")
    assert content_hash(folder) == before


def test_a_folder_without_config_holds_no_model(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_an_adapter_is_not_a_model_to_train(folder):
    (folder / "adapter_config.json").write_text("{}")
    message = refusal(folder)
    assert "LoRA adapter" in message
    assert "--merge_adapter" in message


def test_missing_and_pickled_weights_are_told_apart(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    message = refusal(folder)
    assert "pickled weights alone (pytorch_model.bin)" in message
    assert "safetensors" in message


@pytest.mark.parametrize("kept", [3, 40, 100])
def test_a_truncated_weight_file_is_named(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(folder)
    assert "model.safetensors is damaged" in message
    assert "copy it again" in message


def test_every_shard_of_an_index_must_be_there(folder):
    (folder / "model.safetensors").unlink()
    save_file(WEIGHTS, folder / "model-1.safetensors")
    shards = {"w": "model-1.safetensors", "v": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert "model-2.safetensors is missing" in refusal(folder)
    save_file(WEIGHTS, folder / "model-2.safetensors")
    assert resolve_model(str(folder))["sha256"]
    index.write_text("{")
    assert "index.json is damaged" in refusal(folder)


def test_a_tokenizer_alone_will_do_where_no_weights_are_wanted(folder):
    (folder / "model.safetensors").unlink()
    assert resolve_model(str(folder), weights=False)["sha256"]


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere", "gpt2", "a/b/c"])
def test_what_is_neither_folder_nor_id_is_refused(name):
    assert f"model_name_or_path {name}" in refusal(name)
    assert f"gold_reward {name}" in refusal(name, option="gold_reward")


def test_a_revision_of_a_folder_is_refused(folder):
    assert "model_revision v2" in refusal(folder, revision="v2")


def test_a_hub_model_is_pinned_to_its_commit(hub, client):
    repo = hub.repos["org/m"] = Repo(
        private=False, files={"config.json": b"", "m.safetensors": b""}
    )
    assert resolve_model("org/m") == {"name": "org/m", "revision": repo.sha, "sha256": None}


def test_a_hub_repo_is_checked_by_its_file_names(hub, client):
    hub.repos["org/adapter"] = Repo(private=False, files={"adapter_config.json": b"{}"})
    hub.repos["org/old"] = Repo(private=False, files={"config.json": b"", "pytorch_model.bin": b""})
    assert "LoRA adapter" in refusal("org/adapter")
    assert "pickled weights alone" in refusal("org/old")


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("org/absent", None, ["'org/absent' does not exist", "hf auth login", "pass the folder"]),
        ("org/hidden", None, ["'org/hidden' does not exist", "is private"]),
        ("org/gated", None, ["'org/gated' is gated", "accept its terms", "pass the folder"]),
        ("org/open", "v9", ["'org/open' has no revision 'v9'", "--model_revision"]),
        ("org/busy", None, ["org/busy", "answered 503", "pass the folder"]),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_a_way_on(hub, client, name, revision, words):
    hub.repos |= {
        "org/hidden": Repo(private=True),
        "org/gated": Repo(private=False, gated=True),
        "org/open": Repo(private=False),
    }
    hub.fail("org/busy", 503, times=9)
    with pytest.raises(OSError, match=name) as caught:
        resolve_model(name, revision)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_token_opens_private_and_gated_repos(hub, client):
    hub.repos |= {"org/hidden": Repo(), "org/gated": Repo(private=False, gated=True)}
    client(WRITE_TOKEN)
    assert resolve_model("org/hidden")["revision"] == hub.repos["org/hidden"].sha
    assert resolve_model("org/gated")["revision"] == hub.repos["org/gated"].sha


def test_a_hub_that_cannot_be_reached_names_the_model_and_the_folder_way():
    with pytest.raises(OSError, match=r"'org/m': cannot reach the Hub.*pass the folder"):
        resolve_model("org/m")
