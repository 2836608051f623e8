"""The command line of a recipe: flat YAML, overridden by flags, checked before torch is imported.

Precedence is flag, then YAML, then default. Unknown keys, wrong types and misspelt choices fail in
one line that names the key, the value, where it came from, and what is allowed.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hf_align.hub.secrets import holds_password, own_secrets
from hf_align.recipes._options import Option, convert, options_of_config, options_of_dataclass
from hf_align.types import InputError

# TrainingArguments takes a path or a word here; on the command line the flag alone means "true".
_BARE = ("resume_from_checkpoint",)

# What these inherited options do here differs from what their classes say.
_HELP = {
    "push_to_hub": "Publish the finished run in one commit, private by default.",
    "hub_model_id": "Repo to publish to, org/name; without it your own, named as the output_dir.",
    "hub_private_repo": "Whether the published repo is private; it is unless this is false.",
    "resume_from_checkpoint": "Go on from the newest checkpoint of output_dir, or the one named.",
    "output_dir": "The run directory; outputs/<recipe> without it.",
}

# Another way to write a flag.
_ALIASES = {"model_name_or_path": "--model"}

_PACKAGED = Path(__file__).parent / "configs"
_CLONE = Path(__file__).parents[2] / "recipes"


@dataclass
class Choices:
    """What the user chose: explicit values only, each with the place it came from.

    Attributes:
        recipe: Name of the recipe.
        values: `{option: value}`, from the YAML file and the command line.
        origins: `{option: "command line" | path of the YAML file}`.
        command: The command line as it was typed.
        config: The YAML file that was read, if any.
        withheld: Options that are recorded, but that no configuration class is to see.
    """

    recipe: str
    values: dict[str, Any]
    origins: dict[str, str]
    command: list[str] = field(default_factory=list)
    config: str | None = None
    withheld: dict[str, Any] = field(default_factory=dict)

    def withhold(self, *names: str) -> dict[str, Any]:
        """Takes options out of `values`, so that only we see them; returns those that were set."""
        self.withheld |= {name: self.values.pop(name) for name in names if name in self.values}
        return {name: self.withheld[name] for name in names if name in self.withheld}

    def build(self, cls: type, defaults: dict[str, Any] | None = None) -> Any:
        """An instance of a configuration dataclass: its defaults, then `defaults`, then the user's
        values.

        Raises:
            InputError: The class refuses a combination of values; its own message, on one line.
        """
        names = {name for name, item in cls.__dataclass_fields__.items() if item.init}
        chosen = dict(defaults or {}) | {k: v for k, v in self.values.items() if k in names}
        try:
            return cls(**chosen)
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise InputError(f"{cls.__name__}: {' '.join(str(error).split())}") from error

    def get(self, name: str, default: Any = None) -> Any:
        """The user's value of an option, or `default` where the user said nothing."""
        return self.values.get(name, default)


class _ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


class RecipeParser:
    """Parses one recipe's options without importing the classes that will receive them.

    Args:
        recipe: Module name of the recipe, which is also its folder under `recipes/`.
        description: What the recipe does, shown first by `--help`.
        own: Our argument dataclasses.
        config: Sources of TRL's configuration class (see `_options`), parents first.
        common: Names of the trainer and model options that `--help` shows; the rest need
            `--help_all`.
        positional: An option that may also be given without its flag.
    """

    def __init__(
        self,
        recipe: str,
        description: str,
        own: Iterable[type],
        config: tuple[tuple[str, str, str], ...] = (),
        common: Iterable[str] = (),
        positional: str | None = None,
    ):
        self.recipe, self.description, self.positional = recipe, description, positional
        self.own: dict[str, Option] = {}
        for cls in own:
            self.own.update(options_of_dataclass(cls))
        inherited = options_of_config(config)
        clash = sorted(self.own.keys() & inherited.keys())
        if clash:
            raise TypeError(f"options defined twice: {clash}")
        self.options = self.own | inherited
        self.common = [name for name in common if name in inherited]

    def parse(self, args: list[str] | None = None) -> Choices:
        """Reads the command line and its YAML file; prints help and exits where that was asked.

        Raises:
            InputError: An unknown option, a wrong value, or a YAML file that cannot be read.
        """
        args = list(sys.argv[1:] if args is None else args)
        if "--help" in args or "-h" in args or "--help_all" in args:
            _print_page(self.help(everything="--help_all" in args))
            raise SystemExit(0)
        flags, config = self._parse_flags(args)
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        path = None
        if config is not None:
            path = find_config(config)
            for key, value in self._read_yaml(path).items():
                values[key], origins[key] = value, str(config)
        values.update(flags)
        origins.update(dict.fromkeys(flags, "command line"))
        own = own_secrets()
        for name, value in values.items():
            if holds_password(value, own):
                raise InputError(
                    f"{name} ({origins[name]}) holds a token or a password, which would be written "
                    "into the run; set HF_TOKEN or run `hf auth login` instead"
                )
        return Choices(self.recipe, values, origins, args, str(config) if config else None)

    def with_config(self, choices: Choices, config: str) -> Choices:
        """The choices with a YAML file's values filled in where the user said nothing."""
        read = self._read_yaml(find_config(config))
        return Choices(
            choices.recipe,
            read | choices.values,
            dict.fromkeys(read, config) | choices.origins,
            choices.command,
            choices.config or config,
        )

    def _parse_flags(self, args: list[str]) -> tuple[dict[str, Any], str | None]:
        parser = _ArgumentParser(
            prog=f"python -m hf_align.recipes.{self.recipe}",
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        parser.add_argument("--config")
        if self.positional:
            several = "list" in self.options[self.positional].kinds
            parser.add_argument("positional_value", nargs="*" if several else "?")
        for option in self.options.values():
            bare = "bool" in option.kinds or option.name in _BARE
            nargs = "?" if bare else "+" if "list" in option.kinds else None
            extra = {"const": "true" if option.name in _BARE else True} if nargs == "?" else {}
            flags = [f"--{option.name}", *filter(None, [_ALIASES.get(option.name)])]
            parser.add_argument(*flags, nargs=nargs, **extra)
            if "bool" in option.kinds:
                parser.add_argument(
                    f"--no_{option.name}", dest=option.name, action="store_const", const=False
                )
        known, unknown = parser.parse_known_args(args)
        if unknown:
            raise self._unknown(unknown[0].split("=")[0].lstrip("-"), "command line", unknown[0])
        flags = vars(known)
        config = flags.pop("config", None)
        positional = flags.pop("positional_value", None)
        if positional is not None:
            flags.setdefault(self.positional, positional)
        return {
            name: convert(
                self.options[name], _parse_structured(self.options[name], value), "command line"
            )
            for name, value in flags.items()
        }, config

    def _read_yaml(self, path: Path) -> dict[str, Any]:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise InputError(f"{path} must be a mapping of options to values")
        environment = content.pop("env", None) or {}
        if not isinstance(environment, dict):
            raise InputError(f"env must be a mapping of names to values ({path})")
        for key in content:
            if key not in self.options:
                raise self._unknown(str(key), str(path), str(key))
        values = {
            key: convert(self.options[key], value, str(path)) for key, value in content.items()
        }
        os.environ.update({str(name): str(value) for name, value in environment.items()})
        return values

    def _unknown(self, name: str, origin: str, shown: str) -> InputError:
        aliases = [alias.lstrip("-") for alias in _ALIASES.values()]
        near = difflib.get_close_matches(name, [*self.options, *aliases], n=1)
        if not shown.startswith("-") and origin == "command line" and not near:
            return InputError(f"{shown!r} follows no option; for data, --dataset_name {shown}")
        hint = f"; did you mean {near[0]!r}?" if near else "; --help_all lists every option"
        return InputError(f"unknown option {shown!r} ({origin}){hint}")

    def help(self, everything: bool) -> str:
        """The text of `--help`, or of `--help_all`, which lists every inherited option too."""
        lines = [textwrap.dedent(self.description).strip(), "", "options:"]
        lines += self._describe("config", "FILE", "Flat YAML file; flags beat it.", "")
        lines += [line for option in self.own.values() for line in self._line(option)]
        shown = [self.options[name] for name in self.common]
        if everything:
            shown = [option for name, option in self.options.items() if name not in self.own]
        if shown:
            lines += ["", "trainer and model options (TRL's own names and defaults):"]
            lines += [line for option in shown for line in self._line(option)]
        if not everything and len(self.options) > len(self.own) + len(shown):
            lines += ["", "--help_all lists every inherited option."]
        return "\n".join(lines)

    def _line(self, option: Option) -> list[str]:
        shown = option.choices or sorted(option.kinds - {"none"})
        text = _HELP.get(option.name, option.help)
        return self._describe(option.name, "|".join(shown), text, option.default)

    def _describe(self, name: str, kind: str, text: str, default: str) -> list[str]:
        text = " ".join(text.replace("%%", "%").split())
        if default and default != "None":
            text += f" [{default}]"
        body = textwrap.wrap(text, 72, initial_indent=" " * 6, subsequent_indent=" " * 6)
        alias = f", {_ALIASES[name]}" if name in _ALIASES else ""
        return [f"  --{name}{alias} {kind}", *body]


def _print_page(text: str) -> None:
    """Prints a long text; whoever stops reading, as `| head` does, has seen enough."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def find_config(config: str) -> Path:
    """A YAML file by its path, or by its path under `recipes/`, in the clone or in the installed
    wheel.

    Raises:
        InputError: No such file.
    """
    given = Path(config)
    shipped = Path(*given.parts[1:]) if given.parts[:1] == ("recipes",) else given
    for candidate in (given, _CLONE / shipped, _PACKAGED / shipped):
        if candidate.is_file():
            return candidate
    raise InputError(f"--config {config}: no such file")


def _parse_structured(option: Option, value: Any) -> Any:
    """On the command line a mapping, or a list of mappings, is written as JSON or YAML."""
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    takes_mapping = "dict" in option.kinds or "dict" in option.items
    if takes_mapping and isinstance(text, str) and text.startswith(("{", "[")):
        try:
            read = yaml.safe_load(text)
            return [read] if isinstance(read, dict) and "dict" not in option.kinds else read
        except yaml.YAMLError as error:
            raise InputError(f"--{option.name} {text!r} is not a JSON mapping") from error
    return value
