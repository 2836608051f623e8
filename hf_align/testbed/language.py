"""A language pair small enough to know every correct translation: 33 English words, 56 invented.

    >>> translations("the old baker often finds a red boat")[0]
    'lo veto furno saepe uno navo rubo troves'

The target language puts the verb last, the place before the object and some adjectives behind their
noun; articles, adjectives and the verb agree with a noun's class (-o or -a); two verbs are two
words, far apart; and synonyms of another class make several translations correct. Nothing here
loads a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from hf_align.types import InputError, Text, content_of

ARTICLES = {"the": "l", "a": "un"}
ADJECTIVES = {
    **{"old": "vet", "young": "jun", "small": "pik"},
    **{"red": "rub", "quiet": "silen", "brave": "kor"},
}
BEFORE_THE_NOUN = ("old", "young", "small")
AGENTS = {
    **{"king": ("belto",), "sister": ("nima",), "cat": ("misa",), "horse": ("kavo",)},
    **{"baker": ("furno", "pistra"), "teacher": ("dokto", "lera")},
}
THINGS = {
    **{"letter": ("skriba",), "river": ("fluvo",), "boat": ("navo",), "lamp": ("luka",)},
    **{"house": ("domo", "tekta"), "garden": ("planto", "horta")},
}
NOUNS = AGENTS | THINGS
VERBS = {
    **{"sees": ("vid",), "paints": ("pint",), "watches": ("spek",), "loves": ("am",)},
    **{"finds": ("trov", "renk"), "forgets": ("obliv",), "carries": ("port",)},
}
PARTICLES = {"forgets": "se", "carries": "tra"}
"""The first words of the verbs that are two words; they follow the subject."""
ADVERBS = {"often": "saepe", "quickly": "rapte", "never": "nul"}
PREPOSITIONS = {"near": "apud", "behind": "retro", "without": "sine"}
"""They follow their noun in the target language."""

CLASSES = ("o", "a")
VERB_ENDINGS = {"o": "es", "a": "as"}
"""By the class of the subject."""

PREFERRED = 0.7
"""How often a translator takes the first of two ways to say it; each choice is made on its own."""

OPTIONAL = 0.5
"""How often a sentence has an adverb, a place, and a noun its adjective."""

SOURCE_WORDS = (*ARTICLES, *ADJECTIVES, *NOUNS, *VERBS, *ADVERBS, *PREPOSITIONS)
TARGET_WORDS = (
    *(stem + ending for stem in (*ARTICLES.values(), *ADJECTIVES.values()) for ending in CLASSES),
    *(noun for synonyms in NOUNS.values() for noun in synonyms),
    *(stem + ending for stems in VERBS.values() for stem in stems for ending in ("es", "as")),
    *(*PARTICLES.values(), *ADVERBS.values(), *PREPOSITIONS.values()),
)
PROMPT_WORDS = ("translate", ":")


@dataclass(frozen=True)
class NounPhrase:
    """`the old baker`: an article, at most one adjective, a noun; all source words."""

    article: str
    adjective: str | None
    noun: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.article, self.adjective, self.noun)))


@dataclass(frozen=True)
class Sentence:
    """`subject (adverb) verb object (preposition place)`; all source words.

    Attributes:
        subject: Who does it; the verb agrees with it.
        adverb: None for a sentence without one.
        verb: In the third person.
        object: Whom or what it is done to.
        preposition: None for a sentence without a place.
        place: The noun phrase that the preposition governs, or None with it.
    """

    subject: NounPhrase
    adverb: str | None
    verb: str
    object: NounPhrase
    preposition: str | None
    place: NounPhrase | None

    def __str__(self) -> str:
        parts = (self.subject, self.adverb, self.verb, self.object, self.preposition, self.place)
        return " ".join(str(part) for part in parts if part)


# ---------------------------------------------------------------------------------------- prompts


def prompt_of(source: str) -> str:
    """The prompt that asks for a translation: `translate the cat sees a boat :`."""
    return f"{PROMPT_WORDS[0]} {source} {PROMPT_WORDS[1]}"


def source_of(prompt: Text) -> str:
    """The source sentence of a prompt; of a conversation, that of its last user turn."""
    if not isinstance(prompt, str):
        prompt = next((m["content"] for m in reversed(prompt) if m["role"] == "user"), "")
    return " ".join(prompt.removeprefix(PROMPT_WORDS[0]).removesuffix(PROMPT_WORDS[1]).split())


def parse(source: str) -> Sentence:
    """The one reading of a source sentence.

    Raises:
        InputError: The grammar does not make this sentence.
    """
    words = iter((*source.split(), ""))
    try:
        return _read_sentence(words)
    except _UnexpectedWord as error:
        raise InputError(
            f"source {source!r} is no sentence of the translation task ({error}); write one like "
            "'the old baker often finds a red boat near the river'"
        ) from None


def sample_sentence(rng: np.random.Generator) -> Sentence:
    """A random sentence: every choice uniform, each optional part there half of the time."""
    subject = _pick(AGENTS, rng)
    object_, place = rng.permutation([noun for noun in NOUNS if noun != subject])[:2]
    has_adverb, has_place = rng.random(2) < OPTIONAL
    return Sentence(
        _sample_phrase(subject, rng),
        _pick(ADVERBS, rng) if has_adverb else None,
        _pick(VERBS, rng),
        _sample_phrase(str(object_), rng),
        _pick(PREPOSITIONS, rng) if has_place else None,
        _sample_phrase(str(place), rng) if has_place else None,
    )


# ----------------------------------------------------------------------------------- translations


def translations(source: Text) -> list[str]:
    """Every correct translation, the one of all preferred choices first; 1 to 32 of them.

    Args:
        source: A source sentence, or a prompt with it, as text or as a conversation.

    Raises:
        InputError: The grammar does not make this sentence.
    """
    sentence = parse(source_of(source))
    return [_render(sentence, choices) for choices in product(*_options(sentence))]


def sample_translation(sentence: Sentence, rng: np.random.Generator) -> str:
    """One translator's version: each choice is the preferred one with probability 0.7."""
    firsts = rng.random(len(_options(sentence))) < PREFERRED
    choices = [
        ways[0] if first else ways[-1]
        for ways, first in zip(_options(sentence), firsts, strict=True)
    ]
    return _render(sentence, choices)


def accepted_translation(
    prompts: list[Text], completions: list[Text], **columns: object
) -> list[float]:
    """The gold reward: 1 for a correct translation, whichever; 0 for any other text.

    Spaces do not count. Further columns are ignored.

    Raises:
        InputError: The lists differ in length, or a prompt has no sentence of the grammar.
    """
    if len(prompts) != len(completions):
        raise InputError(
            f"accepted_translation got {len(prompts)} prompts and {len(completions)} completions; "
            "give one prompt per completion"
        )
    return [
        float(" ".join(content_of(completion).split()) in translations(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


# -------------------------------------------------------------------------------------- the rules


def _options(sentence: Sentence) -> tuple[Sequence[str], ...]:
    """The ways to say each part: subject, object, place, verb, and where the adverb stands."""
    return (
        NOUNS[sentence.subject.noun],
        NOUNS[sentence.object.noun],
        NOUNS[sentence.place.noun] if sentence.place else ("",),
        VERBS[sentence.verb],
        ("early", "late") if sentence.adverb else ("",),
    )


def _render(sentence: Sentence, choices: Sequence[str]) -> str:
    subject, object_, place, verb, adverb_stands = choices
    adverb = ADVERBS[sentence.adverb] if sentence.adverb else ""
    parts = [_render_phrase(sentence.subject, subject), PARTICLES.get(sentence.verb, "")]
    if adverb_stands == "early":
        parts.append(adverb)
    if sentence.place and sentence.preposition:
        parts += [_render_phrase(sentence.place, place), PREPOSITIONS[sentence.preposition]]
    parts.append(_render_phrase(sentence.object, object_))
    if adverb_stands == "late":
        parts.append(adverb)
    parts.append(verb + VERB_ENDINGS[subject[-1]])
    return " ".join(filter(None, parts))


def _render_phrase(phrase: NounPhrase, noun: str) -> str:
    ending = noun[-1]
    article = ARTICLES[phrase.article] + ending
    if phrase.adjective is None:
        return f"{article} {noun}"
    adjective = ADJECTIVES[phrase.adjective] + ending
    if phrase.adjective in BEFORE_THE_NOUN:
        return f"{article} {adjective} {noun}"
    return f"{article} {noun} {adjective}"


class _UnexpectedWord(Exception):
    """The word that no rule allows where it stands; parsing ends there."""


def _read_sentence(words: Iterator[str]) -> Sentence:
    subject = _read_phrase(words, AGENTS)
    word = next(words)
    adverb = word if word in ADVERBS else None
    verb = _expect(next(words) if adverb else word, VERBS)
    object_ = _read_phrase(words, NOUNS)
    preposition = next(words) or None
    if preposition is None:
        return Sentence(subject, adverb, verb, object_, None, None)
    _expect(preposition, PREPOSITIONS)
    place = _read_phrase(words, NOUNS)
    _expect(next(words), ("",))
    return Sentence(subject, adverb, verb, object_, preposition, place)


def _read_phrase(words: Iterator[str], nouns: dict[str, tuple[str, ...]]) -> NounPhrase:
    article = _expect(next(words), ARTICLES)
    word = next(words)
    adjective = word if word in ADJECTIVES else None
    return NounPhrase(article, adjective, _expect(next(words) if adjective else word, nouns))


def _expect(word: str, allowed: Sequence[str] | dict[str, object]) -> str:
    if word not in allowed:
        raise _UnexpectedWord(f"{word!r} is unexpected" if word else "it ends too early")
    return word


def _sample_phrase(noun: str, rng: np.random.Generator) -> NounPhrase:
    article = _pick(ARTICLES, rng)
    adjective = _pick(ADJECTIVES, rng) if rng.random() < OPTIONAL else None
    return NounPhrase(article, adjective, noun)


def _pick(words: dict[str, object], rng: np.random.Generator) -> str:
    return list(words)[rng.integers(len(words))]
