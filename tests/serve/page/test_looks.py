"""How the page looks and what it is without eyes or a mouse: widths, contrast, keyboard, accessibility."""

import pytest

from talking import STORY, finished, grown, says, send, settle, stepped, until

RICH = """# A heading

Text with `code`, a [link](https://example.org) and https://example.org/a/very/long/address/that/does/not/break/anywhere/at/all/for/a/very/long/time.

| one column | another column | a third column | and a fourth column |
|---|---|---|---|
| cell | cell | cell | cell |

> quoted

- [x] done

```python
a_long_line_of_code = "that is longer than the page of a phone is wide, so that it has to scroll within its own box"
```
"""
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

# Every text that can be seen, with its contrast to what lies behind it (WCAG 2.2, relative luminance).
CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const over = (top, under) => [0, 1, 2].map((i) => (top[i] * top[3] + under[i] * (255 - top[3])) / 255).concat(255);
  const behind = (e) => { const layers = []; for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor)); return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 255]); };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let t; (t = walker.nextNode()); ) {
    const e = t.parentElement;
    if (!t.data.trim() || !e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) || e.closest(".unseen, .skip, option, :disabled")) continue;
    const back = behind(e), front = over(rgba(getComputedStyle(e).color), back);
    const [light, dark] = [luminance(front), luminance(back)].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), t.data.trim().slice(0, 40), e.className]);
  }
  return found;
}"""


@pytest.fixture
def rich(visit, served):
    """`rich(**context)`: the page with an answer that has everything in it."""

    def open(**options):
        page = visit(served[0], **options)
        page.evaluate("(text) => localStorage.setItem('qtransformers.last', JSON.stringify({ sampling: { temperature: 0, regex: text } }))", expression(RICH))  # fmt: skip
        page.reload()
        until(page, "document.querySelector('#model').options.length")
        page.locator("#input").fill("Everything, please.")
        page.get_by_role("button", name="Send").click()
        finished(page)
        page.locator(".code").wait_for()
        return page

    return open


def expression(text):
    return "".join(c if c.isalnum() or c in " <>=\n\"',/:_" else "\\" + c for c in text)


def test_a_phone_shows_all_of_it_without_moving_sideways(rich):
    page = rich(**PHONE)
    for selector in ("html", "#log"):
        wide, room = page.evaluate(
            f"(() => {{ const e = document.querySelector('{selector}'); return [e.scrollWidth, e.clientWidth]; }})()"
        )
        assert wide <= room <= 360
    assert page.evaluate(
        "[...document.querySelectorAll('.code pre, .table')].every((e) => e.scrollWidth > e.clientWidth)"
    )  # they scroll themselves
    small = page.evaluate("""() => [...document.querySelectorAll("button, select, textarea, summary")].filter((e) => e.checkVisibility())
      .map((e) => [e.getBoundingClientRect(), e.getAttribute("aria-label") ?? e.textContent]).filter(([r]) => r.width < 24 || r.height < 24 || r.right > 360)""")
    assert not small
    page.get_by_role("button", name="Conversations").tap()
    page.locator("#conversations .open").first.wait_for()
    assert page.evaluate("document.querySelector('#stage').inert && document.activeElement.id === 'new'")
    page.keyboard.press("Escape")
    until(
        page,
        "!document.querySelector('#stage').inert && getComputedStyle(document.querySelector('#side')).visibility === 'hidden'",
    )
    page.get_by_role("button", name="Settings", exact=True).tap()
    assert page.evaluate(
        "document.querySelector('#settings').scrollWidth <= document.querySelector('#settings').clientWidth"
    )
    page.keyboard.press("Escape")
    page.locator("#input").press("Enter")  # a phone's only key for a new line
    assert page.locator("#input").input_value() == "\n"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(rich, scheme):
    page = rich(color_scheme=scheme)
    states = {"answer": page.evaluate(CONTRASTS)}
    page.context.set_offline(True)
    send(page, STORY)
    finished(page, 2)
    page.locator("#banner").wait_for()
    states["error"] = page.evaluate(CONTRASTS)
    page.context.set_offline(False)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.locator("#set-top_p").fill("7")
    states["settings"] = page.evaluate(CONTRASTS)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").first.click()
    states["empty"] = page.evaluate(CONTRASTS)
    for state, found in states.items():
        assert len(found) > 10, state
        assert min(found)[0] >= 4.5, (state, min(found))


def test_the_switch_goes_round_the_schemes_and_stays(visit, served):
    page = visit(served[0], color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Colours: as the system has them").click()
    page.get_by_role("button", name="Colours: light").click()
    page.get_by_role("button", name="Colours: dark").wait_for()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    page.get_by_role("button", name="Colours: dark").click()
    assert page.evaluate(ground) == light


def from_the_top(page):
    """The next Tab leads to the page's first element."""
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")


def test_all_of_it_can_be_done_with_the_keyboard(page):
    from_the_top(page)
    names = "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent).trim()"
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate(names))
    assert order[:4] == ["Skip to the message field", "Skip to the conversation", "New conversation", "Model"]
    assert order[4:6] == ["Colours: as the system has them", "Settings"] and order[-2:] == ["Message", "Send"]
    from_the_top(page)
    page.keyboard.press("Tab")
    assert page.locator(".skip").first.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "input"
    settle(page, max_tokens=4)
    page.locator("#input").focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Control+Enter")
    finished(page)
    assert page.locator(".message.user .text").inner_text() == "one\ntwo"
    assert page.evaluate("document.activeElement.id") == "input"
    focused = page.evaluate("""() => [...document.querySelectorAll("button, a, select, input, textarea")].filter((e) => e.checkVisibility() && !e.disabled)
      .filter((e) => { e.focus({ focusVisible: true }); const s = getComputedStyle(e), b = getComputedStyle(e.closest(".box") ?? e);
        return document.activeElement === e && s.outlineStyle === "none" && b.outlineStyle === "none"; }).map((e) => e.outerHTML)""")
    assert not focused


def test_what_is_heard(page, served):
    says(page, "A word. " * 60)
    with stepped(served) as allow:
        send(page, STORY)
        grown(page, allow, "document.querySelector('.message.assistant')?.getAttribute('aria-busy') === 'true'")
        assert page.locator("#log").get_attribute("aria-live") == "off"  # not each word
    answer = finished(page)
    assert answer.get_attribute("aria-busy") is None
    until(page, "document.querySelector('#announcer').textContent.startsWith('A word. A word.')")
    assert [
        page.get_by_role("log").count(),
        page.get_by_role("main").count(),
        page.get_by_role("navigation").count(),
    ] == [1, 1, 1]
    assert page.get_by_role("heading", name="You").count() == page.get_by_role("heading", name="demo").count() == 1
    assert page.get_by_role("meter", name="Context used").get_attribute("aria-valuemax") == "1024"


def test_nothing_moves_for_those_who_want_that(visit, served):
    page = visit(served[0], reduced_motion="reduce", **PHONE)
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s' || getComputedStyle(e).animationName !== 'none').length"
    assert page.evaluate(moving) == 0
    assert visit(served[0], **PHONE).evaluate(moving) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(rich, axe, scheme):
    page = rich(color_scheme=scheme)

    def violations():
        found = page.evaluate(axe + "; axe.run(document, { resultTypes: ['violations'] })")
        return [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]]

    assert violations() == []
    page.get_by_role("button", name="Settings", exact=True).click()
    for summary in page.locator("#fields summary").all():
        summary.click()
    assert violations() == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").first.click()
    assert violations() == []
