"""Rounds on the Hub: a revision each, once, never an older one over a newer; the policy at last."""

import io
import json
import shutil

import pyarrow as pa
import pytest
from loopback import USER, WRITE_TOKEN
from pyarrow import parquet

from hf_align.hub import Destination, tag_commit, tags_of
from hf_align.recipes import _online_mix as mixing
from hf_align.recipes import _online_parts as parts
from hf_align.recipes import _online_prompts as dealing
from hf_align.recipes import online
from hf_align.recipes._online_publishing import (
    Destinations,
    check_rounds,
    publish_round,
    published_pairs,
)
from hf_align.recipes._online_stages import settled
from hf_align.types import InputError

REPO = f"{USER}/pairs"
TARGETS = Destinations(Destination(f"{USER}/policy"), Destination(REPO))

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def folder(tmp_path, client):
    """Two rounds of mixed pairs as the recipe leaves them."""
    client(WRITE_TOKEN)
    rows = []
    for number in (1, 2):
        prompts = [f"p{number}-{i}" for i in range(12)]
        rows += [
            {"prompt": p, "round": number, "split": "test" if i < 3 else "train"}
            for i, p in enumerate(prompts)
        ]
        home = tmp_path / f"rounds/{number}/pairs"
        table = {"prompt": prompts, "chosen": ["good"] * 12, "rejected": ["bad"] * 12}
        mixing.write_table(home / "data/train.parquet", pa.table(table))
        model = {"name": f"policy-{number}", "revision": None, "sha256": "0" * 64}
        (home / "lineage.json").write_text(json.dumps({"model": model, "data": []}))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / dealing.DEALT).write_text(dealing.as_lines(rows))
    for number in (1, 2):
        pairs = [str(tmp_path / f"rounds/{one}/pairs") for one in range(1, number + 1)]
        given = ["--pairs", *pairs, "--prompts", str(tmp_path / "prompts")]
        out = str(tmp_path / f"rounds/{number}/mix")
        parts.main(["--part", "mix", "--output_dir", out, *given])
    return tmp_path


def test_every_round_is_a_revision_that_is_sent_once(hub, folder, capsys):
    for number in (1, 2):
        publish_round(folder, number, TARGETS)
    told = capsys.readouterr().out
    assert "round 1 published: " in told and "revision round-2" in told
    tags = tags_of(REPO, "dataset")
    assert {"round-1", "round-2"} <= set(tags) and tags["round-1"] != tags["round-2"]
    files = hub.repos[f"datasets/{REPO}"].files
    data = parquet.read_table(io.BytesIO(files["preference/train-00000-of-00001.parquet"]))
    assert set(data["round"].to_pylist()) == {1, 2} and "policy" in data.column_names
    assert b"Pairs of completions of the policy" in files["README.md"]
    asked = len(hub.log)
    for number in (1, 2):  # the same command again: no older round over a newer one
        publish_round(folder, number, TARGETS)
    assert len(hub.log) == asked and tags_of(REPO, "dataset") == tags


def test_a_run_that_died_between_push_and_note_completes_it(hub, folder):
    publish_round(folder, 1, TARGETS)
    before = tags_of(REPO, "dataset")
    (folder / "rounds/1/published.json").unlink()
    publish_round(folder, 1, TARGETS)
    assert tags_of(REPO, "dataset") == before


def test_a_round_that_was_made_again_is_not_taken_for_the_published_one(hub, folder):
    publish_round(folder, 1, TARGETS)
    tags = tags_of(REPO, "dataset")
    assert published_pairs(folder, 1)[0]["revision"] == tags["round-1"]
    file = next((folder / "rounds/1/mix/data").glob("train*"))
    parquet.write_table(parquet.read_table(file).slice(1), file)
    assert published_pairs(folder, 1) == []
    with pytest.raises(InputError, match=r"round-1 from before .* was made again"):
        publish_round(folder, 1, TARGETS)
    assert tags_of(REPO, "dataset") == tags
    other = Destinations(TARGETS.model, Destination(f"{USER}/others"))
    publish_round(folder, 1, other)
    assert published_pairs(folder, 1)[0]["name"] == f"{USER}/others"


def test_a_tag_keeps_its_commit(hub, folder):
    publish_round(folder, 1, TARGETS)
    tags = tags_of(REPO, "dataset")
    tag_commit(REPO, "dataset", "round-1", tags["round-1"])  # the same again
    publish_round(folder, 2, TARGETS)
    newer = tags_of(REPO, "dataset")["round-2"]
    with pytest.raises(InputError, match="has a tag round-1 already"):
        tag_commit(REPO, "dataset", "round-1", newer)
    assert tags_of("nobody/nothing", "dataset") == {}


def test_rounds_of_another_run_are_left_alone(hub, folder, tmp_path_factory):
    publish_round(folder, 1, TARGETS)
    parser = online.make_parser()
    words = ["--push_to_hub", "--hub_model_id", f"{USER}/policy", "--hub_dataset_id", REPO]

    def check(place):
        choices = parser.with_config(parser.parse(words), "recipes/online/testbed.yaml")
        options, _ = settled(choices)
        return check_rounds(choices, options, place)

    assert check(folder) == TARGETS
    with pytest.raises(InputError, match="has a round-1 of another run"):
        check(tmp_path_factory.mktemp("fresh"))


@pytest.mark.slow
def test_a_whole_run_is_on_the_hub(hub, client, testbed, tmp_path, capsys):
    client(WRITE_TOKEN)
    ppo = {"max_steps": 2, "audit_steps": 2, "num_audit_prompts": 16, "num_eval_prompts": 16}
    ppo |= {"num_eval_samples": 1, "per_device_train_batch_size": 8}
    reward = {"max_steps": 2, "num_eval_prompts": 8}
    words = ["--rounds", "2", "--num_comparisons", "32", "--test_share", "0.25"]
    words += ["--no_stop_when_gold_stalls", "--ppo_options", json.dumps(ppo)]
    words += ["--reward_options", json.dumps(reward), "--output_dir", str(tmp_path / "out")]
    words += ["--push_to_hub", "--hub_model_id", f"{USER}/policy"]
    online.main(words)
    model = hub.repos[f"{USER}/policy"]
    assert {"model.safetensors", "report/rounds.png", "report/report.json"} <= set(model.files)
    assert not [name for name in model.files if name.startswith(("rounds/", "prompts"))]
    pairs = f"{USER}/policy-preferences"
    tags = tags_of(pairs, "dataset")
    assert {"round-1", "round-2"} <= set(tags)
    report = json.loads(model.files["report/report.json"])
    data = json.loads(model.files["lineage.json"])["data"]
    assert (data[-1]["name"], data[-1]["revision"]) == (
        pairs,
        tags[f"round-{report['best_round']}"],
    )
    assert str(tmp_path).encode() not in b"".join(model.files.values())
    assert str(tmp_path).encode() not in b"".join(hub.repos[f"datasets/{pairs}"].files.values())
    capsys.readouterr()
    online.main(words)
    assert capsys.readouterr().out.count("published") <= 1  # the rounds are not sent again
    shutil.rmtree(tmp_path / "out")
