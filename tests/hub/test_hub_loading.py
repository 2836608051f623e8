"""Loading by id or folder: one commit, safetensors alone, adapters with their base, evidence."""

import json
import os
import subprocess
import sys

import pytest
import torch
from loopback import WRITE_TOKEN
from small_models import files_of, save_adapter, serve
from small_run import LINEAGE

import hf_align
from hf_align import InputError, load_policy, load_reward_model, load_run
from hf_align.diagnostics.overoptimization import Verdict
from hf_align.diagnostics.report import build_report
from hf_align.types import Estimate

pytestmark = pytest.mark.usefixtures("empty_cache")

IDS = torch.tensor([[2, 5, 6, 7, 8]])


def run_files(policy, **changes):
    """A published run's files: weights, records and a report with one metric."""
    report = build_report(
        recipe="dpo",
        policy="tiny",
        reference="base",
        verdict=Verdict("NOT DETECTED", "NOT DETECTED: gold rose by 0.97"),
        metrics={"gold/gain": Estimate(0.97, 0.87, 1.07, 520)},
        samples=[{"prompt": "w1", "policy": "<script>alert(1)</script>", "reference": "w2"}],
    )
    record = {"recipe": "dpo", "name": "tiny", "status": "finished", "config": {}}
    files = files_of(policy) | {
        "run.json": json.dumps(record | {"lineage": LINEAGE}).encode(),
        "lineage.json": json.dumps(LINEAGE).encode(),
        "report/report.json": json.dumps(report | changes).encode(),
    }
    return files


def logits(model):
    with torch.no_grad():
        return model(IDS.to(model.device)).logits.cpu()


def test_a_policy_is_the_same_from_its_folder_and_by_id_at_one_commit(hub, policy):
    repo = serve(hub, "lab/policy", files_of(policy))
    sha = repo.sha
    here, _ = load_policy(policy)
    there, tokenizer = load_policy("lab/policy")
    assert torch.equal(logits(here), logits(there)) and not there.training
    assert tokenizer("w1 w2")["input_ids"] == [5, 6]
    fetched = [r for r in hub.log if "/resolve/" in r]
    assert fetched and all(f"/resolve/{sha}/" in r for r in fetched)
    with pytest.raises(InputError, match="is a folder; Hub ids alone"):
        load_policy(policy, revision="v1")


def test_an_adapter_brings_its_base_at_the_commit_that_it_names(hub, policy, tmp_path):
    base = serve(hub, "lab/base", files_of(policy))
    adapted = save_adapter(tmp_path / "adapter", policy, "lab/base", base.sha)
    serve(hub, "lab/adapter", files_of(tmp_path / "adapter"))
    named = base.sha
    base.add_commit("main", {"README.md": b"moved on, without weights"}, "gone")
    for name in ("lab/adapter", tmp_path / "adapter"):
        model, tokenizer = load_policy(name)
        assert torch.allclose(logits(model), logits(adapted), atol=1e-6)
        assert tokenizer("w1")["input_ids"] == [5]
    assert all(named in r for r in hub.log if "lab/base/resolve" in r)
    plain, _ = load_policy(policy)
    assert not torch.allclose(logits(model), logits(plain), atol=1e-3)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("lab/absent", ["its base cannot be had", "does not exist"]),
        ("/home/ada/models/base", ["which is no Hub id", "nobody else has it"]),
        ("../../etc/base", ["which is no Hub id"]),
        ("own/base", ["a folder of that name lies here"]),
    ],
)
def test_an_adapter_without_a_base_is_one_line(hub, tmp_path, base, words):
    os.makedirs(tmp_path / "own" / "base")
    files = {"adapter_model.safetensors": b"x" * 9}
    files["adapter_config.json"] = json.dumps({"base_model_name_or_path": base}).encode()
    serve(hub, "lab/adapter", files)
    with pytest.raises((InputError, OSError)) as caught:
        load_policy("lab/adapter")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_run_has_its_verdict_report_lineage_and_weights(hub, policy):
    repo = serve(hub, "lab/run", run_files(policy))
    run = load_run("lab/run")
    assert run.verdict == "NOT DETECTED" and run.source["revision"] == repo.sha
    assert run.lineage["model"]["name"] == "org/base"
    assert run.report["metrics"]["gold/gain"]["value"] == 0.97
    assert not [r for r in hub.log if "safetensors" in r]  # weights wait until they are asked for
    shown = str(run).splitlines()
    assert shown[0] == f"lab/run@{repo.sha[:12]}: a run of dpo"
    assert "NOT DETECTED: gold rose by 0.97" in shown
    assert any("gold/gain" in line and "[0.870, 1.07]" in line for line in shown)
    assert f"from model org/base@{'b' * 12}" in shown
    plain, _ = load_policy(policy)
    assert torch.equal(logits(run.model), logits(plain)) and run.tokenizer("w1")
    assert "<script>" not in run.to_markdown() and "&lt;script&gt;" in run.to_markdown()


def test_a_run_in_a_folder_and_one_without_a_report_say_so(policy, tmp_path):
    for path, data in run_files(policy).items():
        if not path.startswith("report/"):
            (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / path).write_bytes(data)
    run = hf_align.load_run(tmp_path / "run")
    assert run.verdict is None and "no report: nothing is known" in str(run)
    with pytest.raises(InputError, match="has no report to show"):
        run.to_markdown()
    with pytest.raises(InputError, match=r"holds no run \(no run.json\)"):
        load_run(policy)


def test_a_reward_model_is_pinned_and_a_policy_is_none(hub, policy):
    serve(hub, "lab/policy", files_of(policy))
    with pytest.raises(InputError, match="not a trained reward model"):
        load_reward_model("lab/policy")
    sha = hub.repos["lab/policy"].sha
    assert all(sha in r for r in hub.log if "/resolve/" in r)


@pytest.fixture
def reward_adapter(hub, policy, tokenizer, tmp_path):
    """An adapter of a policy that brings a head, on the Hub with it and without; the model."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load, save
    from transformers import AutoModelForSequenceClassification

    serve(hub, "lab/base", files_of(policy))
    whole = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    whole.config.pad_token_id = tokenizer.pad_token_id
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"]
    )
    model = get_peft_model(whole, config)
    torch.manual_seed(5)
    for key, weight in model.named_parameters():
        if "lora_B" in key or "modules_to_save" in key:
            torch.nn.init.normal_(weight, std=0.5)
    model.peft_config["default"].base_model_name_or_path = "lab/base"
    model.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    files = files_of(tmp_path / "adapter")
    serve(hub, "lab/with", files)
    weights = load(files["adapter_model.safetensors"])
    headless = {key: value for key, value in weights.items() if ".score." not in key}
    serve(hub, "lab/without", files | {"adapter_model.safetensors": save(headless)})
    return model


def test_a_reward_adapter_scores_as_the_model_that_it_was_saved_from(reward_adapter, tokenizer):
    prompts, completions = ["w1 w2 ", "w3 "], ["w6", "w7 w8"]
    scored = load_reward_model("lab/with").score(prompts, completions)
    texts = [p + c + tokenizer.eos_token for p, c in zip(prompts, completions, strict=True)]
    with torch.no_grad():
        expected = [
            reward_adapter(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts
        ]
    assert scored == pytest.approx(expected, abs=1e-5)


def test_a_reward_adapter_without_a_head_is_refused(hub, reward_adapter):
    with pytest.raises(InputError, match="neither in the adapter nor in its base") as caught:
        load_reward_model("lab/without")
    assert "\n" not in str(caught.value)
    del hub.repos["lab/base"]
    with pytest.raises(OSError, match="its base cannot be had"):
        load_reward_model("lab/with")


def test_private_and_absent_repos_are_the_worlds_fault(hub, client, policy):
    serve(hub, "lab/hidden", run_files(policy)).private = True
    for load in (load_policy, load_reward_model, load_run):
        with pytest.raises(OSError, match="does not exist, or is private"):
            load("lab/hidden")
    client(WRITE_TOKEN)
    assert load_run("lab/hidden").verdict == "NOT DETECTED"


OFFLINE = """
import sys
from hf_align import load_run
from hf_align.hub.loading import find_model
run = load_run("lab/run", sys.argv[1])
assert run.verdict == "NOT DETECTED"
assert find_model("lab/run", sys.argv[1]).home.revision == sys.argv[1]
assert not {"torch", "transformers"} & set(sys.modules)
try:
    load_run("lab/run")
except OSError as error:
    print(error)
"""


def test_offline_a_commit_in_the_cache_is_enough(hub, policy, tmp_path):
    sha = serve(hub, "lab/run", run_files(policy)).sha
    load_run("lab/run")
    load_policy("lab/run")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, sha],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stdout and "cached commit" in done.stdout


def test_a_report_that_is_a_datasets_is_read_there(hub, policy):
    files = {k: v for k, v in run_files(policy).items() if k.endswith(".json") and "run" in k}
    hub.repos["datasets/lab/comparison"] = serve(
        hub, "lab/x", files | {"report/report.json": (run_files(policy)["report/report.json"])}
    )
    del hub.repos["lab/x"]
    assert load_run("lab/comparison", kind="dataset").verdict == "NOT DETECTED"
