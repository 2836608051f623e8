"""Audits of any trainer: what they measure, that training does not feel them, how they stop it."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from trl import DPOConfig, DPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from hf_align.diagnostics.logps import score_samples
from hf_align.diagnostics.sample_files import ScoredCompletions, read_completions, write_completions
from hf_align.sampling import sample_completions
from hf_align.trainers import DiagnosticsCallback
from hf_align.trainers import diagnostics as module
from hf_align.trainers.audit import Auditor
from hf_align.trainers.callbacks import AlreadyTrained
from hf_align.types import InputError

KINDS = ("dpo", "rloo", "ppo", "sft")
QUICK = {
    "max_steps": 6,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
    "logging_steps": 3,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


class Scripted:
    """Gold with a given mean at each audit; prompts differ by noise that differs between audits."""

    def __init__(self, means, noise=0.1, seed=0):
        self.means, self.noise = iter(means), noise
        self.rng = np.random.default_rng(seed)

    def __call__(self, prompts, completions, **columns):
        values = self.rng.normal(0, self.noise, len(completions))
        return (values - values.mean() + next(self.means)).tolist()


def restless(prompts, completions, **columns):
    """Gold that draws from every global generator."""
    return [random.random() + np.random.rand() + float(torch.rand(1)) for _ in completions]


@pytest.fixture
def trainer_of(words, make_policy, make_reward, make_trainer, prompts, tmp_path):
    """A tiny trainer: `trainer_of("dpo", max_steps=4)`, by default of six steps."""

    def make(kind, folder="run", peft_config=None, **options):
        folder, options = str(tmp_path / folder), QUICK | options
        if kind == "ppo":
            named = {"trainer_options": {"peft_config": peft_config}}
            return make_trainer(
                "ppo", folder, rewards=make_reward(), num_iterations=2, **options, **named
            )
        common = {"processing_class": words, "peft_config": peft_config}
        model = make_policy(attention_dropout=0.1)
        if kind == "rloo":
            rows = Dataset.from_dict({"prompt": prompts})
            config = RLOOConfig(
                folder, num_generations=2, max_completion_length=8, beta=0.0, **options
            )
            reward = make_reward()
            made = RLOOTrainer(model, reward, config, train_dataset=rows, **common)
        elif kind == "dpo":
            pairs = {"prompt": prompts, "chosen": ["tea please"] * 32, "rejected": ["so so"] * 32}
            config = DPOConfig(folder, max_length=32, **options)
            reference = None if peft_config else make_policy()
            rows = Dataset.from_dict(pairs)
            made = DPOTrainer(model, reference, config, train_dataset=rows, **common)
        else:
            rows = Dataset.from_dict({"prompt": prompts, "completion": ["tea please"] * 32})
            config = SFTConfig(folder, max_length=32, **options)
            made = SFTTrainer(model, config, train_dataset=rows, **common)
        made.remove_callback(PrinterCallback)
        return made

    return make


@pytest.fixture
def audits_of(words, prompts):
    """A callback on the first prompts: `audits_of(every=2)`."""

    def make(num_prompts=16, **options):
        options = {"every": 2, "max_new_tokens": 8, "batch_size": 16} | options
        return DiagnosticsCallback(prompts[:num_prompts], words, **options)

    return make


class Listing(TrainerCallback):
    """What a folder holds at every step."""

    def __init__(self, folder, lists):
        self.folder, self.lists = folder, lists

    def on_step_begin(self, args, state, control, **kwargs):
        self.lists.append(sorted(file.name for file in self.folder.iterdir()))


class Seen(TrainerCallback):
    """What a tracker sees, and the weights after every step."""

    def __init__(self):
        self.logs, self.weights = [], {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append({"step": state.global_step} | logs)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = {k: v.clone() for k, v in model.state_dict().items()}


def without_times(logs):
    """Log lines of the training itself, without what differs from run to run."""
    kept = [line for line in logs if not any(key.startswith("audit/") for key in line)]
    return [
        {k: v for k, v in line.items() if "time" not in k and "second" not in k and k != "mfu"}
        for line in kept
        if "train_runtime" not in line
    ]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryTrainer:
    def test_training_does_not_feel_the_audits(self, kind, trainer_of, audits_of):
        weights, lines = [], []
        for audited in (False, True):
            torch.manual_seed(0)
            trainer, seen = trainer_of(kind, folder=str(audited)), Seen()
            trainer.add_callback(seen)
            if audited:
                audits_of(gold=restless, proxy=restless).attach(trainer)
            trainer.train()
            weights.append(trainer.model.state_dict())
            lines.append(without_times(seen.logs))
        assert lines[0] == lines[1] and len(lines[0]) == 2
        for name, weight in weights[0].items():
            assert torch.equal(weights[1][name], weight), name

    def test_the_best_audit_is_a_model_for_plain_transformers(self, kind, trainer_of, audits_of):
        trainer, seen = trainer_of(kind), Seen()
        trainer.add_callback(seen)
        # Smoothed: 1/3, 7/4, 12/4, 7/3.
        callback = audits_of(gold=Scripted([0, 1, 5, 1])).attach(trainer)
        trainer.train()
        assert callback.best_step == 4 and callback.best_path.name == "best"
        assert json.loads((callback.best_path / "audit.json").read_text())["step"] == 4
        model, loading = AutoModelForCausalLM.from_pretrained(
            callback.best_path, output_loading_info=True
        )
        assert not any(loading[name] for name in ("missing_keys", "unexpected_keys"))
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, seen.weights[4][name]), name
        AutoTokenizer.from_pretrained(callback.best_path)
        names = {file.name for file in callback.best_path.iterdir()}
        assert not names & {"training_args.bin", "README.md", "value_model.safetensors"}
        left = {"audits.json", "audit_samples", "best"}
        assert {file.name for file in callback.output_dir.iterdir()} == left

    def test_the_reference_is_the_policy_before_the_first_step(
        self, kind, trainer_of, audits_of, make_policy, words, prompts
    ):
        trainer, seen = trainer_of(kind), Seen()
        trainer.callback_handler.callbacks.insert(0, seen)
        callback = audits_of(proxy=lambda prompts, completions, **_: [2.0] * len(prompts))
        callback.attach(trainer)
        trainer.train()
        audits = [line for line in seen.logs if "audit/kl/sequence" in line]
        assert [line["step"] for line in audits] == [0, 2, 4, 6]
        assert audits[0]["audit/kl/sequence"] == audits[0]["audit/kl/sequence_k1"] == 0
        trained, start = trainer.model, make_policy()
        samples = sample_completions(
            trained, words, prompts[:16], max_new_tokens=8, batch_size=16, seed=0
        )
        scores = score_samples(trained, start, samples)
        assert scores.rao_blackwell.mean() > 0
        expected = {
            "kl/sequence": scores.rao_blackwell.mean(),
            "kl/sequence_k1": scores.k1.mean(),
            "kl/per_token": (scores.rao_blackwell / samples.lengths).mean(),
            "policy/entropy": scores.entropy.mean(),
            "policy/reference_nll": -(scores.reference_logp / samples.lengths).mean(),
            "length/mean": samples.lengths.mean(),
            "length/ended": samples.ended.mean(),
            "proxy/mean": 2.0,
        }
        for name, value in expected.items():
            assert audits[-1][f"audit/{name}"] == pytest.approx(value, rel=1e-5), name
        assert callback.best_step is None and callback.best_path is None  # a proxy does not judge


class TestLora:
    def test_the_reference_is_the_base_and_the_best_an_adapter(self, trainer_of, audits_of):
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        trainer = trainer_of("dpo", peft_config=lora, learning_rate=1e-2)
        callback = audits_of(gold=Scripted([0, 1, 5, 1])).attach(trainer)
        trainer.train()
        assert callback.reference is None
        kls = [audit["kl"] for audit in callback.audits]
        assert kls[0] == 0 and all(kl > 0 for kl in kls[1:])
        assert (callback.best_path / "adapter_config.json").is_file()
        assert not (callback.best_path / "model.safetensors").exists()
        loaded = PeftModel.from_pretrained(trainer.model.unload(), callback.best_path)
        assert any(p.abs().sum() > 0 for n, p in loaded.named_parameters() if "lora_B" in n)


class TestStops:
    def test_a_fall_of_gold_ends_the_run_between_two_steps(self, trainer_of, audits_of):
        trainer, told = trainer_of("sft", max_steps=12), []
        gold = Scripted([0, 1, 2, 2, 0, 0, 0])
        callback = audits_of(gold=gold, stop_when_gold_falls=True, tell=told.append)
        callback.attach(trainer).output_dir.mkdir(exist_ok=True)
        trainer.train()
        assert trainer.state.global_step == 8
        assert (callback.output_dir / "checkpoint-8" / "trainer_state.json").is_file()
        assert told == [callback.stop_reason]
        assert callback.stop_reason.startswith("step 8: stopped, as gold is 2.00 (at least ")
        assert [audit["step"] for audit in callback.audits] == [0, 2, 4, 6, 8]
        assert callback.best_step == 4

    @pytest.mark.parametrize("seed", [0, 1])
    def test_flat_gold_does_not(self, seed, trainer_of, audits_of):
        trainer = trainer_of("sft")
        noisy = np.random.default_rng(seed)
        gold = Scripted(noisy.normal(0, 0.02, 7), noise=0.3, seed=seed)
        callback = audits_of(gold=gold, every=1, num_prompts=32, stop_when_gold_falls=True)
        callback.attach(trainer)
        trainer.train()
        assert trainer.state.global_step == 6 and callback.stop_reason is None

    def test_the_kl_budget_ends_the_run_at_the_next_audit(self, trainer_of, audits_of):
        trainer = trainer_of("dpo", learning_rate=1e-2, max_steps=40)
        callback = audits_of(gold=Scripted(range(50)), kl_budget=0.5).attach(trainer)
        trainer.train()
        *within, last = callback.audits
        assert all(audit["kl"] <= 0.5 for audit in within) and last["kl"] > 0.5
        assert trainer.state.global_step == last["step"] < 40
        assert "above kl_budget 0.5" in callback.stop_reason
        # Gold kept rising, but a policy beyond the budget is not to be shipped.
        assert callback.best_step == within[-1]["step"]

    def test_a_stopped_run_says_so_when_resumed_and_goes_on_with_a_larger_budget(
        self, trainer_of, audits_of
    ):
        options = {"learning_rate": 1e-2, "max_steps": 6}
        trainer = trainer_of("dpo", **options)
        first = audits_of(gold=Scripted(range(9)), kl_budget=1e-3).attach(trainer)
        trainer.train()
        assert trainer.state.global_step == 2
        again, told = trainer_of("dpo", **options), []
        resumed = audits_of(gold=Scripted(range(9)), kl_budget=1e-3, tell=told.append)
        resumed.attach(again)
        with pytest.raises(AlreadyTrained, match=r"above kl_budget 0\.001; raise kl_budget"):
            again.train(resume_from_checkpoint=True)
        assert told == [first.stop_reason] and again.state.global_step == 2
        more = trainer_of("dpo", **options)
        third = audits_of(gold=Scripted([2, 3]), kl_budget=1e9).attach(more)
        more.train(resume_from_checkpoint=True)
        assert more.state.global_step == 6 and third.stop_reason is None
        assert [audit["step"] for audit in third.audits] == [0, 2, 4, 6]
        assert third.audits[:2] == first.audits

    def test_where_something_else_ends_the_run_is_audited(self, trainer_of, audits_of):
        class Stopper(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 3

        trainer = trainer_of("sft")
        callback = audits_of().attach(trainer)
        trainer.add_callback(Stopper())
        trainer.train()
        assert [audit["step"] for audit in callback.audits] == [0, 2, 3]
        assert callback.stop_reason is None


class TestResume:
    def test_a_resumed_run_has_the_audits_and_the_best_of_an_uninterrupted_one(
        self, trainer_of, audits_of
    ):
        """Killed after step 6 and the audit there, with checkpoints at 3 and 6."""
        options = {"save_strategy": "steps", "save_steps": 3}
        whole = trainer_of("dpo", **options)
        callback = audits_of(gold=Scripted([0, 1, 5, 1])).attach(whole)
        whole.train()
        again = trainer_of("dpo", **options)
        resumed = audits_of(gold=Scripted([5, 1])).attach(again)
        again.train(resume_from_checkpoint=str(callback.output_dir / "checkpoint-3"))
        kls = [[audit["kl"] for audit in c.audits] for c in (resumed, callback)]
        assert kls[0] == kls[1] and len(kls[0]) == 4
        assert resumed.best_step == callback.best_step == 4
        assert resumed.best_path.is_dir()
        stored = json.loads((callback.output_dir / "audits.json").read_text())
        assert stored == resumed.audits

    def test_completions_of_audits_that_were_not_reached_again_are_gone(
        self, trainer_of, audits_of
    ):
        options = {"save_strategy": "steps", "save_steps": 3}
        callback = audits_of(gold=Scripted([0, 1, 5, 1])).attach(trainer_of("dpo", **options))
        callback._trainer.train()
        folder = callback.output_dir / "audit_samples"
        whole = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert sorted(whole) == [f"step-0000000{step}.parquet" for step in (0, 2, 4, 6)]
        (folder / ".step-00000004.123.parquet").write_bytes(b"half")  # killed while writing
        again = trainer_of("dpo", **options)
        kept = []
        again.add_callback(Listing(folder, kept))
        audits_of(gold=Scripted([5, 1])).attach(again)
        again.train(resume_from_checkpoint=str(callback.output_dir / "checkpoint-3"))
        assert kept[0] == ["step-00000000.parquet", "step-00000002.parquet"]
        texts = [read_completions(folder / name, name).completions for name in sorted(whole)]
        (folder / "other").mkdir()
        for name, data in whole.items():
            (folder / "other" / name).write_bytes(data)
        assert texts == [
            read_completions(folder / "other" / name, name).completions for name in sorted(whole)
        ]

    @pytest.mark.parametrize("damage", ["missing", "other prompts"])
    def test_audits_that_cannot_be_gone_on_with_are_refused(self, damage, trainer_of, audits_of):
        options = {"save_strategy": "steps", "save_steps": 3}
        whole = trainer_of("sft", **options)
        callback = audits_of(gold=Scripted([0, 1, 5, 1])).attach(whole)
        whole.train()
        if damage == "missing":
            (callback.output_dir / "audits.json").unlink()
        number = 16 if damage == "missing" else 8
        again = trainer_of("sft", **options)
        audits_of(gold=Scripted([]), num_prompts=number).attach(again)
        with pytest.raises(InputError, match=r"audits\.json"):
            again.train(resume_from_checkpoint=str(callback.output_dir / "checkpoint-3"))


class TestByHand:
    """The callback alone, with a trainer that only counts."""

    @pytest.fixture
    def driven(self, audits_of, make_policy, tmp_path, monkeypatch):
        def make(found=None, main=True, **options):
            callback, logged, audited = audits_of(**options), [], []
            trainer = SimpleNamespace(
                is_fsdp_enabled=False,
                is_deepspeed_enabled=False,
                accelerator=SimpleNamespace(is_main_process=main),
                args=SimpleNamespace(output_dir=str(tmp_path)),
                model=make_policy(),
                add_callback=lambda callback: None,
            )
            callback.attach(trainer)
            log = SimpleNamespace(log=lambda trainer, logs: logged.append(logs))
            monkeypatch.setattr(module, "Trainer", log)

            def audit(policy, reference, step):
                audited.append(step)
                return SimpleNamespace(
                    metrics={"kl/sequence": 0.1},
                    record={"step": step, "kl": 0.1},
                    consistent=True,
                    samples=ScoredCompletions(["x"], ["y"], np.array([1]), np.array([True])),
                )

            monkeypatch.setattr(callback.auditor, "audit", audit)
            if found is not None:
                monkeypatch.setattr(module, "broadcast_object_list", lambda objects: [found])
            return callback, logged, audited

        return make

    def steps(self, callback, max_steps=12, main=True):
        args = SimpleNamespace(load_best_model_at_end=False)
        state = TrainerState(max_steps=max_steps, is_world_process_zero=main)
        control = TrainerControl()
        callback.on_train_begin(args, state, control)
        while state.global_step < max_steps and not control.should_training_stop:
            state.global_step += 1
            control.should_log = True
            callback.on_step_end(args, state, control)
            assert control.should_log  # what was due is still due
        callback.on_train_end(args, state, control)
        return state, control

    @pytest.mark.parametrize(
        ("every", "steps"),
        [(4, [0, 4, 8, 12]), (5, [0, 5, 10, 12]), (12, [0, 12]), (100, [0, 12]), (0, [0, 12])],
    )
    def test_before_the_first_step_every_so_many_and_after_the_last(self, every, steps, driven):
        callback, logged, audited = driven(every=every)
        self.steps(callback)
        assert audited == steps
        assert logged == [{"audit/kl/sequence": 0.1}] * len(steps)
        assert callback._num_planned == len(steps) - 1

    def test_another_process_samples_nothing_and_stops_with_the_main_one(self, driven):
        found = ({"kl/sequence": 0.7}, "step 4: stopped, as the main process says")
        told = []
        callback, logged, audited = driven(
            found=found, main=False, every=4, gold=Scripted([]), tell=told.append
        )
        state, control = self.steps(callback, main=False)
        assert state.global_step == 4 and control.should_training_stop and control.should_save
        assert callback.stop_reason == found[1]
        assert audited == [] and told == [] and callback.reference is None
        assert logged == [{"audit/kl/sequence": 0.7}] * 2

    def test_estimates_that_disagree_are_told_once(self, driven):
        told = []
        callback, _, _ = driven(tell=told.append)
        callback.auditor.audit = lambda policy, reference, step: SimpleNamespace(
            metrics={"kl/sequence": 5.0, "kl/sequence_k1": -3.0},
            record={"step": step, "kl": 5.0},
            consistent=False,
            samples=ScoredCompletions(["x"], ["y"], np.array([1]), np.array([True])),
        )
        self.steps(callback)
        assert len(told) == 1 and "disagree" in told[0]


class TestAuditor:
    def test_the_completions_that_it_read_are_kept_with_what_was_measured(
        self, words, make_policy, prompts, tmp_path
    ):
        def gold(prompts, completions, **_):
            return [float(len(text)) for text in completions]

        policy, start = make_policy(1), make_policy()
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[:4]]
        for asked, num_samples in ((prompts[:4], 3), (chats, 1)):
            if asked is chats and words.chat_template is None:
                continue
            reward = (
                gold
                if asked is not chats
                else (
                    lambda prompts, completions, **_: gold(
                        prompts, [c[0]["content"] for c in completions]
                    )
                )
            )
            auditor = Auditor(
                asked, words, gold=reward, num_samples=num_samples, max_new_tokens=8, batch_size=16
            )
            audit = auditor.audit(policy, start, step=3)
            kept = audit.samples
            assert kept.prompts == [p for p in asked for _ in range(num_samples)]
            means = kept.gold.reshape(4, num_samples).mean(axis=1)
            assert means == pytest.approx(audit.record["gold"], abs=1e-6)
            assert kept.gold.tolist() == [float(len(text)) for text in kept.completions]
            assert kept.log_ratio.mean() == pytest.approx(audit.metrics["kl/sequence_k1"])
            assert kept.lengths.mean() == pytest.approx(audit.metrics["length/mean"])
            assert kept.proxy is None
            write_completions(tmp_path / "x.parquet", kept)
            read = read_completions(tmp_path / "x.parquet", "x")
            assert read.prompts == kept.prompts and read.completions == kept.completions
            assert np.array_equal(read.log_ratio, kept.log_ratio)

    def test_no_audit_keeps_more_than_512_completions(self, words, make_policy, prompts):
        auditor = Auditor(prompts[:5] * 50, words, num_samples=3, max_new_tokens=2, batch_size=512)
        kept = auditor.audit(make_policy(), make_policy(), step=0).samples
        assert len(kept) == 510 and kept.prompts[-3:] == [kept.prompts[-1]] * 3  # whole prompts

    def test_modes_settings_and_random_states_are_as_before(self, words, make_policy, prompts):
        model = make_policy().train()
        model.model.layers[0].eval()
        modes = {name: m.training for name, m in model.named_modules()}
        settings = model.generation_config
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        auditor = Auditor(prompts[:4], words, gold=restless, max_new_tokens=4)
        auditor.audit(model, make_policy(1), step=0)
        assert {name: m.training for name, m in model.named_modules()} == modes
        assert model.generation_config is settings
        assert random.getstate() == before[0]
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert torch.equal(torch.get_rng_state(), before[2])

    def test_rewards_get_their_prompts_columns_for_every_completion(
        self, words, make_policy, prompts
    ):
        def score(prompts, completions, answer, **columns):
            assert answer == [f"of {prompt}" for prompt in prompts]
            return [float(len(prompt)) for prompt in prompts]

        columns = {"answer": [f"of {prompt}" for prompt in prompts[:4]]}
        auditor = Auditor(
            prompts[:4], words, gold=score, columns=columns, num_samples=3, max_new_tokens=4
        )
        found = auditor.audit(make_policy(), make_policy(1), step=7)
        assert found.record["gold"] == [len(prompt) for prompt in prompts[:4]]
        assert found.record["step"] == 7 and found.consistent

    def test_a_gold_that_cannot_score_is_named(self, words, make_policy, prompts):
        def broken(prompts, completions, **columns):
            return [float("nan")] * len(prompts)

        auditor = Auditor(prompts[:4], words, gold=broken, max_new_tokens=4)
        with pytest.raises(InputError, match="reward broken returned nan"):
            auditor.audit(make_policy(), make_policy(), step=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stop_when_gold_falls": True}, "needs gold"),
        ({"stop_when_gold_falls": True, "proxy": restless}, "a proxy goes on rising"),
        ({"stop_when_gold_falls": True, "gold": restless, "num_prompts": 7}, "at least 8"),
        ({"kl_budget": 0.0}, "kl_budget is 0.0"),
        ({"every": -1}, "every is -1"),
        ({"num_prompts": 1}, "1 audit prompts"),
        ({"columns": {"answer": ["a"]}}, "column 'answer' has 1 values for 16 prompts"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options, named, audits_of):
    with pytest.raises(InputError) as refused:
        audits_of(**options)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_a_callback_without_its_trainer_and_a_sharded_policy_are_refused(trainer_of, audits_of):
    trainer = trainer_of("sft")
    trainer.add_callback(audits_of())
    with pytest.raises(InputError, match=r"call .attach\(trainer\)"):
        trainer.train()
    with pytest.raises(InputError, match="sharded"):
        audits_of().attach(SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False))
