"""What recipes make of options that touch each other: templates, scratch models, resumes."""

import json

import pytest

from hf_align.recipes import dpo, sft
from hf_align.recipes._preflight import check_answers

QUICK = ("--max_steps", 2, "--num_eval_prompts", 8, "--num_eval_samples", 1)
QUICK = (*QUICK, "--audit_steps", 0, "--per_device_train_batch_size", 4, "--max_length", 64)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


@pytest.fixture
def run(testbed, tmp_path, monkeypatch, capsys):
    """Runs a recipe here: (exit code, standard error, the run directory)."""
    monkeypatch.chdir(tmp_path)

    def run(recipe, *args):
        code = 0
        output = tmp_path / "run"
        try:
            recipe.main(["--output_dir", str(output), *map(str, (*QUICK, *args))])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err, output

    return run


@pytest.fixture
def without_template(testbed, tmp_path):
    """The testbed's policy, whose tokenizer has lost its chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "plain"
    AutoModelForCausalLM.from_pretrained(testbed.policy_path).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(testbed.policy_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


CHAT = ("--dataset_name", "testbed", "--dataset_config", "conversational")


def test_a_template_from_a_file_trains_is_saved_and_is_used_by_the_evaluation(
    run, without_template, tmp_path
):
    from transformers import AutoTokenizer

    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    code, err, output = run(
        sft, "--model", without_template, *CHAT, "--chat_template_path", tmp_path / "chat.jinja"
    )
    assert code == 0, err
    assert AutoTokenizer.from_pretrained(output).chat_template == TEMPLATE
    assert json.loads((output / "run.json").read_text())["config"]["chat_template_path"]


def test_a_template_from_another_model_leaves_the_vocabulary_alone(run, without_template, testbed):
    from transformers import AutoConfig

    before = AutoConfig.from_pretrained(without_template).vocab_size
    code, err, output = run(
        sft, "--model", without_template, *CHAT, "--chat_template_path", testbed.policy_path
    )
    assert code == 0, err
    assert AutoConfig.from_pretrained(output).vocab_size == before


def test_a_template_with_foreign_tokens_is_refused(run, without_template, tmp_path, testbed):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(testbed.policy_path)
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    other.chat_template = "<|im_start|>" + TEMPLATE
    other.save_pretrained(tmp_path / "other")
    from transformers import AutoConfig

    AutoConfig.from_pretrained(testbed.policy_path).save_pretrained(tmp_path / "other")
    code, err, output = run(
        sft, "--model", without_template, *CHAT, "--chat_template_path", tmp_path / "other"
    )
    assert code == 2 and "<|im_start|>" in err and not output.exists()


def test_what_a_template_adds_to_trained_answers_is_a_warning():
    class Thinking:
        @staticmethod
        def apply_chat_template(messages, tokenize, add_generation_prompt=False):
            text = "".join(
                f"<{m['role']}>"
                + ("<think></think>" if m["role"] == "assistant" else "")
                + m["content"]
                for m in messages
            )
            return text + "<assistant>" * add_generation_prompt

    class Plain(Thinking):
        @staticmethod
        def apply_chat_template(messages, tokenize, add_generation_prompt=False):
            text = Thinking.apply_chat_template(messages, tokenize, add_generation_prompt)
            return text.replace("<think></think>", "")

    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "hello"}],
    }
    assert "'<think></think>'" in check_answers(Thinking, row)[0]
    assert check_answers(Plain, row) == []
    assert check_answers(Thinking, {"prompt": "hi", "chosen": "hello"}) == []


def test_a_named_model_is_trained_although_the_testbed_starts_from_scratch(run, testbed):
    code, err, output = run(sft, "--model", "testbed")
    assert code == 0, err
    lineage = json.loads((output / "lineage.json").read_text())
    assert lineage["model"]["name"] == "testbed"


@pytest.mark.parametrize(
    ("recipe", "args", "message"),
    [
        (sft, ["--from_scratch", "--model", "testbed"], "choose one"),
        (dpo, ["--merge_adapter"], "add --use_peft"),
        (dpo, ["--load_best_model_at_end", "--audit_steps", 1], "leave out one of it"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, recipe, args, message):
    code, err, output = run(recipe, *args)
    assert code == 2 and message in err and err.count("\n") == 1 and not output.exists()


def test_a_resume_with_other_data_is_refused_and_changes_nothing(run, tmp_path, testbed):
    import shutil

    rows = [
        {"prompt": f"mention tea rain books music {'so ' * n}:", "chosen": "tea", "rejected": "so"}
        for n in range(20)
    ]
    for name, part in (("one", rows), ("two", rows[1:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    start = ("--model", "testbed", "--save_steps", 1, "--test_split_size", 0.4)
    start = (*start, "--eval_max_new_tokens", 26, "--dataset_name")
    assert run(dpo, *start, "one.jsonl")[0] == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    code, err, output = run(dpo, *start, "two.jsonl", "--resume_from_checkpoint")
    assert code == 2 and "the data differs" in err
    assert (output / "run.json").read_bytes() == before


def test_plain_text_has_a_held_out_loss_before_and_after(run, tmp_path):
    text = "".join(json.dumps({"text": f"line {n} says {n % 5}"}) + "\n" for n in range(60))
    (tmp_path / "text.jsonl").write_text(text)
    sizes = ("--scratch_hidden_size", 32, "--scratch_num_layers", 1, "--scratch_vocab_size", 300)
    code, err, output = run(
        sft,
        *("--from_scratch", "--dataset_name", "text.jsonl", *sizes, "--learning_rate", "1e-2"),
    )
    assert code == 0, err
    metrics = json.loads((output / "report/report.json").read_text())["metrics"]
    # An untrained model of about 300 tokens knows next to nothing; two steps teach it a little.
    assert metrics["nll/reference"]["value"] == pytest.approx(5.7, abs=0.5)
    assert metrics["nll/held_out"]["value"] < metrics["nll/reference"]["value"]
