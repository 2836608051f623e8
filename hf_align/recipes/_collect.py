"""The work of `collect` but for preparing: opens the store, serves, tells, exports, pushes."""

from __future__ import annotations

import secrets
import shlex
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hf_align.configs import CollectArguments, DestinationArguments
from hf_align.feedback import (
    Collection,
    ExportOptions,
    Output,
    Store,
    agreement,
    load_votes,
    open_backup,
    open_collection,
    progress,
    quality,
    secret_of,
    write_export,
)
from hf_align.files import check_writable
from hf_align.hub import push_dataset
from hf_align.recipes._closing import python_command
from hf_align.recipes._collect_prepare import prepare_project
from hf_align.recipes._parser import Choices
from hf_align.recipes._publishing import published_line, settle_destination
from hf_align.recipes._serving import check_serving
from hf_align.types import Estimate, InputError, Message

STORE = "collect.db"


def leads_of(options: CollectArguments) -> list[str]:
    """Accounts that lead."""
    return [f"local:{name}" for name in options.leads or ["lead"]]


def named(options: CollectArguments, preparing: bool) -> CollectArguments:
    """The options with the name of their project.

    Raises:
        InputError: None was given, and the store holds none or several.
    """
    if options.project is not None:
        return options
    if preparing:
        return replace(options, project="comparisons")
    store = _existing(options)
    try:
        with store.read() as connection:
            names = [row[0] for row in connection.execute("SELECT name FROM projects ORDER BY 1")]
    finally:
        store.close()
    if len(names) != 1:
        raise InputError(f"project is missing; name one of {', '.join(names) or 'none, so far'}")
    return replace(options, project=names[0])


@contextmanager
def opened(options: CollectArguments) -> Iterator[Collection]:
    """The collection, opened for writing and closed in order.

    Raises:
        InputError: An option that cannot be, or another secret than before.
        OSError: The folder cannot be written, or the backup not be read.
    """
    folder = Path(options.output_dir).expanduser()
    check_writable("output_dir", folder)
    folder.mkdir(parents=True, exist_ok=True)
    collection = open_collection(
        folder / STORE,
        secret_of(folder),
        leads=leads_of(options),
        backup=None if options.backup is None else open_backup(options.backup),
        level=options.level,
    )
    try:
        yield collection
    finally:
        collection.close()
        collection.store.close()


def prepare(collection: Collection, options: CollectArguments) -> None:
    """Adds items to the project, and says what they are."""
    print(prepare_project(collection, options, leads_of(options)[0]))


def serve(collection: Collection, options: CollectArguments) -> None:
    """Serves the app until it is stopped.

    Raises:
        InputError: No such project, or Gradio is not installed.
        OSError: The port is taken.
    """
    check_serving("serve", options.port)
    from hf_align.ui import LocalSignIn, build_collect_app
    from hf_align.ui import serve as serve_app

    sign_in = LocalSignIn(
        secret_of(Path(options.output_dir).expanduser()),
        frozenset(leads_of(options)),
        options.invite_code or "",
    )
    respond = None if options.chat_model is None else chat_with(options)
    demo = build_collect_app(collection, options.project, sign_in, respond=respond)

    def ready(address: str) -> None:
        names = ", ".join(account.partition(":")[2] for account in leads_of(options))
        print(f"annotators: {address}")
        print(f"lead: {address}lead (name: {names}; key: {sign_in.lead_key})")
        print(f"answers: {collection.store.path}; stop with Ctrl-C", flush=True)

    try:
        serve_app(demo, collection, sign_in, host=options.host, port=options.port, ready=ready)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was")


def chat_with(options: CollectArguments):
    """What answers annotators who chat: two samples of one model, one request at a time.

    Raises:
        InputError: No such model, or it has no chat template.
    """
    from hf_align.recipes._compare_answers import locate
    from hf_align.recipes._evaluation import load_policy
    from hf_align.recipes._models import load_tokenizer_and_config
    from hf_align.sampling import sample_completions

    source = locate(str(options.chat_model), "shipped").model
    tokenizer, _ = load_tokenizer_and_config(source, False)
    if tokenizer.chat_template is None:
        raise InputError(f"chat_model {options.chat_model}: it has no chat template")
    model = load_policy(source["path"], source["revision"])
    temperature = (options.temperatures or [1.0])[0]
    one_at_a_time = threading.Lock()

    def respond(messages: list[Message]) -> Sequence[Output]:
        seed = secrets.randbits(31)
        with one_at_a_time:
            samples = sample_completions(
                model,
                tokenizer,
                [messages],
                num_samples=2,
                max_new_tokens=options.max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
        sampling = {"temperature": temperature, "max_new_tokens": options.max_new_tokens}
        revision = source["revision"] or source["sha256"] or ""
        return [Output(text, source["name"], revision, sampling, seed) for text in samples.texts]

    return respond


def _existing(options: CollectArguments) -> Store:
    path = Path(options.output_dir).expanduser() / STORE
    if not path.is_file():
        raise InputError(f"output_dir {options.output_dir} holds no project; prepare one first")
    return Store(path)


def status_page(options: CollectArguments) -> str:
    """Where the project stands, in lines for a terminal.

    Raises:
        InputError: There is no such project.
    """
    store = _existing(options)
    try:
        done = progress(store, options.project)
        votes = load_votes(store, options.project)
        with store.read() as connection:
            waiting = connection.execute("SELECT count(*) FROM pending").fetchone()[0]
    finally:
        path = store.path
        store.close()
    agreed, measured = agreement(votes), quality(votes)
    lines = [
        f"project {options.project}{' (paused)' if done.paused else ''}, guidelines version "
        f"{done.guideline_version}, in {path}",
        f"votes {done.votes} of {done.wanted}; items complete {done.complete} of {done.items}; "
        f"set aside {done.set_aside}; skips {done.skips}",
        f"annotators {done.annotators}, {done.paused_annotators} of them paused",
        f"same winner {_shown(agreed.same_winner)}, Krippendorff's α of the winner "
        f"{_shown(agreed.alpha_winner)}, of the strength {_shown(agreed.alpha_strength)}",
        f"left side wins {_shown(measured[0].left)}; gold right {_shown(measured[0].gold)}; same "
        f"again {_shown(measured[0].consistency)}",
        f"disagreements to settle {done.disagreements}; events {done.events}, of which "
        f"{waiting} never left this disk",
    ]
    lines += [
        f"look at {own.annotator}: {reason}" for own in measured[1:] for reason in own.reasons
    ]
    return "\n".join(lines)


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def export(options: CollectArguments) -> str:
    """Writes the export; the lines to print.

    Raises:
        InputError: No such project, no votes, or the folder exists.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S")
    folder = Path(options.output_dir).expanduser() / "exports" / f"{options.export_kind}-{stamp}"
    if options.export_dir is not None:
        folder = Path(options.export_dir).expanduser()
    manifest = _written(options, folder)
    rows = ", ".join(f"{name} {count}" for name, count in manifest["rows"].items())
    dropped = ", ".join(f"{name} {count}" for name, count in manifest["dropped"].items())
    train = folder / f"train.{options.export_format}"
    lines = [f"{folder}: {rows}" + (f"; left out: {dropped}" if dropped else "")]
    if options.export_kind == "preference" and options.export_format != "csv":
        data = shlex.quote(str(train))
        lines.append(f"next: {python_command()} -m hf_align.recipes.reward --dataset_name {data}")
    return "\n".join(lines)


def _written(options: CollectArguments, folder: Path, described: bool = False) -> dict:
    store = _existing(options)
    try:
        if not progress(store, options.project).votes and options.export_kind != "raw":
            raise InputError(f"project {options.project} has no votes yet; nothing to export")
        return write_export(
            *(store, options.project, folder, options.export_kind),
            ExportOptions(options.votes, options.ties, options.skips, labels=options.labels),
            file_format=options.export_format,
            test_share=options.test_share,
            seed=options.seed,
            described=described,
        )
    finally:
        store.close()


def push(choices: Choices, options: CollectArguments) -> None:
    """Exports and publishes as a dataset.

    Raises:
        InputError: No such project, no votes, no token, or no right to write there.
        OSError: The Hub refuses, or cannot be reached.
    """
    asked = vars(choices.build(DestinationArguments))
    with tempfile.TemporaryDirectory(prefix="hf_align-") as scratch:
        folder = Path(scratch) / options.project
        destination = settle_destination(asked, folder, "dataset")
        options.export_format = "parquet"
        _written(options, folder, described=True)
        published = push_dataset(folder, destination, "run the same command again")
        print(published_line(published, destination))
