"""Answers: from the right weights, reproducible, at the same pace, cancelled at any step."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from arena_world import seeded_adapter
from transformers import AutoModelForCausalLM

from hf_align import load_policy
from hf_align.arena import Answer, Arena, Measures, Progress, Sampling
from hf_align.arena import drawing as drawing_module
from hf_align.arena import engine as engine_module
from hf_align.arena.drawing import choose
from hf_align.rewards import RewardModel
from hf_align.types import InputError

PROMPT = "w1 w2 w3"
BASE, ADAPTER, MERGED, OTHER, BEST = range(5)


def answers_of(arena, sampling, prompt=PROMPT):
    *_, answers = arena.stream(prompt, sampling)
    return answers


def greedy_by_hand(model, ids, count, end):
    """The likeliest token each time, from whole forward passes."""
    drawn = []
    while len(drawn) < count and end not in drawn:
        with torch.no_grad():
            logits = model(torch.tensor([ids + drawn])).logits
        drawn.append(int(logits[0, -1].argmax()))
    return tuple(drawn)


def test_greedy_answers_are_those_of_each_models_plain_forward_passes(arena, folders, tokenizer):
    answers = answers_of(arena, Sampling(temperature=0, max_new_tokens=12))
    ids = tokenizer(PROMPT)["input_ids"]
    for place, folder in ((BASE, folders.base), (ADAPTER, folders.adapter), (OTHER, folders.other)):
        model, _ = load_policy(folder, device="cpu")
        assert answers[place].token_ids == greedy_by_hand(model, ids, 12, tokenizer.eos_token_id)
        assert answers[place].text == tokenizer.decode(
            answers[place].token_ids, skip_special_tokens=True
        )


def test_an_adapter_answers_as_its_merged_model_and_not_as_its_base(arena):
    differ = 0
    for seed in range(6):
        answers = answers_of(arena, Sampling(temperature=0.9, max_new_tokens=16, seed=seed))
        assert answers[ADAPTER] == answers[MERGED]
        differ += answers[ADAPTER].token_ids != answers[BASE].token_ids
    assert differ >= 5


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_adapters_of_other_kinds_of_models_answer_as_merged(kind, tmp_path, tokenizer):
    """GPT-2 has learnt positions and transposed weights; Mistral a window, here a short one."""
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    shape = {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": None}
    shape |= {"initializer_range": 0.5, "pad_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **shape)
        make, targets = GPT2LMHeadModel, ["c_attn", "c_proj"]
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 6}
        config = MistralConfig(**sizes, **heads, **shape)
        make, targets = MistralForCausalLM, ["q_proj", "down_proj"]
    torch.manual_seed(0)
    make(config).save_pretrained(tmp_path / "base")
    seeded_adapter(tmp_path / "lora", tmp_path / "base", str(tmp_path / "base"), targets=targets)
    merged, _ = load_policy_with(tokenizer, tmp_path)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    names = [str(tmp_path / name) for name in ("base", "lora", "merged")]
    arena = Arena.open(names, device="cpu", prompt_format="text")
    for seed in range(2):
        base, lora, whole = answers_of(arena, Sampling(1.0, 1.0, 12, seed))
        assert lora == whole and lora.token_ids != base.token_ids


def load_policy_with(tokenizer, root):
    tokenizer.save_pretrained(root / "base")
    return load_policy(str(root / "lora"), device="cpu")


def test_prompts_of_different_lengths_share_a_pass(arena, folders):
    """The base is asked in plain text, its adapter through the chat template."""
    mixed = Arena.open([folders.base, folders.adapter], device="cpu", prompt_format="text")
    chat = Arena.open([folders.base, folders.adapter], device="cpu", prompt_format="chat")
    mixed._members["adapter"].chat = True
    for seed in range(3):
        sampling = Sampling(1.0, 1.0, 14, seed)
        found = answers_of(mixed, sampling)
        assert found[0] == answers_of(arena, sampling)[BASE]
        assert found[1] == answers_of(chat, sampling)[1]


def test_base_and_adapters_are_one_set_of_weights(arena):
    bodies = [arena._members[c.key].voice.body for c in arena.contestants]
    assert bodies[BASE] is bodies[ADAPTER] is bodies[BEST]
    assert len({id(body) for body in bodies}) == 3
    weights = list(bodies[BASE].core.parameters())
    assert len({weight.data_ptr() for weight in weights}) == len(weights)


def test_seeds_reproduce_and_other_seeds_differ(arena):
    sampling = Sampling(temperature=1.0, max_new_tokens=16, seed=4)
    assert answers_of(arena, sampling) == answers_of(arena, sampling)
    others = {answers_of(arena, Sampling(1.0, 1.0, 16, seed))[BASE].text for seed in range(5)}
    assert len(others) >= 4


def test_an_answer_does_not_depend_on_who_else_is_asked_nor_on_the_order(arena, folders):
    names = [folders.other, folders.adapter, folders.base]
    fewer = Arena.open(names, device="cpu", prompt_format="text")
    for seed in range(3):
        sampling = Sampling(temperature=1.0, max_new_tokens=16, seed=seed)
        all_of_them, some = answers_of(arena, sampling), answers_of(fewer, sampling)
        assert some == tuple(all_of_them[place] for place in (OTHER, ADAPTER, BASE))


def test_a_shorter_limit_gives_the_beginning_of_the_same_answer(arena):
    long = answers_of(arena, Sampling(temperature=1.0, max_new_tokens=20, seed=1))
    short = answers_of(arena, Sampling(temperature=1.0, max_new_tokens=5, seed=1))
    for whole, part in zip(long[:BEST], short[:BEST], strict=True):
        assert whole.token_ids[:5] == part.token_ids
        assert part.ended == (1 in part.token_ids) and not part.cancelled


def test_identical_models_answer_alike_with_a_log_ratio_of_zero(folders):
    twice = Arena.open([folders.base, folders.base], device="cpu", prompt_format="text")
    assert [c.key for c in twice.contestants] == ["base", "base-2"]
    *_, answers, measures = twice.stream(PROMPT, Sampling(1.0, 1.0, 16, 3), measures=True)
    assert answers[0] == answers[1]
    assert measures[1].log_ratio == 0.0
    assert all(token.log_ratio == 0.0 for token in measures[1].shift)
    *_, greedy = twice.stream(PROMPT, Sampling(temperature=0, max_new_tokens=8))
    assert {token.rank for token in twice.measure(PROMPT, greedy)[1].shift} == {1}


def test_steps_come_at_the_same_pace_and_texts_only_grow(arena):
    steps = list(arena.stream(PROMPT, Sampling(temperature=1.0, max_new_tokens=12, seed=2)))
    progress, answers = steps[:-1], steps[-1]
    assert [step.tokens for step in progress] == list(range(1, len(progress) + 1))
    assert len(progress) == max(len(a.token_ids) for a in answers[:BEST])
    for place in (BASE, ADAPTER, OTHER):
        texts = [step.texts[place] for step in progress]
        assert all(b.startswith(a) for a, b in pairwise(texts))
        length = len(answers[place].token_ids)
        assert [step.done[place] for step in progress] == [
            count >= length for count in range(1, len(progress) + 1)
        ]
    assert progress[-1].texts == tuple(answer.text for answer in answers)
    assert all("".join(answer.tokens) == answer.text for answer in answers)


def test_the_best_of_n_is_the_one_that_the_reward_model_scores_highest(arena, folders):
    sampling = Sampling(temperature=1.0, max_new_tokens=10, seed=7)
    turn = arena.stream(PROMPT, sampling)
    first = next(turn)
    assert first.texts[BEST] == ""
    *_, last, answers = turn
    assert last.drawn[BEST] == 4 and answers[BEST].draws == 4
    # Its completions again, as those of four turns' worth of random numbers.
    member = arena._members[arena.contestants[BEST].key]
    pool = [row.ids for row in drawn_alone(member, sampling, 4)]
    texts = member.tokenizer.batch_decode(pool, skip_special_tokens=True)
    scores = RewardModel(folders.reward, device="cpu").score([PROMPT] * 4, texts)
    assert answers[BEST].token_ids == tuple(pool[int(np.argmax(scores))])
    assert tuple(pool[0]) == answers[BASE].token_ids
    assert len({tuple(ids) for ids in pool}) > 1
    assert arena.measure(PROMPT, answers)[BEST].score == pytest.approx(scores.max(), abs=1e-5)


def drawn_alone(member, sampling, count):
    ids = member.tokenizer(PROMPT)["input_ids"]
    rows = [
        drawing_module.Row(ids, member.voice.adapter, member.end_ids, sampling.max_new_tokens, n)
        for n in range(count)
    ]
    drawing = drawing_module.Drawing(member.voice.body, list(rows), sampling)
    while drawing.alive:
        drawing.launch()
        drawing.take()
    return rows


def test_greedy_best_of_n_draws_once(arena):
    answer = answers_of(arena, Sampling(temperature=0, max_new_tokens=6))[BEST]
    assert answer.draws == 1 and answer.text


def test_a_stop_ends_within_one_step_and_keeps_the_text(arena):
    stop, seen = threading.Event(), []
    sampling = Sampling(temperature=1.0, max_new_tokens=60, seed=11)
    for step in arena.stream(PROMPT, sampling, stop):
        seen.append(step)
        if len(seen) == 3:
            stop.set()
    answers = seen[-1]
    assert len(seen) == 4 and isinstance(answers, tuple)
    whole = answers_of(arena, sampling)
    for answer, full in zip(answers[:BEST], whole[:BEST], strict=True):
        assert answer.token_ids == full.token_ids[:3]
        assert answer.cancelled == (len(full.token_ids) > 3)
    assert answers[BEST].cancelled and "".join(answers[BEST].tokens) == answers[BEST].text


def test_a_page_that_goes_frees_its_turn(arena):
    free = arena._slots._value
    turn = arena.stream(PROMPT, Sampling(max_new_tokens=60))
    next(turn)
    assert arena._slots._value == free - 1
    state = turn.gi_frame.f_locals["turn"]
    assert all(drawing.reader is not None for drawing in state.drawings)
    reader = state.drawings[0]
    turn.close()
    assert arena._slots._value == free
    assert reader.reader is None and reader.tokens is None and state.drawings == []


def test_turns_beyond_the_limit_wait_and_can_be_stopped_while_they_do(folders, monkeypatch):
    monkeypatch.setattr(engine_module, "MOST_TURNS", 1)
    alone = Arena.open([folders.base], device="cpu", prompt_format="text")
    first = alone.stream(PROMPT, Sampling(max_new_tokens=60))
    next(first)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: list(alone.stream(PROMPT, Sampling(), stop)))
        time.sleep(0.1)
        assert not second.done()
        stop.set()
        (only,) = second.result(timeout=5)
    assert only == (Answer(cancelled=True),)
    first.close()
    assert isinstance(next(alone.stream(PROMPT, Sampling())), Progress)


def test_concurrent_visitors_get_the_answers_that_they_would_get_alone(arena):
    samplings = [Sampling(temperature=1.0, max_new_tokens=12, seed=seed) for seed in range(12)]
    prompts = [f"w{seed} w{2 * seed} w3" for seed in range(12)]
    alone = list(map(lambda s, p: answers_of(arena, s, p), samplings, prompts))
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda s, p: answers_of(arena, s, p), samplings, prompts))
    assert together == alone


def test_a_turn_may_be_continued_by_other_threads(arena):
    sampling = Sampling(temperature=1.0, max_new_tokens=8, seed=1)
    turn, steps = arena.stream(PROMPT, sampling, measures=True), []
    while not steps or not isinstance(steps[-1], tuple) or isinstance(steps[-1][0], Answer):
        with ThreadPoolExecutor(1) as pool:
            steps.append(pool.submit(next, turn).result())
    assert steps[-2] == answers_of(arena, sampling) and isinstance(steps[-1][0], Measures)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_some_of_them_can_be_asked_alone(arena):
    sampling = Sampling(temperature=1.0, max_new_tokens=12, seed=3)
    everybody = answers_of(arena, sampling)
    keys = [arena.contestants[place].key for place in (OTHER, BEST)]
    *_, progress, answers, measures = arena.stream(PROMPT, sampling, measures=True, keys=keys)
    assert (answers[OTHER], answers[BEST]) == (everybody[OTHER], everybody[BEST])
    assert answers[BASE] == answers[ADAPTER] == Answer(draws=0) and all(progress.done)
    assert measures[BASE] == Measures(length=0) and measures[OTHER].log_ratio is not None
    with pytest.raises(InputError, match="keys names nobody, who is not here"):
        arena.stream(PROMPT, sampling, keys=["nobody"])


def test_who_cannot_answer_can_be_asked_but_not_alone(folders):
    arena = Arena.open([folders.base, "no-such"], device="cpu", prompt_format="text")
    with pytest.raises(InputError, match="no such folder"):
        arena.stream(PROMPT, Sampling(), keys=["no-such"])


def test_the_first_token_comes_within_a_second(arena):
    start = time.monotonic()
    next(arena.stream(PROMPT, Sampling(max_new_tokens=256)))
    assert time.monotonic() - start < 1.0


def test_an_answer_ends_where_the_models_positions_do(arena):
    prompt = " ".join(f"w{i % 30}" for i in range(120))  # of 128 positions
    answers = answers_of(arena, Sampling(temperature=5.0, max_new_tokens=64), prompt)
    assert max(len(answer.token_ids) for answer in answers) == 8
    with pytest.raises(InputError, match="it has 128 tokens, and the model reads 128"):
        arena.stream(" ".join(["w1"] * 128), Sampling())


@pytest.mark.parametrize("prompt", ["🙂🙂🙂", "שלום w1 עולם", "w1\u202e w2\u0000", "<eos>"])
def test_odd_prompts_are_answered(arena, prompt):
    answers = answers_of(arena, Sampling(max_new_tokens=4), prompt)
    assert all(answer.problem is None and answer.token_ids for answer in answers)


def test_conversations_go_through_the_template(folders, tokenizer):
    arena = Arena.open([folders.base], device="cpu", prompt_format="chat")
    sampling = Sampling(temperature=0, max_new_tokens=6)
    talk = [{"role": "user", "content": PROMPT}]
    as_text, as_talk = answers_of(arena, sampling, PROMPT), answers_of(arena, sampling, talk)
    assert as_text == as_talk
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)
    model = AutoModelForCausalLM.from_pretrained(folders.base)
    assert as_text[0].token_ids == greedy_by_hand(model, list(ids["input_ids"]), 6, 1)


def test_broken_weights_spoil_their_own_answer_alone(arena, folders):
    spoilt = Arena.open([folders.base, folders.other], device="cpu", prompt_format="text")
    with torch.no_grad():
        spoilt._members["other"].voice.body.core.lm_head.weight.fill_(float("nan"))
    for temperature in (0, 1.0):
        sampling = Sampling(temperature=temperature, max_new_tokens=8)
        *_, progress, answers = spoilt.stream(PROMPT, sampling)
        assert "no numbers" in answers[1].problem and progress.done == (True, True)
        assert answers[0] == answers_of(arena, sampling)[BASE]
        assert spoilt.measure(PROMPT, answers)[1] == Measures(length=0)


def test_too_little_memory_ends_one_body_alone(folders, monkeypatch):
    arena = Arena.open([folders.base, folders.other], device="cpu", prompt_format="text")

    def exhausted(adapters, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(arena._members["base"].voice.body, "forward", exhausted)
    answers = answers_of(arena, Sampling(max_new_tokens=5))
    assert "memory" in answers[0].problem and answers[1].problem is None and answers[1].text


def test_models_that_need_no_cache_of_ours_give_the_same_answers(arena, monkeypatch):
    sampling = Sampling(temperature=1.0, max_new_tokens=10, seed=9)
    cached = answers_of(arena, sampling)
    monkeypatch.setattr(drawing_module, "can_draw", lambda *_: False)
    assert answers_of(arena, sampling) == cached


def test_a_recurrent_model_answers_too(tmp_path, tokenizer, folders):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=1
    )
    model = MambaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    names = [folders.base, str(tmp_path / "mamba")]
    arena = Arena.open(names, device="cpu", prompt_format="text")
    answers = answers_of(arena, Sampling(temperature=0, max_new_tokens=5))
    ids = tokenizer(PROMPT)["input_ids"]
    assert answers[1].token_ids == greedy_by_hand(model, ids, 5, 1)


def test_top_p_draws_from_the_fewest_tokens_that_reach_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((4000, 2)))
    for top_p, shares in {
        1.0: [0.5, 0.3, 0.15, 0.05],
        0.9: [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0],
        0.6: [0.5 / 0.8, 0.3 / 0.8, 0, 0],
        0.4: [1, 0, 0, 0],
        1e-9: [1, 0, 0, 0],
    }.items():
        tokens, finite = choose(logits, uniforms, Sampling(temperature=1.0, top_p=top_p))
        found = torch.bincount(tokens[:, 0], minlength=4) / 4000
        # Four standard errors of a share of 4000.
        assert found.tolist() == pytest.approx(shares, abs=4 * 0.5 / 4000**0.5) and finite.all()
        assert not found[torch.tensor(shares) == 0].any()


def test_temperature_divides_the_logits_and_none_is_greedy():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(4000, 1)
    uniforms = torch.from_numpy(np.random.default_rng(1).random((4000, 2)))
    tokens, _ = choose(logits, uniforms, Sampling(temperature=2.0))
    expected = torch.softmax(torch.tensor([1.0, 0.5, 0.0]), 0)
    found = torch.bincount(tokens[:, 0], minlength=3) / 4000
    assert found.tolist() == pytest.approx(expected.tolist(), abs=4 * 0.5 / 4000**0.5)
    for temperature in (0, 1e-300, 1e-6):
        assert not choose(logits, uniforms, Sampling(temperature=temperature))[0].any()


def test_a_duration_is_estimated_before_and_after_turns(folders):
    arena = Arena.open([folders.base, folders.adapter], device="cpu", prompt_format="text")
    before = [arena.seconds(Sampling(max_new_tokens=count)) for count in (16, 256)]
    assert 0 < before[0] < before[1] < 25
    answers_of(arena, Sampling(temperature=1.0, max_new_tokens=64))
    assert 0 < arena.seconds(Sampling(max_new_tokens=256)) < 25


@pytest.mark.gpu
def test_answers_on_a_gpu_are_those_of_the_cpu(arena, folders):
    names = [folders.base, folders.adapter, folders.merged, folders.other]
    on_gpu = Arena.open(names, device="cuda", prompt_format="text")
    for seed in range(3):
        sampling = Sampling(temperature=1.0, max_new_tokens=16, seed=seed)
        assert answers_of(on_gpu, sampling) == answers_of(arena, sampling)[:BEST]
        *_, measures = on_gpu.stream(PROMPT, sampling, measures=True)
        expected = arena.measure(PROMPT, answers_of(arena, sampling))[ADAPTER].log_ratio
        assert measures[ADAPTER].log_ratio == pytest.approx(expected, abs=1e-3)
