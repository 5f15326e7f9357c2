"""A real server, and windows of a real browser that may talk to nobody else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from tests.helpers.command_line import settings_for
from tests.helpers.serving import serving

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the chat page's tests need: pip install playwright"
)


WATCH_STOP = """() => {
  window.wasAsked = false;
  const watch = new MutationObserver(() => { window.wasAsked = true; });
  watch.observe(document.getElementById("stop"), { attributes: true });
}"""
"""A refused message shows the stop button for less than the time between two looks at it."""


@dataclass
class Server:
    """A running server and how its database is reached."""

    address: str
    environment: dict[str, str]

    def append(self, user: str, *texts: str, session: str = "monday") -> None:
        """Store turns without the page."""
        self._append(user, [{"text": text, "session": session} for text in texts])

    def append_each(self, user: str, *texts: str) -> None:
        """Store turns in one request, each in a session of its own: they take a while to encode."""
        self._append(user, [{"text": text, "session": f"s{n}"} for n, text in enumerate(texts)])

    def _append(self, user: str, turns: list[dict[str, str]]) -> None:
        url = f"{self.address}/v1/memory/users/{user}/turns"
        httpx.post(url, json={"turns": turns}, timeout=60).raise_for_status()

    def texts(self, user: str) -> list[str]:
        """What is stored of a user."""
        answer = httpx.get(f"{self.address}/v1/memory/users/{user}/turns", timeout=60)
        return [] if answer.status_code == 404 else [turn["text"] for turn in answer.json()["data"]]

    def memory(self, *arguments: str) -> str:
        """Run `memory` on the same database."""
        command = [str(Path(sys.executable).with_name("memory")), *arguments]
        done = subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True
        )
        return done.stdout


@dataclass
class Window:
    """A page, and what it did."""

    page: "playwright.Page"
    server: Server
    requests: list["playwright.Request"] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expects_refusals: bool = False

    def open(self, **fields: str) -> "Window":
        """Go to a user, and to one of their sessions."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.server.address}/#{urlencode(fields)}")
        return self

    def say(self, text: str) -> None:
        """Send a message and wait for all answers."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.evaluate(WATCH_STOP)
        self.page.keyboard.press("Enter")
        playwright.expect(self.page.locator("#stop")).to_be_hidden(timeout=60_000)
        assert self.page.evaluate("window.wasAsked"), "nothing was sent"

    def check(self) -> None:
        """Nobody else was asked, and nothing went wrong unseen."""
        own = urlsplit(self.server.address).netloc
        hosts = {urlsplit(request.url).netloc for request in self.requests}
        assert hosts <= {own, ""}, hosts  # none: about:blank
        refused = "Failed to load resource"
        said = [one for one in self.complaints if not (self.expects_refusals and refused in one)]
        assert not [one for one in said if "status of 404" not in one], said


def server_environment(tiny_model_folder: Path, sqlite_template: Path, folder: Path) -> dict:
    """A home for a server, with a migrated database."""
    shutil.copy(sqlite_template, folder / "memory.db")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MEMORY_SERVICE_")}
    return inherited | settings_for(tiny_model_folder, folder)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("the chat page's tests need a browser: apt-get install chromium")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=program)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(
    browser: "playwright.Browser",
    tiny_model_folder: Path,
    sqlite_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """One server for all tests; each has users of its own."""
    folder = tmp_path_factory.mktemp("server")
    environment = server_environment(tiny_model_folder, sqlite_template, folder)
    with serving(env=environment, cwd=folder) as (_, address):
        yield Server(address, environment)


@pytest.fixture
def window(browser: "playwright.Browser", server: Server) -> Iterator[Callable[..., Window]]:
    """Opens windows that share nothing."""
    opened: list[Window] = []

    def make(at: Server = server, **options: object) -> Window:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        made = Window(context.new_page(), at)
        made.page.on("request", lambda one: made.requests.append(one))  # noqa: PLW0108  # no builtin
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.on(
            "console",
            lambda told: made.complaints.append(told.text) if told.type == "error" else None,
        )
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.page.context.close()
        one.check()
