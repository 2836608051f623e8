"""Collected votes on the Hub: the lead's button, `collect push`, and what happens when they fail.

The whole repo is there or nothing of it, and whoever pushed is told in one line.
"""

import json
import os
import subprocess
import sys

import pytest
from loopback import BAD_TOKEN, READ_TOKEN, USER, WRITE_TOKEN

from hf_align.feedback import Answer, Item, Output, Project, open_collection, secret_of
from hf_align.recipes import collect

pytest.importorskip("gradio", reason="the page needs the extra: pip install hf_align[ui]")
LEAD, REPO = "local:lead", f"{USER}/votes"
KEY = f"datasets/{REPO}"
PUSH = {"action": "push", "repo": REPO, "kind": "preference"}


@pytest.fixture
def folder(tmp_path):
    """A collection's folder, as the recipe keeps it, in which two people answered 40 pairs."""
    path = tmp_path / "collect"
    path.mkdir()
    collection = open_collection(path / "collect.db", secret_of(path), leads={LEAD})
    collection.lead.create_project(LEAD, Project("p", overlap=2), "Read both.")
    items = [Item(f"prompt {n}", (Output(f"a {n}"), Output(f"b {n}"))) for n in range(40)]
    collection.lead.add_items(LEAD, "p", items)
    for name in ("ann", "bob"):
        person = collection.sign_in("p", f"local:{name}")
        for _ in items:
            task = collection.next("p", person)
            best = "left" if task.completions[0].startswith("a") else "right"
            collection.submit(person, task.token, Answer(choice=best))
    collection.close()
    collection.store.close()
    return path


@pytest.fixture
def push(hub, client, folder, no_waiting):
    """Presses the lead's button, or runs the command; gives what is said."""
    from hf_align.ui import LocalSignIn
    from hf_align.ui.leading import Leading

    client(WRITE_TOKEN)

    def button():
        collection = open_collection(folder / "collect.db", secret_of(folder), leads={LEAD})
        page = Leading(collection, "p", LocalSignIn(secret_of(folder)))
        try:
            return page.act(LEAD, json.dumps(PUSH))
        finally:
            collection.close()
            collection.store.close()

    return button


STRANGER = """
import json, sys
from datasets import load_dataset
splits = load_dataset(sys.argv[1], "preference")
print(json.dumps({name: rows.to_list() for name, rows in splits.items()}))
"""


def test_a_stranger_loads_what_the_button_published(hub, push, tmp_path):
    told = push()
    repo = hub.repos[KEY]
    assert told["notice"] == f"Published at {hub.url}/{KEY}, commit {repo.sha[:10]}."
    assert repo.private and len(repo.commits) == 1
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, REPO],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | hub.env(WRITE_TOKEN, tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    splits = json.loads(done.stdout.splitlines()[-1])
    rows = [row for split in splits.values() for row in split]
    assert {row["prompt"] for row in rows} == {f"prompt {n}" for n in range(40)}
    assert all(row["chosen"].startswith("a ") for row in rows)
    assert not {r["prompt"] for r in splits["train"]} & {r["prompt"] for r in splits["test"]}
    card = repo.files["README.md"].decode()
    assert "How it was collected" in card and "local:" not in card
    assert "- annotators: 2\n" in card and "80 of 80 wanted" in card
    assert "Two annotators of one pair prefer the same answer | 1.000" in card
    assert "The answer shown first is preferred" in card
    assert push()["notice"].startswith("Published at") and len(repo.commits) == 1


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (("GET /api/whoami-v2", 401), "refuses the token"),
        (("GET /api/whoami-v2", 403), "refuses the token"),
        (("POST .*/commit/", 401), "refuses the token"),
        (("POST .*/commit/", 403), f"may not write to {REPO}"),
        (("POST .*/commit/", 500), "answered 500"),
        (("POST /api/repos/create", 500), "answered 500"),
        (("PUT /objects/", 403), ""),
        (("POST .*/commit/", "reset"), ""),
    ],
)
def test_what_goes_wrong_is_one_line_on_the_page_and_nothing_is_half_there(hub, push, fail, words):
    hub.fail(*fail, times=99)
    told = push()
    line = told["error"]
    assert words in line and "\n" not in line and len(line) < 400
    assert "/tmp" not in line and "hf_align.recipes" not in line and "html" not in told
    if "/api/whoami" not in fail[0]:
        assert "press Push again" in line
    assert KEY not in hub.repos or set(hub.repos[KEY].files) <= {".gitattributes"}
    hub.failures.clear()
    assert push()["notice"].startswith("Published at")
    assert {"README.md", "run.json"} < set(hub.repos[KEY].files)


@pytest.mark.parametrize(
    ("token", "words"), [(BAD_TOKEN, "refuses the token"), (READ_TOKEN, "can only read")]
)
def test_a_token_that_cannot_write_is_said_before_anything_is_made(hub, push, client, token, words):
    client(token)
    assert words in push()["error"] and KEY not in hub.repos


def run(folder, *args):
    collect.main(["push", "--output_dir", str(folder), "--hub_model_id", REPO, *args])


def test_the_command_publishes_the_same_and_fails_in_one_line(
    hub, client, folder, no_waiting, capsys
):
    client(WRITE_TOKEN)
    hub.fail("POST .*/commit/", 403)
    with pytest.raises(SystemExit) as stopped:
        run(folder)
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 1 and len(errors) == 1 and errors[0] == told.splitlines()[-1]
    assert f"may not write to {REPO}" in told and "run the same command again" in told
    assert set(hub.repos[KEY].files) <= {".gitattributes"}
    run(folder)
    assert f"published: {hub.url}/{KEY}" in capsys.readouterr().out
    assert any(path.startswith("preference/train") for path in hub.repos[KEY].files)
    client(BAD_TOKEN)
    with pytest.raises(SystemExit) as stopped:
        run(folder)
    assert stopped.value.code == 2 and "refuses the token" in capsys.readouterr().err
