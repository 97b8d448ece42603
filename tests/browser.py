"""A real browser for tests: the Chromium of the machine, driven by playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # names that distributions give it
ABORTED = "net::ERR_ABORTED"  # by the page itself
PHONE = (390, 844)
DESKTOP = (1200, 900)


@dataclass
class Visit:
    """A page, and what happened on it so far."""

    page: Page
    requests: list[str] = field(default_factory=list)  # URLs
    errors: list[str] = field(default_factory=list)  # of the console, exceptions of scripts, requests that failed

    @property
    def hosts(self) -> set[str]:
        """Where requests went; data in the page itself and files have none."""
        return {host for url in self.requests if (host := urlsplit(url).hostname)}

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@contextmanager
def open_page(size: tuple[int, int] = DESKTOP, dark: bool = False) -> Iterator[Visit]:
    """A new browser with an empty page of `size`, width and height in px. Skips the test where there is no Chromium."""
    program = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(CHROMIUM)} in PATH (apt-get install chromium)")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # as root Chromium has no sandbox
    with sync_playwright() as driver, driver.chromium.launch(executable_path=program, args=root) as browser:
        width, height = size
        look = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=look)
        yield _watched(page)


def _watched(page: Page) -> Visit:
    visit = Visit(page)
    page.on("request", lambda request: visit.requests.append(request.url))
    page.on("websocket", lambda socket: visit.requests.append(socket.url))
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on("requestfailed", lambda request: _note(visit, request.url, request.failure, request.failure != ABORTED))
    page.on("response", lambda answer: _note(visit, answer.url, answer.status, answer.status >= 400))
    return visit


def _note(visit: Visit, url: str, fault: object, is_fault: bool) -> None:
    if is_fault:
        visit.errors.append(f"{url}: {fault}")
