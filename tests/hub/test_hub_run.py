"""`--push_to_hub` from the command line to the Hub's files, with the real client."""

import json

import pytest
from loopback import USER, WRITE_TOKEN, LoopbackHub

WORDS = ("tea", "rain", "books", "music", "dogs", "cats")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """One pushed run: `(hub, repo, finished process, its folder)`."""
    import os
    import subprocess
    import sys

    from hf_align.testbed import tiny_llama, tokenizer

    root = tmp_path_factory.mktemp("published")
    tiny_llama(tokenizer()).save_pretrained(root / "base")
    tokenizer().save_pretrained(root / "base")
    rows = [
        {"prompt": f"mention {a} {b} :", "chosen": f"{a} {b}", "rejected": "please"}
        for a in WORDS
        for b in WORDS
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "score.py").write_text(
        "def brief(prompts, completions, **columns): return [-float(len(c)) for c in completions]\n"
    )
    args = [
        *("--model_name_or_path", root / "base", "--dataset_name", root / "pairs.jsonl"),
        *("--gold_reward", f"{root}/score.py:brief", "--output_dir", root / "tiny-dpo"),
        *("--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "2"),
        *("--num_eval_prompts", "4", "--num_eval_samples", "2", "--eval_max_new_tokens", "4"),
        *("--test_split_size", "0.3", "--use_peft", "--merge_adapter", "--push_to_hub"),
    ]
    with LoopbackHub() as hub:
        hub.fail("POST .*/commit/", 500)
        done = subprocess.run(
            [sys.executable, "-m", "hf_align.recipes.dpo", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=root,
            env=os.environ
            | {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITE_TOKEN, "NO_PROXY": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr
        yield hub, hub.repos[f"{USER}/tiny-dpo"], done, root


def test_the_run_is_published_once_and_privately_under_the_directorys_name(published):
    hub, repo, done, _ = published
    assert f"published: {hub.url}/{USER}/tiny-dpo" in done.stdout
    assert repo.private
    assert len(repo.commits) == 1


def test_the_published_files_are_the_finished_runs(published):
    _, repo, _, root = published
    model = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    records = {"README.md", "run.json", "lineage.json", "metrics.jsonl"}
    assert model | records | {"report/report.json", "report/report.md"} <= set(repo.files)
    assert not [name for name in repo.files if name.endswith((".bin", ".pt", ".pth"))]
    assert not [name for name in repo.files if name.startswith("checkpoint-")]
    kept = root / "tiny-dpo" / "model.safetensors"
    assert repo.files["model.safetensors"] == kept.read_bytes()


def test_nothing_local_and_no_token_is_in_any_published_byte(published):
    _, repo, _, root = published
    for name, content in repo.files.items():
        assert str(root).encode() not in content, name
        assert str(root.parent).encode() not in content, name
        assert WRITE_TOKEN.encode() not in content, name


def test_the_record_keeps_what_was_asked_and_the_card_how_to_repeat_it(published):
    from huggingface_hub import ModelCard

    _, repo, _, _ = published
    run = json.loads(repo.files["run.json"])
    assert run["status"] == "finished"
    assert run["config"]["push_to_hub"] is True
    assert run["lineage"]["gold_reward"]["name"] == "score.py:brief"
    card = ModelCard(repo.files["README.md"].decode())
    assert {"hf-align", "trl", "dpo"} <= set(card.data.tags)
    assert "--dataset_name pairs.jsonl" in card.text
    assert "--output_dir tiny-dpo" in card.text


def test_a_stranger_can_load_what_was_published(published, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, repo, _, _ = published
    for name, content in repo.files.items():
        if "/" not in name:
            (tmp_path / name).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = AutoTokenizer.from_pretrained(tmp_path)("mention tea rain :", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()


def test_the_hub_was_asked_about_rights_before_anything_was_made(published):
    hub, _, _, _ = published
    assert hub.log[0] == "GET /api/whoami-v2"
    made = hub.log.index("POST /api/repos/create")
    assert not any(request.startswith("POST") for request in hub.log[:made])
    # The planned failure of the first commit was answered with a second try.
    assert sum("/commit/" in request for request in hub.log) == 2
