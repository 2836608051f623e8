"""Who may import whom, read off the syntax tree: the architecture as a table that can fail."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hf_align"
SPACES = PACKAGE.parent / "spaces"

STAGES = {
    "testbed",
    "data",
    "feedback",
    "rewards",
    "sampling",
    "diagnostics",
    "evaluation",
    "hub",
    "arena",
}
# Leaves that every stage may use: nouns, files that appear whole, commits of Hub repos, records and
# weights of others.
LEAVES = {"types", "files", "revisions", "records", "weights"}
ALLOWED = dict.fromkeys(STAGES, LEAVES) | {
    "types": set(),
    "statistics": {"types"},
    # Coefficients of agreement have intervals clustered by item.
    "agreement": {"types", "statistics"},
    "configs": {"types"},
    "files": set(),
    "records": {"types"},
    "revisions": {"types", "records"},
    "weights": {"types", "records"},
    # Puts together what the stages read: a run is weights, a report, and what went in.
    "loading": LEAVES | {"hub", "rewards", "diagnostics"},
    # The length bias of a dataset is reported with an interval clustered by prompt.
    "data": LEAVES | {"statistics"},
    "diagnostics": LEAVES | {"statistics"},
    # Shares of annotators have Wilson intervals; agreement is shared with the evaluation of judges.
    "feedback": LEAVES | {"statistics", "agreement"},
    # Corpus BLEU has an interval over sentences.
    "rewards": LEAVES | {"statistics"},
    "evaluation": {"types", "statistics", "agreement"},
    # The card of a dataset gives agreement and biases with intervals clustered by prompt.
    "hub": LEAVES | {"statistics"},
    # On-policy trainers draw their completions with the loop that everything else samples with.
    # The record of a run's audits must appear whole, or a killed run could not go on.
    "trainers": {"types", "files", "configs", "rewards", "sampling", "diagnostics"},
    # Published policies answer one prompt side by side, and their answers are measured.
    "arena": LEAVES | {"statistics", "loading", "hub", "rewards", "sampling", "diagnostics"},
    "ui": {"types", "data", "feedback", "diagnostics", "evaluation", "hub", "loading", "arena"},
    # `collect` serves the app on this machine.
    "recipes": STAGES
    | LEAVES
    | {"statistics", "agreement", "configs", "trainers", "loading", "ui"},
}
ONLY_IN = {
    "matplotlib": {"diagnostics/plots.py", "diagnostics/goodhart_plots.py"},
    "gradio": {"ui"},
    "trl": {"trainers", "recipes"},
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def home_of(path):
    """The stage that a file belongs to: its package, or its own name where it is a module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Every module that a file imports, anywhere in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            yield f"hf_align.{home_of(path)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stay_within_the_layers(path):
    home = home_of(path)
    if home == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "hf_align" and len(parts) > 1 and parts[1] != home:
            assert parts[1] in ALLOWED[home], f"{home} may not import {name}"
        if parts[0] in ONLY_IN:
            places = ONLY_IN[parts[0]]
            where = path.relative_to(PACKAGE).as_posix()
            assert home in places or where in places, f"{where} may not import {name}"


def test_every_stage_has_a_rule():
    homes = {home_of(path) for path in modules()} - {"__init__"}
    assert homes <= ALLOWED.keys(), f"no import rule for {sorted(homes - ALLOWED.keys())}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_experimental_trl_is_never_imported_at_module_level(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.module.startswith("trl.experimental")


def test_modules_and_recipes_keep_to_their_size():
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        recipe = home_of(path) == "recipes" and not path.name.startswith("_")
        header = 4 if recipe else 0  # what tells uv about a script
        lines, limit = lines - header, 90 if recipe else 400
        assert lines <= limit, f"{path.relative_to(PACKAGE)} has {lines} lines, limit {limit}"


def test_functions_keep_to_their_size():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body
                documented = isinstance(body[0], ast.Expr) and isinstance(
                    body[0].value, ast.Constant
                )
                first = body[1] if documented and len(body) > 1 else body[0]
                length = node.end_lineno - first.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"
