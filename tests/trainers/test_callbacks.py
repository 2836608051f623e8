"""The callbacks, driven by a state made by hand: what each writes, says and calls, and when."""

import json
from math import log

import pytest
from transformers import TrainerControl, TrainerState

from hf_align.trainers.callbacks import (
    AlreadyTrained,
    MetricsFile,
    NoExtraStep,
    PreferenceWarnings,
    Progress,
)


def state_at(step, max_steps=12, main=True, history=()):
    return TrainerState(
        global_step=step,
        max_steps=max_steps,
        is_world_process_zero=main,
        log_history=list(history),
    )


def begin(callback, state):
    callback.on_train_begin(None, state, TrainerControl())


def tell(callback, step, **logs):
    names = {key.replace("_", "/", 1): value for key, value in logs.items()}
    callback.on_log(None, state_at(step), TrainerControl(), logs=names)


class TestMetricsFile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "metrics.jsonl"

    def lines(self, path):
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_each_log_is_one_line_with_its_step_first(self, path):
        callback = MetricsFile(path)
        begin(callback, state_at(0))
        for step in (5, 10):
            callback.on_log(None, state_at(step), TrainerControl(), logs={"loss": 0.5, "epoch": 1})
        assert self.lines(path) == [{"step": s, "loss": 0.5, "epoch": 1} for s in (5, 10)]
        assert path.read_text().startswith('{"step": 5')

    def test_resuming_cuts_what_lies_past_the_checkpoint(self, path):
        before = [{"step": step, "loss": step / 10} for step in (2, 4, 6)]
        path.write_text("".join(json.dumps(line) + "\n" for line in before))
        begin(MetricsFile(path), state_at(4))
        assert self.lines(path) == before[:2]
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_resuming_cuts_a_line_half_written(self, path):
        path.write_text('{"step": 2, "loss": 0.5}\n{"step": 4, "lo')
        begin(MetricsFile(path), state_at(4))
        assert self.lines(path) == [{"step": 2, "loss": 0.5}]

    @pytest.mark.parametrize(("max_steps", "kept"), [(4, True), (8, False)])
    def test_a_training_that_goes_on_writes_its_summary_anew(self, path, max_steps, kept):
        summary = {"step": 4, "train_runtime": 1.5}
        path.write_text(json.dumps(summary) + "\n")
        begin(MetricsFile(path), state_at(4, max_steps))
        assert self.lines(path) == ([summary] if kept else [])

    def test_other_processes_write_nothing(self, path):
        callback = MetricsFile(path)
        begin(callback, state_at(0, main=False))
        callback.on_log(None, state_at(5, main=False), TrainerControl(), logs={"loss": 0.5})
        assert not path.exists()


class TestPreferenceWarnings:
    """Rewards are β·log π/π_ref, so a reward of −0.5 at β = 0.1 is a fall of 5 nats."""

    def run(self, rewards, beta=0.1, **options):
        """What is said over logs given as (chosen, rejected), one every five steps."""
        said = []
        callback = PreferenceWarnings(beta, said.append, **options)
        begin(callback, state_at(0))
        for index, (chosen, rejected) in enumerate(rewards, 1):
            margin = chosen - rejected
            tell(
                callback,
                5 * index,
                rewards_chosen=chosen,
                rewards_rejected=rejected,
                rewards_margins=margin,
            )
        return said

    def test_a_healthy_run_is_silent(self):
        # The chosen completions gain, the rejected ones lose, the margin ends at 2.
        assert self.run([(step / 20, -step / 20) for step in range(20)]) == []

    def test_a_fall_of_the_chosen_completions_is_told_once(self):
        said = self.run([(-step / 10, -step / 5) for step in range(40)])
        displacement = [line for line in said if "less likely" in line]
        assert len(displacement) == 1
        # The mean of three logs first passes −0.5 in the one after 0.4, 0.5, 0.6: index 8, step 40.
        assert displacement[0].startswith("step 40: ")
        assert "6.0 nats" in displacement[0]

    def test_both_warnings_once_each(self):
        said = self.run([(-step, -3 * step) for step in range(20)])
        assert len(said) == 2
        assert sorted("saturated" in line for line in said) == [False, True]

    @pytest.mark.parametrize(("fall", "warned"), [(4.9, False), (5.1, True)])
    @pytest.mark.parametrize("beta", [0.02, 0.1, 1.0])
    def test_the_fall_is_in_nats_whatever_beta(self, beta, fall, warned):
        said = self.run([(-beta * fall, -beta * fall)] * 3, beta=beta)
        assert bool(said) == warned
        assert not warned or "5.1 nats" in said[0]

    @pytest.mark.parametrize(("margin", "warned"), [(4.9, False), (5.1, True)])
    @pytest.mark.parametrize("beta", [0.02, 1.0])
    def test_saturation_is_in_units_of_the_reward(self, beta, margin, warned):
        assert bool(self.run([(0.0, -margin)] * 3, beta=beta)) == warned

    def test_the_thresholds_are_options(self):
        assert self.run([(-0.15, -0.15)] * 3, max_fall=1.0)
        assert self.run([(0.0, -2.0)] * 3, saturation=1.9)

    def test_the_default_saturation_is_where_the_gradient_is_below_a_hundredth(self):
        # σ(−m) < 0.01 from m = log 99 = 4.6 on.
        assert PreferenceWarnings(0.1, print).saturation > log(99)

    def test_two_logs_are_not_enough_and_one_outlier_neither(self):
        assert self.run([(-9.0, -9.0)] * 2) == []
        assert self.run([(0.0, 0.0), (0.0, 0.0), (-1.4, -1.4), (0.0, 0.0)]) == []

    def test_other_logs_are_passed_over(self):
        said = []
        callback = PreferenceWarnings(0.1, said.append)
        for step in range(5):
            callback.on_log(None, state_at(step), TrainerControl(), logs={"loss": 0.3})
            callback.on_log(None, state_at(step), TrainerControl(), logs=None)
        assert said == []

    def test_a_resumed_run_repeats_what_the_logs_before_it_said(self):
        history = [
            {"step": step, "rewards/chosen": -2.0, "rewards/margins": 0.1} for step in (5, 10, 15)
        ]
        said = []
        callback = PreferenceWarnings(0.1, said.append)
        begin(callback, state_at(15, history=[*history, {"step": 15, "eval_loss": 0.6}]))
        assert len(said) == 1 and said[0].startswith("step 15: ") and "20.0 nats" in said[0]
        tell(callback, 20, rewards_chosen=-2.0, rewards_margins=0.1)
        assert len(said) == 1


class TestNoExtraStep:
    @pytest.mark.parametrize("step", [12, 13])
    def test_nothing_is_trained_past_the_last_step(self, step):
        with pytest.raises(AlreadyTrained):
            begin(NoExtraStep(), state_at(step))

    @pytest.mark.parametrize("step", [0, 11])
    def test_a_training_with_steps_left_goes_on(self, step):
        begin(NoExtraStep(), state_at(step))


class TestProgress:
    def test_the_bar_counts_from_the_resumed_step_and_shows_loss_and_margin(self, capsys):
        callback = Progress()
        begin(callback, state_at(4))
        tell(callback, 5, loss=0.25, rewards_margins=1.5)
        tell(callback, 5, audit_gold=2.0)  # an audit's log shows nothing, and hides nothing
        for step in range(5, 13):
            callback.on_step_end(None, state_at(step), TrainerControl())
        callback.on_train_end(None, state_at(12), TrainerControl())
        last = capsys.readouterr().err.split("\r")[-1]
        assert "12/12" in last and "loss=0.250" in last and "margin=1.500" in last

    def test_other_processes_show_none(self, capsys):
        callback = Progress()
        begin(callback, state_at(0, main=False))
        tell(callback, 5, loss=0.25)
        callback.on_step_end(None, state_at(1, main=False), TrainerControl())
        callback.on_train_end(None, state_at(12, main=False), TrainerControl())
        assert capsys.readouterr().err == ""
