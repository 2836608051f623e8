"""What a user gets wrong is one line on stderr and exit code 2 (1 where the world is at fault).

No traceback, no weights loaded, and the output directory as it was.
"""

import errno
import gzip
import json
import os
import shutil
import subprocess

import pytest

from hf_align.recipes import _evaluation, _preflight, dpo, sft

RECIPES = {"dpo": dpo, "sft": sft}
WORDS = ["tea", "rain", "books", "music", "dogs", "cats"]
SMALL = (
    *("--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "2"),
    *("--num_eval_prompts", "4", "--num_eval_samples", "1", "--eval_max_new_tokens", "4"),
    *("--logging_steps", "1", "--seed", "1"),
)


def rows(count=24, conversational=False, **changes):
    """Preference rows over distinct prompts."""
    made = []
    for index in range(count):
        topics = " ".join(WORDS[(index // 6**k) % 6] for k in range(3))
        row = {"prompt": f"mention {topics} :", "chosen": "tea rain", "rejected": "dogs"} | changes
        if conversational:
            row = {
                key: [{"role": "user" if key == "prompt" else "assistant", "content": text}]
                for key, text in row.items()
            }
        made.append(row)
    return made


def json_lines(made):
    return "".join(json.dumps(row) + "\n" for row in made)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole model with its tokenizer."""
    from hf_align.testbed import tiny_llama, tokenizer

    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(tokenizer()).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """`{name: path}` of models, data and rewards, sound and broken."""
    from hf_align.testbed import tokenizer

    root = tmp_path_factory.mktemp("files")
    paths = {"root": root, "model": model}

    def variant(name, **changes):
        path = paths[name] = root / name
        shutil.copytree(model, path)
        for file, content in changes.items():
            target = next(entry for entry in path.iterdir() if entry.stem == file)
            target.unlink() if content is None else target.write_text(content)
        return path

    variant("no_config", config=None)
    variant("bad_config", config="{nope")
    variant("odd_config", config='{"model_type": "frobnicate"}')
    variant("no_weights", model=None)
    variant("no_tokenizer", tokenizer=None, tokenizer_config=None)
    variant("bad_tokenizer", tokenizer="{")
    (variant("adapter") / "adapter_config.json").write_text("{}")
    (variant("pickled", model=None) / "pytorch_model.bin").write_bytes(b"x")
    weights = variant("cut_weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    config = json.loads((model / "config.json").read_text())
    variant("other_shape", config=json.dumps(config | {"intermediate_size": 8}))
    variant("more_layers", config=json.dumps(config | {"num_hidden_layers": 3}))
    for name, attribute in (("no_pad", "pad_token"), ("no_template", "chat_template")):
        changed = tokenizer()
        setattr(changed, attribute, None)
        for file in variant(name).glob("*token*"):
            file.unlink()
        (paths[name] / "chat_template.jinja").unlink(missing_ok=True)
        changed.save_pretrained(paths[name])

    data = {
        "pairs": json_lines(rows()),
        "chats": json_lines(rows(conversational=True)),
        "no_rows": "",
        "blank": "\n\n",
        "no_chosen": json_lines([{"prompt": "a", "rejected": "b"}] * 9),
        "empty_chosen": json_lines([*rows(6), *rows(1, chosen="")]),
        "equal": json_lines(rows(chosen="tea", rejected="tea")),
        "one_prompt": json_lines(rows()[:1] * 9),
        "not_json": json_lines(rows(3)) + "{'prompt': 1}\n",
        "few": json_lines(rows(3)),
    }
    for name, text in data.items():
        paths[name] = root / f"{name}.jsonl"
        paths[name].write_text(text)
    paths["latin"] = root / "latin.jsonl"
    paths["latin"].write_bytes(json_lines(rows(4)).encode() + b'{"prompt": "caf\xe9"}\n')
    paths["cut"] = root / "cut.jsonl.gz"
    paths["cut"].write_bytes(gzip.compress(json_lines(rows()).encode())[:-30])
    paths["pictures"] = root / "pairs.docx"
    paths["pictures"].write_bytes(b"PK")
    paths["reward"] = root / "my_rewards.py"
    paths["reward"].write_text(
        "import math\n"
        "def nan(prompts, completions, **columns): return [math.nan] * len(prompts)\n"
        "def short(prompts, completions, **columns): return [1.0]\n"
        "def text(prompts, completions, **columns): return ['good'] * len(prompts)\n"
        "def dies(prompts, completions, **columns): return {}['score']\n"
        "def greedy(prompts): return [1.0]\n"
    )
    paths["template"] = root / "template.txt"
    paths["template"].write_text("{{ messages }}")
    return paths


@pytest.fixture
def refused(files, tmp_path, capfd, monkeypatch):
    """Runs a recipe that must stop in one line before any weights load; returns that line."""

    def no_weights(*args, **kwargs):
        raise AssertionError("weights were loaded")

    def run(recipe, *args, code=2, output=tmp_path / "out", weights=False):
        with monkeypatch.context() as patch:
            if not weights:
                patch.setattr(_evaluation, "load_weights", no_weights)
            patch.setattr("torch.cuda.is_available", lambda: False)
            before = contents(output)
            capfd.readouterr()
            options = [str(arg).format(**files) for arg in args]
            if "--output_dir" not in options:
                options += ["--output_dir", str(output)]
            with pytest.raises(SystemExit) as stopped:
                RECIPES[recipe].main(options)
        lines = capfd.readouterr().err.splitlines()
        assert not [line for line in lines if "REPORT" in line or "Traceback" in line]
        if weights:  # the bars of loading and tokenising come before
            lines = lines[-1:]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert stopped.value.code == code, lines
        assert contents(output) == before
        return lines[0]

    return run


def contents(folder):
    """Names and bytes under a folder; None where it does not exist."""
    if not os.path.lexists(folder):
        return None
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


PAIRS = ("--model_name_or_path", "{model}", "--dataset_name", "{pairs}", *SMALL)

MISTAKES = [
    # options
    (("--learnin_rate", "1"), ["'--learnin_rate'", "did you mean 'learning_rate'"]),
    (("--loss_type", "sigmoidd"), ["loss_type", "'sigmoidd'", "'sigmoid'", "command line"]),
    (("--lr_scheduler_type", "cosin"), ["lr_scheduler_type", "'cosine'", "'cosin'"]),
    (("--optim", "adam"), ["optim", "--help_all", "'adam'"]),
    (("--learning_rate", "fast"), ["learning_rate", "a number", "'fast'"]),
    (("--bf16", "maybe"), ["bf16", "true or false", "'maybe'"]),
    (("--model_init_kwargs", "{{a"), ["--model_init_kwargs", "JSON"]),
    (("--config", "nowhere.yaml"), ["--config nowhere.yaml", "no such file"]),
    (("--beta", "0"), ["beta must be above 0", "0.0"]),
    (("--beta=-0.1",), ["beta must be above 0", "-0.1"]),
    (("--learning_rate", "0"), ["learning_rate must be above 0"]),
    (("--max_steps", "0"), ["max_steps 0"]),
    (("--num_train_epochs", "0"), ["num_train_epochs must be above 0"]),
    (("--per_device_train_batch_size", "0"), ["per_device_train_batch_size", "at least 1"]),
    (("--num_eval_prompts", "1"), ["num_eval_prompts", "at least 2"]),
    (("--eval_generation_batch_size", "0"), ["eval_generation_batch_size", "at least 1"]),
    (("--seed=-1",), ["seed must be at least 0", "-1"]),
    (("--hub_token", "hf_x"), ["hub_token", "HF_TOKEN", "hf auth login"]),
    (("--report_to", "wandbx"), ["report_to", "'wandbx'", "trackio"]),
    (("--report_to", "wandb"), ["report_to wandb", "pip install wandb"]),
    (("--deepspeed", "zero3.json"), ["deepspeed zero3.json", "pip install deepspeed"]),
    # combinations
    (("--loss_type", "exo_pair"), ["exo_pair", "label_smoothing"]),
    (("--label_smoothing", "0.1"), ["label_smoothing 0.1", "--loss_type robust"]),
    (
        ("--loss_type", "aot", "--f_divergence_type", "js_divergence"),
        ["f_divergence_type js_divergence", "aot"],
    ),
    (("--loss_type", "aot", "--use_weighting"), ["use_weighting", "aot"]),
    (("--use_peft", "--sync_ref_model"), ["sync_ref_model", "use_peft"]),
    (("--use_liger_kernel",), ["use_liger_kernel", "pip install liger-kernel"]),
    (("--load_in_4bit", "--use_peft"), ["load_in_4bit", "NVIDIA GPU"]),
    (("--load_in_4bit",), ["quantised", "--use_peft"]),
    (("--fp16",), ["fp16 needs a GPU"]),
    (("--hub_model_id", "a/b"), ["hub_model_id needs --push_to_hub"]),
    (("--push_to_hub",), ["push_to_hub needs a token", "hf auth login", "HF_TOKEN"]),
    (("--push_to_hub", "--hub_strategy", "checkpoint"), ["hub_strategy", "leave it out"]),
    # data
    (("--dataset_name", "./nowhere.jsonl"), ["./nowhere.jsonl", "no such file"]),
    (("--dataset_name", "pairs"), ["--dataset_name pairs", "org/name"]),
    (("--dataset_name", "{pictures}"), ["pairs.docx", "unknown file type", ".jsonl"]),
    (("--dataset_name", "{no_rows}"), ["no_rows.jsonl is empty"]),
    (("--dataset_name", "{blank}"), ["blank.jsonl is empty"]),
    (("--dataset_name", "{no_chosen}"), ["prompt, rejected", "--chosen_column"]),
    (("--dataset_name", "{empty_chosen}"), ["empty_chosen.jsonl", "7", "chosen"]),
    (("--dataset_name", "{equal}"), ["chosen and rejected are identical in all 24 pairs"]),
    (("--dataset_name", "{not_json}"), ["not_json.jsonl line 4", "invalid JSON"]),
    (("--dataset_name", "{latin}"), ["latin.jsonl line 5", "not UTF-8"]),
    (("--dataset_name", "{cut}"), ["cut.jsonl.gz", "truncated"]),
    (("--dataset_name", "{few}"), ["test split has 1 distinct", "--test_split_size"]),
    (("--dataset_name", "{one_prompt}"), ["--test_split_size"]),
    (("--dataset_train_split", "trian"), ["--dataset_train_split trian", "available: train"]),
    (("--prompt_column", "question"), ["question"]),
    (("--test_split_size", "0"), ["held-out", "--test_split_size"]),
    (("--dataset_config", "standard"), ["--dataset_config standard", "local path"]),
    # models
    (("--model_name_or_path", "./nowhere"), ["model_name_or_path ./nowhere", "no such folder"]),
    (("--model_name_or_path", "gpt2"), ["model_name_or_path gpt2", "org/name"]),
    (("--model_name_or_path", "{no_config}"), ["no_config", "no config.json"]),
    (("--model_name_or_path", "{bad_config}"), ["bad_config", "config.json cannot be used"]),
    (("--model_name_or_path", "{odd_config}"), ["odd_config", "frobnicate"]),
    (("--model_name_or_path", "{no_weights}"), ["no_weights", "no weights (*.safetensors)"]),
    (("--model_name_or_path", "{pickled}"), ["pickled weights alone", "safetensors"]),
    (("--model_name_or_path", "{cut_weights}"), ["model.safetensors is damaged", "copy it again"]),
    (("--model_name_or_path", "{adapter}"), ["LoRA adapter", "--merge_adapter"]),
    (("--model_name_or_path", "{no_tokenizer}"), ["no_tokenizer", "tokenizer cannot be loaded"]),
    (("--model_name_or_path", "{bad_tokenizer}"), ["bad_tokenizer", "tokenizer cannot be loaded"]),
    (("--model_name_or_path", "{no_pad}"), ["no_pad", "no pad token", "--pad_token '<eos>'"]),
    (("--pad_token", "<nope>"), ["pad_token '<nope>'", "'<eos>'"]),
    (
        ("--model_name_or_path", "{no_template}", "--dataset_name", "{chats}"),
        ["no_template", "no chat template", "--chat_template_path"],
    ),
    (("--model_revision", "v2"), ["model_revision v2", "Hub ids alone"]),
    (
        ("--test_split_size", "0.3", "--eval_max_new_tokens", "127"),
        ["eval_max_new_tokens 127", "128 positions", "lower --eval_max_new_tokens"],
    ),
    (("--max_length", "3"), ["max_length 3", "every prompt", "raise --max_length"]),
    (("--max_length", "0"), ["max_length must be at least 1"]),
    (("--max_length", "100000"), ["max_length 100000", "positions", "--max_length 128"]),
    # rewards
    (("--gold_reward", "no.such.module:f"), ["gold_reward", "cannot import no.such.module"]),
    (("--gold_reward", "{reward}:missing"), ["my_rewards.py has no function 'missing'"]),
    (("--gold_reward", "./nowhere"), ["gold_reward ./nowhere", "no such folder"]),
    (("--gold_reward", "{reward}:nan"), ["my_rewards.py:nan", "returned nan", "completion 0"]),
    (("--gold_reward", "{reward}:short"), ["my_rewards.py:short", "1 scores for 2"]),
    (("--gold_reward", "{reward}:text"), ["my_rewards.py:text", "one number per completion"]),
    (("--gold_reward", "{reward}:dies"), ["my_rewards.py:dies", "KeyError", "line 5"]),
    (("--gold_reward", "{reward}:greedy"), ["my_rewards.py:greedy", "TypeError", "completions"]),
    # runs
    (("--resume_from_checkpoint", "true"), ["no complete checkpoint", "start without it"]),
    (("--resume_from_checkpoint",), ["resume_from_checkpoint", "no complete checkpoint"]),
    (("--resume_from_checkpoint", "/nowhere"), ["resume_from_checkpoint /nowhere"]),
    (("--output_dir", "{pairs}"), ["output_dir", "is a file"]),
]


def label(case):
    return " ".join(case) if isinstance(case, tuple) else ""


@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=label)
def test_a_mistake_is_one_line_before_any_weights_load(refused, args, words):
    line = refused("dpo", *PAIRS, *args)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learnin_rate: 1.0", ["'learnin_rate'", "bad.yaml", "did you mean 'learning_rate'"]),
        ("loss_type: sigmoidd", ["loss_type", "'sigmoidd'", "bad.yaml"]),
        ("loss_type: [sigmoid, ipoo]", ["loss_type", "'ipoo'", "bad.yaml"]),
        ("lr_scheduler_type: cosin", ["lr_scheduler_type", "'cosin'", "bad.yaml"]),
        ("learning_rate: fast", ["learning_rate", "a number", "'fast'", "bad.yaml"]),
        ("learning_rate: [1.0e-5]", ["learning_rate", "a number", "bad.yaml"]),
        ("max_steps: 1.5", ["max_steps", "a whole number", "1.5", "bad.yaml"]),
        ("bf16: maybe", ["bf16", "true or false", "bad.yaml"]),
        ("dataset_name: testbed\nbeta: 0", ["beta must be above 0", "bad.yaml"]),
        ("- beta", ["bad.yaml", "mapping"]),
        ("beta: [", ["bad.yaml", "not valid YAML"]),
        ("env: 3", ["env", "bad.yaml"]),
        ("dataset_name: testbed\ndataset_config: conversation", ["'conversation'", "bad.yaml"]),
        ("model_name_or_path: org/model", ["dataset_name is missing", "bad.yaml"]),
    ],
)
def test_a_mistake_in_yaml_names_file_and_key(refused, tmp_path, text, words):
    file = tmp_path / "bad.yaml"
    file.write_text(text + "\n")
    line = refused("dpo", "--config", file, "--model_name_or_path", "{model}")
    assert all(word in line for word in words), line


def test_a_dataset_without_a_model_is_asked_for_one(refused):
    line = refused("dpo", "--dataset_name", "{pairs}")
    assert "model_name_or_path is missing" in line
    assert "--from_scratch" in refused("sft", "--dataset_name", "{pairs}")


def test_a_template_path_that_is_no_template_is_refused(refused):
    for given, words in (("/nowhere/x.jinja", "no such file"), ("{template}", ".jinja or .j2")):
        assert words in refused("sft", *PAIRS, "--chat_template_path", given)


def test_bfloat16_on_a_cpu_without_it_is_refused(refused, monkeypatch):
    monkeypatch.setattr(_preflight, "_cpu_has_bfloat16", lambda: False)
    line = refused("dpo", *PAIRS, "--bf16")
    assert "bf16" in line
    assert "leave it out" in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model_name_or_path", "{other_shape}"), ["other_shape", "of another shape"]),
        (("--model_name_or_path", "{more_layers}"), ["more_layers", "missing", "random"]),
        (("--gold_reward", "{model}"), ["not a trained reward model", "score.weight", "random"]),
        (("--attn_implementation", "flash_attention_2"), ["FlashAttention2"]),
        (("--use_peft", "--lora_target_modules", "nope"), ["the trainer refuses", "nope"]),
    ],
    ids=label,
)
def test_what_shows_only_in_loading_still_leaves_the_directory(refused, args, words):
    line = refused("dpo", *PAIRS, "--test_split_size", "0.3", *args, weights=True)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model_name_or_path", "org/model"), ["org/model", "cannot reach", "the folder"]),
        (("--dataset_name", "org/data"), ["org/data", "cannot reach", "folder or file"]),
        (("--gold_reward", "org/reward"), ["org/reward", "cannot reach"]),
        (("--output_dir", "{pairs}/below"), ["pairs.jsonl/below", "cannot be written"]),
        (("--output_dir", "/proc/hf_align"), ["/proc/hf_align", "cannot be written"]),
    ],
    ids=label,
)
def test_the_worlds_fault_is_one_line_and_code_1(refused, args, words):
    line = refused("dpo", *PAIRS, *args, code=1)
    assert all(word in line for word in words), line


def test_a_token_does_not_make_an_absent_hub_present(refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    line = refused("dpo", *PAIRS, "--push_to_hub", code=1)
    assert "push_to_hub" in line
    assert "hf_abcdefghijklmnop" not in line


def test_somebody_elses_folder_is_left_alone(refused, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("words")
    assert "not empty" in refused("dpo", *PAIRS, output=folder)
    line = refused("dpo", *PAIRS, "--overwrite", output=folder)
    assert "no run.json" in line


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A whole small run of DPO, to go wrong on top of."""
    root = tmp_path_factory.mktemp("runs")
    (root / "pairs.jsonl").write_text(json_lines(rows(40)))
    dpo.main(run_args(model, root / "pairs.jsonl", root / "run"))
    return root / "run"


def run_args(model, pairs, output, *more):
    given = ("--model_name_or_path", model, "--dataset_name", pairs, "--output_dir", output)
    return [*map(str, given), *SMALL, "--test_split_size", "0.4", *map(str, more)]


def test_a_refused_overwrite_leaves_the_old_run_whole(refused, finished):
    args = (*PAIRS, "--overwrite", "--test_split_size", "0.3")
    refused("dpo", *args, "--use_peft", "--lora_target_modules", "x", output=finished, weights=True)
    refused("dpo", *args, "--model_name_or_path", "{more_layers}", output=finished, weights=True)
    assert "not empty" in refused("dpo", *PAIRS, output=finished)


def test_a_reward_that_fails_at_evaluation_leaves_model_and_checkpoints(
    model, finished, tmp_path, capfd
):
    reward = tmp_path / "moody.py"
    reward.write_text(
        "def score(prompts, completions, **columns):\n"
        "    return [float('nan') if len(prompts) > 2 else 1.0 for _ in prompts]\n"
    )
    out = tmp_path / "run"
    pairs = finished.parent / "pairs.jsonl"
    with pytest.raises(SystemExit) as stopped:
        dpo.main(run_args(model, pairs, out, "--gold_reward", f"{reward}:score"))
    assert stopped.value.code == 2
    captured = capfd.readouterr()
    line = captured.err.splitlines()[-1]
    assert "moody.py:score returned nan" in line
    assert "--resume_from_checkpoint" in line
    assert "Traceback" not in captured.err
    left = contents(out)
    assert left["model.safetensors"] == contents(finished)["model.safetensors"]
    assert "checkpoint-4/trainer_state.json" in left
    assert not [name for name in left if name.startswith("report/") or name == "README.md"]
    # Mended, the same command evaluates what was trained.
    reward.write_text("def score(prompts, completions, **c): return [1.0] * len(prompts)\n")
    more = ("--gold_reward", f"{reward}:score", "--resume_from_checkpoint", "true")
    dpo.main(run_args(model, pairs, out, *more))
    assert contents(out)["model.safetensors"] == left["model.safetensors"]
    assert json.loads((out / "report" / "report.json").read_text())["metrics"]["gold/mean"]


@pytest.fixture
def small_disk(tmp_path):
    """`mount(size)` gives a folder on a file system of its own."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(model, finished, small_disk, capfd):
    one = sum(file.stat().st_size for file in (finished / "checkpoint-2").iterdir())
    disk = small_disk(int(1.5 * one))
    out = disk / "run"
    with pytest.raises(SystemExit) as stopped:
        dpo.main(run_args(model, finished.parent / "pairs.jsonl", out))
    captured = capfd.readouterr()
    assert stopped.value.code == 1
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert str(out) in line
    assert "last complete checkpoint is intact" in line
    assert "Traceback" not in captured.err
    left = contents(out)
    for name, content in contents(finished / "checkpoint-2").items():
        if name not in ("training_args.bin", "trainer_state.json"):
            assert left[f"checkpoint-2/{name}"] == content, name
    assert not any("/" not in name and name.endswith(".safetensors") for name in left)


def test_a_disk_full_at_the_end_leaves_no_half_model(model, finished, tmp_path, monkeypatch, capfd):
    from transformers import PreTrainedModel

    from hf_align.recipes import _run

    out = tmp_path / "run"

    def full(self, folder, *args, **kwargs):
        (_run.Path(folder)).mkdir(parents=True, exist_ok=True)
        (_run.Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    save = PreTrainedModel.save_pretrained

    def save_or_full(self, folder, *args, **kwargs):
        return (full if ".saving" in str(folder) else save)(self, folder, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_or_full)
    with pytest.raises(SystemExit) as stopped:
        dpo.main(run_args(model, finished.parent / "pairs.jsonl", out))
    line = capfd.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1
    assert "No space left on device" in line
    assert "--resume_from_checkpoint" in line
    left = contents(out)
    assert "checkpoint-4/model.safetensors" in left
    assert not any("/" not in name and name.endswith(".safetensors") for name in left)
    assert not (out / ".saving").exists()
