"""What tests of a page ask of the browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., "Page"]


def drawn(page: Page) -> None:
    """Wait until what was asked of the page is drawn."""
    page.evaluate("() => window.normstudy.ready")
