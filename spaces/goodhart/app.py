"""Published runs along the KL axis. Which ones is said in space.json, or by the variable RUNS."""

import json
import os
from pathlib import Path

from huggingface_hub import get_token

from hf_align.ui import Source, build_explorer_app, on_space, serve_explorer

DATASETS = "datasets/"


def sources() -> list[Source]:
    """The runs to show: those of RUNS at their newest commit, or those that were published with."""
    named = os.environ.get("RUNS", "").replace(",", " ").split()
    if named:
        return [
            Source(name.removeprefix(DATASETS), None, kind_of(name.startswith(DATASETS)), True)
            for name in named
        ]
    file = Path(__file__).with_name("space.json")
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [
        Source(entry["name"], entry["revision"], kind_of(role == "datasets"), True)
        for role in ("models", "datasets")
        for entry in settings.get(role, [])
    ]


def kind_of(is_dataset: bool) -> str:
    """The kind of a repo."""
    return "dataset" if is_dataset else "model"


def main() -> None:
    """Serves; without a token visitors may add what everyone may read."""
    demo = build_explorer_app(sources(), allow_others=get_token() is None)
    serve_explorer(demo, host="0.0.0.0" if on_space() else None, ready=print)


if __name__ == "__main__":
    main()
