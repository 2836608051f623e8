"""Splitting by prompt: one side per prompt, whatever the order, the process or the wrapping."""

import math
import random
import subprocess
import sys

import pytest
from datasets import Dataset

from hf_align.data import split_by_prompt
from hf_align.data.splits import held_out_prompts, prompt_key, sample_rows
from hf_align.types import InputError


def pairs(num_prompts, per_prompt=3):
    return [
        {"prompt": f"p{i}", "chosen": f"c{j}", "rejected": "r"}
        for i in range(num_prompts)
        for j in range(per_prompt)
    ]


def prompts(dataset):
    return set(dataset["prompt"])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_prompt_is_never_on_both_sides_and_no_row_is_lost(seed):
    rows = pairs(200)
    split = split_by_prompt(Dataset.from_list(rows), 0.3, seed)
    assert not prompts(split["train"]) & prompts(split["test"])
    both = split["train"].to_list() + split["test"].to_list()
    assert sorted(map(str, both)) == sorted(map(str, rows))


def test_the_split_does_not_depend_on_row_order_or_on_other_rows():
    rows = pairs(200)
    expected = prompts(split_by_prompt(Dataset.from_list(rows), 0.2, 0)["test"])
    shuffled = random.Random(5).sample(rows, len(rows))
    assert prompts(split_by_prompt(Dataset.from_list(shuffled), 0.2, 0)["test"]) == expected
    fewer = split_by_prompt(Dataset.from_list(rows[:300]), 0.2, 0)["test"]
    assert prompts(fewer) == expected & {row["prompt"] for row in rows[:300]}


def test_the_seed_changes_the_split():
    rows = Dataset.from_list(pairs(200))
    sides = [prompts(split_by_prompt(rows, 0.2, seed)["test"]) for seed in (0, 1)]
    assert sides[0] != sides[1]


def test_the_split_is_the_same_in_another_process():
    keys = [prompt_key({"prompt": f"p{i}"}) for i in range(50)]
    code = (
        "from hf_align.data.splits import *\n"
        "keys = [prompt_key({'prompt': f'p{i}'}) for i in range(50)]\n"
        "print(sorted(k.hex() for k in held_out_prompts(keys, 0.3, 4)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(sorted(key.hex() for key in held_out_prompts(keys, 0.3, 4)))


@pytest.mark.parametrize("test_size", [0.1, 0.5])
def test_the_share_of_test_prompts_is_binomial(test_size):
    n = 4000
    held_out = held_out_prompts([prompt_key({"prompt": str(i)}) for i in range(n)], test_size, 0)
    sigma = math.sqrt(n * test_size * (1 - test_size))
    assert abs(len(held_out) - n * test_size) < 4 * sigma


def test_both_sides_get_a_prompt_even_of_two():
    for seed in range(20):
        split = split_by_prompt(Dataset.from_list(pairs(2)), 0.01, seed)
        assert len(split["train"]) == len(split["test"]) == 3


def test_one_prompt_cannot_be_split():
    with pytest.raises(InputError, match=r"--test_split_size 0.1.*1 distinct prompt"):
        split_by_prompt(Dataset.from_list(pairs(1)), 0.1, 0)


@pytest.mark.parametrize("test_size", [0.0, 1.0, -1, 2])
def test_a_share_outside_zero_and_one_is_refused(test_size):
    with pytest.raises(InputError, match="--test_split_size"):
        split_by_prompt(Dataset.from_list(pairs(9)), test_size, 0)


def test_wrapping_a_prompt_into_a_conversation_does_not_move_it():
    wrapped = {"prompt": [{"role": "user", "content": "p"}]}
    assert prompt_key(wrapped) == prompt_key({"prompt": "p"})
    assert prompt_key({"prompt": [{"role": "system", "content": "p"}]}) != prompt_key(wrapped)


def test_conversations_that_open_alike_stay_together():
    opening = {"role": "user", "content": "hello"}
    keys = {
        prompt_key({"messages": [opening, {"role": "assistant", "content": answer}]})
        for answer in ("hi", "ho")
    }
    assert len(keys) == 1


def test_a_sample_is_independent_of_row_order_and_grows_with_its_size():
    rows = pairs(60, per_prompt=1)
    keys = [prompt_key(row) for row in rows]
    chosen = {rows[i]["prompt"] for i in sample_rows(rows, keys, 20, 0)}
    assert len(chosen) == 20
    shuffled = random.Random(1).sample(rows, len(rows))
    again = sample_rows(shuffled, [prompt_key(row) for row in shuffled], 20, 0)
    assert {shuffled[i]["prompt"] for i in again} == chosen
    assert again == sorted(again)
    assert {rows[i]["prompt"] for i in sample_rows(rows, keys, 10, 0)} < chosen
    assert sample_rows(rows, keys, 100, 0) == list(range(60))
