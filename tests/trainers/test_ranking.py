"""RankingTrainer: one forward per completion, the loss of the batch by hand, and that it learns."""

import math
from itertools import combinations

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from hf_align.rewards import RewardModel, encode
from hf_align.testbed import tokenizer
from hf_align.trainers.ranking import (
    RankingCollator,
    RankingTrainer,
    check_margins,
    check_rankings,
    ranking_pairs,
)
from hf_align.types import InputError

WORDS = ["tea", "rain", "books", "music", "dogs", "cats"]


def reward_model(seed=0):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=tokenizer().pad_token_id,
    )
    return LlamaForSequenceClassification(config)


def rankings(count=40, sizes=(3, 4, 5, 6), conversational=False):
    """The more "please" the better; ragged, in random order, with a tie now and then."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(count):
        size = sizes[index % len(sizes)]
        counts = torch.randint(0, 5, (size,), generator=generator).tolist()
        if len(set(counts)) == 1:
            counts[0] += 1
        completions = [
            " ".join([WORDS[(index + k) % 6], *["please"] * n, *["so"] * (4 - n)])
            for k, n in enumerate(counts)
        ]
        ranks = [1 + sum(other > n for other in counts) for n in counts]
        prompt = f"mention {WORDS[index % 6]} :"
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        rows.append({"prompt": prompt, "completions": completions, "ranks": ranks})
    return rows


def make(tmp_path, rows, model=None, trainer=RankingTrainer, loss=None, **options):
    options = {
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    } | options
    made = trainer(
        model=model or reward_model(),
        args=RewardConfig(str(tmp_path / "run"), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        **({"loss": loss} if loss else {}),
    )
    return made


@pytest.fixture
def encoded():
    """Counts the sequences that go through a model's forward."""

    def count(model):
        seen = []
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.extend(args[0] if args else kwargs["input_ids"]),
            with_kwargs=True,
        )
        return seen

    return count


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_each_completion_goes_through_the_model_once_per_step(
    tmp_path, encoded, gradient_checkpointing
):
    rows = rankings(8, sizes=(6,))
    kwise = make(tmp_path, rows, max_steps=2, gradient_checkpointing=gradient_checkpointing)
    seen = encoded(kwise.model)
    kwise.train()
    assert len(seen) == 8 * 6  # one epoch
    assert len({tuple(ids.tolist()) for ids in seen}) == len(
        {tuple(ids) for row in kwise.train_dataset for ids in row["completion_ids"]}
    )

    pairs = ranking_pairs(rows)
    pairwise = make(tmp_path, pairs, trainer=RewardTrainer, max_steps=-1, num_train_epochs=1)
    seen_by_pairs = encoded(pairwise.model)
    pairwise.train()
    assert len(seen_by_pairs) == 2 * len(pairs)
    assert len(seen_by_pairs) > 3.5 * len(seen)


@pytest.mark.parametrize("conversational", [False, True])
def test_the_loss_of_a_batch_is_that_of_its_pairs(tmp_path, conversational):
    rows = rankings(4, conversational=conversational)
    model = reward_model()
    trainer = make(tmp_path, rows, model=model, center_rewards_coefficient=0.1)
    model.eval()
    inputs = trainer.data_collator(list(trainer.train_dataset))
    assert inputs["mask"].sum(1).tolist() == [3, 4, 5, 6]
    assert inputs["input_ids"].shape[0] == 18
    loss = trainer.compute_loss(model, inputs).item()

    score = RewardModel.from_members([(model, tokenizer())])
    expected = 0.0
    for row in rows:
        s = score.score([row["prompt"]] * len(row["ranks"]), row["completions"])
        pairs = list(combinations(range(len(s)), 2))
        for i, j in pairs:
            sign = (row["ranks"][j] > row["ranks"][i]) - (row["ranks"][j] < row["ranks"][i])
            nats = math.log1p(math.exp(-sign * (s[i] - s[j]))) if sign else 0.0
            expected += (nats + 0.1 * (s[i] + s[j]) ** 2) / len(pairs) / len(rows)
    assert loss == pytest.approx(expected, abs=1e-5)


def test_rankings_of_two_train_as_trls_pairs_do(tmp_path):
    rows = rankings(12, sizes=(2,))
    options = {"center_rewards_coefficient": 0.05, "max_steps": 6}
    kwise = make(tmp_path, rows, **options)
    pairwise = make(tmp_path, ranking_pairs(rows), trainer=RewardTrainer, **options)
    kwise.train()
    pairwise.train()
    mine, theirs = kwise.state.log_history, pairwise.state.log_history
    for ours, trls in zip(mine, theirs, strict=True):
        for key in ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward"):
            if key in trls:
                assert ours[key] == pytest.approx(trls[key], abs=2e-4), key
    assert sum("accuracy" in log for log in theirs) == 6
    assert mine[5]["num_tokens"] == theirs[5]["num_tokens"]
    for ours, trls in zip(kwise.model.parameters(), pairwise.model.parameters(), strict=True):
        torch.testing.assert_close(ours, trls, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loss", ["kwise", "plackett_luce"])
def test_it_learns_the_order_of_ragged_rankings(tmp_path, loss):
    rows = rankings(60)
    trainer = make(tmp_path, rows, loss=loss, max_steps=60, per_device_train_batch_size=8)
    before = trainer.evaluate(Dataset.from_list(rows))
    trainer.train()
    after = trainer.evaluate(Dataset.from_list(rows))
    assert before["eval_accuracy"] < 0.8
    assert after["eval_accuracy"] > 0.95
    assert after["eval_loss"] < before["eval_loss"] / 2
    trainer.save_model(tmp_path / "saved")
    score = RewardModel(tmp_path / "saved")
    low, high = score.score(["mention tea :"] * 2, ["tea so so so so", "tea please please please"])
    assert high > low


def test_the_mean_over_evaluation_batches_counts_prompts_not_completions(tmp_path):
    rows = rankings(6, sizes=(2, 6))
    trainer = make(tmp_path, rows, per_device_eval_batch_size=4)
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    assert trainer.evaluate(Dataset.from_list(rows))["eval_loss"] == pytest.approx(
        whole.item(), abs=1e-5
    )


def test_streamed_rankings_train_and_a_bad_row_stops_them(tmp_path):
    def trainer(rows):
        return RankingTrainer(
            model=reward_model(),
            args=make(tmp_path, rankings(4), max_steps=2).args,
            train_dataset=Dataset.from_list(rows).to_iterable_dataset(),
            processing_class=tokenizer(),
        )

    streamed = trainer(rankings(8))
    streamed.train()
    assert streamed.state.global_step == 2
    bad = rankings(8)
    bad[0]["ranks"] = [1, 2]
    with pytest.raises(InputError, match="row 0 of the rankings has 2 ranks for 3"):
        trainer(bad).train()


def test_a_ranking_with_a_completion_that_is_too_long_is_left_out(tmp_path):
    rows = rankings(4)
    rows[2]["completions"][1] += " so" * 20
    trainer = make(tmp_path, rows, max_length=20)
    assert len(trainer.train_dataset) == 3
    ids, _ = encode(tokenizer(), [rows[3]["prompt"]] * 6, rows[3]["completions"])
    assert trainer.train_dataset[2] == {"completion_ids": ids, "ranks": rows[3]["ranks"]}


def test_the_collator_pads_ragged_rankings_to_the_right():
    examples = [
        {"completion_ids": [[5, 6, 7], [5]], "ranks": [2, 1]},
        {"completion_ids": [[8], [9, 4], [3]], "ranks": [1, 1, 3]},
    ]
    made = RankingCollator(pad_token_id=0, pad_to_multiple_of=4)(examples)
    assert made["ranks"].tolist() == [[2, 1, 0], [1, 1, 3]]
    assert made["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert made["input_ids"].tolist() == [
        [5, 6, 7, 0],
        [5, 0, 0, 0],
        [8, 0, 0, 0],
        [9, 4, 0, 0],
        [3, 0, 0, 0],
    ]
    assert made["attention_mask"].sum(1).tolist() == [3, 1, 1, 2, 1]


def test_pairs_of_a_ranking_are_its_strict_ones():
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
    assert ranking_pairs([row]) == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "chosen": "b", "rejected": "c"},
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ranks": [1, 2]}, "row 1 of the rankings has 2 ranks for 4 completions"),
        ({"ranks": [1.0, 2.0, math.nan, 3.0]}, "row 1 .* has the rank nan"),
        ({"ranks": [1, 2, math.inf, 3]}, "row 1 .* has the rank inf"),
        ({"ranks": [1, 2, None, 3]}, "row 1 .* has the rank None"),
        ({"ranks": [0, 1, 2, 3]}, "row 1 .* has the rank 0"),
        ({"ranks": [1.5, 1, 2, 3]}, r"row 1 .* has the rank 1\.5"),
        ({"ranks": [True, 2, 3, 4]}, "row 1 .* has the rank True"),
        ({"ranks": ["1", "2", "3", "4"]}, "row 1 .* has the rank '1'"),
        ({"ranks": None}, "row 1 of the rankings has no ranks"),
        ({"ranks": 1}, "row 1 .* must be lists"),
        ({"completions": ["tea"], "ranks": [1]}, "row 1 of the rankings has 1 completions"),
        ({"completions": "tea rain"}, "row 1 .* must be lists"),
        ({"prompt": None}, "row 1 of the rankings has no prompt"),
    ],
)
def test_a_bad_ranking_is_refused_by_its_row(change, words):
    rows = rankings(3)
    rows[1] |= change
    with pytest.raises(InputError, match=words):
        check_rankings(rows)


def test_what_no_one_ranked_is_refused_before_training(tmp_path):
    rows = rankings(3)
    for row in rows:
        row["ranks"] = [1] * len(row["ranks"])
    with pytest.raises(InputError, match="none of the 3 rankings prefers"):
        make(tmp_path, rows)
    with pytest.raises(InputError, match="loss is 'hinge'; choose one of kwise, plackett_luce"):
        make(tmp_path, rankings(3), loss="hinge")


@pytest.mark.parametrize("margin", [math.nan, math.inf, None, "1", True])
def test_a_bad_margin_is_refused_by_its_row(margin):
    rows = [{"margin": 0.5}, {"margin": 0}, {"margin": margin}]
    with pytest.raises(InputError, match="row 2: margin is"):
        check_margins(rows)
    check_margins(rows[:2])
