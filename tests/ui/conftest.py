"""Collections for the app's tests, in memory where there is any."""

import shutil
import tempfile
from pathlib import Path

import pytest
from collect_visits import CHROMIUM
from ui_world import Pages, item, make_collection

pytest.importorskip("gradio", reason="the app needs the extra: pip install hf_align[ui]")


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shm():
    """A folder in memory where there is one: a shared disk takes 5 ms per commit."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make_pages(shm):
    """Both pages of a project with these items; closed at the end of the test."""
    opened = []

    def make(items=None, respond=None, limit=None, **settings):
        items = [item(n) for n in range(4)] if items is None else items
        collection = make_collection(shm / f"{len(opened)}.db", items, **settings)
        opened.append(collection)
        return Pages(collection, respond=respond, limit=limit)

    yield make
    for collection in opened:
        collection.close(1.0)
        collection.store.close()
