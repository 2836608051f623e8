"""Options of the explore recipe."""

from __future__ import annotations

from dataclasses import dataclass

from hf_align.configs._option import option


@dataclass
class ExploreArguments:
    """Which runs are shown, and where the page is served."""

    runs: list[str] | None = option(
        None,
        "Run directories, or Hub ids of published runs (datasets/ORG/NAME for best-of-n); without "
        "any, those that a small sweep trains on the testbed.",
    )
    host: str = option("127.0.0.1", "Address to listen at.")
    port: int | None = option(None, "Port; a free one from 7860 without it.")
    output_dir: str = option(
        "outputs/goodhart", "Folder of the sweep's runs, which are trained once."
    )
