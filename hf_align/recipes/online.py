# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = []  # this library comes by --with: see the README
# ///
"""Rounds of RLHF: compare what the policy writes now, train the reward model again, optimise.

A round draws pairs from the current policy on prompts of its own, has them judged by simulated
annotators or people, mixes them with the older pairs, trains a reward model on all, optimises the
policy against it with PPO, and says whether the old reward model still held (Bai et al. 2022,
https://huggingface.co/papers/2204.05862). It ends by gold, by KL, or after --rounds; stopped or
killed, the same command goes on. Without arguments: the built-in testbed.

    python -m hf_align.recipes.online
    python -m hf_align.recipes.online --annotators people --output_dir outputs/with-people
    python -m hf_align.recipes.online --model ORG/SFT --dataset_name prompts.jsonl \\
        --judge llm:MODEL --gold_reward ORG/HELD_OUT_JUDGE --max_kl 20 \\
        --push_to_hub --hub_model_id ORG/POLICY --hub_dataset_id ORG/PAIRS
"""

import time

from hf_align.configs import JudgeArguments, OnlineArguments, PublishingArguments
from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._run import recipe

OWN = (OnlineArguments, JudgeArguments, PublishingArguments)


def make_parser() -> RecipeParser:
    """The recipe's options."""
    return RecipeParser("online", __doc__, OWN)


@recipe
def main(args: list[str] | None = None) -> None:
    """Runs the recipe."""
    parser = make_parser()
    choices = parser.parse(args)
    if choices.config is None and choices.get("dataset_name") in (None, "testbed"):
        choices = parser.with_config(choices, "recipes/online/testbed.yaml")

    from hf_align.recipes import _online_stages as rounds

    options, judging = rounds.settled(choices)

    from hf_align.recipes import _online_report as report
    from hf_align.recipes._online_publishing import check_rounds, publish_round, publish_run
    from hf_align.recipes._online_rounds import read_round, stop_reason, wait_for_people
    from hf_align.recipes._stages import run_stages

    folder = report.check_output(options)
    destinations = check_rounds(choices, options, folder)
    rounds.check_sources(options, judging)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    plan = rounds.Plan(options, judging, folder)
    run_stages([plan.prompts()], folder, 1)
    plan.check_prompts()
    done, stop = [], None
    while stop is None:
        number = len(done) + 1
        if options.annotators == "people":
            run_stages(plan.until(number, "ask"), folder, 1)
            waiting = wait_for_people(folder, number)
            if waiting is not None:
                print(waiting)
                return
        run_stages(plan.until(number), folder, 1)
        done.append(read_round(folder, number))
        publish_round(folder, number, destinations)
        stop = stop_reason(done, options)
        facts = report.write(choices, options, judging, folder, done, stop, started)
        print(report.round_line(facts), flush=True)
    print(report.closing_page(facts, folder))
    publish_run(folder, destinations)


if __name__ == "__main__":
    main()
