"""The work of `explore`: which runs, trained on the testbed where none are named, and the page."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from hf_align.configs import ExploreArguments
from hf_align.files import check_writable
from hf_align.recipes._serving import check_serving
from hf_align.types import InputError

if TYPE_CHECKING:
    from hf_align.ui import Source

RUNS = "runs"
_DATASETS = "datasets/"


def check_options(options: ExploreArguments) -> None:
    """Refuses what cannot be served, before anything is trained.

    Raises:
        InputError: The app's extra is not installed, a port that is none, or a folder without a
            run.
    """
    check_serving("explore", options.port)
    for name in options.runs or ():
        folder = Path(name).expanduser()
        if folder.is_dir() and not (folder / "run.json").is_file():
            raise InputError(f"runs {name}: the folder holds no run (no run.json); name a run's")
        if not folder.is_dir() and name.removeprefix(_DATASETS).count("/") != 1:
            raise InputError(f"runs {name}: no such folder, and not a Hub id of the form org/name")


def train_runs(options: ExploreArguments) -> list[str]:
    """The testbed's sweep and a best-of-n, in the folder where `goodhart` has its sweep too.

    Raises:
        OSError: A run failed, or the folder cannot be written.
    """
    from hf_align.recipes._goodhart_sweep import SWEEP, train_sweep

    folder = Path(options.output_dir)
    check_writable("output_dir", folder)
    return train_sweep(folder / RUNS, SWEEP | {"best-of-n": ("best_of_n",)})


def sources_of(names: list[str]) -> list[Source]:
    """Where the named runs are.

    Raises:
        InputError: One is named twice.
    """
    from hf_align.ui import Source

    if len(set(names)) < len(names):
        raise InputError("a run is named twice; name each once")
    return [
        Source(name.removeprefix(_DATASETS), None, "dataset")
        if name.startswith(_DATASETS) and not Path(name).is_dir()
        else Source(name)
        for name in names
    ]


def serve(sources: list[Source], options: ExploreArguments) -> None:
    """Serves the page until it is stopped.

    Raises:
        OSError: The port is taken.
    """
    from hf_align.ui import build_explorer_app, serve_explorer

    # Who can open the page could read what this machine's token may: only its owner adds runs.
    demo = build_explorer_app(sources, allow_others=_is_loopback(options.host))

    def ready(address: str) -> None:
        print(f"explorer: {address}")
        print("stop with Ctrl-C", flush=True)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        serve_explorer(demo, host=options.host, port=options.port, ready=ready)
    except KeyboardInterrupt:
        print("\nstopped")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
