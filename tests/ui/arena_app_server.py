"""The arena as a process of its own, without models: `arena_app_server.py FOLDER PORT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_arena import FakeArena
from ui_world import SECRET

from hf_align.arena import Sampling
from hf_align.ui import serve
from hf_align.ui.arena import build_arena_app
from hf_align.ui.arena_page import Page
from hf_align.ui.arena_turns import open_votes
from hf_align.ui.visitors import Visitors


def main():
    """Serves until killed."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    votes = open_votes(folder, SECRET)
    visitors = Visitors(SECRET)
    page = Page(
        "SFT and RLHF, side by side",
        examples=["Why is the sky blue?", "mention tea rain books music :"],
        sampling=Sampling(max_new_tokens=64, seed=7),
    )
    demo = build_arena_app(FakeArena(pause=0.03), visitors, page, votes=votes)
    serve(
        *(demo, votes.collection, visitors),
        port=port,
        ready=lambda _: print("ready", flush=True),
        app="arena",
    )


if __name__ == "__main__":
    main()
