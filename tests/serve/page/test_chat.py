"""Answers of the demo model on the page, as a person reads and stops them, and asks again."""

import json
import re

import pytest

from talking import STORY, finished, grown, says, send, settle, stepped, until


def test_a_question_is_answered_piece_by_piece(page, served):
    settle(page, temperature=0, max_tokens=60)
    with stepped(served) as allow:
        send(page, STORY)
        page.locator("#stop").wait_for()
        assert page.locator(".message.user .text").inner_text() == STORY
        allow(4)
        length = "document.querySelector('.message.assistant > .md')?.textContent.length ?? 0"
        for _ in range(6):
            allow(3)
            until(page, f"{length} > {page.evaluate(length)}")
            page.wait_for_timeout(40)  # an answer that comes at once has no speed
    answer = finished(page)
    expected = (
        served[1].models.entries[0].loaded.chat([{"role": "user", "content": STORY}], temperature=0, max_tokens=60)
    )
    assert answer.locator(".md").last.text_content().split() == expected.text.split()
    assert re.fullmatch(
        r"60 tokens · [\d,.]+ tokens/s · first after [\d,.]+ m?s", answer.locator(".stats").inner_text()
    )
    assert answer.locator(".note").inner_text().startswith("Cut off")
    assert page.locator("#context-text").inner_text() == f"{expected.prompt_tokens + 60} of 1,024 tokens of context"
    assert re.fullmatch(r"[\d,.]+ [MG]iB of memory", page.locator("#memory").inner_text())
    assert page.title() == f"{STORY} · qtransformers"
    assert not page.locator("#stop").is_visible() and page.locator("#send").is_visible()
    assert page.locator("#announcer").inner_text() == expected.text.strip() or expected.text.startswith(page.locator("#announcer").inner_text()[:40])  # fmt: skip


def test_a_second_question_brings_the_first_along(page):
    settle(page, temperature=0, max_tokens=8)
    send(page, STORY)
    finished(page)
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, "Another.")
    sent = request.value.post_data_json
    assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "user"] and sent["stream"] is True
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("demo", 0, 8)
    finished(page, 2)


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_an_answer_can_be_stopped_and_what_came_is_kept(page, served, how):
    says(page, "word " * 300)
    with stepped(served) as allow:
        send(page, "Go on.")
        grown(page, allow, "document.querySelector('.message.assistant > .md')?.textContent.length > 40")
        if how == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        answer = finished(page)
    text = answer.locator(".md").last.text_content()
    assert answer.locator(".note").inner_text() == "Stopped." and 40 < len(text) < 1400
    page.reload()
    assert finished(page).locator(".md").last.text_content().strip() == text.strip()
    entry = served[1].models.entries[0]
    until(page, lambda: entry.answers == 0)  # the server has stopped, too


def test_another_answer_is_a_version_beside_the_first(page):
    settle(page, temperature=1.5, max_tokens=24)
    send(page, STORY)
    first = finished(page).locator(".md").last.text_content()
    page.get_by_role("button", name="Another answer").click()
    page.get_by_text("2/2").wait_for()
    second = finished(page).locator(".md").last.text_content()
    assert second != first
    page.get_by_role("button", name="Earlier version").click()
    page.get_by_text("1/2").wait_for()
    assert finished(page).locator(".md").last.text_content() == first
    assert page.get_by_role("button", name="Earlier version").is_disabled()
    page.get_by_role("button", name="Later version").click()
    assert finished(page).locator(".md").last.text_content() == second


def test_a_message_is_edited_and_sent_again(page):
    settle(page, temperature=0, max_tokens=8)
    send(page, "Tell me about a cat.")
    finished(page)
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit and send again").click()
    box = page.get_by_label("Edit the message")
    assert box.input_value() == "Tell me about a cat."
    box.press("Escape")
    assert page.locator(".message.user .text").inner_text() == "Tell me about a cat."
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit and send again").click()
    box.fill("Tell me about a dog.")
    with page.expect_request("**/v1/chat/completions") as request:
        box.press("Control+Enter")
    assert [m["content"] for m in request.value.post_data_json["messages"]] == ["Tell me about a dog."]
    finished(page)
    assert page.locator(".message.user .text").inner_text() == "Tell me about a dog."
    page.locator(".message.user").get_by_role("button", name="Earlier version").click()
    assert page.locator(".message.user .text").inner_text() == "Tell me about a cat."
    assert page.locator(".message.assistant").count() == 1


def test_reasoning_is_folded_and_calls_of_tools_are_shown_and_answered(page):
    """Events as OpenAI's API has them, for the demo model neither reasons nor calls."""

    def event(delta, finish=None):
        return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"

    calls = (
        [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"ci'}}],
        [{"index": 0, "function": {"arguments": 'ty": "Oslo"}'}}],
    )
    body = ": ping\n\n" + event({"reasoning": "I **look**.", "reasoning_content": "I **look**."}) + "".join(event({"tool_calls": c}) for c in calls) + event({}, "tool_calls") + "data: [DONE]\n\n"  # fmt: skip
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    send(page, "What is the weather in Oslo?")
    answer = finished(page)
    summary = answer.get_by_text(re.compile("^Reasoning"))
    assert not answer.locator(".fold strong").is_visible()
    summary.click()
    assert answer.locator(".fold strong").inner_text() == "look"
    answer.get_by_text("Calls weather").click()
    assert json.loads(answer.locator(".call pre").inner_text()) == {"city": "Oslo"}
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=event({"content": "Rain."}) + "data: [DONE]\n\n", content_type="text/event-stream"))  # fmt: skip
    answer.get_by_label("Result of weather").fill("rain")
    with page.expect_request("**/v1/chat/completions") as request:
        answer.get_by_role("button", name="Send result").click()
    said = request.value.post_data_json["messages"]
    assert said[1]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    ]
    assert said[2] == {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    page.locator("#log").get_by_text("Rain.", exact=True).wait_for()


def test_no_speed_is_told_of_an_answer_that_came_at_once(page):
    """Between pieces that the browser reads together no time passes: a speed would be made up."""
    parts = [{"choices": [{"index": 0, "delta": {"content": f"{i} "}}]} for i in range(6)]
    parts.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 6}})
    body = "".join(f"data: {json.dumps(x)}\n\n" for x in parts) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    send(page, STORY)
    assert re.fullmatch(r"6 tokens · first after [\d,.]+ m?s", finished(page).locator(".stats").inner_text())


ATTACK = "<img src=x onerror=document.title='hit'> <script>document.title='hit'</script> [x](javascript:document.title='hit') **bold**"


def test_a_model_s_text_runs_nothing(page, visit, served):
    says(page, ATTACK)
    send(page, ATTACK)
    answer = finished(page)
    assert answer.locator(".md").last.inner_text().startswith("<img src=x onerror=")
    assert answer.locator("strong").last.inner_text() == "bold"
    assert page.locator("#log img, #log script, #log a, #side img[src=x]").count() == 0
    assert page.title() == f"{ATTACK[:79]}… · qtransformers" and page.locator(
        "#conversations .open"
    ).inner_text().startswith("<img")
    message = {
        "id": ATTACK,
        "parent": None,
        "role": "assistant",
        "content": ATTACK,
        "reasoning": ATTACK,
        "model": ATTACK,
        "calls": [{"name": ATTACK, "args": ATTACK}],
    }
    file = {
        "format": "qtransformers-conversations",
        "conversations": [{"id": "x", "title": ATTACK, "leaf": ATTACK, "messages": {"y": message}}],
    }
    page.locator("#import-file").set_input_files(
        {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(file).encode()}
    )
    page.locator("#conversations .open").nth(1).wait_for()
    page.locator("#conversations .open").first.click()
    page.locator(".message.assistant .call").wait_for()
    page.wait_for_timeout(200)
    assert page.locator("#log img, #log script, #log a").count() == 0 and page.title() != "hit"


def test_the_reader_s_place_is_kept_while_more_comes(page, served):
    says(page, "line after line " * 60)
    page.set_viewport_size({"width": 600, "height": 420})
    with stepped(served) as allow:
        send(page, "Go on.")
        grown(page, allow, "document.querySelector('#log').scrollTop > 150")  # it follows the end
        page.locator("#log").hover()
        page.mouse.wheel(0, -2000)
        until(page, "document.querySelector('#log').scrollTop === 0")
        before = page.evaluate("document.querySelector('#log').scrollHeight")
        grown(page, allow, f"document.querySelector('#log').scrollHeight > {before} + 40")
        assert page.evaluate("document.querySelector('#log').scrollTop") == 0
        page.get_by_role("button", name="To the latest message").click()
    finished(page)
    assert page.evaluate("(() => { const l = document.querySelector('#log'); return l.scrollHeight - l.clientHeight - l.scrollTop; })()") < 3  # fmt: skip


def test_a_selection_outlives_the_end_of_the_answer(page, served):
    says(page, "word " * 100)
    with stepped(served) as allow:
        send(page, "Go on.")
        grown(page, allow, "document.querySelector('.message.assistant > .md')?.textContent.length > 40")
        page.evaluate("(() => { const text = document.querySelector('.message.assistant p').firstChild; getSelection().setBaseAndExtent(text, 5, text, 14); })()")  # fmt: skip
    finished(page)
    assert page.evaluate("getSelection().toString()") == "word word"


@pytest.mark.parametrize("secure", [True, False], ids=["clipboard", "without"])
def test_answers_and_code_are_copied(visit, served, secure):
    page = visit(served[0], permissions=["clipboard-read", "clipboard-write"])
    if not secure:  # as on a page of another machine without TLS
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    code = "for x in y:\n    z"
    says(page, f"So:\n\n```python\n{code}\n```\n")
    send(page, STORY)
    finished(page).locator(".copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    read = visit(served[0], permissions=["clipboard-read"]).evaluate("navigator.clipboard.readText()")
    assert read == code
