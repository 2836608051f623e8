# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = []  # this library comes by --with: see the README
# ///
"""Serves a page on which several models answer one prompt side by side, and people vote blind.

Each answer shows its reward-model score, its implicit reward, its length, log π/π_ref, and where
the reference would have written otherwise. Votes go into a store that `collect export` reads.
Without models: a reference, DPO, PPO and a DPO adapter, trained on the testbed once and kept.

    python -m hf_align.recipes.arena
    python -m hf_align.recipes.arena --models ORG/SFT ORG/DPO outputs/ppo --reward_model ORG/REWARD
"""

from hf_align.configs import ArenaArguments
from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._run import recipe

OWN = (ArenaArguments,)


def make_parser() -> RecipeParser:
    """The recipe's options."""
    return RecipeParser("arena", __doc__, OWN)


@recipe
def main(args: list[str] | None = None) -> None:
    """Runs the recipe."""
    parser = make_parser()
    choices = parser.parse(args)
    if choices.get("models") is None and choices.config is None:
        choices = parser.with_config(choices, "recipes/arena/testbed.yaml")
    options = choices.build(ArenaArguments)

    from hf_align.recipes import _arena as work

    work.check_options(options)
    if options.models is None:
        options = work.with_testbed_models(options)
    work.serve(options)


if __name__ == "__main__":
    main()
