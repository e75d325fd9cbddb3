"""A real Chromium without a network, which fails a test that sends a request or prints to the console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from visits import Open, drawn

if TYPE_CHECKING:  # the extra `browser` has it
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program is not None, "install Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        # A container's root may use neither Chromium's sandbox nor a large /dev/shm.
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Open a file, wait until its charts are drawn, and hold it to silence until the test ends."""
    heard: list[str] = []
    contexts = []

    def opened(path: Path, width: int = 1200, *, javascript: bool = True) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, java_script_enabled=javascript,
            permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: heard.append(request.url) if request.url != path.as_uri() else None)
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        if javascript:
            drawn(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []
