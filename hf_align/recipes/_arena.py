"""The work of `arena`: trains the testbed's models where none are named, loads, and serves."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from hf_align.arena import Arena, Sampling
from hf_align.configs import ArenaArguments
from hf_align.feedback import secret_of
from hf_align.files import check_writable
from hf_align.recipes._serving import check_serving
from hf_align.recipes._stages import Stage, run_stages
from hf_align.testbed import build_testbed
from hf_align.types import InputError

RUNS = "runs"

# A verdict needs audits; fewer than these recipes do by themselves suffice for a card.
_BRIEF = ("--num_audit_prompts", "260", "--num_eval_prompts", "260")
_PPO = ("--max_steps", "240", "--audit_steps", "80")
_LORA = ("--use_peft", "--lora_target_modules", "all-linear", "--learning_rate", "1e-3")


def check_options(options: ArenaArguments) -> None:
    """Refuses what cannot be served, before anything is trained or loaded.

    Raises:
        InputError: The app's extra is not installed, or an option that cannot be.
        OSError: The folder cannot be written.
    """
    check_serving("arena", options.port)
    if options.at_once < 1:
        raise InputError(f"at_once is {options.at_once}; give 1 or more")
    if not options.max_new_tokens <= options.most_tokens:
        raise InputError(
            f"max_new_tokens is {options.max_new_tokens}; give at most most_tokens, "
            f"{options.most_tokens}"
        )
    sampling_of(options)
    check_writable("output_dir", Path(options.output_dir).expanduser())


def sampling_of(options: ArenaArguments) -> Sampling:
    """The sampling that the page begins with.

    Raises:
        InputError: A number is out of range.
    """
    return Sampling(options.temperature, options.top_p, options.max_new_tokens, options.seed)


def stages(folder: Path) -> list[Stage]:
    """What is trained on the testbed: a reward model, and three ways away from the reference."""
    reward = str(folder / "reward")
    return [
        Stage("reward", "reward"),
        Stage("dpo", "dpo", ("--audit_steps", "40", *_BRIEF)),
        Stage("ppo", "ppo", ("--reward_model", reward, *_PPO, *_BRIEF), ("reward",)),
        Stage("dpo-lora", "dpo", (*_LORA, "--audit_steps", "80", *_BRIEF)),
    ]


def with_testbed_models(options: ArenaArguments) -> ArenaArguments:
    """The options with the testbed's models, trained where they are not yet.

    Raises:
        InputError: A run was given something it cannot use.
        OSError: A run failed otherwise.
    """
    folder = (Path(options.output_dir).expanduser() / RUNS).resolve()
    reference = folder / "sft"
    # A copy, because people see the folder's name.
    shutil.copytree(build_testbed().policy_path, reference, dirs_exist_ok=True)
    run_stages(stages(folder), folder)
    return replace(
        options,
        models=[str(folder / name) for name in ("sft", "dpo", "ppo", "dpo-lora")],
        reference=str(reference),
        reward_model=options.reward_model or str(folder / "reward"),
    )


def serve(options: ArenaArguments) -> None:
    """Loads the models and serves the page until it is stopped.

    Raises:
        InputError: Nobody can answer.
        OSError: The port is taken, or the store of votes cannot be opened.
    """
    from hf_align.ui import Page, build_arena_app, open_votes, visitors_here
    from hf_align.ui import serve as serve_app

    arena = Arena.open(
        options.models or [],
        reward_model=options.reward_model,
        reference=options.reference,
        best_of=options.best_of,
    )
    for one in arena.contestants:
        if one.problem is not None:
            print(f"{one.name} cannot answer: {one.problem}", file=sys.stderr)
    if arena.reward_problem is not None:
        print(f"answers have no score: {arena.reward_problem}", file=sys.stderr)
    if options.examples:  # the first turn of a process takes a second longer
        list(arena.stream(options.examples[0], Sampling(max_new_tokens=2), measures=True))
    folder = Path(options.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    secret = secret_of(folder)
    votes, visitors = open_votes(folder, secret), visitors_here(secret)
    page = Page(
        options.title,
        examples=options.examples or (),
        sampling=sampling_of(options),
        most_tokens=options.most_tokens,
    )
    demo = build_arena_app(arena, visitors, page, votes=votes, at_once=options.at_once)

    def ready(address: str) -> None:
        print(f"arena: {address}")
        print(f"votes: {votes.collection.store.path}; stop with Ctrl-C", flush=True)

    where = {"host": options.host, "port": options.port}
    try:
        serve_app(demo, votes.collection, visitors, **where, ready=ready, app="arena")
    except KeyboardInterrupt:
        print("\nstopped; the votes are kept")
    finally:
        votes.collection.store.close()
