"""What `inspect` reports of small files whose counts are known by construction; what it writes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from hf_align.data import load_data
from hf_align.recipes import _inspection, dpo, inspect, reward, sft


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


GOOD = [
    pair("q1", "a long answer", "short"),
    pair("q2", "another long answer", "short"),
    pair("q3", "yes", "a long refusal"),
]
KNOWN = [
    *GOOD,
    GOOD[0],  # a duplicate
    pair("q3", "a long refusal", "yes"),  # contradicts the third
    pair("q4", "same", "same"),  # an identical pair
    pair("q5", "", "b"),  # empties
    pair("q6", "a", " "),
]
VALUED = [
    {"prompt": f"q{i}", "completion_a": f"first {i}", "completion_b": f"second {i}", "p_a": p}
    for i, p in enumerate([0.9, 0.2, 0.5, 0.5, 1.0])
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(capsys):
    """Runs the recipe in this process: (exit code, what it printed, what it complained about)."""

    def run(*args, recipe=inspect):
        code = 0
        try:
            recipe.main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def write(name, rows):
    with open(name, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def section(page, title):
    """The lines under a heading, without indentation."""
    body = re.search(rf"^{title}[^\n]*\n-+\n((?:  [^\n]*\n|\n(?=  ))*)", page, re.MULTILINE)
    assert body, f"no section {title!r} in:\n{page}"
    return [line.strip() for line in body[1].splitlines()]


def cells(line):
    return re.split(r" {2,}", line.strip())


def counts(page, title):
    return {name: int(n.replace(",", "")) for n, name, _ in map(cells, section(page, title))}


def next_command(page):
    return shlex.split(page[page.index("next:") :].replace("\\\n", " "))[1:]


def test_every_row_of_a_constructed_file_is_accounted_for(run):
    write("pairs.jsonl", KNOWN)
    code, page, _ = run("pairs.jsonl", "--invalid_rows", "drop", "--test_split_size", 0)
    assert code == 0
    assert "layout   explicit: prompt, chosen, rejected as plain text" in page
    assert "task     preference (inferred; --task overrides)" in page
    assert list(map(cells, section(page, "Rows"))) == [
        ["train"],
        ["read", "8"],
        ["kept", "5"],
        ["distinct prompts", "3"],
    ]
    assert "Dropped: 3\n" in page
    assert counts(page, "Dropped") == {"identical_pair": 1, "empty": 2}
    assert counts(page, "Found") == {"duplicates": 1, "contradictions": 1, "prompt_overlap": 0}


def test_length_bias_is_the_share_of_pairs_whose_chosen_is_longer(run):
    rows = [pair(f"q{i}", "long", "x") for i in range(3)] + [pair("q3", "x", "long")]
    write("pairs.jsonl", [*rows, pair("q4", "same", "size")])
    _, page, _ = run("pairs.jsonl", "--test_split_size", 0)
    text = " ".join(section(page, "Length bias"))
    # Wilson's interval of 3 out of 4
    assert "longer in 75.0% of pairs, 95 % interval 30.1% to 95.4%" in text
    assert "(4 pairs; 1 of equal length left out)" in text
    assert "+1.2 characters" in text  # (3 + 3 + 3 − 3 + 0) / 5
    assert "no preference for length is visible" in text


@pytest.mark.parametrize(
    ("chosen", "rejected", "reading"),
    [("long one", "x", "writing more"), ("x", "long one", "writing less")],
)
def test_a_length_bias_that_is_clear_is_read_out(run, chosen, rejected, reading):
    write("pairs.jsonl", [pair(f"q{i}", chosen, rejected) for i in range(20)])
    _, page, _ = run("pairs.jsonl")
    assert reading in section(page, "Length bias")[-1]


def test_ties_are_counted_and_the_probability_is_shown(run):
    write("valued.jsonl", VALUED)
    _, page, _ = run("valued.jsonl", "--test_split_size", 0)
    assert counts(page, "Dropped") == {"identical_pair": 0, "tie": 2}
    assert ["probability", "0.9"] in [line.split() for line in section(page, "Examples")]


def test_prompts_on_both_sides_of_a_split_are_counted_and_warned_of(run, tmp_path):
    (tmp_path / "data").mkdir()
    write("data/train.jsonl", GOOD)
    write("data/test.jsonl", [pair("q1", "other", "words"), pair("q9", "a", "b")])
    _, page, _ = run("data")
    assert list(map(cells, section(page, "Rows")))[1] == ["read", "3", "2"]
    assert counts(page, "Found")["prompt_overlap"] == 1
    assert "1 prompts of the test split are also in train" in " ".join(section(page, "Warnings"))


def test_lengths_are_those_of_the_texts(run):
    write("p.jsonl", [{"prompt": "one two three"}, {"prompt": "four"}])
    _, page, _ = run("p.jsonl", "--test_split_size", 0)
    table = list(map(cells, section(page, "Length in")))
    assert table[0] == ["mean", "median", "p95", "max"]
    assert table[1][:3] == ["prompt", "characters", "8"] and table[1][-1] == "13"
    assert table[2][:2] == ["words", "2"] and table[2][-1] == "3"


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "options", "task"),
    [
        (pair("q", "a", "b"), (), "preference"),
        ({"chosen": CHAT, "rejected": [CHAT[0], CHAT[1] | {"content": "b"}]}, (), "preference"),
        ({"prompt": "q", "completion": "a"}, (), "sft"),
        ({"messages": CHAT}, (), "sft"),
        ({"prompt": "q"}, (), "prompt"),
        ({"q": "q", "a": "a"}, ("--prompt_column", "q", "--completion_column", "a"), "sft"),
        (
            {"q": "q", "good": "a", "bad": "b"},
            ("--prompt_column", "q", "--chosen_column", "good", "--rejected_column", "bad"),
            "preference",
        ),
        (pair("q", "a", "b"), ("--task", "sft"), "sft"),
        (pair("q", "a", "b"), ("--task", "prompt"), "prompt"),
    ],
)
def test_the_task_follows_from_the_columns_unless_it_is_named(run, row, options, task):
    write("rows.jsonl", [row])
    code, page, err = run("rows.jsonl", "--test_split_size", 0, *options)
    assert code == 0, err
    inferred = "" if "--task" in options else " (inferred; --task overrides)"
    assert f"task     {task}{inferred}\n" in page


def test_a_mixture_is_read_as_what_its_first_part_is(run):
    write("a.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(3)])
    write("b.jsonl", [{"question": f"r{i}", "answer": "a"} for i in range(2)])
    code, page, err = run("--datasets", json.dumps([{"path": "a.jsonl"}, {"path": "b.jsonl"}]))
    assert code == 0, err
    assert "task     sft (inferred" in page
    assert cells(section(page, "Rows")[1]) == ["read", "5", "-"]
    assert (
        sft.make_parser().parse(next_command(page)[3:]).values["datasets"][1]["path"] == "b.jsonl"
    )


def test_the_dataset_written_loads_back_with_explicit_pairs_and_equal_rows(run, tmp_path):
    write("valued.jsonl", VALUED)
    code, page, err = run("valued.jsonl", "--test_split_size", 0.4, "--output", "made/clean")
    assert code == 0, err
    original = load_data("valued.jsonl", "preference", test_split_size=0.4)
    again = load_data("made/clean", "preference")
    assert again.report.layout == "explicit"
    assert again.report.rows_read == original.report.rows_kept
    columns = ["prompt", "chosen", "rejected"]
    for split in ("train", "test"):
        kept = original.splits[split].select_columns(columns).to_list()
        assert again.splits[split].select_columns(columns).to_list() == kept
    assert everything(tmp_path / "made") == [
        *("clean", "clean/report.json", "clean/report.md", "clean/test.jsonl", "clean/train.jsonl")
    ]
    assert next_command(page)[:5] == [
        *("python", "-m", "hf_align.recipes.dpo", "--dataset_name", "made/clean")
    ]


def test_the_report_written_holds_the_numbers_printed(run, tmp_path):
    write("pairs.jsonl", KNOWN)
    _, page, _ = run("pairs.jsonl", "--invalid_rows", "drop", "--output", "clean")
    report = json.loads((tmp_path / "clean/report.json").read_text())
    assert (report["schema"], report["recipe"], report["task"]) == (1, "inspect", "preference")
    table = {row[0]: row[1:] for row in map(cells, section(page, "Rows")[1:])}
    assert table["kept"] == [str(report["rows_kept"][split]) for split in ("train", "test")]
    assert table["distinct prompts"] == [str(report["prompts"][s]) for s in ("train", "test")]
    shown = counts(page, "Dropped") | counts(page, "Found")
    assert {name: n for name, n in shown.items() if n} == report["dropped"] | report["counted"]
    assert f"{report['length_bias']['longer_chosen']['value']:.1%}" in page
    assert report["audit"] is None
    markdown = (tmp_path / "clean/report.md").read_text()
    assert f"| train | 8 | {report['rows_kept']['train']} |" in markdown
    assert "another long answer" not in markdown


@pytest.mark.parametrize("folder", ["outputs/inspect", "elsewhere"])
def test_without_an_output_the_report_alone_is_saved(run, tmp_path, folder):
    write("pairs.jsonl", GOOD)
    options = [] if folder == "outputs/inspect" else ["--report_dir", folder]
    for _ in range(2):  # the second replaces the first
        assert run("pairs.jsonl", *options)[0] == 0
    assert (tmp_path / folder / "report.md").read_text().startswith("## Data")
    assert json.loads((tmp_path / folder / "report.json").read_text())["rows_kept"]
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"pairs.jsonl", "report.md", "report.json"}


def test_overwrite_replaces_an_inspected_dataset_and_nothing_else(run, tmp_path):
    write("pairs.jsonl", KNOWN[:5])
    write("fewer.jsonl", GOOD[:2])
    run("pairs.jsonl", "--output", "clean")
    code, _, err = run("fewer.jsonl", "--output", "clean")
    assert code == 2 and "--overwrite" in err
    assert run("fewer.jsonl", "--output", "clean", "--overwrite", "--test_split_size", 0)[0] == 0
    assert not (tmp_path / "clean/test.jsonl").exists()
    assert len((tmp_path / "clean/train.jsonl").read_text().splitlines()) == 2
    (tmp_path / "clean/thesis.tex").write_text("mine")
    code, _, err = run("pairs.jsonl", "--output", "clean", "--overwrite")
    assert code == 2 and "thesis.tex" in err
    assert len((tmp_path / "clean/train.jsonl").read_text().splitlines()) == 2


def test_overwrite_leaves_a_dataset_that_no_inspection_wrote(run, tmp_path):
    write("pairs.jsonl", GOOD)
    (tmp_path / "data").mkdir()
    write("data/train.jsonl", KNOWN)
    code, _, err = run("pairs.jsonl", "--output", "data", "--overwrite")
    assert code == 2 and "no inspection wrote it" in err
    assert len((tmp_path / "data/train.jsonl").read_text().splitlines()) == len(KNOWN)


def test_a_failed_write_leaves_the_old_dataset_and_no_litter(run, tmp_path, monkeypatch):
    write("pairs.jsonl", GOOD)
    run("pairs.jsonl", "--output", "clean")
    before = (tmp_path / "clean/train.jsonl").read_bytes()

    def full_disk(data, output):
        (output / "train.jsonl").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_inspection, "write_dataset", full_disk)
    for output, more in (("clean", ["--overwrite"]), ("other", [])):
        code, _, err = run("pairs.jsonl", "--output", output, *more)
        assert code == 1 and err.count("\n") == 1
        assert f"{output} cannot be written (No space left on device)" in err
    assert (tmp_path / "clean/train.jsonl").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "clean"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.jsonl"], "no such file or folder"),
        (["pairs.jsonl", "--invalid_row", "drop"], "did you mean 'invalid_rows'"),
        (["pairs.jsonl"], "pairs.jsonl row 7, column 'chosen': empty text"),
        (["pairs.jsonl", "--task", "dpo"], "task must be one of"),
        (["pairs.jsonl", "--max_length", "64"], "--model_name_or_path"),
        (["pairs.jsonl", "--model_name_or_path", "testbed", "--max_length", "0"], "1 or more"),
        (["pairs.jsonl", "--num_rows", "-1"], "num_rows must be 0 or more; got -1"),
        (["pairs.jsonl", "--output", "pairs.jsonl"], "is a file"),
        (["folder", "--output", "folder"], "is the dataset itself"),
        (["pairs.jsonl", "--report_dir", "odd.jsonl"], "is a file"),
        (["plain.jsonl"], "plain.jsonl: columns 'chosen' and 'rejected' are plain text"),
        (["odd.jsonl"], "no layout"),
        (["nothing.jsonl"], "nothing.jsonl is empty"),
        (["pairs.jsonl", "--prompt_column", "ask"], "available: chosen, prompt, rejected"),
        (["pairs.jsonl", "--dataset_train_split", "dev"], "available: train"),
        (["--dataset_config", "verse"], "dataset_config of the testbed"),
        (["--task", "prompt", "--dataset_config", "verse"], "dataset_config of the testbed"),
    ],
)
def test_what_cannot_be_inspected_is_refused_in_one_line(run, tmp_path, testbed, args, message):
    write("pairs.jsonl", KNOWN)
    write("plain.jsonl", [{"chosen": "a", "rejected": "b"}])
    write("odd.jsonl", [{"foo": 1}])
    write("nothing.jsonl", [])
    for folder in ("folder", "folder.md"):
        (tmp_path / folder).mkdir()
    before = everything(tmp_path)
    code, page, err = run(*args)
    assert (code, page) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert everything(tmp_path) == before


# --- rows as they are shown


def test_long_texts_are_shortened_in_the_middle_and_lines_stay_narrow(run):
    words = " ".join(f"w{i}" for i in range(1000))
    write("pairs.jsonl", [pair(words, "a\n\nb", "x" * 500)])
    _, page, _ = run("pairs.jsonl", "--test_split_size", 0)
    assert " w0 w1 " in page and " w998 w999\n" in page and " w500 " not in page
    left_out = int(re.search(r"\[\.\.\. (\d+) words \.\.\.\]", page)[1])
    assert left_out + len(re.findall(r"\bw\d+", page)) == 1000
    assert max(map(len, page.splitlines())) <= 80


def test_a_conversation_shows_who_speaks(run):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    answer = {"role": "assistant", "content": "hello"}
    write("chat.jsonl", [{"prompt": turns, "completion": [answer]}])
    _, page, _ = run("chat.jsonl", "--test_split_size", 0)
    lines = section(page, "Examples")
    assert lines[1:] == ["prompt      [system] be kind", "[user] hi", "completion  hello"]


def test_a_row_cannot_steer_the_terminal(run):
    write("pairs.jsonl", [pair("q\x1b[2J\u202e", "a\x07", "b")])
    _, page, _ = run("pairs.jsonl", "--test_split_size", 0)
    assert r"q\x1b[2J\u202e" in page and r"a\x07" in page
    assert not set("\x1b\x07\u202e") & set(page)


def test_words_that_run_together_are_warned_of(run):
    rows = [("one two", "three"), ("one two ", "three"), ("one two:", "three"), ("one", " two")]
    write("sft.jsonl", [{"prompt": prompt, "completion": answer} for prompt, answer in rows])
    _, page, _ = run("sft.jsonl", "--test_split_size", 0)
    assert "in 1 of 4 rows no space parts" in " ".join(section(page, "Warnings"))


def test_as_many_rows_are_shown_as_asked_for(run):
    write("pairs.jsonl", [pair(f"question {i}", "a", "b") for i in range(10)])
    _, page, _ = run("pairs.jsonl", "--test_split_size", 0, "--num_rows", 2)
    shown = [line for line in section(page, "Examples") if line.startswith("train, row")]
    assert shown == ["train, row 1", "train, row 6"]
    _, page, _ = run("pairs.jsonl", "--num_rows", 0)
    assert "question" not in page


def test_a_terminal_without_unicode_gets_the_page_all_the_same(tmp_path):
    write("pairs.jsonl", [pair("naïve 猫?", "a", "b"), pair("r", "a", "b")])
    code = (
        "import sys, hf_align.recipes.inspect as recipe\n"
        "recipe.main(['pairs.jsonl', '--test_split_size', '0'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"na?ve ??" in done.stdout


# --- the command that it ends with


@pytest.mark.parametrize("recipe", [dpo, sft])
def test_the_next_command_is_one_that_the_recipe_accepts(run, recipe):
    rows = {
        dpo: [{"q": f"it's {i}", "chosen": "a", "rejected": "b"} for i in range(3)],
        sft: [{"q": f"it's {i}", "completion": "a"} for i in range(3)],
    }[recipe]
    write("my rows.jsonl", [*rows, {**rows[0], "q": ""}])
    args = ["my rows.jsonl", "--prompt_column", "q", "--invalid_rows", "drop"]
    _, page, _ = run(*args, "--dataset_train_split", "train")
    command = next_command(page)
    assert command[:3] == ["python", "-m", f"hf_align.recipes.{recipe.__name__.split('.')[-1]}"]
    values = recipe.make_parser().parse(command[3:]).values
    assert values.pop("model_name_or_path")
    assert values == {
        **{"dataset_name": "my rows.jsonl", "prompt_column": "q", "invalid_rows": "drop"},
        "dataset_train_split": "train",
    }


# --- with a model: the testbed's tokenizer reads one token per word


PROMPT = "mention tea rain books music :"  # 6 tokens


def audited(page):
    return {row[0]: row[1:] for row in map(cells, section(page, "What max_length"))}


def test_what_max_length_does_is_counted_in_the_models_tokens(run, testbed, tmp_path):
    rows = [
        pair(PROMPT, "tea", "rain"),  # 6 + 1 + EOS = 8
        pair(PROMPT, "tea rain", "rain"),  # 9: cut
        pair(PROMPT, "tea", "rain books music"),  # 10: cut
        pair(f"tea rain {PROMPT}", "tea", "rain"),  # the prompt alone is 8: lost
        pair(PROMPT, "xylophone", "rain"),  # 8, and one unknown token
    ]
    write("pairs.jsonl", rows)
    model = ["--model_name_or_path", "testbed", "--test_split_size", 0]
    code, page, err = run("pairs.jsonl", *model, "--max_length", 8, "--output", "clean")
    assert code == 0, err
    assert "What max_length 8 does" in page
    assert audited(page) == {
        "train": [],
        "fits": ["2"],
        "longer: the completion is cut": ["2"],
        "prompt alone fills it: row is lost": ["1"],
        "refused by the chat template": ["0"],
    }
    tokens = {row[0]: row[-1] for row in map(cells, section(page, "Length in tokens"))}
    assert (tokens["train: prompt"], tokens["train: chosen"]) == ("8", "3")
    assert (tokens["train: rejected"], tokens["train: prompt + completion"]) == ("4", "10")
    assert "unknown to the tokenizer, <unk>: 1" in " ".join(section(page, "Warnings"))
    assert "EOS <eos>, padding <pad>" in page
    assert section(page, "First row")[:2] == [f"prompt      {PROMPT}", "+ chosen    tea<eos>"]
    audit = json.loads((tmp_path / "clean/report.json").read_text())["audit"]
    assert audit["splits"]["train"]["truncated"] == 2
    assert audit["splits"]["train"]["prompt_too_long"] == 1
    assert "| longer: the completion is cut | 2 |" in (tmp_path / "clean/report.md").read_text()
    assert str(testbed.path) not in json.dumps(audit)
    values = dpo.make_parser().parse(next_command(page)[3:]).values
    assert values["max_length"] == 8 and values["model_name_or_path"] == "testbed"


def test_conversations_are_rendered_through_the_template(run, testbed):
    chat = [
        {
            "prompt": [{"role": "user", "content": PROMPT}],
            "chosen": [{"role": "assistant", "content": "tea"}],
            "rejected": [{"role": "assistant", "content": "rain"}],
        }
    ]
    write("chat.jsonl", chat)
    code, page, err = run("chat.jsonl", "--model_name_or_path", "testbed", "--test_split_size", 0)
    assert code == 0, err
    assert section(page, "First row") == [
        f"prompt      <user>{PROMPT}<assistant>",
        *("+ chosen    tea<eos>", "+ rejected  rain<eos>"),
    ]
    # <user> + 6 words + <assistant>, then a word and <eos>
    assert "What max_length 128 does" in page  # the model's own positions
    tokens = {row[0]: row[-1] for row in map(cells, section(page, "Length in tokens"))}
    assert (tokens["train: prompt"], tokens["train: chosen"]) == ("8", "2")


def test_a_model_without_a_template_would_stop_training_and_the_page_says_so(
    run, testbed, tmp_path
):
    shutil.copytree(testbed.policy_path, "plain")
    (tmp_path / "plain/chat_template.jinja").unlink()
    (tmp_path / "plain/model.safetensors").unlink()  # the tokenizer is all that is read
    write("chat.jsonl", [{"messages": CHAT}, {"messages": [CHAT[0] | {"content": "r"}, CHAT[1]]}])
    code, page, err = run("chat.jsonl", "--model_name_or_path", "plain")
    assert code == 0, err
    assert "chat template    none" in page
    warnings = section(page, "Warnings")
    assert warnings[0].startswith("- training would stop: model plain has no chat template")
    assert sum(line.startswith("- ") for line in warnings) == 1
    assert "First row" not in page


def test_a_longer_max_length_than_the_model_takes_is_refused(run, testbed):
    write("pairs.jsonl", GOOD)
    args = ["pairs.jsonl", "--model_name_or_path", "testbed", "--max_length", 500]
    code, page, err = run(*args)
    assert (code, page) == (2, "") and "128 positions" in err


def test_without_arguments_the_testbeds_pairs_are_inspected(run, testbed):
    code, page, err = run()
    assert code == 0, err
    pairs = load_data(str(testbed.preferences_path), "preference").report
    assert cells(section(page, "Rows")[2]) == [
        "kept",
        *(f"{pairs.rows_kept[split]:,}" for split in ("train", "test")),
    ]
    assert page.endswith("next: python -m hf_align.recipes.dpo\n")
    assert str(testbed.path) not in page
    code, page, _ = run("--task", "prompt", "--num_rows", 0)
    assert code == 0 and "source   testbed-prompt" in page


# --- rankings


def test_rankings_are_shown_by_rank_and_end_with_a_command_that_trains_on_them(run, testbed):
    ranked = [
        {"prompt": f"q{i} ", "completions": ["worse", "best", "worst"], "ranks": [2, 1, 2]}
        for i in range(4)
    ]
    tied = {"prompt": "q9 ", "completions": ["a", "b"], "ranks": [1, 1]}
    write("ranks.jsonl", [*ranked, tied])
    args = ("ranks.jsonl", "--task", "ranking", "--model_name_or_path", testbed.policy_path)
    code, page, err = run(*args, "--test_split_size", 0, "--output", "clean")
    assert code == 0, err
    shown = [" ".join(line.split()) for line in page.splitlines()]
    first = shown.index("train, row 1")
    assert shown[first + 1 : first + 5] == [
        "prompt q0",
        "rank 1 best",
        "rank 2 worse",
        "rank 2 worst",
    ]
    assert any(line.startswith("4 tied_rank_pairs") for line in shown)
    assert any(line.startswith("1 tie ") for line in shown)
    command = next_command(page)
    assert command[2] == "hf_align.recipes.reward"
    values = reward.make_parser().parse(command[3:]).values
    assert values["loss"] == "kwise"
    assert load_data(values["dataset_name"], "ranking", test_split_size=0).splits["train"].to_list()
    code, page, _ = run("ranks.jsonl", "--test_split_size", 0)
    assert "task     preference (inferred" in page
