"""A miniature testbed: what its files hold, and that the same seed gives the same bytes."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_align import testbed
from hf_align.testbed import build, models, world
from hf_align.testbed.rankings import rank_completions
from hf_align.types import InputError

MINI = world.WorldSpec(
    num_demonstrations=400,
    num_test_demonstrations=50,
    num_preferences=120,
    num_test_preferences=40,
    num_rl_prompts=30,
    train_steps=30,
    batch_size=32,
)


def read(file):
    return pq.read_table(file).to_pydict()


def topic_set(prompt):
    return world.named_topics(prompt)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def mini(home):
    return testbed.build_testbed(MINI, progress=False)


def test_the_folder_holds_the_rows_asked_for(mini, home):
    assert mini.path.parent == home / "hf_align"
    for folder, split, size in (
        (mini.demonstrations_path, "train", 400),
        (mini.demonstrations_path, "test", 50),
        (mini.preferences_path, "train", 120),
        (mini.preferences_path, "test", 40),
    ):
        assert len(read(folder / f"{split}.parquet")["prompt"]) == size
    assert [len(mini.prompts(split)) for split in ("rl", "audit", "report")] == [30, 520, 520]


def test_no_text_is_empty(mini):
    for name, columns in (
        ("demonstrations", ["completion"]),
        ("preferences", ["chosen", "rejected"]),
    ):
        for split in ("train", "test"):
            rows = read(mini.path / name / f"{split}.parquet")
            assert all(text for column in columns for text in rows[column])


def test_no_topic_set_is_in_two_places(mini):
    places = [mini.prompts(split) for split in ("rl", "audit", "report")]
    for folder in (mini.demonstrations_path, mini.preferences_path):
        places += [read(folder / f"{split}.parquet")["prompt"] for split in ("train", "test")]
    sets = [{topic_set(prompt) for prompt in place} for place in places]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert len(sets[1]) == len(sets[2]) == 520


def test_preferences_record_gold_and_annotator(mini):
    rows = read(mini.preferences_path / "train.parquet")
    assert rows["gold_chosen"] == world.gold_reward(rows["prompt"], rows["chosen"])
    assert rows["gold_rejected"] == world.gold_reward(rows["prompt"], rows["rejected"])
    assert set(rows["annotator"]) == {annotator.name for annotator in world.ANNOTATORS}
    assert all(a != b for a, b in zip(rows["chosen"], rows["rejected"], strict=True))


def test_annotators_choose_the_better_completion_as_often_as_they_should(mini):
    rows = read(mini.preferences_path / "train.parquet")
    chosen, rejected = np.array(rows["gold_chosen"]), np.array(rows["gold_rejected"])
    by_name = {annotator.name: annotator for annotator in world.ANNOTATORS}
    probability = np.array(
        [
            by_name[name].preference_probability(max(a, b), min(a, b))
            for name, a, b in zip(rows["annotator"], chosen, rejected, strict=True)
        ]
    )
    strict = chosen != rejected
    better = (chosen > rejected)[strict].sum()
    spread = np.sqrt((probability * (1 - probability))[strict].sum())
    assert better == pytest.approx(probability[strict].sum(), abs=4 * spread)


def test_pairs_that_say_nothing_are_drawn_again(monkeypatch):
    def sample(policy, tokenizer, prompts, seed, batch_size, advance):
        texts = np.random.default_rng(seed).choice(["tea", "tea", "", "rain"], len(prompts))
        return [str(text) for text in texts]

    monkeypatch.setattr(models, "sample_completions", sample)
    sets, rng = world.topic_sets(0)["preferences"], np.random.default_rng(0)
    rows = build._preference_pairs(None, None, sets, 50, rng, lambda: None)
    pairs = [set(pair) for pair in zip(rows["chosen"], rows["rejected"], strict=True)]
    assert pairs == [{"tea", "rain"}] * 50


@pytest.mark.parametrize("name", ["demonstrations", "preferences"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_conversations_are_the_same_rows(mini, name, split):
    text = read(mini.path / name / f"{split}.parquet")
    messages = read(mini.conversational(name) / f"{split}.parquet")
    assert list(messages) == list(text)
    for column, values in messages.items():
        if isinstance(values[0], list):
            role = "user" if column == "prompt" else "assistant"
            values = [[message] for (message,) in values]
            assert {message["role"] for (message,) in values} == {role}
            values = [message["content"] for (message,) in values]
        assert values == text[column]


def test_policy_loads_with_plain_transformers_and_has_learnt(mini):
    policy = AutoModelForCausalLM.from_pretrained(mini.policy_path)
    tokenizer = AutoTokenizer.from_pretrained(mini.policy_path)
    rows = read(mini.demonstrations_path / "test.parquet")
    ids, labels, _ = models._encode(tokenizer, rows["prompt"], rows["completion"], 4)

    def nll(model):
        with torch.inference_mode():
            return model(input_ids=ids, labels=labels).loss.item()

    untrained = models.tiny_llama(tokenizer, MINI.model_size, MINI.seed)
    # Word frequencies alone take the loss below that of the uniform distribution.
    assert nll(policy) < np.log(len(tokenizer)) - 0.2
    assert nll(policy) < nll(untrained) - 0.2
    assert policy.generation_config.max_new_tokens == world.MAX_NEW_TOKENS


def test_same_seed_same_bytes_and_settings_restored(mini, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(2)
    torch.manual_seed(1234)  # the build must not depend on it
    before = torch.random.get_rng_state()
    again = testbed.build_testbed(MINI, progress=True)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.set_num_threads(threads)
    torch.random.set_rng_state(state)
    names = sorted(p.relative_to(mini.path) for p in mini.path.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again.path) for p in again.path.rglob("*") if p.is_file())
    for name in names:
        assert (mini.path / name).read_bytes() == (again.path / name).read_bytes(), name


def test_another_spec_is_another_folder(mini):
    for change in ({"seed": 1}, {"train_steps": 31}, {"model_size": "medium"}):
        assert build.fingerprint(replace(MINI, **change)) not in mini.path.name


def test_an_altered_policy_is_built_again(mini, capsys):
    weights = mini.policy_path / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert testbed.build_testbed(MINI, progress=False) == mini
    assert weights.read_bytes() == original
    assert "policy/model.safetensors was altered" in capsys.readouterr().err


def test_opening_trains_nothing(mini, monkeypatch):
    monkeypatch.setattr(models, "train_policy", None)
    assert testbed.build_testbed(MINI) == mini


def test_more_preferences_share_the_test_file_and_its_disjointness(mini):
    folder = testbed.more_preferences(150, seed=2, spec=MINI, progress=False)
    rows, test = read(folder / "train.parquet"), read(folder / "test.parquet")
    assert len(rows["prompt"]) == 150
    assert test == read(mini.preferences_path / "test.parquet")
    assert list(rows) == list(test)
    assert not {topic_set(p) for p in rows["prompt"]} & {topic_set(p) for p in test["prompt"]}
    assert rows["gold_chosen"] == world.gold_reward(rows["prompt"], rows["chosen"])


def test_rankings_are_of_distinct_completions_on_their_own_topic_sets(mini):
    folder = testbed.build_rankings(20, 10, 5, seed=3, spec=MINI, progress=False)
    rows = {split: read(folder / f"{split}.parquet") for split in ("train", "test")}
    assert [len(part["prompt"]) for part in rows.values()] == [20, 10]
    for part in rows.values():
        for index, completions in enumerate(part["completions"]):
            assert len(set(completions)) == 5 and all(completions)
            assert sorted(part["ranks"][index]) == [1, 2, 3, 4, 5]
            prompts = [part["prompt"][index]] * 5
            assert part["gold"][index] == world.gold_reward(prompts, completions)
    train, test = ({topic_set(prompt) for prompt in part["prompt"]} for part in rows.values())
    assert not train & test
    shutil.rmtree(folder)
    assert testbed.build_rankings(20, 10, 5, seed=3, spec=MINI, progress=False) == folder
    assert {split: read(folder / f"{split}.parquet") for split in rows} == rows
    with pytest.raises(InputError, match="num_completions is 1; it must be at least 2"):
        testbed.build_rankings(num_completions=1)


def test_every_pair_of_a_ranking_is_ordered_as_often_as_annotators_order_pairs():
    gold, rng = np.array([0.0, 0.4, 1.5, 1.5]), np.random.default_rng(0)
    for annotator in world.ANNOTATORS:
        draws = 4000
        ranks = np.array([rank_completions(gold, annotator, rng) for _ in range(draws)])
        for i, j in itertools.combinations(range(4), 2):
            share = (ranks[:, i] < ranks[:, j]).mean()
            expected = annotator.preference_probability(gold[i], gold[j])
            assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / draws)


def test_wrong_names_are_refused(mini):
    with pytest.raises(InputError, match="split is 'train'; choose one of rl, audit, report"):
        mini.prompts("train")
    with pytest.raises(InputError, match="dataset is 'prompts'"):
        mini.conversational("prompts")
    with pytest.raises(InputError, match="model_size is 'huge'"):
        testbed.build_testbed(replace(MINI, model_size="huge"))
    with pytest.raises(InputError, match="num_pairs is 0"):
        testbed.more_preferences(0)


@pytest.mark.slow
def test_the_default_policy_has_learnt_to_copy_unseen_topic_sets(home):
    """Demonstrations have gold 2.08; a policy that only knew the word frequencies has 0.1."""
    full = testbed.build_testbed(progress=False)
    policy, tokenizer = models.load_policy(full.policy_path)
    prompts = full.prompts("report") * 2
    golds = world.gold_reward(prompts, models.sample_completions(policy, tokenizer, prompts, 0))
    assert 1.7 < np.mean(golds) < 2.2
    assert 1.0 < np.std(golds) < 1.4
