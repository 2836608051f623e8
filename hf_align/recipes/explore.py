# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = []  # this library comes by --with: see the README
# ///
"""Shows finished runs on a page of this machine: gold and proxy along the KL axis, to walk along.

At every audited distance the policy's completions are read beside the reference's; several runs are
compared at equal KL, with their verdicts; best-of-n is tried for any n, and another KL coefficient
as far as a run's curve can say. Without runs: the testbed's sweep, trained once and kept.

    python -m hf_align.recipes.explore
    python -m hf_align.recipes.explore outputs/ppo outputs/dpo ORG/RUN datasets/ORG/BEST_OF_N
"""

from hf_align.configs import ExploreArguments
from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._run import recipe

OWN = (ExploreArguments,)


def make_parser() -> RecipeParser:
    """The recipe's options."""
    return RecipeParser("explore", __doc__, OWN, positional="runs")


@recipe
def main(args: list[str] | None = None) -> None:
    """Runs the recipe."""
    parser = make_parser()
    choices = parser.parse(args)
    if choices.get("runs") is None and choices.config is None:
        choices = parser.with_config(choices, "recipes/explore/testbed.yaml")
    options = choices.build(ExploreArguments)

    from hf_align.recipes import _explore as work

    work.check_options(options)
    runs = options.runs or work.train_runs(options)
    work.serve(work.sources_of(runs), options)


if __name__ == "__main__":
    main()
