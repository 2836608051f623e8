"""Builds the translation task: sentence pairs in disjoint splits and a policy trained on a few.

The policy has seen too few pairs to get agreement and word order right: reinforcement learning on
BLEU has something to repair. Built on one core and kept under HF_HOME, like the testbed itself:

    translation-<hash>/
      sft/{train,test}.parquet      prompt, completion (one translator's), references (every one)
      rl/{train,test}.parquet       the same columns; both folders hold the same test rows
      policy/                       the SFT model and its tokenizer
      manifest.json                 the spec, and every file's size and SHA-256
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hf_align.testbed import language, models
from hf_align.testbed.build import Columns, progress_bar, read_table, write_table
from hf_align.testbed.cache import cache_root, open_or_build
from hf_align.testbed.world import EOS, PAD, ROLE_MARKERS, UNK
from hf_align.types import InputError, Text

CODE_VERSION = 1
"""Raise it when the same spec no longer gives the same files, so that old caches are not used."""

VOCABULARY = (
    *(PAD, EOS, UNK, *ROLE_MARKERS),
    *(*language.PROMPT_WORDS, *language.SOURCE_WORDS, *language.TARGET_WORDS),
)
SPLITS = {"sft": "sft/train", "rl": "rl/train", "test": "rl/test"}


@dataclass(frozen=True)
class TranslationSpec:
    """How large a task to build and how to train its policy; the default is the one to use.

    Attributes:
        seed: Seeds everything: sentences, references, initial weights, training order.
        num_sft: Sentences of the split "sft".
        num_rl: Sentences of the split "rl".
        num_test: Sentences of the split "test".
        model_size: Size of the policy, a key of `models.SIZES`.
        train_steps: SFT updates of the policy.
        batch_size: Pairs per update.
        learning_rate: Peak of the cosine schedule.
        chat_every: One pair in this many is trained on in chat format.

    Raises:
        InputError: A size, a rate or a count is not positive, or the seed is negative.
    """

    seed: int = 0
    num_sft: int = 600
    num_rl: int = 4_096
    num_test: int = 512
    model_size: str = "small"
    train_steps: int = 150
    batch_size: int = 128
    learning_rate: float = 5e-3
    chat_every: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("seed", "model_size") and value <= 0:
                raise InputError(f"TranslationSpec.{name} is {value}; it must be positive")
        if self.seed < 0:
            raise InputError(f"TranslationSpec.seed is {self.seed}; it must not be negative")
        if self.model_size not in models.SIZES:
            raise InputError(
                f"TranslationSpec.model_size is {self.model_size!r}; choose one of "
                f"{', '.join(models.SIZES)}"
            )


@dataclass(frozen=True)
class TranslationTask:
    """A built translation task: where its files are.

    Attributes:
        path: The folder that holds everything.
    """

    path: Path

    @property
    def policy_path(self) -> Path:
        """The SFT policy and its tokenizer, in `save_pretrained` form."""
        return self.path / "policy"

    @property
    def sft_path(self) -> Path:
        """Folder with `train.parquet` and `test.parquet`, its training rows the split "sft"."""
        return self.path / "sft"

    @property
    def rl_path(self) -> Path:
        """Folder with `train.parquet` and `test.parquet`, its training rows the split "rl"."""
        return self.path / "rl"

    def rows(self, split: str) -> Columns:
        """The columns of "sft", "rl" or "test", which share no source sentence.

        `prompt` asks for a translation, `completion` is one translator's, and `references` lists
        every correct one. TRL keeps `prompt` and `completion` to itself; a reward function is
        given `references`.

        Raises:
            InputError: There is no such split.
        """
        if split not in SPLITS:
            raise InputError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
        return read_table(self.path / f"{SPLITS[split]}.parquet")

    def translate(self, source: Text) -> list[str]:
        """Every correct translation of a source sentence, bare or in a prompt.

        Raises:
            InputError: The sentence is not one of the source language.
        """
        return language.translations(source)


def build_translation(
    spec: TranslationSpec | None = None, progress: bool = True
) -> TranslationTask:
    """The translation task of `spec`: opened from the cache, or built on one core and kept there.

    The same spec gives the same bytes on one machine. PyTorch's thread count and random state are
    left as they were.

    Args:
        spec: None for the default one.
        progress: Show a progress bar while building.

    Raises:
        OSError: HF_HOME cannot be written.
    """
    spec = spec or TranslationSpec()
    folder = cache_root() / f"translation-{_fingerprint(spec)}"
    fill = partial(_fill_translation, spec=spec, progress=progress)
    return TranslationTask(open_or_build(folder, fill, {"spec": asdict(spec)}))


def _fill_translation(draft: Path, spec: TranslationSpec, progress: bool) -> None:
    with models.one_thread(), progress_bar(spec.train_steps, progress) as bar:
        bar.set_description("translation: writing sentences")
        rows = _deal_rows(spec)
        for name in ("sft", "rl"):
            write_table(draft / name / "train.parquet", rows[name])
            write_table(draft / name / "test.parquet", rows["test"])

        bar.set_description("translation: training the SFT policy")
        tokenizer = models.tokenizer(VOCABULARY)
        policy = models.tiny_llama(tokenizer, spec.model_size, spec.seed)
        pairs = rows["sft"]
        models.train_policy(
            policy, tokenizer, pairs["prompt"], pairs["completion"], spec, bar.update
        )
        models.save_policy(policy, tokenizer, draft / "policy")
        bar.set_description("translation: ready")


def _deal_rows(spec: TranslationSpec) -> dict[str, Columns]:
    """Distinct random sentences, dealt to the splits, each with one translator's version."""
    rng = np.random.default_rng([spec.seed, 20])
    seen: set[str] = set()
    dealt: dict[str, Columns] = {}
    for split, size in (("test", spec.num_test), ("sft", spec.num_sft), ("rl", spec.num_rl)):
        rows: Columns = {"prompt": [], "completion": [], "references": []}
        while len(rows["prompt"]) < size:
            sentence = language.sample_sentence(rng)
            source = str(sentence)
            if source in seen:
                continue
            seen.add(source)
            rows["prompt"].append(language.prompt_of(source))
            rows["completion"].append(language.sample_translation(sentence, rng))
            rows["references"].append(language.translations(source))
        dealt[split] = rows
    return dealt


def _fingerprint(spec: TranslationSpec) -> str:
    """Twelve hex digits that change when anything the files follow from changes."""
    content = {
        "code": CODE_VERSION,
        "spec": asdict(spec),
        "vocabulary": VOCABULARY,
        "lexicon": (language.ARTICLES, language.ADJECTIVES, language.NOUNS, language.VERBS),
        "function words": (language.PARTICLES, language.ADVERBS, language.PREPOSITIONS),
        "rules": (language.BEFORE_THE_NOUN, language.CLASSES, language.VERB_ENDINGS),
        "chances": (language.PREFERRED, language.OPTIONAL),
        "model": (models.SIZES[spec.model_size], models.INITIALIZER_RANGE, models.CHAT_TEMPLATE),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
