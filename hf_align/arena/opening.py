"""Looks at models by name before any weights are read: who could answer, and why others cannot.

Whatever is wrong with one (gone, gated, pickled, another architecture, code of its own) becomes a
line about that one. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_align.arena.facts import RunFacts, is_same, read_facts
from hf_align.arena.turns import Role
from hf_align.hub.cards import public_text
from hf_align.hub.loading import Home, ModelHome, find_model
from hf_align.records import one_line, read_record
from hf_align.sampling.policies import PolicySpec, parse_policy
from hf_align.types import InputError


@dataclass
class Candidate:
    """Someone who is asked to answer.

    Attributes:
        key: Unique among the candidates.
        name: As people see it.
        best_of: Completions that each answer is chosen from; 1 for a model's own.
        found: Where its model lies; None where it cannot be had.
        run: What its run says.
        problem: Why it cannot answer.
        role: What it is held against, or is held against it.
    """

    key: str
    name: str
    best_of: int = 1
    found: ModelHome | None = None
    run: RunFacts = field(default_factory=RunFacts)
    problem: str | None = None
    role: Role = "aligned"

    @property
    def weights(self) -> tuple[str, str | None] | None:
        """What identifies its whole model: of an adapter, its base."""
        if self.found is None:
            return None
        home = self.found.base or self.found.home
        return _identity(home)

    @property
    def identity(self) -> tuple[str, str | None] | None:
        """What identifies it, adapter and all."""
        return None if self.found is None else _identity(self.found.home)

    @cached_property
    def source(self) -> Mapping[str, str | None]:
        """Its entry in a lineage; of a folder its content's hash."""
        return {} if self.found is None else self.found.home.source()


def find_candidates(
    names: Sequence[str],
    reference: str | None = None,
    best_of: int = 0,
    revisions: Mapping[str, str] | None = None,
) -> list[Candidate]:
    """Candidates by name, in that order; the reference among them, and a best-of-n if wanted.

    Args:
        names: Folders and Hub ids; `best_of_n:16:ORG/MODEL` is the best of 16 answers of one.
        reference: What the others are held against; added in front where it is not named. None
            takes the first that is no adapter and was not trained from another of them; one from
            which another was trained goes before.
        best_of: From 2 on, the best of so many answers of the reference takes part too.
        revisions: Commit, branch or tag by name.

    Raises:
        InputError: Nobody is named, or a name is none.
    """
    specs = [parse_policy(str(name), "names") for name in names]
    if reference is not None and reference not in [spec.text for spec in specs]:
        specs.insert(0, parse_policy(reference, "reference"))
    if not specs:
        raise InputError("names: nobody is named; give at least one model, by Hub id or folder")
    if best_of < 0:
        raise InputError(f"best_of is {best_of}; give 0 for none, or 2 and more")
    unknown = sorted(set(revisions or {}) - {spec.model for spec in specs})
    if unknown:
        raise InputError(f"revisions names {unknown[0]}, which is not among the models")
    looked = {m: _look(m, (revisions or {}).get(m)) for m in {spec.model: None for spec in specs}}
    found = [_candidate(spec, looked[spec.model]) for spec in specs]
    chosen = _reference(found, [spec.text for spec in specs], reference)
    chosen.role = "reference"
    if best_of > 1:
        found.append(
            Candidate(
                "", chosen.name, best_of, chosen.found, chosen.run, chosen.problem, "best_of_n"
            )
        )
    for candidate in found:
        if candidate.best_of > 1:
            candidate.name = f"best of {candidate.best_of}: {candidate.name}"
        candidate.key = _key(candidate.name, {other.key for other in found})
    return found


def told(error: Exception) -> str:
    """An error as visitors may read it: one line, without local paths and tokens."""
    return public_text(one_line(error, 400))


def check_config(home: Home) -> None:
    """Refuses a model that is no causal language model, by its configuration.

    Raises:
        InputError: It is an encoder, a classifier, a reward model, or nothing that is known.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    path = home.file("config.json")
    config = {} if path is None else read_record(path, f"{home.label}: config.json")
    known = {
        name for names in CAUSAL.values() for name in ([names] if isinstance(names, str) else names)
    }
    classes = config.get("architectures")
    if isinstance(classes, list) and classes:
        if known.isdisjoint(map(str, classes)):
            what = one_line(classes[0], 80)
            raise InputError(
                f"{home.label} is a {what}, not a causal language model, so it cannot answer"
                + ("; name it as the reward model" if "SequenceClassification" in what else "")
            )
    elif config.get("model_type") not in CAUSAL:
        kind = one_line(config.get("model_type"), 80)
        raise InputError(f"{home.label} is of the kind {kind}, which writes no text here")


def _look(name: str, revision: str | None) -> tuple[ModelHome | None, RunFacts, str | None]:
    """Where a model lies, what its run says, and what is wrong with it."""
    try:
        found = find_model(name, revision)
        if found.base is not None:
            _check_adapter(found.home)
        check_config(found.base or found.home)
    except (InputError, OSError) as error:
        return None, RunFacts(), told(error)
    return found, read_facts(found.home), None


def _check_adapter(home: Home) -> None:
    path = home.file("adapter_config.json")
    config: dict[str, Any] = {} if path is None else read_record(path, f"{home.label}: adapter")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise InputError(
            f"{home.label} is an adapter for the task {one_line(task, 40)}, not for a causal "
            "language model, so it cannot answer"
        )


def _candidate(
    spec: PolicySpec, looked: tuple[ModelHome | None, RunFacts, str | None]
) -> Candidate:
    found, run, problem = looked
    if spec.in_context:
        found, problem = (
            None,
            "urial: in-context alignment does not take part here; name the model itself",
        )
    is_folder = Path(spec.model).expanduser().is_dir()
    name = Path(spec.model).expanduser().resolve().name if is_folder else spec.model
    count = spec.draws_per_answer
    role: Role = "best_of_n" if count > 1 else "aligned"
    return Candidate("", one_line(name, 120), count, found, run, problem, role)


def _reference(found: list[Candidate], texts: list[str], wanted: str | None) -> Candidate:
    """What the others are held against.

    Raises:
        InputError: A best-of-n is wanted, which has no probabilities.
    """
    if wanted is not None:
        chosen = found[texts.index(wanted)]
        if chosen.best_of > 1:
            raise InputError(f"reference {wanted}: a best-of-n has no probabilities of its own")
        return chosen
    models = [one for one in found if one.best_of == 1]
    if not models:
        raise InputError("names: a best-of-n alone has no reference; name its model too")
    pairs = [(one, other) for one in models for other in models if _comes_from(one, other)]
    trained = [one for one, _ in pairs] + [one for one in models if one.found and one.found.base]
    # One that cannot be had may still be what the others were trained from: none stands in for it.
    roots = [one for one in models if all(one is not other for other in trained)]
    known = [one for one in roots if any(one is parent for _, parent in pairs)]
    return [*known, *roots, *models][0]


def _comes_from(one: Candidate, other: Candidate) -> bool:
    """Whether it is an adapter of another, or its run says that it was trained from it."""
    if one.found is None or other.found is None or one.identity == other.identity:
        return False
    if one.found.base is not None and _identity(one.found.base) == other.identity:
        return True
    return any(is_same(parent, other.source) for parent in one.run.parents)


def _identity(home: Home) -> tuple[str, str | None]:
    name = home.name if home.revision is not None else str(Path(home.name).resolve())
    return name, home.revision


def _key(name: str, taken: set[str]) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
    key, number = slug, 2
    while key in taken:
        key, number = f"{slug}-{number}", number + 1
    return key
