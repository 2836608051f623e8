"""Preparing, telling, exporting, and training on what was exported; on the testbed."""

import json
import re

import numpy as np
import pytest

from hf_align.configs import CollectArguments
from hf_align.feedback import Answer, Output, Refused, open_collection
from hf_align.recipes import collect
from hf_align.recipes._collect import secret_of
from hf_align.recipes._collect_prepare import (
    Candidates,
    gold_items,
    pick_pair,
    scan_identity,
    select_items,
    without_empty,
)
from hf_align.recipes._collect_prepare import (
    testbed_gold as known_answers,
)
from hf_align.testbed import gold_reward
from hf_align.types import InputError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, testbed):
    """A folder with the testbed's project, prepared by the recipe."""
    folder = tmp_path_factory.mktemp("collect")
    collect.main(["prepare", "--output_dir", str(folder), "--num_prompts", "30"])
    return folder


def annotated(folder, people=2):
    """Lets people answer everything, by the exact reward."""
    with open_and_close(folder) as collection:
        for number in range(people):
            person = collection.sign_in("testbed", f"local:{number}")
            answer_all(collection, person)


def open_and_close(folder):
    from contextlib import contextmanager

    @contextmanager
    def opened():
        collection = open_collection(folder / "collect.db", secret_of(folder), leads={"local:lead"})
        yield collection
        collection.close()
        collection.store.close()

    return opened()


def answer_all(collection, person):
    right = {q.item_id: best_of(q.prompt, q.completions) for q in collection.quiz("testbed")}
    assert collection.take_quiz("testbed", person, right).passed
    while True:
        try:
            task = collection.next("testbed", person)
        except Refused as refusal:
            assert refusal.code == "done"
            return
        if task.kind == "pair":
            answer = Answer(choice=best_of(task.prompt, task.completions))
        else:
            scores = gold_reward([task.prompt] * len(task.completions), list(task.completions))
            order = np.argsort(np.argsort([-score for score in scores])) + 1
            answer = Answer(ranks=[int(rank) for rank in order])
        collection.submit(person, task.token, answer)


def best_of(prompt, completions):
    first, second = gold_reward([prompt] * 2, list(completions))
    return "left" if first > second else "right" if second > first else "tie"


def test_from_prompts_to_a_reward_model(prepared, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        collect.main(["export", "--output_dir", str(prepared)])
    assert stopped.value.code == 2 and "no votes yet" in capsys.readouterr().err
    annotated(prepared)
    collect.main(["status", "--output_dir", str(prepared)])
    told = capsys.readouterr().out
    assert "votes 60 of 60; items complete 30 of 30" in told
    assert "same winner 1.00" in told and "gold right 1.00" in told
    out = tmp_path / "pairs"
    collect.main(["export", "--output_dir", str(prepared), "--export_dir", str(out)])
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    for row in rows:
        better, worse = gold_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert better > worse
        assert row["chosen_model"] and re.fullmatch("[0-9a-f]{64}", row["chosen_sha256"])
    from hf_align.recipes import reward

    command = printed.split("next: ")[1].split()[3:]
    assert command[0] == "--dataset_name"
    options = ["--max_steps", "2", "--output_dir", str(tmp_path / "reward"), "--test_split_size"]
    reward.main([*command, "--model", str(policy_path()), *options, "0.2"])
    assert (tmp_path / "reward" / "model.safetensors").is_file()


def policy_path():
    from hf_align.testbed import build_testbed

    return build_testbed(progress=False).policy_path


def test_preparing_again_adds_nothing(prepared, capsys):
    collect.main(["prepare", "--output_dir", str(prepared), "--num_prompts", "30"])
    assert "0 of 42 items are new" in capsys.readouterr().out


def test_no_output_tells_where_it_comes_from(prepared):
    with open_and_close(prepared) as collection, collection.store.read() as connection:
        bodies = [
            json.loads(row[0])
            for row in connection.execute("SELECT body FROM events WHERE type = 'item'")
        ]
    sampled = [out for body in bodies for out in body["outputs"] if out["model"] != "gold"]
    assert {out["sampling"]["temperature"] for out in sampled} == {0.7, 1.0}
    assert all(out["seed"] is not None and out["revision"] for out in sampled)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["prepare", "--dataset_name", "testbed"], "policies are missing"),
        (["prepare", "--selection", "hard"], "needs --reward_model"),
        (["prepare", "--ranking_size", "2"], "ranking_size 2"),
        (["prepare", "--num_samples", "0"], "at least 1"),
        (["serve"], "prepare one first"),
        (["status"], "prepare one first"),
        (["dance"], "dance"),
    ],
)
def test_a_mistake_is_one_line(args, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        collect.main([*args, "--output_dir", str(tmp_path / "none")])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and words in told and told.count("\n") == 1


@pytest.mark.parametrize("name", ["../../etc", "/tmp/x", "a/b", "..", "a\\b", ".hidden", "a b"])
def test_a_projects_name_cannot_climb_out_of_its_folder(name, tmp_path, capsys):
    home = tmp_path / "collect"
    options = ["--output_dir", str(home), "--num_prompts", "2", "--project", name]
    with pytest.raises(SystemExit) as stopped:
        collect.main(["prepare", "--policies", "testbed", "--dataset_name", "testbed", *options])
    assert stopped.value.code == 2 and "project" in capsys.readouterr().err
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != home]
    assert not left and not (tmp_path.parent / "etc").exists() and not (tmp_path / "a").exists()


def outputs(*scores):
    return [Output(f"text {score}", "m", facts={"score": score}) for score in scores]


def test_outputs_without_a_word_are_left_out_and_counted():
    said = Candidates("p", (Output("", "m"), Output("tea", "m"), Output(" \n", "m")))
    kept, count = without_empty([said, Candidates("q", ())])
    assert [[o.completion for o in one.outputs] for one in kept] == [["tea"], []] and count == 2


def test_pairs_are_picked_as_their_names_say():
    drawn = outputs(0.0, 5.0, 5.5, -9.0)
    assert {o.facts["score"] for o in pick_pair(drawn, "hard")} == {5.0, 5.5}
    assert {o.facts["score"] for o in pick_pair(drawn, "wide")} == {5.5, -9.0}
    texts = [Output(text) for text in ("a b c", "a b d", "x y z")]
    assert "x y z" in {o.completion for o in pick_pair(texts, "diverse")}


def test_outputs_that_name_their_author_are_left_out_and_counted():
    options = CollectArguments(policies=["org/Secret-7B"], identity_words=["aye aye"])
    told = ["I am ChatGPT.", "secret-7b here", "Aye aye", "claudette", "plain"]
    one = Candidates("who?", tuple(map(Output, told)))
    kept, counts = scan_identity([one], options)
    assert [o.completion for o in kept[0].outputs] == ["claudette", "plain"]
    assert counts == {"chatgpt": 1, "secret-7b": 1, "aye aye": 1}
    asked = Candidates("What is ChatGPT?", (Output("ChatGPT is a model."),))
    assert scan_identity([asked], options)[0][0].outputs


def test_rankings_come_from_prompts_with_enough_outputs():
    options = CollectArguments(num_rankings=1, ranking_size=3)
    candidates = [Candidates(f"p{n}", tuple(outputs(*range(n)))) for n in range(5)]
    kinds = [item.kind for item in select_items(candidates, options)]
    assert kinds == ["pair", "ranking", "pair"]


def test_known_answers_are_right_and_on_both_sides():
    items = known_answers(seed=3, number=20)
    for item in items:
        first, second = gold_reward([item.prompt] * 2, [o.completion for o in item.outputs])
        assert (first > second) == (item.gold.best == "a") and abs(first - second) >= 1.5
    assert [item.gold.best for item in items].count("a") == 10
    assert {item.gold.best for item in items if item.gold.quiz} == {"a", "b"}


def test_a_file_of_known_answers_is_read_or_named_by_line(tmp_path):
    file = tmp_path / "gold.jsonl"
    row = {"prompt": "p", "chosen": "good", "rejected": "bad", "quiz": True, "explanation": "e"}
    file.write_text("\n".join(json.dumps(row | {"prompt": f"p{n}"}) for n in range(4)))
    items = gold_items(CollectArguments(gold=str(file)))
    for item in items:
        assert item.outputs["ab".index(item.gold.best)].completion == "good" and item.gold.quiz
    assert {item.gold.best for item in items} == {"a", "b"}
    file.write_text('{"prompt": "p"}')
    with pytest.raises(InputError, match="line 1"):
        gold_items(CollectArguments(gold=str(file)))
