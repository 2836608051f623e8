"""Builds the testbed's files: demonstrations, an SFT policy, annotated preferences, prompts.

Everything follows from a `WorldSpec`, in under a minute on one core, and is kept under HF_HOME:

    testbed-<hash>/
      demonstrations/{train,test}.parquet               prompt, completion
      preferences/{train,test}.parquet                  prompt, chosen, rejected, annotator, gold_*
      {demonstrations,preferences}-conversational/      the same rows as lists of messages
      prompts/{rl,audit,report}.parquet                 prompt
      policy/                                           the SFT model and its tokenizer
      manifest.json                                     the spec, and every file's size and SHA-256
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_align.testbed import models, world
from hf_align.testbed.cache import cache_root, open_or_build
from hf_align.testbed.world import ANNOTATORS, DEFAULT, WorldSpec
from hf_align.types import InputError

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CODE_VERSION = 2
"""Raise it when the same spec no longer gives the same files, so that old caches are not used."""

PROMPT_SPLITS = ("rl", "audit", "report")
DATASETS = ("demonstrations", "preferences")
SAMPLE_BATCH = 512

Columns = dict[str, list]


@dataclass(frozen=True)
class Testbed:
    """A built testbed: where its files are.

    Attributes:
        path: The folder that holds everything.
    """

    path: Path

    @property
    def policy_path(self) -> Path:
        """The SFT policy and its tokenizer, in `save_pretrained` form."""
        return self.path / "policy"

    @property
    def demonstrations_path(self) -> Path:
        """Folder with `train.parquet` and `test.parquet`: prompt, completion."""
        return self.path / "demonstrations"

    @property
    def preferences_path(self) -> Path:
        """Folder with `train.parquet` and `test.parquet`: prompt, chosen, rejected, and who chose.

        Further columns: `annotator`, `gold_chosen`, `gold_rejected`.
        """
        return self.path / "preferences"

    def conversational(self, dataset: str) -> Path:
        """Folder with the same rows of "demonstrations" or "preferences" as lists of messages.

        Raises:
            InputError: There is no such dataset.
        """
        if dataset not in DATASETS:
            raise InputError(f"dataset is {dataset!r}; choose one of {', '.join(DATASETS)}")
        return self.path / f"{dataset}-conversational"

    def prompts(self, split: str) -> list[str]:
        """The prompts of a split: "rl", "audit" or "report" (the last two: one per topic set).

        Raises:
            InputError: There is no such split.
        """
        if split not in PROMPT_SPLITS:
            raise InputError(f"split is {split!r}; choose one of {', '.join(PROMPT_SPLITS)}")
        return read_table(self.path / "prompts" / f"{split}.parquet")["prompt"]


def build_testbed(spec: WorldSpec = DEFAULT, progress: bool = True) -> Testbed:
    """The testbed of `spec`: opened from the cache, or built on one core and kept there.

    The same spec gives the same bytes on one machine. PyTorch's thread count and random state are
    left as they were.

    Args:
        progress: Show a progress bar while building.

    Raises:
        InputError: The spec names a model size that does not exist.
        OSError: HF_HOME cannot be written.
    """
    if spec.model_size not in models.SIZES:
        raise InputError(
            f"WorldSpec.model_size is {spec.model_size!r}; choose one of {', '.join(models.SIZES)}"
        )
    folder = cache_root() / f"testbed-{fingerprint(spec)}"
    fill = partial(_fill_testbed, spec=spec, progress=progress)
    return Testbed(open_or_build(folder, fill, {"spec": asdict(spec)}))


def more_preferences(
    num_pairs: int, seed: int = 1, spec: WorldSpec = DEFAULT, progress: bool = True
) -> Path:
    """A folder like `Testbed.preferences_path` with `num_pairs` training pairs, for data scaling.

    The pairs are fresh draws on the same training prompts; the test file is the testbed's own.

    Args:
        num_pairs: Rows of `train.parquet`.
        seed: Seeds prompts, completions and annotators; differs from the testbed's own pairs.
        progress: Show a progress bar while building.

    Raises:
        InputError: `num_pairs` is not positive or `seed` is negative.
        OSError: HF_HOME cannot be written.
    """
    if num_pairs < 1:
        raise InputError(f"num_pairs is {num_pairs}; it must be positive")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    testbed = build_testbed(spec, progress)
    folder = cache_root() / f"preferences-{num_pairs}-{seed}-{fingerprint(spec)}"

    def fill(draft: Path) -> None:
        policy, tokenizer = models.load_policy(testbed.policy_path)
        sets, _ = train_and_test_sets(spec, "preferences")
        with models.one_thread(), progress_bar(_num_batches(num_pairs), progress) as bar:
            bar.set_description("testbed: sampling and annotating pairs")
            rng = np.random.default_rng([spec.seed, 100, seed])
            rows = _preference_pairs(policy, tokenizer, sets, num_pairs, rng, bar.update)
        write_table(draft / "train.parquet", rows)
        shutil.copyfile(testbed.preferences_path / "test.parquet", draft / "test.parquet")

    about = {"num_pairs": num_pairs, "seed": seed, "spec": asdict(spec)}
    return open_or_build(folder, fill, about)


# ------------------------------------------------------------------------------------- the stages


def _fill_testbed(draft: Path, spec: WorldSpec, progress: bool) -> None:
    sizes = (spec.num_preferences, spec.num_test_preferences)
    total = spec.train_steps + sum(_num_batches(size) for size in sizes)
    with models.one_thread(), progress_bar(total, progress) as bar:
        bar.set_description("testbed: writing demonstrations")
        _write_prompts(draft / "prompts", spec)
        demonstrations = _demonstrations(spec)
        _write_dataset(draft / "demonstrations", demonstrations)

        bar.set_description("testbed: training the SFT policy")
        tokenizer = models.tokenizer()
        policy = models.tiny_llama(tokenizer, spec.model_size, spec.seed)
        train = demonstrations["train"]
        models.train_policy(
            policy, tokenizer, train["prompt"], train["completion"], spec, bar.update
        )
        models.save_policy(policy, tokenizer, draft / "policy")

        bar.set_description("testbed: sampling and annotating pairs")
        pairs = {}
        for stream, (split, sets) in enumerate(
            zip(("train", "test"), train_and_test_sets(spec, "preferences"), strict=True)
        ):
            rng = np.random.default_rng([spec.seed, 10 + stream])
            pairs[split] = _preference_pairs(
                policy, tokenizer, sets, sizes[stream], rng, bar.update
            )
        _write_dataset(draft / "preferences", pairs)
        bar.set_description("testbed: ready")


def _write_prompts(folder: Path, spec: WorldSpec) -> None:
    sets, rng = world.topic_sets(spec.seed), np.random.default_rng([spec.seed, 2])
    prompts = {
        "rl": world.sample_prompts(sets["rl"], spec.num_rl_prompts, rng),
        "audit": world.one_prompt_per_set(sets["audit"], rng),
        "report": world.one_prompt_per_set(sets["report"], rng),
    }
    for split in PROMPT_SPLITS:
        write_table(folder / f"{split}.parquet", {"prompt": prompts[split]})


def _demonstrations(spec: WorldSpec) -> dict[str, Columns]:
    """Demonstrations with at least one word; the 0.2 % without are drawn again."""
    rng = np.random.default_rng([spec.seed, 3])
    train_sets, test_sets = train_and_test_sets(spec, "sft")
    rows = {}
    for split, sets, size in (
        ("train", train_sets, spec.num_demonstrations),
        ("test", test_sets, spec.num_test_demonstrations),
    ):
        prompts: list[str] = []
        completions: list[str] = []
        while missing := size - len(prompts):
            drawn = world.sample_prompts(sets, missing, rng)
            written = world.sample_demonstrations(drawn, rng)
            prompts += [prompt for prompt, text in zip(drawn, written, strict=True) if text]
            completions += [text for text in written if text]
        rows[split] = {"prompt": prompts, "completion": completions}
    return rows


def _preference_pairs(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sets: Sequence[tuple[str, ...]],
    num_pairs: int,
    rng: np.random.Generator,
    advance: Callable[[], object],
) -> Columns:
    """Two completions of the policy per prompt, compared by one annotator each.

    Pairs of equal completions say nothing, and an empty completion is no text to train on; both
    are drawn again.
    """
    prompts: list[str] = []
    first: list[str] = []
    second: list[str] = []
    while missing := num_pairs - len(prompts):
        drawn = world.sample_prompts(sets, missing, rng)
        seed = int(rng.integers(2**31))
        sampled = models.sample_completions(
            policy, tokenizer, [*drawn, *drawn], seed, SAMPLE_BATCH, advance
        )
        advance = _nothing  # the bar counts the first round; the few pairs drawn again do not show
        for prompt, a, b in zip(drawn, sampled[:missing], sampled[missing:], strict=True):
            if a and b and a != b:
                prompts.append(prompt)
                first.append(a)
                second.append(b)
    gold_first = np.array(world.gold_reward(prompts, first))
    gold_second = np.array(world.gold_reward(prompts, second))
    who = rng.integers(len(ANNOTATORS), size=num_pairs)
    first_wins = np.empty(num_pairs, dtype=bool)
    for index, annotator in enumerate(ANNOTATORS):
        rows = who == index
        first_wins[rows] = world.annotate(gold_first[rows], gold_second[rows], annotator, rng)
    texts = list(zip(first, second, first_wins, strict=True))
    return {
        "prompt": prompts,
        "chosen": [a if a_wins else b for a, b, a_wins in texts],
        "rejected": [b if a_wins else a for a, b, a_wins in texts],
        "annotator": [ANNOTATORS[index].name for index in who],
        "gold_chosen": np.where(first_wins, gold_first, gold_second).tolist(),
        "gold_rejected": np.where(first_wins, gold_second, gold_first).tolist(),
    }


def train_and_test_sets(spec: WorldSpec, split: str) -> tuple[list, list]:
    """The topic sets of a split ("sft", "preferences") to train on, and those held out."""
    sets, held_out = world.topic_sets(spec.seed)[split], world.HELD_OUT_SETS[split]
    return sets[:-held_out], sets[-held_out:]


# -------------------------------------------------------------------------------------- the files


def fingerprint(spec: WorldSpec) -> str:
    """Twelve hex digits that change when anything the files follow from changes."""
    content = {
        "code": CODE_VERSION,
        "spec": asdict(spec),
        "vocabulary": models.VOCABULARY,
        "gold": world.GOLD_WEIGHTS,
        "lengths": (world.FREE_LENGTH, world.MAX_NEW_TOKENS, world.MAX_DEMONSTRATION_WORDS),
        "splits": (world.TOPICS_PER_PROMPT, world.SPLITS, world.HELD_OUT_SETS),
        "annotators": [asdict(annotator) for annotator in ANNOTATORS],
        "model": (models.SIZES[spec.model_size], models.INITIALIZER_RANGE, models.CHAT_TEMPLATE),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _write_dataset(folder: Path, splits: Mapping[str, Columns]) -> None:
    """The rows as text in `folder`, and as messages in `folder`-conversational."""
    roles = {"prompt": "user"} | dict.fromkeys(("completion", "chosen", "rejected"), "assistant")
    for split, rows in splits.items():
        write_table(folder / f"{split}.parquet", rows)
        messages = {
            name: [[{"role": roles[name], "content": text}] for text in column]
            if name in roles
            else column
            for name, column in rows.items()
        }
        write_table(
            folder.with_name(f"{folder.name}-conversational") / f"{split}.parquet", messages
        )


def write_table(file: Path, columns: Columns) -> None:
    """Write columns as Parquet, with the folders they need."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def read_table(file: Path) -> Columns:
    """The columns of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pydict()


def _num_batches(num_pairs: int) -> int:
    return -(-2 * num_pairs // SAMPLE_BATCH)


def progress_bar(total: int, progress: bool) -> tqdm:
    """A bar of `total` steps that shows nothing unless `progress`."""
    from tqdm import tqdm

    return tqdm(total=total, disable=not progress, mininterval=0.5)


def _nothing() -> None:
    pass
