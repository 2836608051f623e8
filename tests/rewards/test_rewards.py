"""Rewards by name: what a reward may return, and whose fault it is when it does not."""

import math
import sys

import pytest

from hf_align.rewards import checked_scores, named_reward, reward_function, reward_source
from hf_align.types import InputError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "statistics.py"
    path.write_text(
        "def length(prompts, completions, **columns):\n"
        "    return [float(len(c)) for c in completions]\n"
        "def broken(prompts, completions, **columns):\n"
        "    return {}['score']\n"
        "constant = 3\n"
    )
    return path


@pytest.mark.parametrize("scores", [[1, 2.5], (1.0, -3.0), iter([0, 1])])
def test_finite_numbers_pass_as_floats(scores):
    checked = checked_scores(scores, 2, "r")
    assert all(type(score) is float for score in checked)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([1.0], "1 scores for 2"),
        ([1.0, 2.0, 3.0], "3 scores for 2"),
        ([1.0, math.nan], "nan for completion 1 of 2"),
        ([math.inf, 1.0], "inf for completion 0 of 2"),
        ([-math.inf, 1.0], "-inf for completion 0 of 2"),
        ([None, 1.0], "one number per completion"),
        (["good", 1.0], "one number per completion"),
        (None, "one number per completion"),
        (1.0, "one number per completion"),
    ],
)
def test_anything_else_is_refused_with_the_rewards_name(scores, words):
    with pytest.raises(InputError, match=f"reward mine:r .*{words}"):
        checked_scores(scores, 2, "mine:r")


def test_a_function_is_found_in_a_module_and_in_a_file(file):
    assert reward_function("hf_align.testbed:gold_reward") is not None
    assert reward_function(f"{file}:length")(["p"], ["abc"]) == [3.0]
    assert reward_function("org/reward-model") is None


def test_a_file_does_not_replace_a_module_of_the_same_name(file):
    import statistics

    reward_function(f"{file}:length")
    assert sys.modules["statistics"] is statistics
    assert statistics.mean([1, 3]) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no.such.module:f", "cannot import no.such.module"),
        ("{folder}/none.py:f", "no such file"),
        ("{file}:missing", "no function 'missing'"),
        ("{file}:constant", "no function 'constant'"),
        ("{folder}/syntax.py:f", "SyntaxError"),
        ("{folder}/dies.py:f", r"ZeroDivisionError: division by zero \(dies.py line 2\)"),
    ],
)
def test_what_cannot_be_imported_is_named(file, tmp_path, name, words):
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "dies.py").write_text("x = 0\ny = 1 / x\n")
    with pytest.raises(InputError, match=words) as caught:
        reward_function(name.format(file=file, folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_failing_reward_names_itself_and_the_line(file):
    name = f"{file}:broken"
    shown, reward = named_reward(name, reward_function(name))
    assert shown == "statistics.py:broken"
    with pytest.raises(InputError, match=r"statistics.py:broken raised KeyError.*line 4") as caught:
        reward(prompts=["p"], completions=["c"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_file_is_recorded_by_content_and_without_its_folder(file):
    before = reward_source(f"{file}:length")
    assert before["name"] == "statistics.py:length"
    file.write_text(file.read_text() + "# changed\n")
    assert reward_source(f"{file}:length")["sha256"] != before["sha256"]
