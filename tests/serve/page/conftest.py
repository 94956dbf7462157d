"""A real browser, headless: Chromium by Playwright. Where there is none, these tests are skipped."""

import os
import shutil
from pathlib import Path

import pytest

from talking import until

AXE = Path(__file__).parents[3] / "build" / "page" / "node_modules" / "axe-core" / "axe.min.js"  # by make test-page


@pytest.fixture(scope="module")
def browser():
    """Chromium, for one file: while it runs, the thread's event loop is Playwright's, and other tests want their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as p:
        path = shutil.which("chromium") or shutil.which("google-chrome") or p.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("no Chromium: install it, or: playwright install chromium")
        found = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """`visit(url, **context)`: a page of a fresh profile. What its scripts or the policy complain about fails the test."""
    contexts, complaints = [], []

    def open(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}} | options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "status of" not in m.text and "ERR_" not in m.text else None)  # fmt: skip
        page.on("dialog", lambda dialog: (complaints.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        until(page, "document.querySelector('#model').options.length || !document.querySelector('#images').hidden || document.querySelector('dialog[open]') || !document.querySelector('#banner').hidden")  # fmt: skip
        return page

    yield open
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(visit, served):
    """The page of the served demo model."""
    return visit(served[0])


@pytest.fixture
def axe():
    """The accessibility checker's source."""
    if not AXE.exists():
        pytest.skip("no axe-core: make test-page fetches it")
    return AXE.read_text(encoding="utf-8")
