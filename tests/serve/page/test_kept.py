"""What the page keeps in the browser: conversations, settings, the chosen model."""

import json

from talking import STORY, finished, send, settle


def stored(page):
    """The conversations that the browser keeps."""
    return page.evaluate("""() => new Promise((resolve) => {
      indexedDB.open("qtransformers").onsuccess = (e) => {
        e.target.result.transaction("conversations").objectStore("conversations").getAll().onsuccess = (f) => resolve(f.target.result);
      };
    })""")


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


def test_an_answer_follows_a_schema(page):
    settle(page, schema='{"enum": ["yes", "no"]}', temperature=0)
    send(page, STORY)
    assert finished(page).locator(".md").last.text_content() in ('"yes"', '"no"')


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
