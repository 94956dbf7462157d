"""Using the page as a person does."""

from contextlib import contextmanager
from dataclasses import replace
from threading import Semaphore

STORY = "Tell me a story about a brave fox."


def send(page, text):
    """Type a message and send it with the keyboard."""
    page.locator("#input").fill(text)
    page.locator("#input").press("Enter")


def finished(page, n=1):
    """Wait until the `n`-th answer on the page is over; its element."""
    answer = page.locator(".message.assistant").nth(n - 1)
    answer.locator(".actions").wait_for()
    return answer


def until(page, true, tries=1000):
    """Wait for a script's value, or a function's, to be true; Playwright's own way is against the page's policy."""
    for _ in range(tries):
        if page.evaluate(true) if isinstance(true, str) else true():
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"{true} did not become true")


def settle(page, **fields):
    """Set fields of the drawer, by their names."""
    page.get_by_role("button", name="Settings", exact=True).click()
    page.evaluate("for (const e of document.querySelectorAll('#fields details')) e.open = true")
    for name, value in fields.items():
        page.locator(f"#set-{name}").fill(str(value))
    page.keyboard.press("Escape")


@contextmanager
def stepped(served):
    """`allow(n)` lets the server's model compute `n` steps more; within, it computes no others."""
    engine = served[1].models.entries[0].loaded._engine
    parts, turns = engine._parts, Semaphore(0)

    def forward(*args):
        turns.acquire(timeout=60)
        return parts.forward(*args)

    engine._parts = replace(parts, forward=forward)
    try:
        yield turns.release
    finally:
        engine._parts = parts
        turns.release()  # the one under way


def grown(page, allow, true):
    """Let the answer grow until a script's value is true."""
    until(page, lambda: allow() or page.evaluate(true))


def says(page, text):
    """Make this text the model's next answer, by an expression that nothing else matches."""
    settle(page, regex="".join(c if c.isalnum() or c in " <>='\n" else "\\" + c for c in text), temperature=0)
