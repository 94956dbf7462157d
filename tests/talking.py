"""Using the page as a person does."""

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
    for summary in page.locator("#fields summary").all():
        summary.click()
    for name, value in fields.items():
        page.locator(f"#set-{name}").fill(str(value))
    page.keyboard.press("Escape")


def slowed(page, bytes_per_second):
    """Let what the server sends come slowly; 0: as it comes."""
    session = page.context.new_cdp_session(page)
    rate = bytes_per_second or -1
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": rate, "uploadThroughput": -1})  # fmt: skip


def says(page, text):
    """Make this text the model's next answer, by an expression that nothing else matches."""
    settle(page, regex="".join(c if c.isalnum() or c in " <>='\n" else "\\" + c for c in text), temperature=0)
