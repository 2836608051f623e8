"""The command line: precedence, types, and tables of options that agree with the real classes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from hf_align.recipes import dpo, sft
from hf_align.recipes._options import (
    CHOICES,
    DPO_CONFIG,
    MODEL_CONFIG,
    SFT_CONFIG,
    convert,
    options_of_config,
    options_of_dataclass,
)
from hf_align.recipes._parser import Choices, RecipeParser, find_config
from hf_align.types import InputError


@dataclass
class Own:
    number: float = field(default=1.0, metadata={"help": "A number."})
    count: int | None = field(default=None, metadata={"help": "A count."})
    switch: bool = field(default=False, metadata={"help": "A switch."})
    word: str = field(default="none", metadata={"help": "A word."})
    kind: Literal["small", "large"] = field(default="small", metadata={"help": "A kind."})
    names: list[str] | None = field(default=None, metadata={"help": "Names."})
    counts: list[int] | None = field(default=None, metadata={"help": "Counts."})
    kinds: list[Literal["small", "large"]] | None = field(default=None, metadata={"help": "Kinds."})
    extra: dict | None = field(default=None, metadata={"help": "A mapping."})
    parts: list[dict] | None = field(default=None, metadata={"help": "Mappings."})


@pytest.fixture
def parser():
    return RecipeParser("test", "A test.", (Own,))


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "options.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_flag_beats_the_file_and_the_file_beats_the_default(parser, yaml_file):
    config = yaml_file("number: 2.0\nword: from-file\n")
    choices = parser.parse(["--config", config, "--number", "3"])
    built = choices.build(Own, {"word": "machine", "count": 7})
    assert (built.number, built.word, built.count, built.kind) == (3.0, "from-file", 7, "small")
    assert choices.origins == {"number": "command line", "word": config}


@pytest.mark.parametrize("order", [("--number", "3", "--config"), ("--config",)])
def test_the_order_of_flags_and_file_does_not_matter(parser, yaml_file, order):
    args = [*order, yaml_file("number: 2.0\n")]
    args += [] if "--number" in order else ["--number", "3"]
    assert parser.parse(args).get("number") == 3.0


def test_a_recipes_own_file_fills_in_only_what_was_not_said(parser, yaml_file):
    config = yaml_file("number: 2.0\nword: from-file\n")
    choices = parser.with_config(parser.parse(["--number", "3"]), config)
    assert choices.values == {"number": 3.0, "word": "from-file"}
    assert choices.origins == {"number": "command line", "word": config}
    assert choices.config == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-7", 5e-7), ("1.0e-5", 1e-5), ("3", 3.0), ("-0.5", -0.5), ("'0.1'", 0.1), (".5", 0.5)],
)
def test_every_way_of_writing_a_number_is_read(parser, yaml_file, text, value):
    # YAML 1.1 takes 5e-7 for a string.
    assert parser.parse(["--config", yaml_file(f"number: {text}")]).get("number") == value
    assert parser.parse([f"--number={text.strip(chr(39))}"]).get("number") == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("yes", True), ("off", False), ("False", False)]
)
def test_every_way_of_writing_a_switch_is_read(parser, yaml_file, text, value):
    assert parser.parse(["--config", yaml_file(f"switch: {text}")]).get("switch") is value
    assert parser.parse(["--switch", text]).get("switch") is value


def test_a_bare_switch_is_on_and_its_no_form_off(parser, yaml_file):
    assert parser.parse(["--switch"]).get("switch") is True
    config = yaml_file("switch: true")
    assert parser.parse(["--config", config, "--no_switch"]).get("switch") is False


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["--names", "a", "b"], "names", ["a", "b"]),
        (["--names", "a"], "names", ["a"]),
        (["--counts", "1", "2"], "counts", [1, 2]),
        (["--kinds", "large", "small"], "kinds", ["large", "small"]),
        (["--extra", '{"a": {"b": [1]}}'], "extra", {"a": {"b": [1]}}),
        (["--parts", '[{"path": "x"}, {"path": "y"}]'], "parts", [{"path": "x"}, {"path": "y"}]),
        (["--parts", '{"path": "x"}'], "parts", [{"path": "x"}]),
        (["--count", "none"], "count", None),
        (["--word", "none"], "word", "none"),
        (["--kind", "large"], "kind", "large"),
    ],
)
def test_lists_mappings_and_words(parser, args, name, value):
    assert parser.parse(args).get(name) == value


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("names: [a, b]", "names", ["a", "b"]),
        ("counts: [1, 2]", "counts", [1, 2]),
        ("kinds: [large]", "kinds", ["large"]),
        ("kinds: large", "kinds", ["large"]),
        ("extra: {a: 1}", "extra", {"a": 1}),
        ("count: null", "count", None),
        ("count: 3.0", "count", 3),
    ],
)
def test_lists_and_mappings_in_yaml(parser, yaml_file, text, name, value):
    assert parser.parse(["--config", yaml_file(text)]).get(name) == value


@pytest.mark.parametrize(
    "args",
    [
        ["--number", "x"],
        ["--count", "1.5"],
        ["--switch", "maybe"],
        ["--kind", "medium"],
        ["--counts", "a"],
        ["--number"],
        ["--num", "1"],
        ["stray"],
        ["--extra", "{"],
    ],
)
def test_a_wrong_value_or_name_is_refused(parser, args):
    with pytest.raises(InputError) as caught:
        parser.parse(args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["number: true", "count: 1.5", "switch: 2", "kind: 3", "names: {a: 1}", "counts: [a]", "x: 1"],
)
def test_a_wrong_value_in_yaml_names_the_file(parser, yaml_file, text):
    with pytest.raises(InputError, match=r"options\.yaml"):
        parser.parse(["--config", yaml_file(text)])


def test_an_env_block_sets_the_environment(parser, yaml_file, monkeypatch):
    monkeypatch.setenv("HF_ALIGN_TEST", "before")
    choices = parser.parse(["--config", yaml_file("env:\n  HF_ALIGN_TEST: 3\nnumber: 2")])
    assert os.environ["HF_ALIGN_TEST"] == "3"
    assert choices.values == {"number": 2.0}


def test_a_file_with_a_mistake_leaves_the_environment(parser, yaml_file, monkeypatch):
    monkeypatch.setenv("HF_ALIGN_TEST", "before")
    with pytest.raises(InputError):
        parser.parse(["--config", yaml_file("env: {HF_ALIGN_TEST: 3}\nnumber: x")])
    assert os.environ["HF_ALIGN_TEST"] == "before"


def test_an_unquoted_no_in_yaml_is_the_word(yaml_file):
    # YAML 1.1 takes it for false.
    choices = dpo.make_parser().parse(["--config", yaml_file("eval_strategy: no")])
    assert choices.get("eval_strategy") == "no"


def test_a_bare_resume_is_the_newest_checkpoint():
    args = ["--resume_from_checkpoint", "--max_steps", "3"]
    assert dpo.make_parser().parse(args).values == {
        "resume_from_checkpoint": "true",
        "max_steps": 3,
    }


def test_withheld_options_are_recorded_and_reach_no_class():
    choices = Choices("test", {"number": 2.0, "word": "x"}, {})
    assert choices.withhold("word", "count") == {"word": "x"}
    assert choices.build(Own).word == "none"
    assert choices.withheld == {"word": "x"}


def test_a_config_is_found_as_given_in_the_clone_and_in_the_wheel(tmp_path, monkeypatch):
    from hf_align.recipes import _parser

    monkeypatch.chdir(tmp_path)
    clone, packaged = tmp_path / "clone", tmp_path / "packaged"
    monkeypatch.setattr(_parser, "_CLONE", clone)
    monkeypatch.setattr(_parser, "_PACKAGED", packaged)
    asked = "recipes/dpo/mine.yaml"
    with pytest.raises(InputError, match=f"--config {asked}: no such file"):
        find_config(asked)
    for root in (packaged, clone, tmp_path / "recipes"):  # each beats the one before
        (root / "dpo").mkdir(parents=True)
        (root / "dpo" / "mine.yaml").write_text("beta: 1")
        assert find_config(asked).resolve() == root / "dpo" / "mine.yaml"
    assert find_config("dpo/mine.yaml") == clone / "dpo" / "mine.yaml"


# The tables are read from source; these hold them against the imported classes.


def trl_classes():
    from trl import DPOConfig, ModelConfig, SFTConfig

    return {
        DPOConfig: options_of_config(DPO_CONFIG),
        SFTConfig: options_of_config(SFT_CONFIG),
        ModelConfig: options_of_config((MODEL_CONFIG,)),
    }


def test_the_tables_have_exactly_the_fields_of_the_classes():
    for cls, table in trl_classes().items():
        assert set(table) == {item.name for item in dataclasses.fields(cls) if item.init}, cls


def test_every_default_passes_through_its_own_option():
    for cls, table in trl_classes().items():
        for item in dataclasses.fields(cls):
            default = item.default
            if default is dataclasses.MISSING:
                made = item.default_factory
                default = None if made is dataclasses.MISSING else made()
            if not item.init or default is None:
                continue
            default = getattr(default, "value", default)
            given = convert(table[item.name], default, "test")
            if item.name == "include_num_input_tokens_seen":
                given, default = given in (False, "no"), True  # two spellings of one value
            assert given == default, f"{cls.__name__}.{item.name}"


@pytest.mark.parametrize("name", ["optim", "lr_scheduler_type", "save_strategy", "eval_strategy"])
def test_enumerations_allow_exactly_what_the_trainer_does(name):
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    enumeration = {
        "optim": OptimizerNames,
        "lr_scheduler_type": SchedulerType,
        "save_strategy": SaveStrategy,
        "eval_strategy": IntervalStrategy,
    }[name]
    choices = options_of_config(DPO_CONFIG)[name].choices
    assert set(choices) == {member.value for member in enumeration}


def compared_with(module, attribute):
    """The constants that a module's source compares a name or attribute with, by == or `in`."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Compare):
            continue
        left = node.left
        if (left.attr if isinstance(left, ast.Attribute) else getattr(left, "id", "")) != attribute:
            continue
        for operand in node.comparators:
            items = operand.elts if isinstance(operand, ast.Tuple | ast.Set) else [operand]
            found |= {item.value for item in items if isinstance(item, ast.Constant)}
    return found


def test_loss_names_are_those_that_trl_implements():
    import trl.trainer.dpo_trainer as dpo_trainer
    import trl.trainer.sft_trainer as sft_trainer

    assert set(CHOICES["DPOConfig"]["loss_type"]) == compared_with(dpo_trainer, "loss_type")
    divergences = compared_with(dpo_trainer, "f_divergence_type")
    assert set(CHOICES["DPOConfig"]["f_divergence_type"]) == divergences
    # TRL 1.14 still has chunked_nll, which 1.16 has not; what is offered works with both.
    implemented = compared_with(sft_trainer, "loss_type") - {"chunked_nll"}
    assert set(CHOICES["SFTConfig"]["loss_type"]) == implemented


def test_losses_with_an_f_divergence_are_those_that_trl_lists():
    import trl.trainer.dpo_trainer as dpo_trainer

    from hf_align.recipes._preflight import _F_DIVERGENCE_LOSSES

    listed = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(inspect.getsource(dpo_trainer)))
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "f_divergence_loss_types"
    ]
    assert listed == [set(_F_DIVERGENCE_LOSSES)]


@pytest.mark.parametrize("recipe", [dpo, sft])
def test_no_option_of_ours_shadows_one_of_trl(recipe):
    parser = recipe.make_parser()  # raises TypeError on a clash
    assert len(parser.options) > len(parser.own) > 10


@pytest.mark.parametrize("recipe", [dpo, sft])
def test_help_shows_every_option_of_ours_and_help_all_every_option(recipe):
    parser = recipe.make_parser()
    short, long = parser.help(everything=False), parser.help(everything=True)
    for name in (*parser.own, *parser.common):
        assert re.search(rf"^  --{name}[ ,]", short, re.MULTILINE)
    for name in parser.options:
        assert re.search(rf"^  --{name}[ ,]", long, re.MULTILINE)
    assert len(short.splitlines()) < len(long.splitlines()) / 3


def test_an_option_table_reads_kinds_choices_and_items():
    table = options_of_dataclass(Own)
    assert table["kind"].choices == ("small", "large")
    assert table["counts"].items == {"int"}
    assert table["count"].kinds == {"int", "none"}
    assert table["number"].help == "A number."


def test_whoever_stops_reading_the_help_gets_no_error():
    command = f"{sys.executable} -m hf_align.recipes.dpo --help_all | head -n 1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.stdout.startswith("Direct Preference Optimization") and not found.stderr
