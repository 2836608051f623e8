"""What crosses between engine and page: settings that can be, plain data, whole characters."""

import pickle
import subprocess
import sys

import pytest

from hf_align.arena import Answer, Contestant, Facts, Measures, Progress, Sampling, Token
from hf_align.arena.wording import MOST_PROMPT_BYTES, Wording, check_prompt
from hf_align.types import Estimate, InputError


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token per byte, as a byte-level BPE without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{letter: i for i, letter in enumerate(alphabet, 1)}}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"), "1", True, None)),
        *(("top_p", value) for value in (0, -1, 1.01, float("nan"), "all")),
        *(("max_new_tokens", value) for value in (0, -1, 1.5, 10**9, "8", True)),
        *(("seed", value) for value in (-1, 2**63, 0.5, "x", None)),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"^{name} is ") as caught:
        Sampling(**{name: value})
    assert "\n" not in str(caught.value)


def test_settings_at_their_limits_are_taken():
    Sampling(temperature=0, top_p=1, max_new_tokens=1, seed=0)
    Sampling(temperature=100.0, top_p=1e-9, max_new_tokens=4096, seed=2**63 - 1)


def test_everything_that_crosses_a_process_pickles():
    facts = Facts(verdict="NO GAIN", kl=Estimate(1.0, 0.5, 1.5, 9))
    nouns = [
        Sampling(seed=3),
        Contestant("a", "org/a", "reference", facts=facts),
        Progress(("a", ""), (True, False), 3, (1, 0)),
        Answer("a b", (1, 2), ("a", " b"), ended=True),
        Measures(2, log_ratio=-0.5, shift=(Token("a", "marginal", 2, 0.1),)),
    ]
    assert pickle.loads(pickle.dumps(nouns)) == nouns


def test_the_page_can_import_the_package_without_torch():
    code = "import sys, hf_align.arena as a; a.Arena; print({'torch', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("text", ["né", "🙂🏳️‍🌈!", "שלום עולם", "日本 語", "a�b", "plain words"])
def test_text_grows_by_whole_characters_and_tokens_join_to_it(byte_tokenizer, text):
    words, shown = Wording(byte_tokenizer), []
    for token in [*byte_tokenizer(text)["input_ids"], byte_tokenizer.eos_token_id]:
        words.add(token)
        shown.append(words.text)
    assert all(text.startswith(part) for part in shown)
    final, tokens = words.finish()
    assert final == text and "".join(tokens) == text and len(tokens) == len(shown)
    assert tokens[-1] == ""  # the end token


def test_an_answer_cut_within_a_character_ends_before_it(byte_tokenizer):
    words = Wording(byte_tokenizer)
    for token in byte_tokenizer("ok 🙂")["input_ids"][:-1]:
        words.add(token)
    text, tokens = words.finish()
    assert text == "ok " and tokens == ("o", "k", " ", "", "", "")


def test_a_tokenizer_that_rewrites_what_it_wrote_still_joins():
    class Rewriting:
        def decode(self, ids, skip_special_tokens):
            return " ".join("ab.c"[i] for i in ids).replace(" .", ".").replace("b. c", "b! c")

    words = Wording(Rewriting())
    for token in (0, 1, 2, 3):
        words.add(token)
    text, tokens = words.finish()
    assert text == "a b! c" == "".join(tokens) == words.text


@pytest.mark.parametrize("prompt", ["", "  \n\t", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(InputError, match="it is empty"):
        check_prompt(prompt)


def test_a_prompt_of_100_kb_is_refused_with_the_limit():
    with pytest.raises(InputError, match="100,000 bytes, and 32,768 is the limit"):
        check_prompt("x" * 100_000)
    with pytest.raises(InputError, match="is the limit"):
        check_prompt("🙂" * (MOST_PROMPT_BYTES // 4 + 1))  # bytes count, not characters
    check_prompt("🙂" * (MOST_PROMPT_BYTES // 4))


@pytest.mark.parametrize("prompt", [None, 3, {"role": "user"}, ["hi"], [{"role": "user"}]])
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(InputError, match="give a text, or a list of messages"):
        check_prompt(prompt)
