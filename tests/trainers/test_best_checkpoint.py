"""Which audited checkpoint is kept as a run goes on, with saved folders that name their step."""

import json

import pytest

from hf_align.trainers.best import BestCheckpoint


def run(folder, golds, ineligible=()):
    """Audits every ten steps; returns what is kept after each, and at the end."""
    kept, best, saved = [], BestCheckpoint(folder), []

    def save(path):
        path.mkdir()
        (path / "weights").write_text(str(steps[-1]))
        saved.append(steps[-1])

    steps = [0]
    for gold_at in range(2, len(golds) + 1):
        steps.append(10 * (gold_at - 1))
        best.update(steps, golds[:gold_at], 0.5, save, eligible=steps[-1] not in ineligible)
        kept.append(best.step)
    best.settle(steps, golds)
    return best, kept


def held(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("golds", "step"),
    [
        ([0, 1, 2, 3], 30),
        ([0, 1, 2, 1, 0], 20),
        ([3, 2, 1, 0], 0),
        ([1, 1, 1, 1], 0),
        ([0, 1], 10),
        # One lucky audit: smoothed it has 0.65, the plateau before it 0.85.
        ([0, 0.8, 0.9, 0.8, 0, 1.3, 0], 20),
        # Smoothing reaches back: of two equal audits the one among better neighbours.
        ([0, 2, 0, 0, 1, 2, 1], 50),
    ],
)
def test_the_best_has_the_largest_smoothed_gold_of_all(golds, step, tmp_path):
    best, _ = run(tmp_path, golds)
    assert best.step == step
    assert held(tmp_path) == (["best"] if step else [])
    if step:
        assert (best.path / "weights").read_text() == str(step)
        written = json.loads((best.path / "audit.json").read_text())
        assert written == {"step": step, "kl": 0.5, "gold": golds[step // 10]}


def test_a_checkpoint_is_the_best_once_its_successor_is_known(tmp_path):
    _, kept = run(tmp_path, [0, 1, 2, 3, 4, 3, 2])
    assert kept == [0, 10, 20, 30, 40, 40]


def test_what_may_not_be_the_best_is_not_written(tmp_path):
    best, _ = run(tmp_path, [0, 1, 2, 3, 4], ineligible={30, 40})
    assert best.step == 20


def test_what_lies_past_a_checkpoint_or_is_half_written_is_forgotten(tmp_path):
    best, _ = run(tmp_path, [0, 1, 2, 1, 0])
    (tmp_path / ".newest-partial").mkdir()
    (tmp_path / ".newest").mkdir()  # killed before it was named
    best.forget(after=20)
    assert held(tmp_path) == ["best"] and best.step == 20
    best.forget(after=19)
    assert held(tmp_path) == [] and best.step == 0
