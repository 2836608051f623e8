"""The READMEs tell the truth: the tree, the glossary, the recipes and the commands they name."""

import importlib
import re
import shlex
from pathlib import Path

from hf_align.diagnostics.report import METRICS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")


def tree():
    """The paths of the annotated tree, from its indentation."""
    block = README.split("## What is where")[1].split("```text\n")[1].split("```")[0]
    folders, paths = [], []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        paths.append("/".join([*folders, name.rstrip("/")]))
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
    return paths


def test_the_tree_names_every_module_and_nothing_else():
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hf_align").rglob("*.py")
        if path.name != "__init__.py"
    }
    named = set(tree())
    assert modules <= named, f"not in the tree: {sorted(modules - named)}"
    assert all((ROOT / path).exists() for path in named), [
        path for path in named if not (ROOT / path).exists()
    ]


def test_the_glossary_has_every_metric_with_its_definition():
    for name, (unit, definition, _) in METRICS.items():
        assert f"| `{name}` | {unit} | {definition} |" in RECIPES


def test_every_shipped_config_has_a_row():
    for path in (ROOT / "recipes").glob("*/*.yaml"):
        assert path.name in RECIPES, path.name


def test_every_recipe_command_parses():
    commands = re.findall(
        r"hf_align\.recipes\.(\w+)((?: |\\\n)[^\n`|\\]*(?:\\\n[^\n`|\\]*)*)", README
    )
    assert {name for name, _ in commands} >= {"sft", "dpo", "inspect"}
    for name, rest in commands:
        options = shlex.split(rest.replace("\\\n", " ").split("#")[0])
        importlib.import_module(f"hf_align.recipes.{name}").make_parser().parse(options)


def test_links_and_pictures_exist():
    for folder, text in ((ROOT, README), (ROOT / "recipes", RECIPES)):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (folder / target).exists(), target
