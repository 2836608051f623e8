"""Online rounds: stages, prompts, mix, when they end, going on, people's votes, what is refused."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_align.configs import JudgeArguments, OnlineArguments
from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.report import load_report
from hf_align.recipes import _online_mix as mixing
from hf_align.recipes import _online_parts as parts
from hf_align.recipes import _online_prompts as dealing
from hf_align.recipes import _online_rounds as rounds
from hf_align.recipes import _online_stages as stages
from hf_align.recipes import _stages as scheduler
from hf_align.recipes import online
from hf_align.types import Estimate

PPO = {"max_steps": 2, "audit_steps": 2, "num_audit_prompts": 16, "num_eval_prompts": 16}
PPO |= {"num_eval_samples": 1, "per_device_train_batch_size": 8, "save_strategy": "no"}
REWARD = {"max_steps": 2, "num_eval_prompts": 8, "num_eval_samples": 2, "save_strategy": "no"}
TINY = ["--num_comparisons", "32", "--test_share", "0.25", "--no_stop_when_gold_stalls"]
TINY += ["--ppo_options", json.dumps(PPO), "--reward_options", json.dumps(REWARD)]
VOTES = stages.place(1, stages.VOTES)


@pytest.fixture
def ran(monkeypatch):
    """Runs stages in this process, one after the other: gives the names of those that ran, and a
    place to name one after which everything ends.
    """
    names, stop = [], {}

    def run_stages(planned, folder, num_workers):
        fresh = set()
        for stage in planned:
            made_again = fresh.intersection(stage.needs)
            if scheduler.state_of(stage, folder) == "finished" and not made_again:
                continue
            path = folder / stage.name
            args = ["--output_dir", str(path), *stage.options]
            args += ["--overwrite"] if path.is_dir() else []
            importlib.import_module(scheduler._module(stage)).main(args)
            fresh.add(stage.name)
            names.append(stage.name)
            if stage.name == stop.get("after"):
                raise OSError("killed")

    monkeypatch.setattr(scheduler, "run_stages", run_stages)
    return names, stop


# ---------------------------------------------------------------------------------------- a whole


def test_rounds_go_on_where_they_were_and_end_in_one_report(ran, testbed, tmp_path, capsys):
    names, stop = ran
    folder = tmp_path / "out"
    command = [*TINY, "--rounds", "2", "--start_from", "previous", "--output_dir", str(folder)]
    stop["after"] = "rounds/1/reward"
    with pytest.raises(SystemExit) as stopped:
        online.main(command)
    assert stopped.value.code == 1
    before = list(names)
    assert before == ["prompts", *(f"rounds/1/{one}" for one in ("pairs", "mix", "reward"))]
    stop.clear()
    names.clear()
    online.main(command)
    each = ("pairs", "mix", "reward", "ppo", "accuracy")
    assert names == [
        *("rounds/1/ppo", "rounds/1/accuracy"),
        *(f"rounds/2/{one}" for one in each),
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert "ended after round 2, the last of --rounds 2" in printed

    report = load_report(folder / "report")
    assert [row[0] for row in report["tables"][0]["rows"]] == ["1", "2"]
    assert {path.name for path in (folder / "report").glob("*.png")} == set(report["figures"])
    assert report["rounds"][1]["pairs_by"] == "round 1's" and report["best_round"] in (1, 2)
    assert "old" not in report["rounds"][0]["accuracy"]
    assert set(report["rounds"][1]["accuracy"]) == {"old", "new"}
    best = folder / "rounds" / str(report["best_round"]) / "ppo" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == best.read_bytes()
    # The second round starts from the first one's policy, and its KL from the testbed's.
    lineage = json.loads((folder / "rounds/2/ppo/lineage.json").read_text())
    assert lineage["model"]["name"].endswith("rounds/1/ppo")
    assert lineage["reference"]["name"] == "testbed"
    kls = [
        [audit["kl"] for audit in json.loads((folder / f"rounds/{n}/ppo/audits.json").read_text())]
        for n in (1, 2)
    ]
    assert kls[0][0] == pytest.approx(0, abs=1e-6) and kls[1][0] > 1e-6

    names.clear()
    online.main(command)
    assert names == []  # nothing is done twice
    online.main([*command[:-2], "--rounds", "3", "--max_kl", "1e-9", "--output_dir", str(folder)])
    told = " ".join(capsys.readouterr().out.split())
    assert names == [] and "above max_kl" in told  # round 1 is too far already


def test_people_are_waited_for_and_their_votes_go_on(ran, testbed, tmp_path, capsys):
    names, _ = ran
    folder, prompts = tmp_path / "out", tmp_path / "prompts.jsonl"
    some = dealing.testbed_prompts(seed=3)[0][:160]  # as if they were someone's own
    prompts.write_text(dealing.as_lines([{"prompt": prompt} for prompt in some]))
    ppo = PPO | {"max_completion_length": 26, "eval_max_new_tokens": 26}
    command = [*TINY, "--num_comparisons", "16", "--rounds", "1", "--annotators", "people"]
    command += ["--dataset_name", str(prompts), "--model", str(testbed.policy_path)]
    command += ["--gold_reward", "testbed", "--ppo_options", json.dumps(ppo)]
    command += ["--collect_options", '{"overlap": 1, "max_new_tokens": 26}']
    command += ["--output_dir", str(folder)]
    online.main(command)
    told = capsys.readouterr().out
    assert names == ["prompts", "rounds/1/ask"] and "16 of 16 votes on 16 pairs are missing" in told
    assert f"collect serve --output_dir {folder / VOTES}" in told
    vote(folder / VOTES, most=3)
    online.main(command)
    assert names == ["prompts", "rounds/1/ask"]
    assert "13 of 16 votes on 16 pairs are missing" in capsys.readouterr().out
    vote(folder / VOTES)
    online.main(command)
    each = ("pairs", "mix", "reward", "ppo", "accuracy")
    assert names[2:] == [f"rounds/1/{one}" for one in each]
    rows = [
        row
        for file in (folder / "rounds/1/mix/data").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    assert 8 <= len(rows) <= 16
    optimised = (folder / "prompts/rl/train.jsonl").read_text()
    assert not any(row["prompt"] in optimised for row in rows)
    from hf_align.testbed import gold_reward

    for row in rows:
        better, worse = gold_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert better > worse and row["round"] == 1 and row["policy"].startswith("policy@")
    assert load_report(folder / "report")["evaluation"]["annotators"] == "people"


def vote(home, most=1000):
    """One person answers, always right, never a tie in two of equal gold."""
    from hf_align.feedback import Answer, Refused, open_collection, secret_of
    from hf_align.testbed import gold_reward

    collection = open_collection(home / "collect.db", secret_of(home), leads={"local:lead"})
    person = collection.sign_in(stages.VOTES, "local:ada")
    try:
        for _ in range(most):
            task = collection.next(stages.VOTES, person)
            first, second = gold_reward([task.prompt] * 2, list(task.completions))
            choice = "tie" if first == second else "left" if first > second else "right"
            collection.submit(person, task.token, Answer(choice=choice))
    except Refused as refusal:
        assert refusal.code == "done"
    finally:
        collection.close()
        collection.store.close()


# ----------------------------------------------------------------------------------------- stages


def settled(tmp_path, *words):
    parser = online.make_parser()
    choices = parser.with_config(parser.parse([*words]), "recipes/online/testbed.yaml")
    options, judging = stages.settled(choices)
    return stages.Plan(options, judging, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--start_from", "previous", "--initial_pairs", "testbed"),
        ("--annotators", "people"),
        ("--judge", "outputs/x", "llm:y"),
    ],
)
def test_every_stage_has_options_that_its_recipe_knows(tmp_path, words):
    plan = settled(tmp_path, *words)
    planned = plan.until(3)
    assert planned == settled(tmp_path, *words, "--rounds", "7").until(3)
    scheduler._check(planned)  # needs come first
    for stage in planned:
        module = importlib.import_module(scheduler._module(stage))
        module.make_parser().parse(["--output_dir", "x", *stage.options])
    assert planned[: len(plan.until(2))] == plan.until(2)
    seeds = [
        stage.options[stage.options.index("--seed") + 1]
        for stage in planned
        if stage.recipe == "ppo"
    ]
    assert len(set(seeds)) == 3


def test_another_judge_does_not_bring_the_testbeds_annotators(tmp_path):
    assert settled(tmp_path, "--judge", "outputs/x").judging == JudgeArguments(judge=["outputs/x"])
    assert settled(tmp_path).judging.annotator_temperatures


def test_no_prompt_is_dealt_twice():
    train, test = [f"a{i}" for i in range(100)], [f"b{i}" for i in range(30)]
    dealt = dealing.deal(train, test, num_comparisons=16, test_share=0.2)
    assert [tuple(map(len, one)) for one in dealt] == [(16, 4)] * 6
    every = [prompt for one in dealt for side in one for prompt in side]
    assert len(set(every)) == len(every) == 120
    assert all(prompt[0] == "ab"[side] for one in dealt for side in (0, 1) for prompt in one[side])
    assert dealing.deal(train, test, num_comparisons=200, test_share=0.1) == []


def test_the_testbeds_prompts_share_no_set_of_topics():
    train, test = (
        {frozenset(prompt.split()) for prompt in side} for side in dealing.testbed_prompts(seed=1)
    )
    assert len(train) == 190 and len(test) == 30 and not train & test
    assert dealing.testbed_prompts(1) != dealing.testbed_prompts(2)


# -------------------------------------------------------------------------------------------- mix


@pytest.fixture
def two_rounds(tmp_path):
    """Pairs of two rounds, 20 prompts each, 5 of them held out; gives what makes the mix."""
    rows = []
    for number in (1, 2):
        folder = tmp_path / f"pairs-{number}"
        prompts = [f"p{number}-{i}" for i in range(20)]
        rows += [
            {"prompt": p, "round": number, "split": "test" if i < 5 else "train"}
            for i, p in enumerate(prompts)
        ]
        table = {"prompt": prompts, "chosen": ["a"] * 20, "rejected": ["b"] * 20}
        if number == 2:
            table["n_votes"] = [3] * 20
        import pyarrow as pa

        mixing.write_table(folder / "data" / "train.parquet", pa.table(table))
        model = {"name": f"somewhere/policy-{number}", "revision": None, "sha256": "0" * 64}
        (folder / "lineage.json").write_text(json.dumps({"model": model, "data": []}))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / dealing.DEALT).write_text(dealing.as_lines(rows))

    def mix(*words):
        out = tmp_path / f"mix-{len(list(tmp_path.glob('mix-*')))}"
        pairs = [str(tmp_path / f"pairs-{number}") for number in (1, 2)]
        given = ["--pairs", *pairs, "--prompts", str(tmp_path / "prompts"), *words]
        parts.main(["--part", "mix", "--output_dir", str(out), *given])
        return {
            split: pq.read_table(out / f"data/{split}-00000-of-00001.parquet").to_pylist()
            for split in ("train", "test")
        }

    return mix


def test_a_mix_says_where_each_row_is_from_and_keeps_splits_apart(two_rounds):
    mixed = two_rounds()
    assert {split: len(rows) for split, rows in mixed.items()} == {"train": 30, "test": 10}
    for rows in mixed.values():
        for row in rows:
            number = int(row["prompt"][1])
            assert row["round"] == number and row["policy"] == f"policy-{number}@{'0' * 12}"
            assert row["n_votes"] == (3 if number == 2 else None)
    train, test = ({row["prompt"] for row in mixed[split]} for split in ("train", "test"))
    assert not train & test and test == {f"p{n}-{i}" for n in (1, 2) for i in range(5)}


@pytest.mark.parametrize(("share", "older"), [("0", 0), ("0.4", 6), ("1", 15)])
def test_older_pairs_count_as_much_as_asked_for(two_rounds, share, older):
    numbers = [row["round"] for row in two_rounds("--old_share", share)["train"]]
    assert numbers.count(1) == older and numbers.count(2) == 15


def test_pairs_from_before_are_round_0_and_leave_the_held_out_prompts_alone(two_rounds, tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(40)]
    rows.append({"prompt": "p1-0", "chosen": "a", "rejected": "b"})  # held out in round 1
    file = tmp_path / "before.jsonl"
    file.write_text(dealing.as_lines(rows))
    mixed = two_rounds("--initial_pairs", str(file))
    train, test = ({row["prompt"] for row in mixed[split]} for split in ("train", "test"))
    assert not train & test and "p1-0" in test
    assert {row["round"] for row in mixed["train"]} == {0, 1, 2}
    assert sum(row["round"] == 0 for row in mixed["train"] + mixed["test"]) in (40, 41)


def test_accuracy_by_label_and_by_gold_of_known_scores():
    rows = [{"prompt": f"p{i}", "chosen": "aaaa"[: i % 4 + 1], "rejected": "bb"} for i in range(40)]

    def length(prompts, completions):
        return [float(len(text)) for text in completions]

    # Chosen has 1, 2, 3 or 4 characters, rejected 2: shorter, equal, longer, longer.
    found = parts.agreement_with(length, rows, length)
    assert found["label"]["value"] == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert found["gold"]["value"] == 1.0  # where gold decides
    turned = parts.agreement_with(lambda p, c: [-x for x in length(p, c)], rows, length)
    assert turned["gold"]["value"] == 0.0 and "gold" not in parts.agreement_with(length, rows, None)


# ------------------------------------------------------------------------------------------ stops


def made_up(number, gold, kl=2.0, gain=None):
    """A round whose policy has this gold, with some noise over 100 prompts."""
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    curve = None if gold is None else Curve([0, 1], [0.0, kl**0.5], np.stack([noise, gold + noise]))
    metrics = {"kl/sequence": Estimate(kl, kl - 0.1, kl + 0.1, 100).to_dict()}
    if gain is not None:
        metrics["gold/gain"] = Estimate(gain, gain - 0.2, gain + 0.2, 100).to_dict()
    report = {"metrics": metrics, "verdict": {"label": "NOT DETECTED", "text": ""}}
    return rounds.Round(number, "p", 10, 10 * number, report, {}, curve)


@pytest.mark.parametrize(
    ("done", "options", "words"),
    [
        ([made_up(1, 1.0)], {}, None),
        ([made_up(1, 1.0)], {"rounds": 1}, "the last of --rounds 1"),
        ([made_up(1, 1.0), made_up(2, 1.5)], {}, None),
        ([made_up(1, 1.0), made_up(2, 1.0)], {}, "less that of the round before is 0.00"),
        ([made_up(1, 1.5), made_up(2, 1.0)], {}, "is -0.50"),
        ([made_up(1, 1.5), made_up(2, 1.0)], {"stop_when_gold_stalls": False}, None),
        ([made_up(1, 1.0, kl=9.0)], {"max_kl": 8.0}, "9.00 nats away, above max_kl 8"),
        ([made_up(1, 1.0, kl=7.0)], {"max_kl": 8.0}, None),
        ([made_up(1, 1.0, gain=1.0)], {"target_gold_gain": 0.7}, "1.00 [0.80, 1.20], above"),
        ([made_up(1, 1.0, gain=1.0)], {"target_gold_gain": 0.9}, None),
        ([made_up(1, None), made_up(2, None)], {}, None),
    ],
)
def test_when_the_rounds_end(done, options, words):
    found = rounds.stop_reason(done, OnlineArguments(**({"rounds": 3} | options)))
    assert found is None if words is None else words in found


def test_the_round_with_the_most_gold_is_shipped_and_without_gold_the_last():
    done = [made_up(1, 1.0), made_up(2, 2.0), made_up(3, 1.5)]
    assert rounds.best_round(done).number == 2
    assert rounds.best_round([made_up(1, None), made_up(2, None)]).number == 2
    paired = rounds.gain_over(done[1], done[0])  # the noise is the prompts', and cancels
    assert paired.value == pytest.approx(1.0) and paired.high - paired.low < 1e-9


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "rounds must be at least 1; got 0"),
        (["--old_share", "2"], "old_share must be at least 0, at most 1"),
        (["--test_share", "0"], "test_share must be above 0"),
        (["--num_comparisons", "30"], "leaves 3 to test a reward model on"),
        (["--max_kl", "-1"], "max_kl must be above 0"),
        (
            ["--annotators", "people", "--judge", "testbed"],
            "judge has no meaning with --annotators people",
        ),
        (["--annotators", "peple"], "people"),
        (["--ppo_options", '{"lerning_rate": 1}'], "ppo_options: unknown option"),
        (["--ppo_options", '{"beta": "much"}'], "ppo_options: "),
        (["--ppo_options", '{"reward_model": "x"}'], "reward_model is set by the rounds"),
        (["--ppo_options", '{"audit_steps": 0}'], "add audit_steps"),
        (["--reward_options", '{"num_pears": 1}'], "reward_options: unknown option"),
        (["--model", "nowhere/to/be/found"], "model_name_or_path nowhere/to/be/found"),
        (["--gold_reward", "no.module:f"], "gold_reward"),
        (["--judge", "llm:x", "--judge_base_url", "nonsense"], "judge_base_url"),
        (["--dataset_name", "prompts.jsonl"], "model_name_or_path is missing"),
        (["--hub_dataset_id", "x"], "hub_dataset_id needs --push_to_hub"),
        (["--push_to_hub"], "push_to_hub needs a token"),
        (
            ["--start_from", "previous", "--ppo_options", '{"use_peft": true, "audit_steps": 9}'],
            "KL",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(words, message, testbed, tmp_path, capsys):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        online.main([*words, "--output_dir", str(folder)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0], lines
    assert not folder.exists()


def test_more_rounds_than_there_are_prompts_for(ran, testbed, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        online.main(["--rounds", "5", "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2 and "suffice for 4 of 1000" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(SystemExit) as stop:
        online.main(["--output_dir", str(tmp_path)])
    assert stop.value.code == 2 and "something else" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


# ------------------------------------------------------------------------------------- kill and go


@pytest.mark.slow
@pytest.mark.parametrize("at", ["pairs", "mix", "reward", "ppo", "accuracy"])
def test_killed_in_any_stage_the_same_command_goes_on(testbed, tmp_path, at):
    folder = tmp_path / "out"
    ppo = json.dumps(PPO | {"save_strategy": "steps", "save_steps": 1, "max_steps": 3})
    words = [*TINY, "--rounds", "2", "--ppo_options", ppo, "--output_dir", str(folder)]
    command = [sys.executable, "-m", "hf_align.recipes.online", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (folder / "rounds/2" / f"{at}.log").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # its worker ends with it
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("rounds/1/*/run.json")}
    assert len(kept) == 5
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert load_report(folder / "report")["rounds"][1]["round"] == 2
