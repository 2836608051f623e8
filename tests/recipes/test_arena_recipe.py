"""The arena's recipe: what it refuses, what it trains without models, what it serves."""

import importlib
from types import SimpleNamespace

import pytest

from hf_align.recipes import arena
from hf_align.recipes._arena import stages

ui = pytest.importorskip("hf_align.ui", reason="the app needs the extra: pip install hf_align[ui]")


@pytest.fixture
def served(monkeypatch):
    """Stands in for the server: what would have been served, and where."""
    found = SimpleNamespace()

    def serve(demo, collection, sign_in, *, host, port, ready, app):
        found.demo, found.host, found.port, found.app = demo, host, port, app
        ready("http://127.0.0.1:7860/")

    monkeypatch.setattr(ui, "serve", serve)
    return found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", "70000"), "port is 70000; give 1 to 65535"),
        (("--at_once", "0"), "at_once is 0"),
        (("--max_new_tokens", "9", "--most_tokens", "8"), "give at most most_tokens, 8"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--models", "no/such/folder"), "nobody can answer"),
        (("--models", "x", "--best_of", "-1"), "best_of is -1"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path, capsys, options, words):
    models = () if "--models" in options else ("--models", "x")
    with pytest.raises(SystemExit) as stop:
        arena.main([*models, *options, "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and words in error


def test_folders_are_served_and_those_that_cannot_answer_are_named(
    tmp_path, capsys, make_model, tokenizer, served
):
    for seed, name in enumerate(("sft", "dpo")):
        make_model(seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    names = [str(tmp_path / name) for name in ("sft", "dpo", "gone")]
    out = tmp_path / "out"
    arena.main(["--models", *names, "--output_dir", str(out), "--port", "7999", "--seed", "5"])
    said = capsys.readouterr()
    assert "arena: http://127.0.0.1:7860/" in said.out and str(out / "collect.db") in said.out
    assert "gone" in said.err and "cannot answer" in said.err
    assert (served.host, served.port, served.app) == ("127.0.0.1", 7999, "arena")
    [page] = [block.value for block in served.demo.blocks.values() if hasattr(block, "value")][:1]
    assert 'value="dpo"' in page and 'name="seed" value="5"' in page
    assert (out / "secret").stat().st_mode & 0o077 == 0


def test_what_is_trained_without_models_is_what_the_recipes_take(tmp_path):
    for stage in stages(tmp_path):
        parser = importlib.import_module(f"hf_align.recipes.{stage.recipe}").make_parser()
        choices = parser.parse(["--output_dir", str(tmp_path / stage.name), *stage.options])
        assert parser.with_config(choices, f"recipes/{stage.recipe}/testbed.yaml")
    needs = {stage.name: stage.needs for stage in stages(tmp_path)}
    assert list(needs) == ["reward", "dpo", "ppo", "dpo-lora"] and needs["ppo"] == ("reward",)
