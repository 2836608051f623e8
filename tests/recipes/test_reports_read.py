"""Every recipe's published report is read again by `load_run`, those without a verdict too."""

import json

import pytest

from hf_align import InputError, load_run
from hf_align.hub import Destination, plan_dataset, plan_report
from hf_align.recipes import annotate, evaluate, hhh, inspect
from hf_align.recipes import filter as filter_rows

REWARD = """
def words(prompts, completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(len(text.split())) for text in texts]
"""
TOPICS = ("tea", "rain", "books", "music", "dogs", "cats")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a reward, pairs, votes and questions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARD)
    pairs = [
        {"prompt": f"mention {a} {b} :", "chosen": f"{a} and {b}", "rejected": a}
        for a in TOPICS
        for b in TOPICS
    ]
    votes = [
        {"prompt": row["prompt"], "model_a": "one", "model_b": "two", "winner": winner}
        | {"response_a": row["chosen"], "response_b": row["rejected"]}
        for row, winner in zip(pairs, ["model_a", "model_b", "model_a"] * 12, strict=True)
    ]
    texts = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    for name, rows in (("pairs", pairs), ("votes", votes), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    question = {"input": "q", "target_scores": {"a long answer": 1, "short": 0}}
    (tmp_path / "honest.jsonl").write_text((json.dumps(question) + "\n") * 4)
    return tmp_path


def published(folder, plan):
    """The folder as a stranger gets it from the Hub."""
    with plan as publication:
        for item in publication.items:
            target = folder / item.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(item.read())
    return folder


class AsItIs:
    """A publication without an end."""

    def __init__(self, publication):
        self.publication = publication

    def __enter__(self):
        return self.publication

    def __exit__(self, *_):
        pass


CASES = {
    "evaluate": (evaluate.main, ["votes.jsonl", "--num_resamples", "100"], "36 comparisons", False),
    "hhh": (hhh.main, ["honest.jsonl", "--judge", "rewards.py:words"], "macro", False),
    "annotate": (annotate.main, ["pairs.jsonl", "--judge", "rewards.py:words"], "judged: 36", True),
    "filter": (
        filter_rows.main,
        ["texts.jsonl", "--reward_model", "rewards.py:words", "--keep_fraction", "0.5"],
        "scored: 36",
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_report_without_a_verdict_is_read_and_shown(here, name, capsys):
    main, args, words, is_dataset = CASES[name]
    try:
        main([*args, "--output_dir", "out"])
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err
    plan = plan_dataset if is_dataset else lambda folder, _: AsItIs(plan_report(folder))
    run = load_run(published(here / "hub", plan(here / "out", Destination("lab/x"))))
    assert run.record["recipe"] == name and run.verdict is None
    shown, page = str(run), run.to_markdown()
    assert words.split(":")[0] in shown.replace("comparisons: 36", "36 comparisons")
    assert "as its author reports it" in shown and len(page.splitlines()) > 3
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_an_inspected_dataset_is_read_too(here):
    inspect.main(["pairs.jsonl", "--output", "clean"])
    folder = published(here / "hub", plan_dataset(here / "clean", Destination("lab/x")))
    run = load_run(folder, kind="dataset")
    assert run.verdict is None and "36" in str(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 7}, "schema is 7"),
        ({"warnings": [3]}, "warnings are not all sentences"),
        ({"statements": "x"}, "statements are not all sentences"),
        ({"tables": [{"title": "x"}]}, "tables are not all"),
        ({"figures": ["../x.png"]}, "expected names of .png files"),
        ({"comparisons": 10**30}, "comparisons is 1000"),
    ],
)
def test_findings_of_another_form_are_refused(here, change, words):
    folder = here / "run" / "report"
    folder.mkdir(parents=True)
    (here / "run" / "run.json").write_text('{"recipe": "evaluate", "lineage": {"data": []}}')
    (folder / "report.json").write_text(json.dumps({"schema": 1, "recipe": "evaluate"} | change))
    with pytest.raises(InputError, match="is no report") as caught:
        load_run(here / "run")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_strangers_findings_are_text(here):
    script = "<script>alert(1)</script>\x1b[2J"
    report = {"schema": 1, "statements": [script], "warnings": [script], "notes": [script]}
    report |= {"deep": {script: [{"a": script}] * 3}, "judge": {"value": 0.5, "n": 3}}
    report["judge"] |= {"low": 0.4, "high": 0.6}
    report["tables"] = [{"title": script, "note": "", "columns": [script], "rows": [[script]]}]
    folder = here / "run" / "report"
    folder.mkdir(parents=True)
    (here / "run" / "run.json").write_text('{"recipe": "hhh", "lineage": {"data": []}}')
    (folder / "report.json").write_text(json.dumps(report))
    run = load_run(here / "run")
    assert all(c.isprintable() or c == "\n" for c in str(run) + run.to_markdown())
    assert "<script" not in run.to_markdown() and "0.5" in str(run)
    many = {"schema": 1, "facts": {f"n{i}": i for i in range(5000)}}
    (folder / "report.json").write_text(json.dumps(many))
    assert "and more: in report.json" in str(load_run(here / "run"))
