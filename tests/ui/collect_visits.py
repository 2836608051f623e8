"""A server of the app that tests can kill, and people who visit it in headless Chromium."""

import json
import os
import shutil
import socket
import subprocess

import pytest
from ui_world import MODELS

from hf_align.feedback import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

SHOTS = os.environ.get("HF_ALIGN_SCREENSHOTS")
"""A folder: pictures of every page are left there, to be looked at."""


class Server:
    """The app on one port and one folder, whatever becomes of its processes.

    `command` makes the command line of a port; `ready` begins the line that it prints when it
    answers.
    """

    def __init__(self, folder, command, ready="ready", env=None):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._command, self._ready = command(self.port), ready
        self._env = os.environ | (env or {})
        self.process, self.said = None, ""

    def start(self):
        """Starts it and waits until it answers."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, env=self._env
        )
        for line in self.process.stdout:
            self.said += line
            if line.startswith(self._ready):
                return
        raise AssertionError(f"the server ended: {self.said}")

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def answers(self):
        """`(annotator, item, what was said)` of every answer in the log, in order."""
        store = Store(self.folder / "collect.db")
        with store.read() as connection:
            rows = connection.execute(
                "SELECT annotator, item_id, body FROM events WHERE type = 'answer' ORDER BY seq"
            ).fetchall()
        store.close()
        return [(row[0], row[1], json.loads(row[2])) for row in rows]


class Visit:
    """A browser context that remembers whom it asked, what it was told, and what went wrong."""

    def __init__(self, browser, server, **settings):
        self.server = server
        self.context = browser.new_context(**settings)
        self.outside, self.bodies, self.errors, self.dialogs = [], [], [], []
        self.context.on("request", self._requested)
        self.context.on("requestfailed", self._failed)
        self.context.route("**/gradio_api/run/*", self._answered)
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.context.on("dialog", lambda dialog: self.dialogs.append(dialog.message))
        self.page = self.context.new_page()

    def _requested(self, request):
        if not request.url.startswith((self.server.address, "data:", "blob:")):
            self.outside.append(request.url)

    def _failed(self, request):
        if request.failure == "csp":  # the page's policy kept it from leaving
            self.outside.remove(request.url)

    def _answered(self, route):
        from playwright.sync_api import Error

        try:
            answer = route.fetch()
        except Error:  # the server is down
            return route.abort()
        self.bodies.append(answer.text())
        route.fulfill(response=answer)

    def sign_in(self, name, key="", path="/"):
        """Signs in by name."""
        self.page.goto(self.server.address + path)
        self.page.wait_for_selector("form.sign-in")
        self.page.fill("input[name=name]", name)
        self.page.fill("input[name=key]", key)
        self.page.keyboard.press("Enter")

    def pass_quiz(self):
        """The quiz, by keyboard: the first answer is the better one in all questions."""
        self.page.wait_for_selector("form.quiz")
        for _ in range(2):
            self.page.keyboard.press("1")
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("text=Passed: 2 of 2")
        self.page.click(".message button")
        self.page.wait_for_selector("form.task")

    def token(self):
        """The token of the task on the screen."""
        return self.page.get_attribute("form.task", "data-token")

    def kind(self):
        """The kind of the task on the screen; None where there is no task."""
        task = self.page.query_selector("form.task")
        return task and task.get_attribute("data-kind")

    def until_other(self, token):
        """Waits for another task, or the end of them."""
        self.page.wait_for_function(
            "t => document.querySelector('#hf-align:not([aria-busy])') && "
            "document.querySelector('form.task')?.dataset.token !== t",
            arg=token,
        )

    def submit(self, *keys):
        """Presses keys, submits, and waits for the next task."""
        token = self.token()
        for key in (*keys, "Enter"):
            self.page.keyboard.press(key)
        self.until_other(token)

    def submit_any(self):
        """Answers whatever is on the screen."""
        self.submit(*("1234" if self.kind() == "ranking" else "1"))

    def served(self):
        """What the header says, x of x/N."""
        return int(self.page.inner_text("#hf-progress").split("/")[0])

    def look(self, name):
        """No serious accessibility problem here; a picture where that was asked for."""
        if SHOTS:
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        self.page.evaluate("document.activeElement?.blur()")
        found = axe.Axe().run(self.page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], [n["html"] for n in v["nodes"]]) for v in serious]

    def check(self, models=MODELS):
        """Nobody else was asked, no model was named, nothing broke."""
        assert not self.outside and not self.errors and not self.dialogs
        told = "".join(self.bodies) + self.page.content()
        assert not any(model in told for model in models)
