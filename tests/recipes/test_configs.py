"""Every YAML that ships parses into its recipe's dataclasses, from the clone and from the wheel."""

import importlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name != "accelerate"
)
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
WITHOUT_TRAINER = {
    "arena",
    "collect",
    "compare",
    "evaluate",
    "explore",
    "filter",
    "best_of_n",
    "goodhart",
    "study",
    "annotate",
    "hhh",
    "publish",
    "online",
}


def name_of(path):
    return path.relative_to(ROOT / "recipes").as_posix()


def trl_config(recipe):
    import trl

    from hf_align.trainers import PPOConfig, ReinforceConfig

    ours = {"ppo": PPOConfig, "rloo": ReinforceConfig, "expert_iteration": trl.SFTConfig}
    return {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig, **ours}[recipe]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_yaml_builds_every_dataclass(path, tmp_path):
    from trl import ModelConfig

    module = importlib.import_module(f"hf_align.recipes.{path.parent.name}")
    choices = module.make_parser().parse(["--config", str(path)])
    for own in module.OWN:
        choices.build(own)
    if path.parent.name in WITHOUT_TRAINER:
        return
    choices.build(ModelConfig)
    machine = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True}
    config = choices.build(trl_config(path.parent.name), machine)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in written.keys() & vars(config).keys() - {"output_dir"}:
        value = choices.values[key]
        assert getattr(config, key) == value, key


def test_every_recipe_with_a_config_folder_has_a_testbed_config():
    for folder in {path.parent for path in RECIPES}:
        assert (folder / "testbed.yaml").is_file(), folder.name


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_gpu_configs_say_that_they_are_not_measured(path):
    header = path.read_text(encoding="utf-8").splitlines()[0]
    assert path.stem.startswith("testbed") or "Not yet measured" in header


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_yaml_is_one_that_accelerate_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes == 8
