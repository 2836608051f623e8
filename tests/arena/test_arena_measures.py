"""What is shown of an answer is what the diagnostics say, and what plain forward passes give."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from arena_world import seeded_adapter
from small_models import save_policy

from hf_align import load_policy
from hf_align.arena import Answer, Arena, Measures, Sampling
from hf_align.arena.measuring import kind_of
from hf_align.diagnostics.logps import score_samples, token_log_ratios
from hf_align.diagnostics.token_shift import reference_ranks, token_shift
from hf_align.rewards import RewardModel
from hf_align.types import InputError

PROMPT = "w1 w2 w3"
BASE, ADAPTER, MERGED, OTHER, BEST = range(5)
HOT = Sampling(temperature=1.7, top_p=0.9, max_new_tokens=20, seed=6)


@pytest.fixture(scope="module")
def turn(arena):
    """Answers and what was measured of them."""
    *_, answers, measures = arena.stream(PROMPT, HOT, measures=True)
    return answers, measures


def samples_of(ids, answer):
    return SimpleNamespace(
        prompt_ids=[ids], completion_ids=[list(answer.token_ids)], prompt_index=np.zeros(1, int)
    )


def logps_by_hand(model, ids, answer):
    """(T, V) log-probabilities after the prompt and each token, from one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *answer.token_ids]])).logits[0]
    return torch.log_softmax(logits[len(ids) - 1 : -1].double(), -1)


@pytest.mark.parametrize(("place", "name"), [(ADAPTER, "adapter"), (OTHER, "other")])
def test_log_ratios_are_those_of_the_diagnostics_and_of_plain_forwards(
    turn, folders, tokenizer, place, name
):
    answer, found = turn[0][place], turn[1][place]
    ids = tokenizer(PROMPT)["input_ids"]
    policy, _ = load_policy(getattr(folders, name), device="cpu")
    reference, _ = load_policy(folders.base, device="cpu")
    scores = score_samples(policy, reference, samples_of(ids, answer))
    assert found.log_ratio == pytest.approx(scores.k1[0], abs=1e-6)
    assert found.length == scores.length[0] == len(answer.token_ids)
    ours, theirs = (logps_by_hand(model, ids, answer) for model in (policy, reference))
    drawn = torch.tensor(answer.token_ids)[:, None]
    by_hand = (ours - theirs).gather(1, drawn)[:, 0].tolist()
    assert [token.log_ratio for token in found.shift] == pytest.approx(by_hand, abs=1e-4)
    assert sum(token.log_ratio for token in found.shift) == pytest.approx(found.log_ratio, abs=1e-9)
    ranks = (theirs > theirs.gather(1, drawn)).sum(1) + 1
    assert [token.rank for token in found.shift] == ranks.tolist()
    assert abs(found.log_ratio) > 0.1


def test_kinds_are_those_of_the_token_shift_diagnostic(arena, folders, tokenizer):
    reference, _ = load_policy(folders.base, device="cpu")
    seen = set()
    for seed in range(4):
        *_, answers, measures = arena.stream(PROMPT, replace(HOT, seed=seed), measures=True)
        samples = samples_of(tokenizer(PROMPT)["input_ids"], answers[ADAPTER])
        ranks, mask = reference_ranks(reference, samples)
        shares = token_shift(ranks, mask, samples.prompt_index, num_resamples=10)
        kinds = [token.kind for token in measures[ADAPTER].shift]
        for kind in ("unshifted", "marginal", "shifted"):
            assert kinds.count(kind) / len(kinds) == pytest.approx(getattr(shares, kind).value)
        seen.update(kinds)
    assert seen == {"unshifted", "marginal", "shifted"}
    expected = ["unshifted", "marginal", "marginal", "shifted"]
    assert [kind_of(rank) for rank in (1, 2, 3, 4)] == expected


def test_scores_are_those_of_the_reward_model(turn, folders):
    reward = RewardModel(folders.reward, device="cpu")
    answers, measures = turn
    expected = reward.score([PROMPT] * 5, [answer.text for answer in answers])
    assert [m.score for m in measures] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_reference_has_a_length_and_a_score_alone_and_best_of_n_no_log_ratio(turn):
    answers, measures = turn
    reference, best = measures[BASE], measures[BEST]
    assert reference == Measures(len(answers[BASE].token_ids), score=reference.score)
    assert best.log_ratio is None and best.implicit_reward is None
    # Its tokens come from the reference's own distribution, by which they are ranked.
    assert len(best.shift) == best.length and {t.log_ratio for t in best.shift} == {0.0}


def test_tokens_have_the_text_of_the_answer_and_the_end_its_name(arena):
    for seed in range(20):
        *_, answers, measures = arena.stream(PROMPT, replace(HOT, seed=seed), measures=True)
        if answers[ADAPTER].ended:
            break
    texts = [token.text for token in measures[ADAPTER].shift]
    assert texts[-1] == "<eos>"
    words = [text for text in texts if text not in ("<eos>", "<pad>")]
    assert "".join(words) == answers[ADAPTER].text
    assert answers[ADAPTER].tokens[-1] == ""


def test_what_is_no_answer_has_no_measures(arena):
    none = [Answer(problem="gone"), Answer(cancelled=True), *[Answer(problem="x")] * 3]
    assert arena.measure(PROMPT, none) == (Measures(length=0),) * 5
    with pytest.raises(InputError, match="got 1 answers, and there are 5"):
        arena.measure(PROMPT, none[:1])


def test_token_log_ratios_sum_to_the_sequence_log_ratio_in_any_batch(folders):
    policy, _ = load_policy(folders.other, device="cpu")
    reference, _ = load_policy(folders.base, device="cpu")
    samples = SimpleNamespace(
        prompt_ids=[[5, 6], [7]],
        completion_ids=[[8, 9, 1], [10], [11, 12, 13, 14, 1]],
        prompt_index=np.array([0, 0, 1]),
    )
    k1 = score_samples(policy, reference, samples).k1
    for batch_size in (1, 2, 3):
        ratios = token_log_ratios(policy, reference, samples, batch_size=batch_size)
        assert [len(one) for one in ratios] == [3, 1, 5]
        assert [one.sum() for one in ratios] == pytest.approx(k1.tolist(), abs=1e-5)


def test_another_vocabulary_is_scored_but_not_compared(folders, tmp_path, make_model, tokenizer):
    from transformers import PreTrainedTokenizerFast

    words = {f"v{i}": i for i in range(len(tokenizer))} | {"<eos>": 1}
    words.pop("v1")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    inner = Tokenizer(WordLevel(words, unk_token="v0"))
    inner.pre_tokenizer = WhitespaceSplit()
    foreign = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="v0")
    save_policy(tmp_path / "foreign", make_model, foreign)
    arena = Arena.open(
        [folders.base, str(tmp_path / "foreign")],
        reward_model=folders.reward,
        device="cpu",
        prompt_format="text",
    )
    *_, answers, measures = arena.stream(PROMPT, HOT, measures=True)
    assert answers[1].text and measures[1].score is not None
    assert measures[1].log_ratio is None and measures[1].shift == ()


def test_on_the_testbed_the_numbers_are_the_diagnostics_too(testbed, tmp_path):
    """With an adapter of the testbed's policy, in a prompt of its world."""
    base = str(testbed.policy_path)
    seeded_adapter(tmp_path / "lora", base, base)
    arena = Arena.open([base, str(tmp_path / "lora")], device="cpu", prompt_format="text")
    prompt = "mention stars poems cats cheese :"
    *_, answers, measures = arena.stream(prompt, Sampling(1.0, 1.0, 26, 2), measures=True)
    policy, tokenizer = load_policy(str(tmp_path / "lora"), device="cpu")
    samples = samples_of(tokenizer(prompt)["input_ids"], answers[1])
    with_adapter_off = score_samples(policy, None, samples)
    assert measures[1].log_ratio == pytest.approx(with_adapter_off.k1[0], abs=1e-5)
    assert answers[0].text and answers[0].text != answers[1].text
