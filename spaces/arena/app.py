"""Answers one prompt with several models, side by side. `space.json` says which; see the README."""

import json
import os
from pathlib import Path

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # ZeroGPU; it must come before torch
else:
    spaces = None

import gradio as gr

from hf_align.arena import Arena, Sampling
from hf_align.feedback import open_backup, secret_of
from hf_align.types import InputError
from hf_align.ui import Page, build_arena_app, on_space, open_votes, serve, until, visitors_here

DATA = Path(os.environ.get("DATA", "data"))
MOST_TOKENS, MOST_SECONDS = int(os.environ.get("MOST_TOKENS", "512")), 60


def load() -> Arena:
    """The models of `space.json` at their commits, each set of weights once."""
    listed = json.loads(Path(__file__).with_name("space.json").read_text("utf-8"))["models"]
    revisions = {model["name"]: model["revision"] for model in listed}
    reward_model = os.environ.get("REWARD_MODEL")
    if reward_model and os.environ.get("REWARD_REVISION"):
        revisions[reward_model] = os.environ["REWARD_REVISION"]
    return Arena.open(
        [model["name"] for model in listed if model["name"] != reward_model],
        reward_model=reward_model,
        reference=os.environ.get("REFERENCE"),
        best_of=int(os.environ.get("BEST_OF", "0")),
        revisions=revisions,
        device=os.environ.get("DEVICE") or ("cuda" if spaces else None),
    )


def seconds(prompt: str, sampling: Sampling, keys: tuple[str, ...]) -> int:
    """What a turn asks of the visitor's quota; what it leaves over is not charged."""
    return min(MOST_SECONDS, 1 + int(ARENA.seconds(sampling)))


def answer(prompt: str, sampling: Sampling, keys: tuple[str, ...]):
    """A turn of all its models, measured; on ZeroGPU in a process of its own."""
    try:
        yield from ARENA.stream(prompt, sampling, measures=True, keys=keys)
    except InputError as error:  # of others, only Gradio's come out of that process in words
        raise gr.Error(str(error), print_exception=False) from error


ARENA, PLAY = load(), None
if spaces:
    answer = spaces.GPU(duration=seconds)(answer)
    PLAY = lambda *turn: until(turn[-1], answer(*turn[:-1]))  # noqa: E731


def main() -> None:
    """Opens the store of votes and serves."""
    backup = os.environ.get("BACKUP")
    if backup and not os.environ.get("HF_ALIGN_SECRET"):
        raise SystemExit("BACKUP needs HF_ALIGN_SECRET: 16 characters or more, always the same")
    DATA.mkdir(parents=True, exist_ok=True)
    secret, needs_name = secret_of(DATA), os.environ.get("VOTERS") == "signed_in"
    votes = open_votes(DATA, secret, open_backup(backup) if backup else None, needs_name)
    page = Page(
        os.environ.get("TITLE", "SFT and RLHF, side by side"),
        examples=[line for line in os.environ.get("EXAMPLES", "").splitlines() if line.strip()],
        sampling=Sampling(max_new_tokens=min(256, MOST_TOKENS)),
        most_tokens=MOST_TOKENS,
    )
    demo = build_arena_app(ARENA, visitors_here(secret), page, votes=votes, play=PLAY)
    host = "0.0.0.0" if on_space() else None
    serve(demo, votes.collection, visitors_here(secret), host=host, ready=print, app="arena")


if __name__ == "__main__":
    main()
