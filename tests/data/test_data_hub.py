"""The Hub as a source, with the real clients in their own process against a Hub on loopback."""

import json
import socket
import time

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"

LOAD = """
import json
from hf_align.data import load_data
data = load_data({name!r}, "preference", revision={revision!r}, test_split_size=0)
print(json.dumps({{"rows": data.splits["train"].to_list(), "source": data.sources[0].to_dict()}}))
"""

REFUSE = """
import json
from hf_align.data import load_data
said = {{}}
for name in {names!r}:
    try:
        load_data(name, "preference", revision={revision!r})
    except (OSError, ValueError) as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def test_a_hub_dataset_is_read_at_the_commit_that_lineage_records(hub, with_hub):
    rows = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    hub.files["train.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    loaded = with_hub(LOAD.format(name="org/pairs", revision=None), hub.url)
    assert loaded["rows"] == rows
    assert loaded["source"]["kind"] == "hub"
    assert loaded["source"]["revision"] == COMMIT
    downloads = [request for request in hub.requests if "/resolve/" in request]
    assert downloads
    assert all(f"/resolve/{COMMIT}/" in request for request in downloads)


def test_each_refusal_is_one_line_that_names_the_id_and_the_local_way_out(hub, with_hub):
    hub.failures = {
        "org/absent": (404, {"X-Error-Code": "RepoNotFound"}),
        "org/hidden": (401, {"X-Error-Code": "RepoNotFound"}),
        "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
        "org/foreign": (403, {}),
        "org/token": (401, {}),
        "org/broken": (500, {}),
    }
    said = with_hub(REFUSE.format(names=list(hub.failures), revision=None), hub.url)
    assert said.keys() == hub.failures.keys()
    for name, message in said.items():
        assert name in message
        assert "\n" not in message
        assert "pass the folder or file instead" in message
    assert "does not exist, or is private" in said["org/absent"]
    assert "does not exist, or is private" in said["org/hidden"]
    assert "gated" in said["org/gated"]
    assert "access refused" in said["org/foreign"] and "answered 403" in said["org/foreign"]
    assert "access refused" in said["org/token"] and "answered 401" in said["org/token"]
    assert "answered 500" in said["org/broken"]


def test_an_unknown_revision_is_told_from_an_unknown_repository(hub, with_hub):
    hub.failures = {"org/pairs": (404, {"X-Error-Code": "RevisionNotFound"})}
    said = with_hub(REFUSE.format(names=["org/pairs"], revision="v9"), hub.url)
    assert "has no revision 'v9': check --dataset_revision" in said["org/pairs"]


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_is_reported_without_waiting_for_retries(with_hub, offline):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    env = {"HF_HUB_OFFLINE": "1"} if offline else {}
    start = time.monotonic()
    said = with_hub(REFUSE.format(names=["org/pairs"], revision=None), url, **env)["org/pairs"]
    assert time.monotonic() - start < 15
    assert ("HF_HUB_OFFLINE is set" if offline else f"cannot reach the Hub ({url}") in said
    assert "pass the folder or file instead" in said


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(403, "GatedRepo", "gated"), (401, None, "access refused")],
)
def test_a_repository_whose_files_alone_are_guarded_is_refused_in_the_same_words(
    hub, with_hub, status, code, expected
):
    hub.files["train.jsonl"] = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
    hub.failures = {"org/pairs/resolve": (status, {"X-Error-Code": code} if code else {})}
    said = with_hub(REFUSE.format(names=["org/pairs"], revision=None), hub.url)["org/pairs"]
    assert expected in said
    assert "\n" not in said
    assert "pass the folder or file instead" in said


def test_hub_rows_that_mix_text_and_messages_load_like_local_ones(hub, with_hub):
    asked = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": asked, "chosen": "a", "rejected": "b"},
    ]
    hub.files["train.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    loaded = with_hub(LOAD.format(name="org/pairs", revision=COMMIT), hub.url)["rows"]
    assert [row["prompt"] for row in loaded] == [[{"role": "user", "content": "p"}], asked]


def test_a_table_that_cannot_be_read_is_refused_in_one_line(hub, with_hub):
    hub.files["train.parquet"] = b"PAR1 this is no table PAR1"
    said = with_hub(REFUSE.format(names=["org/pairs"], revision=None), hub.url)["org/pairs"]
    assert "could not be read as one table" in said
    assert "\n" not in said
    assert "pass the folder or file instead" in said


def test_a_missing_configuration_is_asked_for_by_option(hub, with_hub):
    hub.files = {
        "README.md": b"---\nconfigs:\n- config_name: one\n  data_files: a.jsonl\n"
        b"- config_name: two\n  data_files: b.jsonl\n---\n",
        "a.jsonl": b'{"prompt": "p"}\n',
        "b.jsonl": b'{"prompt": "p"}\n',
    }
    said = with_hub(REFUSE.format(names=["org/pairs"], revision=None), hub.url)["org/pairs"]
    assert "one" in said
    assert "two" in said
    assert said.endswith("choose one with --dataset_config")
