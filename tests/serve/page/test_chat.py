"""The page with the demo model, as a person uses it."""

import json
import re

import pytest

from qtransformers.serve.config import ServerConfig, hashed
from servers import running
from talking import STORY, finished, grown, says, send, settle, stepped, until

KEY = "a-key-of-the-tests-0123"


def stored(page):
    """The conversations that the browser keeps."""
    return page.evaluate("""() => new Promise((resolve) => {
      indexedDB.open("qtransformers").onsuccess = (e) => {
        e.target.result.transaction("conversations").objectStore("conversations").getAll().onsuccess = (f) => resolve(f.target.result);
      };
    })""")


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


def test_conversations_are_there_after_a_reload_and_can_be_named_and_deleted(page):
    settle(page, temperature=0, max_tokens=8)
    for text in ("First one", "Second one"):
        page.get_by_role("button", name="New conversation").click()
        send(page, text)
        finished(page)
    page.locator("#input").fill("not sent yet")
    page.reload()
    finished(page)
    assert page.locator(".message.user .text").inner_text() == "Second one"
    assert page.locator("#input").input_value() == "not sent yet"
    names = page.locator("#conversations .open")
    assert names.all_inner_texts() == ["Second one", "First one"]
    page.get_by_role("button", name="Rename “First one”").click()
    page.get_by_label("New name").fill("A <b>better</b> name")
    page.keyboard.press("Enter")
    names.filter(has_text="A <b>better</b> name").click()
    page.locator(".message.user .text", has_text="First one").wait_for()
    page.get_by_role("button", name="Delete “A <b>better</b> name”").click()
    page.locator(".empty").wait_for()
    assert names.all_inner_texts() == ["Second one"] and len(stored(page)) == 1
    page.get_by_role("button", name="Undo").click()
    names.nth(1).wait_for()
    assert len(stored(page)) == 2


def test_what_is_exported_can_be_imported(page, visit, served, tmp_path):
    settle(page, temperature=0.25, max_tokens=8, system="Be brief.")
    send(page, STORY)
    text = finished(page).locator(".md").last.text_content()
    page.get_by_role("button", name="Settings", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / "all.json"
    download.value.save_as(path)
    page.keyboard.press("Escape")
    other = visit(served[0])
    other.locator("#import-file").set_input_files(path)
    other.locator("#conversations .open").click()
    assert finished(other).locator(".md").last.text_content() == text
    [kept] = stored(other)
    assert kept["system"] == "Be brief." and kept["sampling"] == {"temperature": 0.25, "max_tokens": 8}
    for n, broken in enumerate(["no json", "{}", '{"format": "qtransformers-conversations", "conversations": [{"messages": {"a": 1}}]}',
                                json.dumps({"format": "qtransformers-conversations", "conversations": [{"messages": {"a": {"id": "a", "parent": "a", "role": "user", "content": ""}}}]})]):  # fmt: skip
        path.write_text(broken)
        other.locator("#import-file").set_input_files(path)
        words = ["not JSON", "no “format”", "no role or no text", "in a circle"][n]
        other.locator(".toast", has_text=words).wait_for()
        assert len(stored(other)) == 1


def test_settings_show_the_model_s_own_are_checked_and_sent(page):
    page.get_by_role("button", name="Settings", exact=True).click()
    field = page.locator("#set-temperature")
    assert field.input_value() == "" and field.get_attribute("placeholder") == "1"
    assert page.locator("#set-top_k").get_attribute("placeholder") == "0"
    for name, wrong, words in (
        ("temperature", "-1", "from 0 to 100"),
        ("top_k", "1.5", "whole number"),
        ("top_p", "2", "from 0 to 1"),
    ):
        page.locator(f"#set-{name}").fill(wrong)
        assert words in page.locator(f"#set-{name}-error").inner_text()
        assert page.locator(f"#set-{name}").get_attribute("aria-invalid") == "true"
    page.get_by_text("Stop texts, structure, tools").click()
    page.locator("#set-schema").fill("{")
    assert "not JSON" in page.locator("#set-schema-error").inner_text()
    page.locator("#set-stop").fill("fox\nbear")
    page.locator("#set-seed").fill("7")
    page.locator("#set-max_tokens").fill("5")
    page.locator("#set-system").fill("Tell stories.")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, STORY)
    sent = request.value.post_data_json
    assert set(sent) == {"model", "messages", "stream", "stream_options", "seed", "max_tokens", "stop"}
    assert (sent["seed"], sent["max_tokens"], sent["stop"]) == (7, 5, ["fox", "bear"])
    assert sent["messages"][0] == {"role": "system", "content": "Tell stories."}
    finished(page)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("button", name="Back to the model’s defaults").click()
    assert (
        page.locator("#set-seed").input_value() == "" and page.locator("#set-system").input_value() == "Tell stories."
    )


def test_every_field_of_the_drawer_is_one_that_the_server_takes(page):
    values = {"regex": "[a-z ]*", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 5, "seed": 1, "repetition_penalty": 1.1, "frequency_penalty": 0.1,
              "presence_penalty": 0.1, "penalty_range": 64, "typical_p": 0.9, "top_n_sigma": 2, "dry_multiplier": 0.8, "dry_base": 1.75,
              "dry_allowed_length": 2, "xtc_probability": 0.1, "xtc_threshold": 0.1, "dynatemp_range": 0.1, "mirostat_eta": 0.1, "stop": "zzz"}  # fmt: skip
    settle(page, **values)
    with page.expect_response("**/v1/chat/completions") as response:
        send(page, STORY)
    assert response.value.status == 200
    sent = response.value.request.post_data_json
    assert {name: sent[name] for name in values} == values | {"stop": ["zzz"]}
    shown = {i.get_attribute("name") for i in page.locator("#fields :is(input, textarea)").all()}
    assert shown - set(values) == {"system", "schema", "tools", "mirostat_tau"}
    finished(page)


def test_the_model_is_chosen_among_the_server_s(page):
    assert page.locator("#model option").all_inner_texts() == ["demo", "gpt-test"]
    page.locator("#model").select_option("gpt-test")
    settle(page, max_tokens=4)
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, STORY)
    assert request.value.post_data_json["model"] == "gpt-test"
    finished(page)
    page.reload()
    finished(page)
    assert page.locator("#model").input_value() == "gpt-test"


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
        settle(page, max_tokens=4)
        send(page, STORY)
        assert "4 tokens" in finished(page).locator(".stats").inner_text()
        page.reload()
        finished(page)
        assert not dialog.is_visible() and page.evaluate("localStorage.getItem('qtransformers.key')") is None


def test_a_key_that_is_no_longer_good_is_asked_for_and_the_question_asked_again(visit, demo):
    with running([demo], ServerConfig(port=0, keys={"one": hashed(KEY)})) as (url, _):
        page = visit(url)
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        page.locator("#model option").first.wait_for(state="attached")
        settle(page, max_tokens=4)
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
        settle(page, max_tokens=4)
        entry = server.models.entries[0]
        entry.answers += 4  # as many as there may be
        send(page, STORY)
        page.locator("#log").get_by_text(re.compile(r"The server is full. Trying again in \d+ s.")).wait_for()
        entry.answers -= 4
        assert "4 tokens" in finished(page).locator(".stats").inner_text()


def test_a_conversation_that_is_too_long_says_both_counts(page):
    send(page, "fox " * 1100)
    error = finished(page).locator(".error")
    assert error.locator("strong").inner_text() == "Too long for this model"
    counts = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", error.inner_text())]
    assert 1024 in counts and any(n > 1024 for n in counts)
    error.get_by_role("button", name="New conversation").click()
    page.locator(".empty").wait_for()


def test_a_server_that_is_gone_is_said_and_found_again(page):
    settle(page, max_tokens=4)
    page.context.set_offline(True)
    send(page, STORY)
    assert finished(page).locator(".error strong").inner_text() == "No connection"
    assert page.locator("#banner").inner_text().startswith("The server cannot be reached")
    page.context.set_offline(False)
    page.locator("#banner").wait_for(state="hidden")
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("2/2").wait_for()
    assert "4 tokens" in finished(page).locator(".stats").inner_text()


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


def test_an_error_amid_the_answer_keeps_what_came(page):
    body = 'data: {"choices": [{"delta": {"content": "So far"}}]}\n\ndata: {"error": {"message": "the model was unloaded", "code": "model_error"}}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    send(page, STORY)
    answer = finished(page)
    assert answer.locator(".md").last.inner_text() == "So far"
    assert answer.locator(".error").inner_text().startswith("The server failed\nThe model was unloaded")


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


def test_an_answer_follows_a_schema(page):
    settle(page, schema='{"enum": ["yes", "no"]}', temperature=0)
    send(page, STORY)
    assert finished(page).locator(".md").last.text_content() in ('"yes"', '"no"')


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


def test_two_tabs_show_the_same_conversations(page, served):
    settle(page, max_tokens=4)
    other = page.context.new_page()
    other.goto(served[0])
    send(page, STORY)
    finished(page)
    other.locator("#conversations .open").click()
    assert finished(other).locator(".md").last.text_content() == page.locator(".message.assistant > .md").text_content()
    settle(other, max_tokens=4)
    send(other, "More.")
    finished(other, 2)
    finished(page, 2)
    assert page.locator(".message.user .text").all_inner_texts() == [STORY, "More."]


def test_a_browser_that_keeps_nothing_is_told_of(visit, served):
    page = visit(served[0])
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined }); Storage.prototype.setItem = Storage.prototype.getItem = () => { throw new Error('forbidden'); };")  # fmt: skip
    page.reload()
    page.get_by_text("This browser keeps nothing").wait_for()
    send(page, STORY)
    finished(page)
    assert page.locator("#conversations .open").count() == 1


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
