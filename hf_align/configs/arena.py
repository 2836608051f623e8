"""Options of the arena recipe."""

from __future__ import annotations

from dataclasses import dataclass

from hf_align.configs._option import option


@dataclass
class ArenaArguments:
    """Who answers, how, and where the page is served."""

    models: list[str] | None = option(
        None,
        "Who answers: folders, runs or Hub ids, LoRA adapters among them, or "
        "best_of_n:16:ORG/MODEL; without any, what is trained on the testbed.",
    )
    reward_model: str | None = option(None, "Scores the answers: folder or Hub id.")
    reference: str | None = option(
        None,
        "What the others are held against; the first that was not trained from another without it.",
    )
    best_of: int = option(0, "From 2 on, the best of so many answers of the reference joins in.")
    output_dir: str = option("outputs/arena", "Folder of the votes, and of what is trained.")

    title: str = option("SFT and RLHF, side by side", "Heading of the page.")
    examples: list[str] | None = option(None, "Prompts that the page offers to begin with.")
    temperature: float = option(0.7, "Of the sampling, to begin with; 0 for greedy.")
    top_p: float = option(1.0, "Of the sampling, to begin with.")
    max_new_tokens: int = option(256, "Longest answer in tokens, to begin with.")
    most_tokens: int = option(1024, "Longest answer that a visitor may ask for.")
    seed: int = option(0, "Of the sampling, to begin with.")
    at_once: int = option(4, "Turns that are answered at a time; further visitors wait.")
    host: str = option("127.0.0.1", "Address to listen at.")
    port: int | None = option(None, "Port; a free one from 7860 without it.")
