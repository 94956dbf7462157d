"""What the page says where the server refuses, is full, or is gone."""

import re

from qtransformers.serve.config import ServerConfig, hashed
from servers import running
from talking import STORY, finished, send, settle, until

KEY = "a-key-of-the-tests-0123"


def test_a_server_with_keys_is_asked_with_one(visit, demo):
    with running([demo], ServerConfig(port=0, keys={"one": hashed(KEY)})) as (url, _):
        page = visit(url)
        dialog = page.get_by_role("dialog", name="API key")
        dialog.wait_for()
        assert page.locator("#key-why").inner_text().startswith("This server asks for a key")
        for given in ("a-wrong-key-of-tests", KEY):
            page.get_by_label("Key", exact=True).fill(given)
            page.get_by_role("button", name="Use this key").click()
            until(page, f"document.querySelector('#key-dialog').open === {str(given != KEY).lower()} && (document.querySelector('#key-dialog').open || document.querySelector('#model').options.length)")  # fmt: skip
            if given != KEY:
                assert "refused the key: the request has an unknown key" in page.locator("#key-why").inner_text()
        settle(page, temperature=0, max_tokens=4)
        send(page, STORY)
        assert "4 tokens" in finished(page).inner_text()
        page.reload()
        finished(page)
        assert not dialog.is_visible() and page.evaluate("localStorage.getItem('qtransformers.key')") is None


def test_a_key_that_is_no_longer_good_is_asked_for_and_the_question_asked_again(visit, demo):
    with running([demo], ServerConfig(port=0, keys={"one": hashed(KEY)})) as (url, _):
        page = visit(url)
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        page.locator("#model option").first.wait_for(state="attached")
        settle(page, temperature=0, max_tokens=4)
        page.evaluate("import('/page/api.js').then((m) => m.setApiKey('revoked', false))")
        send(page, STORY)
        assert finished(page).locator(".error strong").inner_text() == "The server wants a key"
        assert "unknown key" in page.locator("#key-why").inner_text()
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        page.locator(".stats", has_text="4 tokens").wait_for()


def test_a_full_server_is_asked_again_when_it_says(visit, demo):
    with running([demo], ServerConfig(port=0, queue=0)) as (url, server):
        page = visit(url)
        settle(page, temperature=0, max_tokens=4)
        entry = server.models.entries[0]
        entry.answers += 4  # as many as there may be
        send(page, STORY)
        page.locator("#log").get_by_text(re.compile(r"The server is full. Trying again in \d+ s.")).wait_for()
        entry.answers -= 4
        assert "4 tokens" in finished(page).inner_text()


def test_a_conversation_that_is_too_long_says_both_counts(page):
    send(page, "fox " * 1100)
    error = finished(page).locator(".error")
    assert error.locator("strong").inner_text() == "Too long for this model"
    counts = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", error.inner_text())]
    assert 1024 in counts and any(n > 1024 for n in counts)
    error.get_by_role("button", name="New conversation").click()
    page.locator(".empty").wait_for()


def test_a_server_that_is_gone_is_said_and_found_again(page):
    settle(page, temperature=0, max_tokens=4)
    page.context.set_offline(True)
    send(page, STORY)
    assert finished(page).locator(".error strong").inner_text() == "No connection"
    assert page.locator("#banner").inner_text().startswith("The server cannot be reached")
    page.context.set_offline(False)
    page.locator("#banner").wait_for(state="hidden")
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("2/2").wait_for()
    assert "4 tokens" in finished(page).inner_text()


def test_a_model_that_is_gone_says_which_there_are(page):
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "departed"}]}))
    page.reload()
    until(page, "document.querySelector('#model').value === 'departed'")
    page.unroute("**/v1/models")
    send(page, STORY)
    error = finished(page).locator(".error")
    assert (
        error.locator("strong").inner_text() == "This model is not there any more" and "gpt-test" in error.inner_text()
    )
    error.get_by_role("button", name="Choose a model").click()
    until(page, "document.querySelector('#model').value === 'demo'")


def test_an_error_amid_the_answer_keeps_what_came(page):
    body = 'data: {"choices": [{"delta": {"content": "So far"}}]}\n\ndata: {"error": {"message": "the model was unloaded", "code": "model_error"}}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    send(page, STORY)
    answer = finished(page)
    assert answer.locator(".md").last.inner_text() == "So far"
    assert answer.locator(".error").inner_text().startswith("The server failed\nThe model was unloaded")


def test_a_key_is_not_asked_for_again_and_again(visit, demo):
    with running([demo], ServerConfig(port=0, keys={"one": hashed(KEY)})) as (url, _):
        page = visit(url)
        page.clock.install()
        page.reload()
        page.get_by_role("button", name="Cancel").click()
        with page.expect_response("**/v1/models") as asked:
            page.clock.run_for(11_000)  # it looks again after a while
        assert asked.value.status == 401
        page.clock.run_for(100)
        assert not page.get_by_role("dialog").is_visible()
        page.locator("#input").fill(STORY)
        page.locator("#input").press("Enter")
        page.get_by_role("dialog", name="API key").wait_for()
