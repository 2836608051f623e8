# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = []  # this library comes by --with: see the README
# ///
"""Compares methods in one table: win rate, reward, KL, length, diversity and cost.

Samples every policy on the same prompts with the same settings, judges it against a reference, and
writes the table of AlpacaFarm (https://huggingface.co/papers/2305.14387, table 2) with an interval
for each number, rewards over KL, and win rates over the sampling temperature. Policies may be
decoded in other ways: `best_of_n:<n>:<model>`, `urial:<base>`. Without any it builds the whole
table on the testbed, three seeds of ten methods; the same command again goes on where it stopped.

    python -m hf_align.recipes.compare
    python -m hf_align.recipes.compare dpo=outputs/dpo ppo=outputs/ppo best_of_n:16:ORG/SFT \\
        --reference ORG/SFT --dataset_name prompts.jsonl --reward_model ORG/RM --judge llm:MODEL
"""

from hf_align.configs import CompareArguments, JudgeArguments, PublishingArguments
from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._publishing import check_publishing, publish_output
from hf_align.recipes._run import recipe

OWN = (CompareArguments, JudgeArguments, PublishingArguments)


def make_parser() -> RecipeParser:
    """The recipe's options."""
    return RecipeParser("compare", __doc__, OWN, positional="policies")


@recipe
def main(args: list[str] | None = None) -> None:
    """Runs the recipe."""
    parser = make_parser()
    choices = parser.parse(args)
    if choices.get("policies") is None and choices.config is None:
        choices = parser.with_config(choices, "recipes/compare/testbed.yaml")
    judge = choices.build(JudgeArguments)

    from hf_align.recipes import _compare_inputs as inputs
    from hf_align.recipes import _compare_report as report
    from hf_align.recipes import _compare_sampling as sampling

    options = inputs.check_options(choices.build(CompareArguments), judge)
    path = inputs.check_output(options)
    destination = check_publishing(choices, path, what="report")
    judges = sampling.find_judge(judge)
    prompts, columns = inputs.read_prompts(options)
    comparison = sampling.sample(path, options, prompts, columns)
    facts = report.write(path, choices, options, judge, judges, comparison)
    print(report.closing_page(facts, path))
    publish_output(path, destination, "report")


if __name__ == "__main__":
    main()
