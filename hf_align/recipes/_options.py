"""Tables of options, read from the source of dataclasses without importing them.

TRL's and transformers' configuration classes import torch, which takes seconds. Their fields are
plain annotated assignments, so `ast` gives names, types, defaults and help texts in milliseconds:
`--help` answers at once and a misspelt key is refused before anything heavy loads.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_align.types import InputError

TRAINING_ARGUMENTS = ("transformers", "training_args.py", "TrainingArguments")
BASE_CONFIG = ("trl", "trainer/base_config.py", "_BaseConfig")
MODEL_CONFIG = ("trl", "trainer/model_config.py", "ModelConfig")
SFT_CONFIG = (TRAINING_ARGUMENTS, BASE_CONFIG, ("trl", "trainer/sft_config.py", "SFTConfig"))
REWARD_CONFIG = (
    TRAINING_ARGUMENTS,
    BASE_CONFIG,
    ("trl", "trainer/reward_config.py", "RewardConfig"),
)
DPO_CONFIG = (TRAINING_ARGUMENTS, BASE_CONFIG, ("trl", "trainer/dpo_config.py", "DPOConfig"))
_OURS = ("hf_align", "trainers/on_policy_config.py")
ON_POLICY_CONFIG = (
    TRAINING_ARGUMENTS,
    BASE_CONFIG,
    ("trl", "trainer/rloo_config.py", "RLOOConfig"),
    (*_OURS, "OnPolicyConfig"),
)
PPO_CONFIG = (*ON_POLICY_CONFIG, (*_OURS, "PPOConfig"))
REINFORCE_CONFIG = (*ON_POLICY_CONFIG, (*_OURS, "ReinforceConfig"))

# TRL checks these names at the first training step, after the model has loaded and the data are
# tokenised.
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "DPOConfig": {
        "loss_type": (
            "sigmoid",
            "hinge",
            "ipo",
            "exo_pair",
            "nca_pair",
            "robust",
            "bco_pair",
            "sppo_hard",
            "aot",
            "aot_unpaired",
            "apo_zero",
            "apo_down",
            "discopop",
            "sft",
            "sigmoid_norm",
        ),
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    },
    "SFTConfig": {"loss_type": ("nll", "dft")},
}

# Enumerations that TrainingArguments takes by their values.
_ENUMERATIONS = (("transformers", "training_args.py"), ("transformers", "trainer_utils.py"))

_MANY = 16
"""More choices than this are not listed in a message."""

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Option:
    """One field of a configuration class.

    Attributes:
        name: Field name, which is the YAML key and the `--flag`.
        kinds: Accepted types, out of str, int, float, bool, list, dict, none.
        choices: Allowed values; empty where any value of the right type will do.
        items: For a list, the kinds of its items.
        default: The default as Python source, for the help text.
        help: What the option does.
        owner: Class that has the field.
    """

    name: str
    kinds: frozenset[str]
    choices: tuple[str, ...]
    items: frozenset[str]
    default: str
    help: str
    owner: str


def options_of_dataclass(cls: type) -> dict[str, Option]:
    """The options of a dataclass that is already imported (its annotations are strings)."""
    table = {}
    for item in fields(cls):
        kinds, choices, items = _read_annotation(ast.parse(str(item.type), mode="eval").body)
        default = "" if item.default is MISSING else repr(item.default)
        help_text = item.metadata.get("help", "")
        table[item.name] = Option(
            item.name, kinds, choices, items, default, help_text, cls.__name__
        )
    return table


@lru_cache
def options_of_source(package: str, file: str, class_name: str) -> dict[str, Option]:
    """The options of a dataclass in an installed package, read from its source alone."""
    tree = _syntax_tree(package, file)
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    table = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            option = _read_field(node, class_name)
            if option is not None:
                table[option.name] = option
    return table


@lru_cache
def _syntax_tree(package: str, file: str) -> ast.Module:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise OSError(f"{package} is not installed; run `pip install {package}`")
    return ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))


@lru_cache
def _enumerations() -> dict[str, tuple[str, ...]]:
    """The values of transformers' string enumerations, by class name."""
    return {
        node.name: tuple(
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign)
            and isinstance(item.value, ast.Constant)
            and isinstance(item.value.value, str)
        )
        for source in _ENUMERATIONS
        for node in _syntax_tree(*source).body
        if isinstance(node, ast.ClassDef) and "ExplicitEnum" in map(ast.unparse, node.bases)
    }


def options_of_config(sources: tuple[tuple[str, str, str], ...]) -> dict[str, Option]:
    """The options of a class and its parents, parents first; a child's field replaces its own."""
    table: dict[str, Option] = {}
    for source in sources:
        table.update(options_of_source(*source))
    return table


def _read_field(node: ast.AnnAssign, owner: str) -> Option | None:
    annotation = ast.unparse(node.annotation)
    if annotation.startswith("ClassVar") or node.target.id.startswith("_"):
        return None
    kinds, choices, items = _read_annotation(node.annotation)
    default, help_text = ("", "") if node.value is None else (ast.unparse(node.value), "")
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "_option":
        default, help_text = ast.unparse(node.value.args[0]), _text_of(node.value.args[1])
    elif isinstance(node.value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
        if isinstance(keywords.get("init"), ast.Constant) and keywords["init"].value is False:
            return None
        default = ast.unparse(keywords["default"]) if "default" in keywords else ""
        if isinstance(keywords.get("default_factory"), ast.Lambda):
            default = ast.unparse(keywords["default_factory"].body)
        metadata = keywords.get("metadata")
        if isinstance(metadata, ast.Dict):
            entries = {
                key.value: value
                for key, value in zip(metadata.keys, metadata.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            help_text = _text_of(entries.get("help"))
            if isinstance(entries.get("choices"), ast.List):
                choices = tuple(ast.literal_eval(entries["choices"]))
    choices = CHOICES.get(owner, {}).get(node.target.id, choices)
    return Option(node.target.id, kinds, choices, items, default, help_text, owner)


def _text_of(node: ast.expr | None) -> str:
    """The text of a help entry: a constant, or constants added up; anything else has none."""
    if isinstance(node, ast.BinOp):
        return _text_of(node.left) + _text_of(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _read_annotation(node: ast.expr) -> tuple[frozenset[str], tuple[str, ...], frozenset[str]]:
    """What an annotation accepts: kinds, Literal values, and the kinds of a list's items."""
    if isinstance(node, ast.BinOp):
        left, right = _read_annotation(node.left), _read_annotation(node.right)
        return left[0] | right[0], left[1] + right[1], left[2] | right[2]
    if isinstance(node, ast.Constant) and node.value is None:
        return frozenset({"none"}), (), frozenset()
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _read_annotation(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value)
        if name == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            literals = [value.value for value in values if isinstance(value, ast.Constant)]
            kinds = {"bool" if isinstance(value, bool) else "str" for value in literals}
            return frozenset(kinds), tuple(v for v in literals if isinstance(v, str)), frozenset()
        if name in ("Optional", "Union"):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            read = [_read_annotation(part) for part in parts]
            kinds = frozenset().union(*(part[0] for part in read))
            kinds |= {"none"} if name == "Optional" else set()
            choices = tuple(choice for part in read for choice in part[1])
            return kinds, choices, frozenset().union(*(part[2] for part in read))
        if name == "list":
            items, choices, _ = _read_annotation(node.slice)
            return frozenset({"list"}), choices, items
        if name == "dict":
            return frozenset({"dict"}), (), frozenset()
    name = ast.unparse(node)
    # Enumerations and configuration classes take a string (or a dict) where people write them.
    if name in ("str", "int", "float", "bool", "list", "dict"):
        return frozenset({name}), (), frozenset()
    values = _enumerations().get(name, ())
    return frozenset({"str"} if values else {"str", "dict"}), values, frozenset()


def convert(option: Option, value: Any, origin: str) -> Any:
    """The value as the option's type, from YAML (any type) or the command line (a string).

    Raises:
        InputError: The value has the wrong type or is not one of the choices; names where it came
            from.
    """
    if isinstance(value, list) and ("list" in option.kinds or option.choices):
        items = option.items or option.kinds
        return [_convert_one(option, item, items, origin) for item in value]
    return _convert_one(option, value, option.kinds, origin)


def _convert_one(option: Option, value: Any, kinds: frozenset[str], origin: str) -> Any:
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if value == "none" and option.default == "'none'":
            return value  # a word of its own, as in report_to
        if "none" in kinds:
            return None
        if value is None:
            raise _wrong(option, value, origin)
    if option.choices and isinstance(value, str):
        if value in option.choices:
            return [value] if kinds - {"none"} == {"list"} else value
        raise _wrong(option, value, origin)
    if isinstance(value, bool):
        if "bool" in kinds:
            return value
        if value is False and "no" in option.choices:
            return "no"  # YAML 1.1 reads an unquoted `no` as false
        raise _wrong(option, value, origin)
    if isinstance(value, int | float):
        if "int" in kinds and float(value).is_integer():
            return int(value)
        if "float" in kinds:
            return float(value)
        raise _wrong(option, value, origin)
    if isinstance(value, list | dict):
        if ("list" if isinstance(value, list) else "dict") in kinds:
            return value
        raise _wrong(option, value, origin)
    return _convert_text(option, str(value), kinds, origin)


def _convert_text(option: Option, text: str, kinds: frozenset[str], origin: str) -> Any:
    # YAML 1.1 reads 5e-7 (no dot) as a string, so numbers arrive as text from files too.
    for kind, read in (("int", int), ("float", float)):
        if kind in kinds:
            try:
                return read(text)
            except ValueError:
                continue
    if "bool" in kinds and text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if kinds & {"str", "dict"}:
        return text
    if kinds - {"none"} == {"list"} and option.items & {"str", "dict"}:
        return [text]
    raise _wrong(option, text, origin)


def _wrong(option: Option, value: Any, origin: str) -> InputError:
    if len(option.choices) > _MANY:
        near = difflib.get_close_matches(str(value), option.choices, n=3) or option.choices[:3]
        wanted = f"one of the {len(option.choices)} that --help_all lists, such as "
        wanted += ", ".join(repr(choice) for choice in near)
    elif option.choices:
        wanted = "one of " + ", ".join(repr(choice) for choice in option.choices)
    else:
        names = {
            "str": "text",
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
        }
        names |= {"list": "a list", "dict": "a mapping", "none": "null"}
        wanted = " or ".join(names[kind] for kind in sorted(option.kinds) if kind != "none")
    return InputError(f"{option.name} must be {wanted}; got {value!r} ({origin})")
