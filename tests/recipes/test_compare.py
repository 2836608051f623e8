"""`compare`: one table of methods, cached answers, judges, order and verdict, and its refusals."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_align.diagnostics.report import load_report
from hf_align.recipes import _compare_answers as answers
from hf_align.recipes import _compare_report, compare
from hf_align.recipes import _compare_table as table
from hf_align.recipes import _compare_testbed as on_testbed
from hf_align.recipes import _policy_names as policy_names
from hf_align.recipes._compare_table import Method
from hf_align.recipes._compare_verdict import verdict_between
from hf_align.testbed import build_testbed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))
from loopback import LoopbackHub
from small_models import files_of, save_adapter, save_policy, serve

QUICK = ("--dataset_name", "testbed", "--num_prompts", "12", "--num_samples", "2")
SCORE = """
def words(prompts, completions, **columns):
    return [float(len(text.split())) for text in completions]

def brief(prompts, completions, **columns):
    return [-float(len(text.split())) for text in completions]
"""


@pytest.fixture(scope="module")
def folder(testbed, tmp_path_factory):
    path = tmp_path_factory.mktemp("compare")
    (path / "score.py").write_text(SCORE)
    return path


@pytest.fixture(scope="module")
def made(folder):
    """The path and the report of a comparison with all there is."""
    path = folder / "made"
    compare.main(
        [
            *("twice=testbed", "twice=testbed", "best_of_n:8:testbed", "urial:testbed"),
            *("--reference", "testbed", "--reward_model", f"{folder}/score.py:words"),
            *("--second_reward", f"{folder}/score.py:brief", "--temperatures", "0", "1"),
            *("--num_temperature_prompts", "6", "--output_dir", str(path), *QUICK),
        ]
    )
    return path, load_report(path / "report")


def by_name(report):
    return {method["name"]: method for method in report["methods"]}


def test_a_policy_that_is_the_reference_stands_in_its_row(made):
    _, report = made
    methods = report["methods"]
    assert [m["name"] for m in methods] == ["twice", "best of 8 of testbed", "testbed in context"]
    assert methods[0]["win_rate"] is None and methods[0]["kl"]["value"] == 0


def test_the_table_has_every_number_with_its_interval(made):
    _, report = made
    best = by_name(report)["best of 8 of testbed"]
    for name in ("win_rate", "controlled", "gold", "proxy", "second", "kl"):
        assert best[name]["low"] <= best[name]["value"] <= best[name]["high"], name
    # Eight draws by the number of words: longer, and within the bound of Stiennon et al.
    assert best["proxy"]["value"] > report["methods"][0]["proxy"]["value"] + 2
    assert 0.5 < best["kl"]["value"] <= np.log(8) - 7 / 8 + 1e-6
    assert best["second"]["value"] == pytest.approx(-best["proxy"]["value"])
    assert best["facts"][0]["draws_per_answer"] == 8
    context = by_name(report)["testbed in context"]["facts"][0]["urial_prompt"]
    assert context["version"] == "urial-brief-1" and len(context["sha256"]) == 64
    methods = next(t for t in report["tables"] if t["title"] == "Methods")
    assert {"win rate", "length-controlled", "diversity", "draws per answer"} <= set(
        methods["columns"]
    )


def test_rewards_read_columns_of_the_data(folder, tmp_path):
    rows = [{"prompt": f"mention tea rain books {t} :", "wanted": t} for t in ("sea", "dogs")]
    rows.append(rows[0] | {"wanted": "never read: the prompt has a row already"})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def named(prompts, completions, wanted, **columns):\n"
        "    assert all(f' {word} :' in p for p, word in zip(prompts, wanted))\n"
        "    return [float(word in text) for word, text in zip(wanted, completions)]\n"
    )
    names = ("testbed", "best_of_n:16:testbed", "--dataset_name", f"{tmp_path}/prompts.jsonl")
    reward = ("--gold_reward", f"{tmp_path}/reward.py:named", "--num_samples", "8")
    chosen = ("--reward_model", f"{tmp_path}/reward.py:named", "--max_new_tokens", "12")
    read = ("--reward_columns", "wanted", "--output_dir", str(tmp_path / "out"))
    compare.main([*names, *reward, *chosen, *read])
    methods = load_report(tmp_path / "out" / "report")["methods"]
    assert methods[0]["gold"]["value"] < methods[1]["gold"]["value"] == 1.0


@pytest.mark.parametrize("kept", [False, True])
def test_the_checkpoint_is_the_best_one_or_the_table_says_it_is_not(tmp_path, kept):
    record = {"recipe": "dpo", "config": {}, "name": "mine", "lineage": {}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "metrics.jsonl").write_text('{"step": 7}\n')
    policy = build_testbed().policy_path
    for folder in (tmp_path, tmp_path / "best"):
        shutil.copytree(policy, folder, dirs_exist_ok=True)
    if kept:
        (tmp_path / "best" / "audit.json").write_text('{"step": 3}')
    found = answers.locate(str(tmp_path), "best")
    assert (found.step, found.without_best) == ((3, False) if kept else (7, True))
    assert not answers.locate(str(tmp_path), "last").without_best

    method = SimpleNamespace(name="mine", facts=[{"without_best": found.without_best}, {}])
    said = _compare_report._at_the_end(SimpleNamespace(everything=[method]))
    assert said == [] if kept else "mine (1 of 2 runs)" in said[0]


def test_figures_and_records_are_written(made):
    path, report = made
    assert set(report["figures"]) == {
        *("win_rates.png", "gold_against_kl.png", "proxy_against_kl.png"),
        *("win_rate_by_temperature.png", "two_rewards.png"),
    }
    assert all((path / "report" / name).stat().st_size > 1000 for name in report["figures"])
    assert json.loads((path / "run.json").read_text())["status"] == "finished"
    rates = next(t for t in report["tables"] if t["title"].startswith("Win rate by"))
    assert rates["columns"] == ["method", "0", "1"]
    assert not list(path.glob(".draft"))


def test_answers_are_kept_and_changed_settings_are_noticed(made, monkeypatch):
    path, report = made
    drawn = []
    real = answers.measure

    def watch(options, found):
        drawn.append(options.policy)
        return real(options, found)

    monkeypatch.setattr(answers, "measure", watch)
    again = [
        *("twice=testbed", "twice=testbed", "best_of_n:8:testbed", "--reference", "testbed"),
        *("--reward_model", f"{path.parent}/score.py:words", "--output_dir", str(path)),
        *("--second_reward", f"{path.parent}/score.py:brief", *QUICK, "--overwrite"),
    ]
    compare.main(again)
    assert drawn == []
    kept = by_name(load_report(path / "report"))
    assert kept["best of 8 of testbed"]["gold"] == by_name(report)["best of 8 of testbed"]["gold"]
    compare.main([*again, "--seed", "7"])
    assert drawn == ["testbed", "testbed", "best_of_n:8:testbed"]


def test_a_judge_is_asked_in_both_orders(folder, capsys):
    path = folder / "judged"
    compare.main(
        [
            *("best_of_n:8:testbed", "--reference", "testbed", "--judge"),
            *(f"{folder}/score.py:words", "--reward_model", f"{folder}/score.py:words"),
            *("--output_dir", str(path), *QUICK),
        ]
    )
    report = load_report(path / "report")
    best = by_name(report)["best of 8 of testbed"]
    assert best["win_rate"]["value"] > 0.8
    assert "best of 8 of testbed" in capsys.readouterr().out
    assert json.loads((path / "lineage.json").read_text())["judges"]


@pytest.fixture
def adapter(testbed, tmp_path):
    """A LoRA adapter of the testbed's policy, and the same policy merged and whole."""
    base, path = str(testbed.policy_path), tmp_path / "adapter"
    merged = save_adapter(path, base, base).merge_and_unload()
    whole = save_policy(tmp_path / "whole", lambda seed: merged, load_tokenizer())
    return path, whole


def load_tokenizer():
    from hf_align.testbed import tokenizer

    return tokenizer()


def test_an_adapter_is_its_base_with_it_merged(adapter, tmp_path, capsys):
    path, whole = adapter
    out = tmp_path / "out"
    names = (f"lora={path}", f"context=urial:{path}", "base=testbed")
    compare.main([*names, "--reference", str(whole), "--output_dir", str(out), *QUICK])
    report = load_report(out / "report")
    lora, base = by_name(report)["lora"], by_name(report)["base"]
    assert abs(lora["kl"]["value"]) < 1e-6 < 0.1 < base["kl"]["value"]
    assert lora["facts"][0]["model"]["base"]["sha256"] == base["facts"][0]["model"]["sha256"]
    texts = [f.read_text() for f in sorted(out.glob("answers/table/*/answers.jsonl"))]
    assert len(texts) == 4 and len(set(texts)) == 3  # the adapter writes what the whole model does


def test_an_adapter_of_the_hub_brings_its_base(tmp_path, make_model, tokenizer, monkeypatch):
    """At the commit that it names, though the base has moved on."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    policy = save_policy(tmp_path / "policy", make_model, tokenizer)
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        base = serve(hub, "lab/base", files_of(policy))
        adapted = save_adapter(tmp_path / "adapter", policy, "lab/base", named := base.sha)
        serve(hub, "lab/adapter", files_of(tmp_path / "adapter"))
        save_adapter(tmp_path / "loose", policy, "lab/base")
        base.add_commit("main", files_of(policy) | {"README.md": b"moved on"}, "moved on")
        assert policy_names.find_source(str(tmp_path / "loose"))["base"]["revision"] == base.sha
        recorded = {"name": "lab/base", "revision": named}  # as its run directory says
        loose = policy_names.find_source(str(tmp_path / "loose"), recorded=recorded)
        assert loose["base"]["revision"] == named != base.sha
        base.add_commit("main", {"README.md": b"moved on, without weights"}, "gone")
        source = policy_names.find_source("lab/adapter")
        assert source["revision"] and source["base"]["revision"] == named
        words, _ = policy_names.load_words(source)
        model = policy_names.load_model(source)
    merged = adapted.merge_and_unload().state_dict()
    assert words("w1 w2")["input_ids"] == [5, 6]
    assert all(torch.allclose(w, merged[k], atol=1e-6) for k, w in model.state_dict().items())


def method(name, gold, proxy=None, lengths=None, seeds=1):
    """A method whose every prompt has these means."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(40, 3))
    arrays = {"gold": gold + noise, "proxy": (gold if proxy is None else proxy) + noise}
    arrays["lengths"] = np.full((40, 3), 8 if lengths is None else lengths)
    return Method(name, [arrays] * seeds, [[["a"] * 3] * 40] * seeds, [{}] * seeds)


def test_the_order_that_came_out_is_said():
    low, middle, high = method("low", 1.0), method("middle", 2.0), method("high", 3.0)
    tiers = (("high",), ("middle", "absent"), ("low",))
    orders = table.order([low, high, middle], tiers)
    assert [o.verdict for o in orders] == ["as expected"] * 2
    assert table.order_statement(orders, tiers).startswith("Gold orders the methods as expected")
    orders = table.order([low, high, middle], (("middle",), ("high",), ("low",)))
    assert [o.verdict for o in orders] == ["the other way round", "as expected"]
    text = table.order_statement(orders, (("middle",), ("high",), ("low",)))
    assert "1 of 2 pairs: middle against high is the other way round (-1.00" in text
    same = table.order([low, method("twin", 1.0)], (("low",), ("twin",)))
    assert same[0].verdict == "undecided"


def test_the_verdict_is_about_proxy_against_gold():
    reference = method("reference", 1.0)
    assert verdict_between([reference, method("a", 2.0)]).label == "NOT DETECTED"
    assert verdict_between([reference, method("a", 0.5)]).label == "NO GAIN"
    ranked = verdict_between([reference, method("a", 2.0), method("b", 1.5, proxy=3.0)])
    assert ranked.label == "NOT DETECTED" and "b scores 1.00 more than a by proxy" in ranked.text
    gamed = verdict_between([reference, method("a", 2.0), method("b", 0.5, proxy=3.0)])
    assert gamed.label == "OVER-OPTIMISED" and "b has" in gamed.text
    blind = method("a", 2.0)
    del blind.seeds[0]["gold"]
    assert verdict_between([reference, blind]).label == "INCONCLUSIVE"


def test_equal_policies_win_one_half_and_seeds_are_pooled():
    reference, twin = method("reference", 1.0), method("twin", 1.0, seeds=3)
    table.judge_by_score(twin, reference, "gold")
    raw, controlled, longer = table.win_rates([twin], reference, "gold")
    assert raw["twin"].value == 0.5 and controlled["twin"].value == pytest.approx(0.5)
    assert longer is None and twin.pooled("gold").shape == (40, 9)
    assert twin.spread == pytest.approx(0)


def test_every_stage_of_the_testbeds_table_has_options_that_its_recipe_takes():
    stages = on_testbed.placed(on_testbed.stages([1, 2]), "here")
    names = {stage.name for stage in stages}
    for stage in stages:
        recipe = importlib.import_module(f"hf_align.recipes.{stage.recipe}")
        choices = recipe.make_parser().parse(["--output_dir", "x", *stage.options])
        assert set(stage.needs) <= names and choices.values["seed"] in (1, 2)
    entries = on_testbed.entries([1, 2], "here")
    assert all(set(entry.needs) <= names for entry in entries)
    methods = {entry.method for entry in entries}
    assert {name for tier in on_testbed.TIERS for name in tier} <= methods and len(methods) == 10


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("best_of_n:4:testbed",), "needs --reward_model"),
        (("best_of_n:four:testbed",), "best_of_n:<n>:<model>"),
        (("testbed", "testbed"), "NAME=POLICY"),
        (("=testbed",), "empty name"),
        (("testbed",), "nothing is compared"),
        (("absent/folder/here", "--reference", "testbed"), "absent/folder/here"),
        (("a=testbed", "urial:testbed", "--urial_prompt", "absent"), "urial_prompt absent"),
        (("urial:testbed", "--reference", "best_of_n:2:testbed"), "reference"),
        (("testbed", "--reference", "urial:testbed"), "so name testbed"),
        (("urial:testbed", "--temperatures", "-1"), "temperatures"),
        (("urial:testbed", "--num_prompts", "1"), "num_prompts"),
        (("urial:testbed", "--gold_reward", "absent.py:f"), "absent.py"),
        (("urial:testbed", "--judge", "absent.py:f"), "absent.py"),
        (("a/b", "--dataset_name", "absent.jsonl", "--gold_reward", "testbed"), "absent.jsonl"),
        (("a/b", "--dataset_name", "absent.jsonl"), "nothing judges"),
        (("--seeds", "1", "1"), "seeds"),
    ],
)
def test_mistakes_are_one_line(testbed, tmp_path, capsys, options, part):
    with pytest.raises(SystemExit) as stop:
        compare.main([*QUICK, *options, "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and part in lines[0]


def test_another_folder_is_left_alone(made, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    for where, part in ((tmp_path, "mine.txt"), (made[0], "--overwrite")):
        with pytest.raises(SystemExit):
            compare.main(["urial:testbed", *QUICK, "--output_dir", str(where)])
        assert part in capsys.readouterr().err
