"""Who takes part: weights read once, adapters on one base, and a line for each that cannot."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arena_world import save_reward, seeded_adapter
from small_models import files_of, serve

from hf_align.arena import Arena, Sampling
from hf_align.arena import members as members_module
from hf_align.arena.memory import check_fits, weight_bytes
from hf_align.arena.opening import find_candidates
from hf_align.diagnostics.logps import score_samples
from hf_align.diagnostics.overoptimization import Verdict
from hf_align.diagnostics.report import build_report
from hf_align.hub.loading import find_home
from hf_align.hub.models import content_hash
from hf_align.types import Estimate, InputError

PROMPT = "w1 w2 w3"
SHORT = Sampling(temperature=0, max_new_tokens=4)


def run_of(files, reference, recipe="dpo", prompt="w1", **config):
    """The files of a model with the records of the run that made it."""
    report = build_report(
        recipe=recipe,
        policy="tiny",
        reference="base",
        verdict=Verdict("NOT DETECTED", "NOT DETECTED: gold rose by 0.97"),
        metrics={
            "gold/gain": Estimate(0.97, 0.87, 1.07, 520),
            "kl/sequence": Estimate(2.0, 1.5, 2.5, 520),
            "judge/win_rate": Estimate(0.6, 0.5, 0.7, 520),
        },
        samples=[{"prompt": prompt, "policy": "w2", "reference": "w3"}],
    )
    record = {"recipe": recipe, "name": "tiny", "status": "finished", "config": config}
    lineage = {"model": reference, "reference": reference, "data": []}
    return files | {
        "run.json": json.dumps(record).encode(),
        "lineage.json": json.dumps(lineage).encode(),
        "report/report.json": json.dumps(report).encode(),
    }


def config_of(files, **changes):
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()}


def test_each_that_cannot_answer_says_why_and_the_others_answer(hub, folders, tokenizer):
    good = files_of_folder(folders.base)
    serve(hub, "lab/good", good)
    serve(hub, "lab/gated", good).gated = True
    serve(hub, "lab/private", good).private = True
    serve(hub, "lab/huge", good).fake_sizes["model.safetensors"] = 10**15
    serve(hub, "lab/encoder", config_of(good, architectures=["BertForMaskedLM"]))
    serve(hub, "lab/bare", config_of(good, architectures=["LlamaModel"]))
    serve(hub, "lab/reward", files_of_folder(folders.reward))
    serve(hub, "lab/odd", config_of(good, architectures=None, model_type="my-own"))
    serve(hub, "lab/code", config_of(good, model_type="my", auto_map={"AutoModel": "m.M"}))
    pickled = {path: data for path, data in good.items() if "safetensors" not in path}
    serve(hub, "lab/pickled", pickled | {"pytorch_model.bin": b"pickle"})
    serve(hub, "lab/empty", {"README.md": b"soon"})
    serve(hub, "lab/damaged", good | {"model.safetensors": good["model.safetensors"][:200]})
    orphan = {"adapter_model.safetensors": b"x" * 9}
    orphan["adapter_config.json"] = json.dumps(
        {"base_model_name_or_path": "lab/gone", "peft_type": "LORA"}
    ).encode()
    serve(hub, "lab/orphan", orphan)
    scorer = json.dumps({"base_model_name_or_path": "lab/good", "task_type": "SEQ_CLS"})
    serve(hub, "lab/scorer", orphan | {"adapter_config.json": scorer.encode()})
    words = {
        "lab/gone": "does not exist, or is private",
        "lab/gated": "is gated: accept its terms",
        "lab/private": "does not exist, or is private",
        "lab/huge": "is too large for this machine: its weights have 1000000.0 GB",
        "lab/encoder": "is a BertForMaskedLM, not a causal language model",
        "lab/bare": "is a LlamaModel, not a causal language model",
        "lab/reward": "is a LlamaForSequenceClassification, not .* name it as the reward model",
        "lab/odd": "is of the kind my-own",
        "lab/code": "asks to run the repo's own code",
        "lab/pickled": "has pickled weights alone",
        "lab/empty": "holds no model",
        "lab/damaged": "cannot be loaded",
        "lab/orphan": "is an adapter, and its base cannot be had",
        "lab/scorer": "an adapter for the task SEQ_CLS",
        "urial:lab/good": "in-context alignment does not take part",
        "no-such-folder": "no such folder",
    }
    names = [*words, "lab/good"]
    arena = Arena.open(names, reference="lab/good", device="cpu", prompt_format="text")
    *_, progress, answers = arena.stream(PROMPT, SHORT)
    for contestant, answer, pattern in zip(
        arena.contestants, answers, words.values(), strict=False
    ):
        assert contestant.problem == answer.problem
        with pytest.raises(InputError, match=pattern):
            raise InputError(answer.problem)
        assert "\n" not in answer.problem and len(answer.problem) < 420
    assert answers[-1].problem is None and answers[-1].text
    assert arena.contestants[-1].role == "reference" and all(progress.done)
    fetched = [r for r in hub.log if "safetensors" in r and "/resolve/" in r]
    assert {r.split("/")[2] for r in fetched} <= {"good", "damaged", "reward"}


def files_of_folder(folder):
    from pathlib import Path

    return files_of(Path(folder))


def test_weights_are_downloaded_and_read_once_at_one_commit(hub, folders, tmp_path, monkeypatch):
    base = serve(hub, "lab/base", files_of_folder(folders.base))
    for seed, name in enumerate(("one", "two")):
        seeded_adapter(tmp_path / name, folders.base, "lab/base", base.sha, seed)
        serve(hub, f"lab/{name}", files_of_folder(tmp_path / name))
    reads = []
    load = members_module.load_weights
    monkeypatch.setattr(
        members_module, "load_weights", lambda *a, **k: reads.append(a[:2]) or load(*a, **k)
    )
    names = ["lab/one", "lab/base", "lab/two", "best_of_n:3:lab/two"]
    serve(hub, "lab/reward", files_of_folder(folders.reward))
    arena = Arena.open(names, reward_model="lab/reward", device="cpu", prompt_format="text")
    assert reads == [("lab/base", base.sha)]
    assert len({id(m.voice.body) for m in arena._members.values()}) == 1
    roles = [(c.key, c.role, c.revision) for c in arena.contestants]
    assert roles[1] == ("lab-base", "reference", base.sha)
    assert [role for _, role, _ in roles] == ["aligned", "reference", "aligned", "best_of_n"]
    assert arena.contestants[3].name == "best of 3: lab/two"
    downloads = [r for r in hub.log if r.startswith("GET") and "lab/base" in r]
    assert sum("model.safetensors" in r for r in downloads) <= 1
    *_, answers = arena.stream(PROMPT, Sampling(temperature=1.0, max_new_tokens=8, seed=1))
    assert len({answer.token_ids for answer in answers[:3]}) == 3


def test_a_revision_is_what_answers(hub, folders):
    repo = serve(hub, "lab/policy", files_of_folder(folders.base))
    first = repo.sha
    repo.add_commit("main", files_of_folder(folders.other), "another")
    arena = Arena.open(
        ["lab/policy", folders.base],
        revisions={"lab/policy": first},
        device="cpu",
        prompt_format="text",
    )
    *_, answers = arena.stream(PROMPT, SHORT)
    assert arena.contestants[0].revision == first and answers[0] == answers[1]
    with pytest.raises(InputError, match="revisions names lab/typo"):
        find_candidates(["lab/policy"], revisions={"lab/typo": "main"})
    (gone,) = find_candidates(["lab/policy"], revisions={"lab/policy": "v9"})
    assert "has no revision 'v9'" in gone.problem


def test_facts_are_those_of_the_run_and_beta_needs_the_same_reference(hub, folders):
    base = serve(hub, "lab/base", files_of_folder(folders.base))
    source = {"name": "lab/base", "revision": base.sha, "sha256": None}
    elsewhere = source | {"revision": "e" * 40}
    other = files_of_folder(folders.other)
    mine = serve(hub, "lab/dpo", run_of(other, source, beta=0.3))
    serve(hub, "lab/far", run_of(other, elsewhere, beta=0.3))
    serve(hub, "lab/ppo", run_of(other, source, recipe="ppo", beta=0.3))
    names = ["lab/dpo", "lab/base", "lab/far", "lab/ppo"]
    arena = Arena.open(names, device="cpu", prompt_format="text")
    dpo, reference = arena.contestants[:2]
    # The first is a descendant of the second, as its lineage says.
    assert (dpo.role, reference.role) == ("aligned", "reference")
    assert dpo.facts.recipe == "dpo" and dpo.facts.verdict == "NOT DETECTED"
    assert dpo.facts.kl == Estimate(2.0, 1.5, 2.5, 520) and dpo.facts.win_rate.value == 0.6
    assert dpo.facts.base == f"lab/base@{base.sha[:12]}"
    assert dpo.facts.link == f"{hub.url}/lab/dpo/tree/{mine.sha}"
    assert reference.facts.verdict is None and reference.facts.link.endswith(base.sha)
    *_, measures = arena.stream(PROMPT, Sampling(max_new_tokens=8), measures=True)
    assert measures[0].beta == 0.3
    assert measures[0].implicit_reward == pytest.approx(0.3 * measures[0].log_ratio)
    assert measures[2].log_ratio is not None and measures[2].implicit_reward is None
    assert measures[3].beta is None


def test_damaged_records_of_a_run_leave_its_model_usable(hub, folders):
    files = files_of_folder(folders.base)
    serve(hub, "lab/odd", files | {"run.json": b'{"recipe": NaN'})
    arena = Arena.open(["lab/odd"], device="cpu", prompt_format="text")
    assert arena.contestants[0].facts.recipe is None and arena.contestants[0].problem is None


@pytest.mark.parametrize(
    ("config", "prompt", "chat"),
    [
        ({"dataset_name": "testbed"}, "user: w1", False),
        ({"dataset_name": "testbed", "dataset_config": "conversational"}, "w1", True),
        ({"dataset_name": "org/talk"}, "user: w1", True),
        ({"dataset_name": "org/text"}, "w1", False),
    ],
)
def test_text_is_shown_as_the_runs_say_that_prompts_were(folders, tmp_path, config, prompt, chat):
    files = run_of(files_of_folder(folders.other), {}, prompt=prompt, **config)
    for path, data in files.items():
        (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / path).write_bytes(data)
    arena = Arena.open([folders.base, str(tmp_path / "run")], device="cpu")
    # The base has no run of its own: it is asked as the other is.
    assert [arena._members[c.key].chat for c in arena.contestants] == [chat, chat]
    alone = Arena.open([folders.base], device="cpu")
    assert alone._members["base"].chat  # it has a template, and nobody says otherwise


def test_an_adapter_shares_a_copy_of_its_base_and_nothing_that_differs(folders, tmp_path):
    copy, changed = tmp_path / "sft", tmp_path / "changed"
    shutil.copytree(folders.base, copy)
    shutil.copytree(folders.base, changed)
    weights = changed / "model.safetensors"  # as long as before, with other numbers in it
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    names = [str(copy), folders.adapter, str(changed)]
    arena = Arena.open(names, reference=str(copy), device="cpu", prompt_format="text")
    bodies = [member.voice.body for member in arena._members.values()]
    assert bodies[0] is bodies[1]
    assert bodies[2] is not bodies[0]
    marks = [one.sha256 for one in arena.contestants]
    assert marks == [content_hash(Path(name)) for name in names] and len(set(marks)) == 3


def test_an_adapter_with_layers_of_its_own_gets_a_base_of_its_own(folders, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from hf_align import load_policy

    model = AutoModelForCausalLM.from_pretrained(folders.base)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lm_head" in name and "modules_to_save" in name:
            weight.data.mul_(-1)
    adapted.peft_config["default"].base_model_name_or_path = folders.base
    adapted.save_pretrained(tmp_path / "whole")
    arena = Arena.open([folders.base, str(tmp_path / "whole")], device="cpu", prompt_format="text")
    bodies = [member.voice.body for member in arena._members.values()]
    assert bodies[0] is not bodies[1]
    *_, answers, measures = arena.stream(PROMPT, SHORT, measures=True)
    assert answers[0].token_ids != answers[1].token_ids
    policy, _ = load_policy(str(tmp_path / "whole"), device="cpu")
    alone = Arena.open([folders.base], device="cpu", prompt_format="text")
    *_, untouched = alone.stream(PROMPT, SHORT)
    assert untouched[0] == answers[0]
    base, tokenizer = load_policy(folders.base, device="cpu")
    ids, drawn = tokenizer(PROMPT)["input_ids"], [list(answers[1].token_ids)]
    samples = SimpleNamespace(prompt_ids=[ids], completion_ids=drawn, prompt_index=np.zeros(1, int))
    expected = score_samples(policy, base, samples).k1[0]
    assert measures[1].log_ratio == pytest.approx(expected, abs=1e-5)


def test_adapters_that_do_not_fit_leave_the_base_as_it_was(folders, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(f"{folders.adapter}/adapter_model.safetensors")
    first = min(key for key in tensors if "lora_A" in key)
    changes = {
        "shapes": tensors | {first: np.zeros((2, 7), np.float32)},
        "names": {key.replace("layers.1", "layers.7"): data for key, data in tensors.items()},
        "fewer": {key: data for key, data in tensors.items() if key != first},
    }
    for name, changed in changes.items():
        for path, data in files_of_folder(folders.adapter).items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        save_file(changed, tmp_path / name / "adapter_model.safetensors")
    config = json.loads((tmp_path / "shapes" / "adapter_config.json").read_text())
    (tmp_path / "modules").mkdir()
    for path, data in files_of_folder(folders.adapter).items():
        (tmp_path / "modules" / path).write_bytes(data)
    odd = config | {"target_modules": ["q_proj", "input_layernorm"]}
    (tmp_path / "modules" / "adapter_config.json").write_text(json.dumps(odd))
    bad = [str(tmp_path / name) for name in (*changes, "modules")]
    names = [folders.base, *bad, folders.adapter]
    arena = Arena.open(names, device="cpu", prompt_format="text")
    *_, answers = arena.stream(PROMPT, SHORT)
    assert all("adapter" in answer.problem for answer in answers[1:-1])
    whole = Arena.open([folders.base, folders.adapter], device="cpu", prompt_format="text")
    *_, alone = whole.stream(PROMPT, SHORT)
    assert (answers[0], answers[-1]) == alone
    modules = arena._members["base"].voice.body.core.named_modules()
    assert not [name for name, _ in modules if "lora" in name]


def test_records_of_strangers_that_are_no_text_are_no_source(hub, folders):
    odd = {"name": 7, "revision": ["x"], "sha256": {}}
    serve(hub, "lab/odd", run_of(files_of_folder(folders.base), odd, beta="large"))
    arena = Arena.open(["lab/odd"], device="cpu", prompt_format="text")
    assert arena.contestants[0].facts.base is None and arena.contestants[0].facts.recipe == "dpo"


def test_a_reward_model_that_cannot_be_had_leaves_answers_without_scores(folders, tmp_path):
    for reward in (folders.base, str(tmp_path)):
        arena = Arena.open(
            [folders.base], reward_model=reward, best_of=4, device="cpu", prompt_format="text"
        )
        assert "reward model" in arena.reward_problem
        *_, answers, measures = arena.stream(PROMPT, SHORT, measures=True)
        assert answers[0].text and measures[0].score is None
        assert "no reward model chooses" in answers[1].problem
    bare = Arena.open([folders.base], best_of=2, device="cpu", prompt_format="text")
    assert bare.reward_problem is None and "name one" in bare.contestants[1].problem


def test_nobody_at_all_is_refused(hub, folders):
    with pytest.raises(InputError, match=r"nobody can answer: .*does not exist"):
        Arena.open(["lab/gone", "lab/away"], device="cpu")
    for arguments, words in (
        ({"names": []}, "nobody is named"),
        ({"names": ["best_of_n:4:lab/a"]}, "a best-of-n alone has no reference"),
        ({"names": ["lab/a"], "reference": "best_of_n:2:lab/a"}, "has no probabilities"),
        ({"names": ["lab/a"], "best_of": -1}, "best_of is -1"),
        ({"names": ["best_of_n:x:lab/a"]}, "best-of-n is written"),
        ({"names": ["lab/a"], "prompt_format": "xml"}, "prompt_format is 'xml'"),
    ):
        with pytest.raises(InputError, match=words):
            Arena.open(**arguments, device="cpu")


def test_a_named_reference_is_the_reference_and_takes_part(folders):
    found = find_candidates([folders.base, folders.adapter], reference=folders.other, best_of=2)
    assert [c.key for c in found] == ["other", "base", "adapter", "best-of-2-other"]
    assert [c.role for c in found] == ["reference", "aligned", "aligned", "best_of_n"]
    found = find_candidates([folders.base, folders.adapter], reference=folders.adapter)
    assert [c.role for c in found] == ["aligned", "reference"]


def test_what_cannot_be_had_is_no_descendant_but_a_known_parent_goes_before(folders):
    roles = [c.role for c in find_candidates([folders.other, folders.adapter, folders.base])]
    assert roles == ["aligned", "aligned", "reference"]
    gone = "best-of-n-is-not-this"
    assert [c.role for c in find_candidates([gone, folders.base])] == ["reference", "aligned"]
    arena = Arena.open([gone, folders.base], device="cpu", prompt_format="text")
    *_, measures = arena.stream(PROMPT, SHORT, measures=True)
    assert measures[1].length > 0 and measures[1].log_ratio is None and measures[1].shift == ()


def test_messages_for_visitors_name_no_local_path(tmp_path):
    (tmp_path / "empty").mkdir()
    (candidate,) = find_candidates([str(tmp_path / "empty")])
    assert "empty" in candidate.problem and str(tmp_path) not in candidate.problem


def test_bytes_are_those_of_the_weights_that_would_be_read(folders, tmp_path, tokenizer):
    home = find_home(folders.base)
    assert weight_bytes(home) == home.sizes["model.safetensors"] > 0
    check_fits(home, "cpu")
    save_reward(tmp_path / "members" / "member-0", tokenizer)
    save_reward(tmp_path / "members" / "member-1", tokenizer)
    both = find_home(tmp_path / "members")
    assert weight_bytes(both) == 2 * both.sizes["member-0/model.safetensors"]
