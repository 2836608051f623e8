"""The language pair by its rules, and a miniature task: splits, files, bytes, policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_align import testbed
from hf_align.testbed import build, language, models, translation, world
from hf_align.types import InputError

MINI = translation.TranslationSpec(num_sft=150, num_rl=80, num_test=40, train_steps=30)


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        yield testbed.build_translation(MINI, progress=False)


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    return [language.sample_sentence(rng) for _ in range(400)]


# ------------------------------------------------------------------------------------ the language


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # One way to say it: verb last, adjectives before or behind, agreement with o and a.
        ("the cat sees a red boat", {"la misa uno navo rubo vidas"}),
        ("a young king loves the quiet sister", {"uno juno belto la nima silena ames"}),
        # The place comes before the object, its preposition behind it; the verb is two words.
        ("the horse carries a lamp near a boat", {"lo kavo tra uno navo apud una luka portes"}),
        # Two nouns of different classes, and everything that agrees with them.
        (
            "the old baker paints a letter",
            {"lo veto furno una skriba pintes", "la veta pistra una skriba pintas"},
        ),
        # An adverb stands in either place, and the verb has a synonym.
        (
            "the king often finds the river",
            {
                "lo belto saepe lo fluvo troves",
                "lo belto lo fluvo saepe troves",
                "lo belto saepe lo fluvo renkes",
                "lo belto lo fluvo saepe renkes",
            },
        ),
    ],
)
def test_translations_by_hand(source, expected):
    found = language.translations(source)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert language.translations(language.prompt_of(source)) == found


def test_words_are_one_language_each_and_distinct():
    assert len(set(language.SOURCE_WORDS)) == len(language.SOURCE_WORDS) == 33
    assert len(set(language.TARGET_WORDS)) == len(language.TARGET_WORDS) == 56
    assert len(set(translation.VOCABULARY)) == len(translation.VOCABULARY)


def test_a_sentence_survives_its_text(sentences):
    assert all(language.parse(str(sentence)) == sentence for sentence in sentences)
    assert {word for s in sentences for word in str(s).split()} == set(language.SOURCE_WORDS)


def test_every_translation_agrees_and_fits(sentences):
    """Read off the words alone: articles and adjectives end as a neighbouring noun does, the verb
    as the subject says."""
    nouns = {noun for synonyms in language.NOUNS.values() for noun in synonyms}
    agreeing = {
        stem + ending
        for stem in (*language.ARTICLES.values(), *language.ADJECTIVES.values())
        for ending in "oa"
    }
    for sentence in sentences:
        for text in language.translations(str(sentence)):
            words = text.split()
            assert set(words) <= set(language.TARGET_WORDS)
            assert len(words) < world.MAX_NEW_TOKENS
            found = [word for word in words if word in nouns]
            assert len(found) == (3 if sentence.place else 2)
            assert words[-1].endswith("es" if found[0][-1] == "o" else "as")
            for place, word in enumerate(words):
                if word in agreeing:
                    close = words[max(0, place - 1) : place + 3]
                    assert any(noun in nouns and noun[-1] == word[-1] for noun in close), text


def test_translations_are_distinct_and_some_sentences_have_many(sentences):
    counts = []
    for sentence in sentences:
        found = language.translations(str(sentence))
        assert len(set(found)) == len(found)
        counts.append(len(found))
    assert min(counts) == 1
    assert 16 <= max(counts) <= 32


def test_a_translator_prefers_the_first_choice_and_is_always_right():
    rng = np.random.default_rng(1)
    sentence = language.parse("the old baker paints a letter")
    written = [language.sample_translation(sentence, rng) for _ in range(1000)]
    accepted = language.translations(str(sentence))
    assert set(written) == set(accepted)
    share = np.mean([text == accepted[0] for text in written])
    assert share == pytest.approx(language.PREFERRED, abs=4 * np.sqrt(0.7 * 0.3 / 1000))


def test_gold_accepts_every_reference_and_nothing_else(sentences):
    for sentence in sentences[:50]:
        prompt = language.prompt_of(str(sentence))
        found = language.translations(prompt)
        assert language.accepted_translation([prompt] * len(found), found) == [1.0] * len(found)
        words = found[0].split()
        wrong = [found[0] + " se", " ".join(words[:-1]), " ".join(words[::-1]), str(sentence), ""]
        assert language.accepted_translation([prompt] * 5, wrong) == [0.0] * 5


def test_gold_reads_conversations():
    prompt = [
        {"role": "system", "content": "translate a cat sees a boat :"},
        {"role": "user", "content": language.prompt_of("the cat sees a boat")},
    ]
    answer = [{"role": "assistant", "content": " la misa uno  navo vidas "}]
    assert language.accepted_translation([prompt], [answer]) == [1.0]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("the dog sees a boat", "'dog' is unexpected"),
        ("the boat sees a cat", "'boat' is unexpected"),  # things do nothing
        ("the cat sees", "it ends too early"),
        ("the cat sees a boat near", "it ends too early"),
        ("the cat sees a boat near a lamp often", "'often' is unexpected"),
        ("", "it ends too early"),
    ],
)
def test_other_sentences_are_refused(source, words):
    with pytest.raises(InputError, match=words):
        language.translations(source)


# ---------------------------------------------------------------------------------------- the task


def test_splits_have_their_rows_and_share_no_sentence(mini):
    sources = {
        split: [language.source_of(prompt) for prompt in mini.rows(split)["prompt"]]
        for split in ("sft", "rl", "test")
    }
    assert [len(rows) for rows in sources.values()] == [150, 80, 40]
    assert len({source for rows in sources.values() for source in rows}) == 270


def test_rows_hold_one_translators_version_and_all_that_are_right(mini):
    for split in ("sft", "rl", "test"):
        rows = mini.rows(split)
        assert list(rows) == ["prompt", "completion", "references"]
        for prompt, completion, references in zip(*rows.values(), strict=True):
            assert references == mini.translate(prompt)
            assert completion in references


def test_folders_hold_a_train_and_a_test_file(mini):
    for folder, split in ((mini.sft_path, "sft"), (mini.rl_path, "rl")):
        assert build.read_table(folder / "train.parquet") == mini.rows(split)
        assert build.read_table(folder / "test.parquet") == mini.rows("test")


def test_text_survives_the_tokenizer_of_the_policy(mini):
    tokenizer = AutoTokenizer.from_pretrained(mini.policy_path)
    assert len(tokenizer) == len(translation.VOCABULARY)
    rows = mini.rows("test")
    for text in (*rows["prompt"], *rows["completion"]):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_policy_loads_with_plain_transformers_and_has_learnt(mini):
    policy = AutoModelForCausalLM.from_pretrained(mini.policy_path)
    tokenizer = AutoTokenizer.from_pretrained(mini.policy_path)
    rows = mini.rows("test")
    ids, labels, _ = models._encode(tokenizer, rows["prompt"], rows["completion"], 4)
    with torch.inference_mode():
        loss = policy(input_ids=ids, labels=labels).loss.item()
    # Word frequencies alone take the loss below that of a uniform choice of target words.
    assert loss < np.log(len(language.TARGET_WORDS)) - 0.2


def test_same_seed_same_bytes_and_another_seed_other_sentences(mini, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    torch.manual_seed(1234)  # the build must not depend on it
    state = torch.random.get_rng_state()
    again = testbed.build_translation(MINI, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    names = sorted(p.relative_to(mini.path) for p in mini.path.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again.path) for p in again.path.rglob("*") if p.is_file())
    for name in names:
        assert (mini.path / name).read_bytes() == (again.path / name).read_bytes(), name
    other = translation._deal_rows(replace(MINI, seed=1))
    assert other["test"]["prompt"] != mini.rows("test")["prompt"]


def test_another_spec_is_another_folder(mini):
    for change in ({"seed": 1}, {"train_steps": 31}, {"model_size": "medium"}):
        assert translation._fingerprint(replace(MINI, **change)) not in mini.path.name


def test_wrong_names_and_sizes_are_refused(mini):
    with pytest.raises(InputError, match="split is 'train'; choose one of sft, rl, test"):
        mini.rows("train")
    with pytest.raises(InputError, match=r"TranslationSpec\.num_rl is 0; it must be positive"):
        replace(MINI, num_rl=0)
    with pytest.raises(InputError, match=r"TranslationSpec\.seed is -1"):
        replace(MINI, seed=-1)
    with pytest.raises(InputError, match="model_size is 'huge'; choose one of small, medium"):
        replace(MINI, model_size="huge")


@pytest.mark.slow
def test_the_default_policy_translates_but_makes_mistakes(tmp_path, monkeypatch):
    """Room to rise and a signal to rise on; BLEU of its samples was 61 against all references."""
    from hf_align.rewards import corpus_bleu

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    task = testbed.build_translation(progress=False)
    policy, tokenizer = models.load_policy(task.policy_path)
    rows = task.rows("test")
    completions = models.sample_completions(policy, tokenizer, rows["prompt"], 0)
    assert 40 < corpus_bleu(completions, rows["references"]).value < 80
    assert 0.1 < np.mean(language.accepted_translation(rows["prompt"], completions)) < 0.6
